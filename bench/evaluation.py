"""Who stands where: a query's candidates ranked by the first stage, by a method's stored scores, or as well as can be.

Tables, exports, pictures and cascades ask here, so that all of them show one ranking. Only values are read: another
blend costs no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.datasets import Dataset
from bench.errors import UserError
from bench.metrics import measure, measures, positive_ranks
from bench.shortlist import UNION, Shortlist, reranked

FIRST_STAGE = "(first stage)"
CEILING = "(ceiling)"
COLUMNS = ("method", "query", "difficulty", "measure", "value")  # of `evaluate`


@dataclass(frozen=True, eq=False)
class Rankings:
    """Rankings of every method, list and query of a shortlist, from stored scores and a blend.

    A pairwise method has scored the union of a query's lists, a listwise one each list; both are ranked list by list.
    Ties keep the first stage's order. Queries are given by number, images are indices into the shortlist's gallery.
    """

    stored: pd.DataFrame = field(repr=False)  # columns method, list, query, candidate, score
    shortlist: Shortlist
    dataset: Dataset
    blend: Blend = Blend()

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that have scores."""
        return tuple(dict.fromkeys(self.stored["method"]))

    @cached_property
    def _rows(self) -> Mapping[tuple[str, str, str], np.ndarray]:
        """method, list, query -> places in the two arrays below."""
        groups = self.stored.groupby(["method", "list", "query"], sort=False).indices
        return cast(Mapping[tuple[str, str, str], np.ndarray], groups)

    @cached_property
    def _images(self) -> np.ndarray:
        """(rows,) -1 for an image that the shortlist does not have."""
        return pd.Index(self.shortlist.gallery).get_indexer(pd.Index(self.stored["candidate"]))

    @cached_property
    def _scores(self) -> np.ndarray:
        """(rows,)"""
        return self.stored["score"].to_numpy(np.float64)

    def scores(self, method: str, name: str, query: int) -> np.ndarray:
        """(k,) scores of a list's candidates as stored, in the list's order. UserError where one is lacking."""
        of = self.shortlist.queries[query]
        rows = self._rows.get((method, UNION, of), self._rows.get((method, name, of), np.zeros(0, np.int64)))
        candidates = self.shortlist.candidates(name, query)
        images = self._images[rows]
        order = np.argsort(images, kind="stable")
        at = np.searchsorted(images[order], candidates)
        if len(rows) == 0 or (at == len(rows)).any() or (images[order][at] != candidates).any():
            raise UserError(
                f"{method}: no scores for query {of!r}; the run is not complete",
                hint="run the same command again to finish it",
            )
        return self._scores[rows[order[at]]]

    def ranking(self, method: str, difficulty: str, query: int) -> np.ndarray:
        """(k,) candidates at a difficulty, best first; FIRST_STAGE and CEILING are rankings like a method's.

        The ceiling puts every positive first. UserError for a method that lacks scores.
        """
        name = self.shortlist.list_for(difficulty)
        candidates = self.shortlist.candidates(name, query)
        if method == FIRST_STAGE:
            return candidates
        if method == CEILING:
            positives, _ = graded(self.shortlist, self.dataset, query, difficulty)
            return reranked(candidates, np.isin(candidates, positives).astype(np.float64))
        similarities = self.shortlist.similarities[name][query].astype(np.float64)
        return reranked(candidates, self.blend(self.scores(method, name, query), similarities))


def main_difficulty(dataset: Dataset) -> str:
    """The difficulty that rows are ordered and compared by: Medium, or All where there is no other."""
    return "Medium" if "Medium" in dataset.difficulties else next(iter(dataset.difficulties))


def graded(shortlist: Shortlist, dataset: Dataset, query: int, difficulty: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the shortlist's gallery of the images that are positive, and of those ignored, for a query."""
    positive, ignored = dataset.difficulties[difficulty]
    grades = dataset.grades.get(shortlist.queries[query], {})
    images, _ = shortlist.graded.of(query)
    given = [grades[shortlist.gallery[i]] for i in images]
    return images[[grade in positive for grade in given]], images[[grade in ignored for grade in given]]


def evaluate(
    rankings: Rankings, methods: Sequence[str] | None = None, queries: Iterable[int] | None = None
) -> pd.DataFrame:
    """Every measure of every method, query and difficulty, with the first stage and the ceiling of the lists.

    Of all methods that have scores and of all queries, unless they are named. A method that lacks a query's scores is a
    UserError. A row a value, with the columns COLUMNS; NaN where the query has no positive.
    """
    shortlist, dataset = rankings.shortlist, rankings.dataset
    names = measures(dataset.protocol)
    ranked = (FIRST_STAGE, CEILING, *(rankings.methods if methods is None else methods))
    rows: list[tuple[str, str, str, str, float]] = []
    for query in range(len(shortlist.queries)) if queries is None else queries:
        for difficulty in dataset.difficulties:
            positives, ignored = graded(shortlist, dataset, query, difficulty)
            tail = shortlist.tail(shortlist.list_for(difficulty), query, positives, ignored)
            for method in ranked:
                order = rankings.ranking(method, difficulty, query)
                ranks = np.concatenate([positive_ranks(order, positives, ignored), tail])
                key = (method, shortlist.queries[query], difficulty)
                rows.extend((*key, name, measure(ranks, len(positives), name)) for name in names)
    return pd.DataFrame(rows, columns=COLUMNS)
