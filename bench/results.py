"""A run on disk: what was asked, what was measured, and the tables derived from it.

run.json          identity, provenance, what each method did, status
shortlist.npz     the sealed candidates
dataset.json      queries, gallery and ground truth as they were
journal.jsonl     per query and method, while it runs and afterwards
scores.parquet    method, list, query, candidate, score
details.parquet   method, list, query, candidate, name, value: the raw numbers behind a score, where a method gives them
ledger.parquet    method, query, pairs, load_ms, transfer_ms, score_ms
metrics.parquet   method, query, difficulty, measure, value
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.blend import Blend
from bench.datasets import Dataset, Instances, Query
from bench.errors import UserError
from bench.evaluation import COLUMNS, Rankings, evaluate
from bench.files import read_json, write_whole
from bench.journal import Journal, Record
from bench.places import slug
from bench.shortlist import UNION, Shortlist

FORMAT = 2  # of a run's folder; folders of another format are left out of reports
CHUNK = 500  # queries whose scores are held at a time
NAMED = 5  # runs that are left out, in a note
# what a table needs of a finished run's run.json
KEYS: Mapping[str, Mapping[str, type]] = {
    "": {
        "finished": str,
        "identity": dict,
        **dict.fromkeys(("costs", "cards", "defaults", "skipped", "failed", "unreadable", "cold", "provenance"), dict),
    },
    "identity": {"seal": str, "shortlist": dict, "hardware": dict, "methods": dict},
}
PAIR = {"method": pa.string(), "list": pa.string(), "query": pa.string(), "candidate": pa.string()}
TIMES = {"load_ms": pa.float64(), "transfer_ms": pa.float64(), "score_ms": pa.float64()}
TABLES = {
    "scores": pa.schema({**PAIR, "score": pa.float64()}),
    "details": pa.schema({**PAIR, "name": pa.string(), "value": pa.float64()}),
    "ledger": pa.schema({"method": pa.string(), "query": pa.string(), "pairs": pa.int64(), **TIMES}),
    "metrics": pa.schema(dict.fromkeys(COLUMNS, pa.string()) | {"value": pa.float64()}),
}


def run_name(identity: Mapping[str, Any]) -> str:
    """Folder name of a run: readable, and different for any other identity."""
    header = identity["shortlist"]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return f"{slug(header['dataset'])}-{slug(header['features'])}-{header['policy']}-k{header['k']}-{digest}"


def write_json(path: Path, content: object) -> None:
    """Write whole or not at all. OSError."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True))


def save_dataset(path: Path, dataset: Dataset, gallery: Iterable[str]) -> None:
    """Queries and ground truth, and the files of these images of the gallery."""
    write_json(
        path,
        {
            "name": dataset.name,
            "protocol": dataset.protocol,
            "image_set": dataset.image_set,
            "queries": [[q.id, str(q.image), q.box] for q in dataset.queries],
            "gallery": {image: str(dataset.gallery[image]) for image in gallery},
            **_truth(dataset.grades),
        },
    )


def _truth(grades: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """Instances as their members: their grades would grow with the square of them."""
    if isinstance(grades, Instances):
        return {"instances": grades.members}
    return {"grades": {query: dict(graded) for query, graded in grades.items()}}


def load_dataset(path: Path) -> Dataset:
    content = json.loads(path.read_text())
    queries = tuple(Query(i, Path(image), None if box is None else tuple(box)) for i, image, box in content["queries"])
    return Dataset(
        content["name"],
        content["protocol"],
        content["image_set"],
        queries,
        {image: Path(file) for image, file in content["gallery"].items()},
        Instances(content["instances"]) if "instances" in content else content["grades"],
    )


def write_tables(
    folder: Path, journal: Journal, methods: Sequence[str], shortlist: Shortlist, dataset: Dataset
) -> None:
    """The four tables of a scored run, some queries at a time. OSError if they cannot be written."""
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(pq.ParquetWriter(folder / f"{name}.parquet.tmp", schema))
            for name, schema in TABLES.items()
        }
        for start in range(0, len(shortlist.queries), CHUNK):
            numbers = range(start, min(start + CHUNK, len(shortlist.queries)))
            records = [(n, journal.read(method, shortlist.queries[n])) for n in numbers for method in methods]
            found = tables(((n, record) for n, record in records if record is not None), shortlist)
            found["metrics"] = evaluate(Rankings(found["scores"], shortlist, dataset), methods, numbers)
            for name, table in found.items():
                writers[name].write_table(pa.Table.from_pandas(table, TABLES[name], preserve_index=False))
    for name in TABLES:
        os.replace(folder / f"{name}.parquet.tmp", folder / f"{name}.parquet")


def tables(records: Iterable[tuple[int, Record]], shortlist: Shortlist) -> dict[str, pd.DataFrame]:
    """Scores, details and ledger of (number of the query, record) as long tables."""
    rows: dict[str, list[pd.DataFrame]] = {name: [_empty(name)] for name in ("scores", "details")}
    ledger = []
    for number, record in records:
        for name, values in record.scores.items():
            candidates = shortlist.union(number) if name == UNION else shortlist.candidates(name, number)
            pairs = {
                "method": record.method,
                "list": name,
                "query": record.query,
                "candidate": [shortlist.gallery[c] for c in candidates],
            }
            rows["scores"].append(pd.DataFrame({**pairs, "score": values}))
            for what, numbers in record.details.get(name, {}).items():
                rows["details"].append(pd.DataFrame({**pairs, "name": what, "value": numbers}))
        times = {what: getattr(record, what) for what in TIMES}
        ledger.append({"method": record.method, "query": record.query, "pairs": record.pairs, **times})
    joined = {name: pd.concat(parts[1:] or parts, ignore_index=True) for name, parts in rows.items()}
    return joined | {"ledger": pd.DataFrame(ledger, columns=TABLES["ledger"].names)}


def _empty(name: str) -> pd.DataFrame:
    return pd.DataFrame(columns=TABLES[name].names)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, read from its folder; the tables are read when first asked for."""

    folder: Path
    about: Mapping[str, Any]  # run.json

    @staticmethod
    def load(folder: Path) -> Run:
        try:
            about = read_json(folder / "run.json")
            if not isinstance(about, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            reason = f"run.json: {_why(error)}"
            raise UserError(f"{folder}: not a run ({reason})", hint="delete or move that folder") from error
        return Run(folder, about)

    @property
    def finished(self) -> bool:
        return self.about.get("status") == "finished" and self.about.get("format") == FORMAT

    def damage(self) -> str:
        """What is wrong with the files of a finished run, or nothing; its scores and measures are not gone through."""
        if lacking := _lacking(self.about):
            return lacking
        inside = f"{self.folder}{os.sep}"  # names of files need no folder
        try:
            shortlist, dataset = Shortlist.load(self.folder / "shortlist.npz"), Run(self.folder, self.about).dataset
            if shortlist.seal != self.seal:
                return "shortlist.npz: its seal is not that of run.json"
            if shortlist.queries != tuple(query.id for query in dataset.queries):
                return "dataset.json: its queries are not those of shortlist.npz"
        except UserError as error:
            return error.message.replace(inside, "")
        for name, schema in TABLES.items():
            try:
                columns = pq.read_schema(self.folder / f"{name}.parquet").names
            except (OSError, ValueError) as error:
                return f"{name}.parquet: {_why(error)}".replace(inside, "")
            if missing := set(schema.names) - set(columns):
                return f"{name}.parquet: no column {', '.join(sorted(missing))}"
        return ""

    @property
    def seal(self) -> str:
        return str(self.about["identity"]["seal"])

    @cached_property
    def shortlist(self) -> Shortlist:
        return Shortlist.load(self.folder / "shortlist.npz")

    @cached_property
    def dataset(self) -> Dataset:
        try:
            return load_dataset(self.folder / "dataset.json")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.folder / 'dataset.json'}: cannot be read ({_why(error)})", hint="run again"
            ) from error

    @cached_property
    def scores(self) -> pd.DataFrame:
        return self._table("scores")

    @cached_property
    def details(self) -> pd.DataFrame:
        return self._table("details")

    @cached_property
    def ledger(self) -> pd.DataFrame:
        return self._table("ledger")

    def metrics(self, blend: Blend = Blend()) -> pd.DataFrame:
        """Per-query measures; stored for the plain blend, replayed from the scores for any other."""
        return self._table("metrics") if blend == Blend() else evaluate(self.rankings(blend))

    def rankings(self, blend: Blend = Blend()) -> Rankings:
        """What every method ranks, from the stored scores."""
        return Rankings(self.scores, self.shortlist, self.dataset, blend)

    def _table(self, name: str) -> pd.DataFrame:
        try:
            return pd.read_parquet(self.folder / f"{name}.parquet")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / name}.parquet: cannot be read ({error})", hint="run again") from error


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs below a folder: those that are finished and sound, and why others are left out."""

    finished: tuple[Run, ...]  # oldest first
    unfinished: tuple[str, ...]  # names of their folders; also runs of another format
    damaged: Mapping[str, str]  # name of the folder -> what is wrong

    def notes(self, folder: Path) -> list[str]:
        """What a user should hear of the runs that are left out of a report on `folder`."""
        said = [f"{folder / name} is damaged and left out: {why}" for name, why in self.damaged.items()]
        if count := len(self.unfinished):
            some = ", ".join(self.unfinished[:NAMED]) + (", …" if count > NAMED else "")
            runs = "1 run is" if count == 1 else f"{count} runs are"
            said.append(f"{runs} unfinished or of another version and left out of {folder}: {some}")
        return said


def read_runs(folder: Path, wanted: Callable[[Run], bool] = lambda run: True) -> Runs:
    """Every run below a folder; of the finished ones, those that are `wanted`."""
    finished, unfinished, damaged = [], [], {}
    for path in sorted(folder.glob("*/run.json")) if folder.is_dir() else ():
        name = path.parent.name
        try:
            run = Run.load(path.parent)
        except UserError as error:
            damaged[name] = error.message.removeprefix(f"{path.parent}: ")
            continue
        if not run.finished:
            unfinished.append(name)
        elif lacking := _lacking(run.about):
            damaged[name] = lacking
        elif wanted(run):
            if damage := run.damage():
                damaged[name] = damage
            else:
                finished.append(run)
    return Runs(tuple(sorted(finished, key=lambda run: run.about["finished"])), tuple(unfinished), damaged)


def finished_runs(folder: Path) -> list[Run]:
    """Every finished, sound run below a folder, oldest first."""
    return list(read_runs(folder).finished)


def _why(error: Exception) -> str:
    """The reason without the name of the file, which stands before it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _lacking(about: Mapping[str, Any]) -> str:
    """What a finished run's run.json does not have and every table needs, or nothing."""
    for within, kinds in KEYS.items():
        content = about[within] if within else about
        for key, kind in kinds.items():
            if not isinstance(content.get(key), kind):
                return f"run.json: {f'{within}.' if within else ''}{key} is missing or not what it should be"
    methods = about["identity"]["methods"]
    for method, card in about["cards"].items():
        if method not in methods or "control" not in card or "options" not in methods[method]:
            return f"run.json: {method} is not described"
    return "" if set(about["costs"]) <= set(about["cards"]) else "run.json: a method of its costs has no card"
