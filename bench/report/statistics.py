"""Differences between methods on the same queries, and what they are worth (docs/protocols.md, Statistics).

Only values by query are read, so no number here costs a model. Every number is drawn with one seed, from queries in
the order of their ids: equal values give equal numbers, whatever the order they come in.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from bench.datasets import INSTANCE, Instances

DRAWS = 10_000
FLIPS = 100_000  # sign flips drawn; where there are no more than that, all are looked at
SEED = 0
DRAWN = 2**22  # queries drawn at a time, which is what is held of ten thousand times sixty thousand
LEVEL, POWER = 0.05, 0.8  # of a test, two-sided
EQUAL = 1e-12  # relative; what two orders of one sum differ by
REPEATED = 32  # times that values must repeat before counting them is faster than drawing them one by one

Values = pd.Series | Sequence[pd.Series]  # values by query, NaN without positives; or several such, one a seed


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a difference; both ends are NaN where there are fewer than two units to draw from."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low > self.high or math.isnan(self.low) != math.isnan(self.high):
            raise ValueError(f"an interval from {self.low} to {self.high}")


@dataclass(frozen=True)
class Clustered:
    """Interval and p where whole groups of queries are drawn and flipped, so queries of a group may depend.

    With g groups p is at least 2 / 2^g, and with fewer than some thirty the interval tends to be too narrow.
    """

    groups: int
    interval: Interval
    p: float

    def __post_init__(self) -> None:
        _check_p(self.p)


@dataclass(frozen=True)
class Comparison:
    """A method against another on the queries that have a value in both; above zero is better for the first.

    The differences have the unit of the values. They and `detectable` are NaN where there is nothing to take them of.
    """

    difference: float  # mean over queries
    interval: Interval  # percentile bootstrap over queries, and over seeds where there are several
    p: float  # of the sign-flip randomisation test, two-sided
    wins: int  # queries on which the first is better
    ties: int
    losses: int
    dropped: int  # queries that lack a value in either
    detectable: float  # smallest difference that would be detected four times of five; of independent queries
    clustered: Clustered | None = None  # None where no groups were given

    def __post_init__(self) -> None:
        _check_p(self.p)
        if min(self.wins, self.ties, self.losses, self.dropped) < 0:
            raise ValueError("a negative number of queries")

    @property
    def queries(self) -> int:
        """How many are paired."""
        return self.wins + self.ties + self.losses


def compare(ours: Values, theirs: Values, groups: Mapping[str, Hashable] | None = None, better: int = 1) -> Comparison:
    """`ours` minus `theirs`, paired by query, times `better` (-1 for a measure of which less is better).

    A side is a Series by query, or a sequence of them, one a seed. A query's value then is the mean over the seeds,
    and it is paired if all of them have a value. `groups` gives the group of every query, as `groups_of` does.
    ValueError for another `better`, no seed, a query that is there twice or has no group, and an infinite value.

    The difference is the mean of the paired differences. `p` is the share of sign flips of these whose mean is at
    least as far from zero (Smucker et al., CIKM 2007). All flips are looked at where there are at most `FLIPS`.
    Otherwise `FLIPS` are drawn, and the observed one is counted among them, so p is never 0 (Phipson and Smyth, 2010).
    Intervals are percentiles of means of queries drawn with replacement (Efron and Tibshirani, 1993); where a side has
    several seeds, each draw draws these anew too, independently of the queries and of the other side (Owen, 2007).
    `detectable` is the difference found at level 0.05 with power 0.8, in the normal approximation from the standard
    deviation s of the n paired differences: (1.960 + 0.842) s / sqrt(n) (Bloom, 1995).

    Of the 8 flips of 0.1, 0.2 and 0.3, two have a mean of 0.2 or more in size; the query "d" has one value only:

    >>> ours = pd.Series({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5})
    >>> found = compare(ours, pd.Series({"c": 0.2, "b": 0.3, "a": 0.4, "d": float("nan")}))
    >>> round(found.difference, 6), found.p, (found.wins, found.ties, found.losses), found.dropped
    (0.2, 0.25, (3, 0, 0), 1)
    >>> round(found.detectable, 3)  # 2.802 times 0.1 / sqrt(3)
    0.162
    """
    pairs = _paired(ours, theirs, better)
    delta, n = pairs.delta, len(pairs.queries)
    alone = np.arange(n)
    clustered = None
    if groups is not None:
        unit = _numbered(pairs.queries, groups)
        clustered = Clustered(_units(unit), _interval(pairs, unit), _flipped(delta, unit))
    standard_errors = NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER)
    return Comparison(
        float(delta.mean()) if n else math.nan,
        _interval(pairs, alone),
        _flipped(delta, alone),
        int((delta > 0).sum()),
        int((delta == 0).sum()),
        int((delta < 0).sum()),
        pairs.dropped,
        float(standard_errors * delta.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        clustered,
    )


def interval_of_mean(values: pd.Series) -> Interval:
    """A 95 % interval of the mean over queries that have a value, drawn as `compare` draws its differences.

    ValueError for an infinite value and for a query that is there twice. Both ends are NaN below two values.

    >>> interval_of_mean(pd.Series({"a": 0.5, "b": 0.5, "c": float("nan")}))
    Interval(low=0.5, high=0.5)
    """
    pairs = _paired(values, pd.Series(0.0, values.index), 1)
    return _interval(pairs, np.arange(len(pairs.queries)))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p-values of several tests, corrected so that they hold together (Holm, 1979), in the order given.

    The i-th smallest of m (from 0) is multiplied by m - i, made no less than those before it, and capped at 1.
    ValueError for what is no probability.

    >>> holm([0.01, 0.04, 0.03])
    (0.03, 0.06, 0.06)
    """
    for p in p_values:
        _check_p(p)
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return tuple(adjusted.tolist())


def tied_with_best(
    values: Mapping[str, Values], groups: Mapping[str, Hashable] | None = None, better: int = 1
) -> frozenset[str]:
    """The method with the best mean, and all that the sample does not tell from it.

    The best is that of the queries for which all methods have a value; of equal ones, the first by name. It is
    compared with each other method by the test of `compare`. A method is tied if its p, corrected by `holm` over
    these comparisons, is 0.05 or more. With `groups`, whole groups are flipped; a few groups tell nothing apart.

    Being tied does not mean being equal: on few queries a large difference stays unseen (`Comparison.detectable`).
    Two tied methods may differ from each other, as both are compared with the best alone. The best of this sample
    need not be the best of another. It was chosen on the queries it is tested on, so p-values are somewhat too small.

    >>> many = [f"q{i}" for i in range(10)]
    >>> rows = {"good": pd.Series(0.9, many), "as good": pd.Series(0.9, many), "poor": pd.Series(0.1, many)}
    >>> sorted(tied_with_best(rows))
    ['as good', 'good']
    """
    if not values:
        return frozenset()
    means = {name: over_seeds(of) for name, of in sorted(values.items())}
    common = pd.concat(means, axis=1).dropna()
    best = max(means, key=lambda name: better * math.fsum(common[name].to_numpy()))
    others = [name for name in means if name != best]
    p_values = []
    for name in others:
        pairs = _paired(values[best], values[name], better)
        unit = np.arange(len(pairs.queries)) if groups is None else _numbered(pairs.queries, groups)
        p_values.append(_flipped(pairs.delta, unit))
    return frozenset({best, *(name for name, p in zip(others, holm(p_values), strict=True) if p >= LEVEL)})


def over_seeds(values: Values) -> pd.Series:
    """Means over seeds by query; NaN where a seed has no value. ValueError as of `compare`."""
    return pd.concat(_seeds(values), axis=1).astype(np.float64).mean(axis=1, skipna=False)


def groups_of(grades: Mapping[str, Mapping[str, str]], queries: Iterable[str]) -> dict[str, str]:
    """Query -> its group, named by the group's first query: queries whose values depend on the same images.

    Two queries are of one group if they share a positive, easy or hard, or if each is a positive of the other; so are
    queries that a chain of such pairs joins. A query without positives is a group of its own.
    Of `Instances` groups are the instances, and no image's positives are listed. Otherwise time and memory grow with
    the number of positives.

    >>> grades = {"a": {"1": "easy", "2": "hard"}, "b": {"2": "easy"}, "c": {"3": "easy", "1": "junk"}}
    >>> groups_of(grades, ["a", "b", "c"])
    {'a': 'a', 'b': 'a', 'c': 'c'}
    """
    asked = list(dict.fromkeys(queries))
    first: dict[Hashable, str] = {}
    return {query: first.setdefault(label, query) for query, label in zip(asked, _labels(grades, asked), strict=True)}


def _labels(grades: Mapping[str, Mapping[str, str]], queries: Sequence[str]) -> Sequence[Hashable]:
    if isinstance(grades, Instances):
        instance = {image: number for number, members in enumerate(grades.members) for image in members}
        return [instance.get(query, query) for query in queries]
    counted, _ = INSTANCE["All"]
    positives = [[image for image, grade in grades.get(query, {}).items() if grade in counted] for query in queries]
    number = {query: place for place, query in enumerate(queries)}
    node = {image: len(queries) + place for place, image in enumerate(dict.fromkeys(i for of in positives for i in of))}
    edges = [(place, node[image]) for place, of in enumerate(positives) for image in of]
    # a query may be in the gallery, as in Instances; only then do two name each other
    edges += [
        (place, number[image])
        for place, of in enumerate(positives)
        for image in of
        if image in number and grades.get(image, {}).get(queries[place]) in counted
    ]
    ends = np.array(edges, np.int64).reshape(-1, 2).T
    size = len(queries) + len(node)
    _, labels = connected_components(coo_matrix((np.ones(len(edges), np.int8), tuple(ends)), (size, size)), False)
    return labels[: len(queries)].tolist()


def _check_p(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{p} is no probability")


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The values of the queries that have one in every seed of both sides, sorted by id; more is better."""

    queries: pd.Index
    ours: np.ndarray  # (queries, seeds)
    theirs: np.ndarray  # (queries, seeds)
    dropped: int

    @property
    def delta(self) -> np.ndarray:
        """(queries,) differences of the means over seeds; 0 where rounding alone makes them differ."""
        ours, theirs = self.ours.mean(axis=1), self.theirs.mean(axis=1)
        return np.where(np.isclose(ours, theirs, rtol=EQUAL, atol=0), 0.0, ours - theirs)

    @property
    def columns(self) -> tuple[np.ndarray, tuple[int, int]]:
        """(queries, columns) whose weighted sum is the difference of the seeds drawn, and how many are each side's."""
        seeds = self.ours.shape[1], self.theirs.shape[1]
        if seeds == (1, 1):
            return self.delta[:, None], (1, 0)
        return np.hstack([self.ours, -self.theirs]), seeds


def _seeds(values: Values) -> list[pd.Series]:
    seeds = [values] if isinstance(values, pd.Series) else list(values)
    if not seeds:
        raise ValueError("values of no seed")
    for seed in seeds:
        if not seed.index.is_unique:
            raise ValueError(f"query {seed.index[seed.index.duplicated()][0]!r} has two values")
        if np.isinf(seed.to_numpy(np.float64)).any():
            raise ValueError("an infinite value")
    return seeds


def _paired(ours: Values, theirs: Values, better: int) -> _Pairs:
    if better not in (1, -1):
        raise ValueError(f"better is {better}, expected 1 or -1")
    sides = _seeds(ours), _seeds(theirs)
    table = pd.concat([*sides[0], *sides[1]], axis=1).astype(np.float64).sort_index()
    kept = table.dropna()
    values = better * kept.to_numpy()
    return _Pairs(kept.index, values[:, : len(sides[0])], values[:, len(sides[0]) :], len(table) - len(kept))


def _numbered(queries: pd.Index, groups: Mapping[str, Hashable]) -> np.ndarray:
    """(queries,) numbers of the groups, from 0 in the order of their first query."""
    if (lacking := next((query for query in queries if query not in groups), None)) is not None:
        raise ValueError(f"query {lacking!r} has no group")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(groups[query], len(numbers)) for query in queries], np.int64)


def _units(unit: np.ndarray) -> int:
    return int(unit.max(initial=-1)) + 1


def _flipped(delta: np.ndarray, unit: np.ndarray) -> float:
    """Two-sided p of the mean of `delta` when the signs of whole units, numbered by `unit`, are flipped."""
    sums = np.bincount(unit, weights=delta)
    observed = abs(sums.sum()) - EQUAL * np.abs(delta).sum()  # what rounding makes less is as far from zero
    sums = sums[sums != 0]  # flipping these changes nothing
    if 2 ** len(sums) <= FLIPS:
        return float((np.abs(_all_flips(sums)) >= observed).mean())
    draw, totals = np.random.default_rng(SEED), np.zeros(FLIPS)
    for start in range(0, len(sums), 8):  # a random byte is eight signs, and a table has what they give
        table = _all_flips(sums[start : start + 8])
        totals += table[draw.integers(len(table), size=FLIPS, dtype=np.uint8)]
    return float(((np.abs(totals) >= observed).sum() + 1) / (FLIPS + 1))


def _all_flips(values: np.ndarray) -> np.ndarray:
    """(2^n,) sums of (n,) values under all choices of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _interval(pairs: _Pairs, unit: np.ndarray) -> Interval:
    """Percentiles of the mean over queries when whole units, numbered by `unit`, are drawn, and seeds too."""
    if _units(unit) < 2:
        return Interval(math.nan, math.nan)
    columns, sides = pairs.columns
    sums = np.column_stack([np.bincount(unit), *(np.bincount(unit, weights=column) for column in columns.T)])
    draw, draw_seeds = np.random.default_rng(SEED), np.random.default_rng(SEED + 1)
    # (draws, columns): how often each seed is drawn, as a share of its side's draws
    weights = np.hstack([draw_seeds.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n for n in sides if n])
    totals = np.concatenate(list(_drawn(draw, sums)))
    low, high = np.percentile((totals[:, 1:] * weights).sum(axis=1) / totals[:, 0], [100 * LEVEL / 2, 100 - 50 * LEVEL])
    return Interval(float(low), float(high))


def _drawn(draw: np.random.Generator, rows: np.ndarray) -> Iterator[np.ndarray]:
    """(some, columns) sums of as many rows as there are, drawn with replacement; `DRAWS` in all."""
    distinct, first, times = np.unique(rows, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)  # not by value: the negative of the rows draws the same ones
    repeated = REPEATED * len(distinct) <= len(rows)
    at_once = max(1, DRAWN // (len(distinct) if repeated else len(rows)))
    for start in range(0, DRAWS, at_once):
        size = min(at_once, DRAWS - start)
        if repeated:
            yield draw.multinomial(len(rows), times[order] / len(rows), size=size) @ distinct[order]
        else:
            drawn = draw.integers(len(rows), size=(size, len(rows)))
            yield np.column_stack([column[drawn].sum(axis=1) for column in rows.T])
