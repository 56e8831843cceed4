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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.datasets import Dataset, Query
from bench.errors import UserError
from bench.metrics import evaluate_query, measures, truth
from bench.places import slug
from bench.scores import UNION, Record
from bench.shortlist import Shortlist, reranked

FORMAT = 1  # of a run's folder; folders of another format are left out of reports
FIRST_STAGE = "(first stage)"
CEILING = "(ceiling)"
DETAILS = ("method", "list", "query", "candidate", "name", "value")


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


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    temporary = path.with_name(path.name + ".tmp")
    table.to_parquet(temporary, index=False)
    os.replace(temporary, path)


def save_dataset(path: Path, dataset: Dataset) -> None:
    write_json(
        path,
        {
            "name": dataset.name,
            "protocol": dataset.protocol,
            "image_set": dataset.image_set,
            "queries": [[q.id, str(q.image), q.box] for q in dataset.queries],
            "gallery": {image: str(file) for image, file in dataset.gallery.items()},
            "grades": {query: dict(grades) for query, grades in dataset.grades.items()},
        },
    )


def load_dataset(path: Path) -> Dataset:
    content = json.loads(path.read_text())
    queries = tuple(Query(i, Path(image), None if box is None else tuple(box)) for i, image, box in content["queries"])
    return Dataset(
        content["name"],
        content["protocol"],
        content["image_set"],
        queries,
        {image: Path(file) for image, file in content["gallery"].items()},
        content["grades"],
    )


def tables(records: Iterable[Record], shortlist: Shortlist) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores, details and ledger as long tables."""
    scores, details, ledger = [], [pd.DataFrame(columns=DETAILS)], []
    for record in records:
        query = shortlist.queries.index(record.query)
        for name, values in record.scores.items():
            candidates = shortlist.union(query) if name == UNION else shortlist.candidates(name, query)
            pairs = {
                "method": record.method,
                "list": name,
                "query": record.query,
                "candidate": [shortlist.gallery[c] for c in candidates],
            }
            scores.append(pd.DataFrame({**pairs, "score": values}))
            for what, numbers in record.details.get(name, {}).items():
                details.append(pd.DataFrame({**pairs, "name": what, "value": numbers}))
        ledger.append(
            {
                "method": record.method,
                "query": record.query,
                "pairs": record.pairs,
                "load_ms": record.load_ms,
                "transfer_ms": record.transfer_ms,
                "score_ms": record.score_ms,
            }
        )
    return pd.concat(scores, ignore_index=True), pd.concat(details, ignore_index=True), pd.DataFrame(ledger)


def evaluate(scores: pd.DataFrame, shortlist: Shortlist, dataset: Dataset, blend: Blend = Blend()) -> pd.DataFrame:
    """Every measure of every method, query and difficulty, with the first stage and the ceiling of the lists.

    The ceiling puts every positive of a list first. A method that lacks a query's scores is an error.
    """
    index = {image: i for i, image in enumerate(shortlist.gallery)}
    names, k = measures(dataset.protocol), shortlist.header.k
    by_list: dict[tuple[str, str, str], dict[int, float]] = {}
    for (method, listed, query), group in scores.groupby(["method", "list", "query"], sort=False):
        by_list[str(method), str(listed), str(query)] = dict(
            zip(group["candidate"].map(index).tolist(), group["score"].tolist(), strict=True)
        )
    methods = list(dict.fromkeys(scores["method"]))
    rows: list[tuple[str, str, str, str, float]] = []
    for number, query in enumerate(shortlist.queries):
        for difficulty in dataset.difficulties:
            name = shortlist.list_for(difficulty)
            ranking, candidates = shortlist.rankings[name][number], shortlist.candidates(name, number)
            positives, ignored = truth(dataset, index, query, difficulty)
            similarities = shortlist.similarities[number][candidates].astype(np.float64)

            def add(method: str, order: np.ndarray) -> None:
                values = evaluate_query(order, positives, ignored, names)  # noqa: B023 - called at once
                rows.extend((method, query, difficulty, measure, value) for measure, value in values.items())  # noqa: B023

            add(FIRST_STAGE, ranking)
            add(CEILING, reranked(ranking, k, np.isin(candidates, list(positives)).astype(float)))
            for method in methods:
                found = by_list.get((method, UNION, query)) or by_list.get((method, name, query))
                if found is None:
                    raise UserError(
                        f"{method}: no scores for query {query!r}; the run is not complete",
                        hint="run the same command again to finish it",
                    )
                values = blend(np.array([found[int(c)] for c in candidates]), similarities)
                add(method, reranked(ranking, k, values))
    return pd.DataFrame(rows, columns=["method", "query", "difficulty", "measure", "value"])


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
