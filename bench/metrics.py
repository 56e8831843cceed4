"""Measures of a ranking, as revisitop defines them (Radenovic et al., CVPR 2018, evaluate.py; docs/protocols.md).

All functions take 0-based ranks of the positives in a ranking from which ignored images have been removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np


def positive_ranks(ranking: np.ndarray, positives: Collection[int], ignored: Collection[int]) -> np.ndarray:
    """0-based ranks of `positives` in `ranking` (n,) after the `ignored` images are taken out, ascending.

    An image in both sets counts as positive, as in revisitop.
    """
    is_positive = np.isin(ranking, np.fromiter(positives, dtype=np.int64, count=len(positives)))
    is_ignored = np.isin(ranking, np.fromiter(ignored, dtype=np.int64, count=len(ignored))) & ~is_positive
    return (np.flatnonzero(is_positive) - np.cumsum(is_ignored)[is_positive]).astype(np.int64)


def ranks_in(ranking: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(p,) 0-based rank of each of the images in a ranking (n,), -1 where it is not there. One look at each rank.

    >>> ranks_in(np.array([7, 3, 9, 1]), np.array([9, 2, 7]))
    array([ 2, -1,  0])
    """
    asked = np.zeros(max(ranking.max(initial=-1), images.max(initial=-1)) + 1, np.bool_)
    asked[images] = True
    at = np.flatnonzero(asked[ranking])
    found = ranking[at]
    sort = np.argsort(found, kind="stable")
    place = np.searchsorted(found[sort], images).clip(max=len(at) - 1)
    there = found[sort][place] == images if len(at) else np.zeros(len(images), np.bool_)
    return np.where(there, at[sort][place] if len(at) else -1, -1)


def without(ranks: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Ranks, ascending, when the images at the ranks `ignored` are taken out; neither is negative.

    >>> without(np.array([9, 2]), np.array([0, 5]))
    array([1, 7])
    """
    ranks = np.sort(ranks)
    return ranks - np.searchsorted(np.sort(ignored), ranks)


def average_precision(ranks: np.ndarray, n_positives: int) -> float:
    """Trapezoidal average precision; positives that were not retrieved add nothing. NaN without positives.

    The j-th positive at rank r adds the mean of j / r (1 at rank 0) and (j + 1) / (r + 1), over `n_positives`.
    """
    if n_positives == 0:
        return float("nan")
    found = np.arange(len(ranks), dtype=np.float64)
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    total = 0.0
    for step in (before + after) * (1.0 / n_positives) / 2.0:  # summed in rank order, as the reference does
        total += step
    return float(total)


def precision_at(ranks: np.ndarray, k: int, n_positives: int) -> float:
    """revisitop's precision at k: the denominator shrinks to the rank of the last positive. NaN without positives.

    With fewer relevant images than k, all ranked early, this is above the textbook hits / k.
    """
    if n_positives == 0:
        return float("nan")
    if len(ranks) == 0:
        return 0.0
    denominator = min(int(ranks[-1]) + 1, k)
    return float((ranks + 1 <= denominator).sum() / denominator)


def recall_at(ranks: np.ndarray, k: int, n_positives: int) -> float:
    """1 if any positive is among the first k, else 0 (Stanford Online Products' R@k). NaN without positives."""
    return float("nan") if n_positives == 0 else float(len(ranks) > 0 and ranks[0] < k)


def truncated_precision(ranks: np.ndarray, k: int, n_positives: int) -> float:
    """Google Landmarks' average precision at k: rectangular, over the lesser of k and the positives.

    The sum over the positives among the first k of the precision at their rank. NaN without positives. Of three
    positives two are among the first 4, in places 1 and 4: precisions 1 and 2/4, over 3.

    >>> truncated_precision(np.array([0, 3, 7]), 4, 3)
    0.5
    """
    if n_positives == 0:
        return float("nan")
    found = np.sort(ranks[ranks < k])
    return float(((np.arange(len(found)) + 1) / (found + 1)).sum() / min(n_positives, k))


def precision_with_query(ranks: np.ndarray, n_positives: int) -> float:
    """Rectangular average precision of the list with the query itself at its head, as GPR1200 has it.

    The query counts as a positive. NaN without other positives. One other, in second place without the query: the
    precisions are 1 of the query and 2/3 of the other, over 2.

    >>> round(precision_with_query(np.array([1]), 1), 4)
    0.8333
    """
    if n_positives == 0:
        return float("nan")
    found = np.sort(ranks)
    return float((1 + ((np.arange(len(found)) + 2) / (found + 2)).sum()) / (n_positives + 1))


@dataclass(frozen=True)
class Measure:
    """A number in [0, 1] for the ranking of a query; tables show its mean over queries.

    `lacking` is the value of a query without positives: NaN leaves it out of the mean, 0 counts it as missed.
    """

    name: str  # of the mean over queries, and in files
    of_query: str  # of the value of one query
    meaning: str  # of the mean
    value: Callable[..., float]  # of the 0-based ranks of the positives found, ascending, and `n_positives`
    protocols: tuple[str, ...]  # that have it
    shown: bool = True  # in tables; a primary measure always is
    digits: int = 1  # behind the point, in percent
    better: int = 1  # +1: more is better, -1: less
    lacking: float = float("nan")

    def __post_init__(self) -> None:
        if self.better not in (1, -1):
            raise ValueError(f"measure {self.name}: better is {self.better}, expected 1 or -1")


def _table(*measures: Measure) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


# Adding a measure is adding it here. The first one of a protocol is its primary measure.
MEASURES: Mapping[str, Measure] = _table(
    Measure("mAP", "AP", "mean average precision", average_precision, ("revisited", "instance")),
    Measure(
        "mAP with query",
        "AP with query",
        "mean of the rectangular average precision of lists that begin with the query itself",
        precision_with_query,
        ("gpr1200",),
    ),
    Measure(
        "mAP@100",
        "AP@100",
        "mean of the rectangular average precision at 100",
        partial(truncated_precision, k=100),
        ("gldv2", "met"),
    ),
    *(
        Measure(
            f"mP@{k}",
            f"P@{k}",
            f"mean precision at {k}, over the rank of the last positive found where that is smaller",
            partial(precision_at, k=k),
            ("revisited",),
            shown=k == 10,
        )
        for k in (1, 5, 10)
    ),
    *(
        Measure(
            f"R@{k}",
            f"R@{k}",
            f"share of queries with a positive in the top {k}",
            partial(recall_at, k=k),
            {5: ("instance",), 1000: ("sop",)}.get(k, ("instance", "sop", "gpr1200", "met")),
            shown=k != 5,
        )
        for k in (1, 5, 10, 100, 1000)
    ),
    Measure(
        "mAP@1000",
        "AP@1000",
        "mean of the rectangular average precision at 1000",
        partial(truncated_precision, k=1000),
        ("ilias",),
    ),
    *(
        Measure(
            f"Recall@{k}",
            f"Recall@{k}",
            f"share of all queries with a positive in the top {k}; one without any positive counts as missed",
            partial(recall_at, k=k),
            ("vpr",),
            shown=k not in (20, 100),
            lacking=0.0,
        )
        for k in (1, 5, 10, 20, 100)
    ),
)


def measures(protocol: str) -> tuple[str, ...]:
    """Names of a protocol's measures, its primary one first."""
    return tuple(name for name, measure in MEASURES.items() if protocol in measure.protocols)


def primary(protocol: str) -> Measure:
    """The measure that a protocol's rows are ordered and compared by."""
    return MEASURES[measures(protocol)[0]]


def measure(ranks: np.ndarray, n_positives: int, name: str) -> float:
    """The measure of that name, for example mAP, mP@10 or R@1, from the 0-based ranks of the positives found.

    >>> measure(np.array([], np.int64), 0, "R@1"), measure(np.array([], np.int64), 0, "Recall@1")
    (nan, 0.0)
    """
    found = MEASURES[name]
    return found.value(ranks, n_positives=n_positives) if n_positives else found.lacking


def evaluate_query(
    ranking: np.ndarray, positives: Collection[int], ignored: Collection[int], names: Sequence[str]
) -> dict[str, float]:
    """Every named measure of one ranking."""
    ranks = positive_ranks(ranking, positives, ignored)
    return {name: measure(ranks, len(positives), name) for name in names}


def mean(values: Sequence[float]) -> float:
    """Mean over the queries that have positives; NaN if none has."""
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")
