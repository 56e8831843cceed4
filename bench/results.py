"""A run on disk: what was asked, what was measured, and the tables derived from it.

Its files::

    run.json          `bench.record`: identity, provenance, what each method did
    shortlist.npz     the sealed candidates
    dataset.json      queries, gallery and ground truth as they were
    journal.jsonl     per query and method, while it runs and afterwards
    scores.parquet    method, list, query, candidate, score
    details.parquet   method, list, query, candidate, name, value: the raw numbers behind a score, where there are some
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

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.blend import Blend
from bench.datasets import Dataset, Instances, Query
from bench.errors import UserError, listed
from bench.evaluation import COLUMNS, Rankings, evaluate
from bench.files import read_json, write_json
from bench.journal import Journal, Record
from bench.metrics import measures
from bench.places import slug
from bench.record import FILE, Identity, RunRecord, Unfinished, as_json, read_record
from bench.shortlist import UNION, Shortlist

CHUNK = 500  # queries whose scores are held at a time
NAMED = 5  # runs that are left out, in a note
PAIR = {"method": pa.string(), "list": pa.string(), "query": pa.string(), "candidate": pa.string()}
TIMES = {"load_ms": pa.float64(), "transfer_ms": pa.float64(), "score_ms": pa.float64()}
TABLES = {
    "scores": pa.schema({**PAIR, "score": pa.float64()}),
    "details": pa.schema({**PAIR, "name": pa.string(), "value": pa.float64()}),
    "ledger": pa.schema({"method": pa.string(), "query": pa.string(), "pairs": pa.int64(), **TIMES}),
    "metrics": pa.schema(dict.fromkeys(COLUMNS, pa.string()) | {"value": pa.float64()}),
}


def run_name(identity: Identity) -> str:
    """Folder name of a run: readable, and different for any other identity."""
    header = identity.shortlist
    digest = hashlib.sha256(json.dumps(as_json(identity), sort_keys=True).encode()).hexdigest()[:8]
    return f"{slug(header.dataset)}-{slug(header.first_stage)}-{header.policy}-k{header.k}-{digest}"


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
    content = read_json(path)
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
    """A finished run, read from its folder; the tables are read when first asked for, and kept."""

    folder: Path
    record: RunRecord

    @staticmethod
    def load(folder: Path) -> Run:
        """UserError for a folder that holds no run, an unfinished one or one whose record is damaged."""
        if not os.path.lexists(folder / FILE):
            raise UserError(f"{folder}: not a run (it has no {FILE})", hint="a run is a folder below --runs")
        try:
            return Run(folder, read_record(folder))
        except Unfinished as error:
            hint = "run its command again; it goes on where it stopped"
            raise UserError(f"no finished run in {folder}", hint=hint) from error
        except ValueError as error:
            raise _damaged(folder, str(error)) from error

    def damage(self) -> str:
        """What is wrong with the files beside the record, or nothing; scores and measures are not gone through."""
        inside = f"{self.folder}{os.sep}"  # names of files need no folder
        try:
            shortlist, dataset = Shortlist.load(self.folder / "shortlist.npz"), Run(self.folder, self.record).dataset
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
        return self.record.identity.seal

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

    @cached_property
    def _measured(self) -> pd.DataFrame:
        return self._table("metrics")

    def metrics(self, blend: Blend = Blend()) -> pd.DataFrame:
        """Measures of every query: as stored, or replayed from the scores for a blend or for newer measures."""
        if blend == Blend() and set(measures(self.dataset.protocol)) <= set(self._measured["measure"]):
            return self._measured
        return evaluate(self.rankings(blend))

    def whole(self) -> Run:
        """The run with all of its tables read, whatever becomes of its folder: who measures it again removes that."""
        _ = self.shortlist, self.dataset, self.scores, self.details, self.ledger, self._measured
        return self

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
    unfinished: Mapping[str, str]  # name of the folder -> the command that finishes it; empty where it is not known
    older: tuple[str, ...]  # names of the folders of runs of another format
    damaged: Mapping[str, str]  # name of the folder -> what is wrong

    def notes(self, folder: Path) -> list[str]:
        """What a user should hear of the runs that are left out of a report on `folder`."""
        said = [f"{folder / name} is damaged and left out: {why}" for name, why in self.damaged.items()]
        for name, command in list(self.unfinished.items())[:NAMED]:
            finish = f"; this finishes it: {command}" if command else ""
            said.append(f"{folder / name} is unfinished and left out{finish}")
        if (more := len(self.unfinished) - NAMED) > 0:
            said.append(f"{more} more unfinished runs in {folder} are left out")
        if self.older:
            runs = "1 run is" if len(self.older) == 1 else f"{len(self.older)} runs are"
            said.append(f"{runs} of another version and left out of {folder}: {listed(self.older, NAMED)}")
        return said


def read_runs(folder: Path, wanted: Callable[[Run], bool] = lambda run: True) -> Runs:
    """Every run below a folder; of the finished ones, those that are `wanted`."""
    finished, unfinished, older, damaged = [], {}, [], {}
    for path in sorted(folder.glob("*/run.json")) if folder.is_dir() else ():
        name = path.parent.name
        try:
            run = Run(path.parent, read_record(path.parent))
        except Unfinished as error:
            if error.older:
                older.append(name)
            else:
                unfinished[name] = error.command
            continue
        except ValueError as error:
            damaged[name] = str(error)
            continue
        if wanted(run):
            if damage := run.damage():
                damaged[name] = damage
            else:
                finished.append(run)
    by_time = tuple(sorted(finished, key=lambda run: run.record.finished))
    return Runs(by_time, unfinished, tuple(older), damaged)


def sound_run(folder: Path) -> Run:
    """The run in a folder that a user names. UserError where it is not finished or damaged."""
    run = Run.load(folder)
    if damage := run.damage():
        raise _damaged(folder, damage)
    return run


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(f"{folder} is damaged: {why}", hint="run its command again; what is lost is measured again")


def finished_runs(
    folder: Path,
    wanted: Callable[[Run], bool] = lambda run: True,
    say: Callable[[str], object] = lambda note: None,
) -> list[Run]:
    """The finished, sound runs below a folder that are `wanted`, oldest first; `say` hears why others are left out."""
    found = read_runs(folder, wanted)
    for note in found.notes(folder):
        say(note)
    return list(found.finished)


def _why(error: Exception) -> str:
    """The reason without the name of the file, which stands before it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
