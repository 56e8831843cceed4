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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.blend import Blend
from bench.datasets import Dataset, Instances, Query
from bench.errors import UserError
from bench.metrics import measure, measures, positive_ranks
from bench.places import slug
from bench.scores import UNION, Journal, Record
from bench.shortlist import Shortlist, reranked

FORMAT = 2  # of a run's folder; folders of another format are left out of reports
FIRST_STAGE = "(first stage)"
CEILING = "(ceiling)"
CHUNK = 500  # queries whose scores are held at a time
PAIR = {"method": pa.string(), "list": pa.string(), "query": pa.string(), "candidate": pa.string()}
TIMES = {"load_ms": pa.float64(), "transfer_ms": pa.float64(), "score_ms": pa.float64()}
TABLES = {
    "scores": pa.schema({**PAIR, "score": pa.float64()}),
    "details": pa.schema({**PAIR, "name": pa.string(), "value": pa.float64()}),
    "ledger": pa.schema({"method": pa.string(), "query": pa.string(), "pairs": pa.int64(), **TIMES}),
    "metrics": pa.schema(
        {name: pa.string() for name in ("method", "query", "difficulty", "measure")} | {"value": pa.float64()}
    ),
}


def run_name(identity: Mapping[str, Any]) -> str:
    """Folder name of a run: readable, and different for any other identity."""
    header = identity["shortlist"]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return f"{slug(header['dataset'])}-{slug(header['features'])}-{header['policy']}-k{header['k']}-{digest}"


def write_json(path: Path, content: object) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
    os.replace(temporary, path)


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
            found["metrics"] = evaluate(found["scores"], shortlist, dataset, methods=methods, numbers=numbers)
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


def evaluate(
    scores: pd.DataFrame,
    shortlist: Shortlist,
    dataset: Dataset,
    blend: Blend = Blend(),
    *,
    methods: Sequence[str] | None = None,
    numbers: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Every measure of every method, query and difficulty, with the first stage and the ceiling of the lists.

    The ceiling puts every positive of a list first. A method that lacks a query's scores is an error. Of some queries
    only if their `numbers` are given.
    """
    index = {image: i for i, image in enumerate(shortlist.gallery)}
    names = measures(dataset.protocol)
    by_list: dict[tuple[str, str, str], dict[int, float]] = {}
    for (method, listed, query), group in scores.groupby(["method", "list", "query"], sort=False):
        by_list[str(method), str(listed), str(query)] = dict(
            zip(group["candidate"].map(index).tolist(), group["score"].tolist(), strict=True)
        )
    methods = list(dict.fromkeys(scores["method"])) if methods is None else methods
    rows: list[tuple[str, str, str, str, float]] = []
    for number in range(len(shortlist.queries)) if numbers is None else numbers:
        query = shortlist.queries[number]
        for difficulty in dataset.difficulties:
            name = shortlist.list_for(difficulty)
            candidates = shortlist.candidates(name, number)
            positives, ignored = graded(shortlist, dataset, number, difficulty)
            tail = shortlist.tail(name, number, positives, ignored)
            similarities = shortlist.similarities[name][number].astype(np.float64)
            orders = {
                FIRST_STAGE: candidates,
                CEILING: reranked(candidates, np.isin(candidates, positives).astype(float)),
            }
            for method in methods:
                found = by_list.get((method, UNION, query)) or by_list.get((method, name, query))
                if found is None:
                    raise UserError(
                        f"{method}: no scores for query {query!r}; the run is not complete",
                        hint="run the same command again to finish it",
                    )
                values = blend(np.array([found[int(c)] for c in candidates]), similarities)
                orders[method] = reranked(candidates, values)
            for method, order in orders.items():
                ranks = np.concatenate([positive_ranks(order, positives, ignored), tail])
                rows.extend((method, query, difficulty, what, measure(ranks, len(positives), what)) for what in names)
    return pd.DataFrame(rows, columns=TABLES["metrics"].names)


def graded(shortlist: Shortlist, dataset: Dataset, number: int, difficulty: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the shortlist's gallery of the images that are positive, and of those ignored, for a query."""
    positive, ignored = dataset.difficulties[difficulty]
    grades = dataset.grades.get(shortlist.queries[number], {})
    images, _ = shortlist.graded.of(number)
    found = [grades[shortlist.gallery[i]] for i in images]
    return images[[grade in positive for grade in found]], images[[grade in ignored for grade in found]]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, read from its folder; the tables are read when first asked for."""

    folder: Path
    about: Mapping[str, Any]  # run.json

    @staticmethod
    def load(folder: Path) -> Run:
        try:
            about = json.loads((folder / "run.json").read_text())
            if not isinstance(about, dict):
                raise ValueError("run.json holds no object")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a run ({error})", hint="delete or move that folder") from error
        return Run(folder, about)

    @property
    def finished(self) -> bool:
        return self.about.get("status") == "finished" and self.about.get("format") == FORMAT

    @property
    def seal(self) -> str:
        return str(self.about["identity"]["seal"])

    @cached_property
    def shortlist(self) -> Shortlist:
        return Shortlist.load(self.folder / "shortlist.npz")

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.folder / "dataset.json")

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
        return (
            self._table("metrics") if blend == Blend() else evaluate(self.scores, self.shortlist, self.dataset, blend)
        )

    def _table(self, name: str) -> pd.DataFrame:
        try:
            return pd.read_parquet(self.folder / f"{name}.parquet")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / name}.parquet: cannot be read ({error})", hint="run again") from error


def finished_runs(folder: Path) -> list[Run]:
    """Every finished run below a folder, oldest first."""
    runs = [Run.load(path.parent) for path in sorted(folder.glob("*/run.json"))] if folder.is_dir() else []
    return sorted((run for run in runs if run.finished), key=lambda run: run.about["finished"])
