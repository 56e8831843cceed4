"""Global descriptors of two feature sets: how alike, after which change, and whether images stand in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bench.features.diff_local import cosines, unit
from bench.search import BLOCK, Vectors, search

SAME = 0.95  # median cosine from which descriptors are alike
LIKE = 0.99  # cosine with another image's descriptor that says that it is this one's
FEWEST = 8  # images by which the order of dimensions is found
SIMILAR = 0.02  # difference of similarities between images that a rotation leaves alone, but for rounding
COMPARED = 1_000  # images at most of which each is compared with each
HELD_OUT = 4  # every so many images test a linear map that the others gave
ENOUGH = 1.25  # images per value of a descriptor from which a linear map is sought
AGREE = 0.8  # share of the images that must have moved by one number of rows

Rows = np.ndarray  # (n, D)
Change = Callable[[Rows], Rows]


@dataclass(frozen=True, eq=False)
class Aligned:
    """What was found to make A's descriptors those of B."""

    change: str  # empty: nothing
    cosines: np.ndarray  # (n,) after it
    make: Change | None  # makes rows of A those of B; None where only similarities among images are compared
    recognised: float = 1.0  # share of images whose nearest in the other set is their own
    untried: str = ""


def _reordered(a: Rows, b: Rows) -> Change | None:
    """The dimensions of A that vary as those of B do, signs aside; None where that leaves a doubt."""
    if len(a) < FEWEST:
        return None
    left, right = (_standard(rows) for rows in (a, b))
    like = left.T @ right / len(a)  # (D, D)
    of_b = np.abs(like).argmax(axis=0)
    if len(set(of_b.tolist())) < len(of_b):
        return None
    signs = np.sign(like[of_b, np.arange(len(of_b))])
    return lambda rows: rows[:, of_b] * signs


def _standard(rows: Rows) -> Rows:
    centred = rows - rows.mean(axis=0)
    return centred / centred.std(axis=0).clip(1e-12)


# changes that need not be learned; the first of all that makes descriptors alike is meant
SIMPLE: Mapping[str, Change] = {
    "": lambda rows: rows,
    "globals have the opposite sign": np.negative,
    "globals have their dimensions reversed": lambda rows: rows[:, ::-1].copy(),
}
REORDERED = "globals have their dimensions in another order"
ROTATED, LINEAR = "globals are rotated", "globals are whitened, or projected by PCA, on one side"


def aligned(a: Rows, b: Rows) -> Aligned:
    """The first change that makes the rows (n, D) of both alike; lengths may differ."""
    plain = cosines(a, b) if a.shape[1] == b.shape[1] else np.zeros(len(a))
    if not len(a) or np.median(plain) >= SAME:
        return Aligned("", plain, None)
    own = _recognised(a, b) if a.shape[1] == b.shape[1] else 0.0
    for name, change in _changes(a, b):
        if np.median(after := cosines(change(a), b)) >= SAME:
            return Aligned(name, after, change)
    if _rotated(a, b):
        return Aligned(ROTATED, plain, None)
    if len(a) * (1 - 1 / HELD_OUT) < ENOUGH * (min(a.shape[1], b.shape[1]) + 1):
        few = f"{len(a)} images are too few to tell whether one is a linear map of the other"
        return Aligned("", plain, None, own, few)
    held = max((_held_out(*pair) for pair in ((a, b), (b, a))), key=lambda found: float(np.median(found)))
    return Aligned(LINEAR, held, None) if np.median(held) >= SAME else Aligned("", plain, None, own)


def _changes(a: Rows, b: Rows) -> Iterator[tuple[str, Change]]:
    if a.shape[1] == b.shape[1]:
        yield from SIMPLE.items()
        if (learned := _reordered(a, b)) is not None:
            yield REORDERED, learned


def _recognised(a: Rows, b: Rows) -> float:
    """Share of the images whose nearest in the other set is their own, mean of both ways."""
    these = np.linspace(0, len(a) - 1, min(len(a), COMPARED)).astype(int)
    like = unit(a[these]) @ unit(b[these]).T
    return float(np.mean([(like.argmax(axis=axis) == np.arange(len(these))).mean() for axis in (0, 1)]))


def _rotated(a: Rows, b: Rows) -> bool:
    """Whether images are as alike to one another in both."""
    these = np.linspace(0, len(a) - 1, min(len(a), COMPARED)).astype(int)
    if len(these) < FEWEST:
        return False
    above = np.triu_indices(len(these), 1)
    left, right = ((unit(rows[these]) @ unit(rows[these]).T)[above] for rows in (a, b))
    if min(left.std(), right.std()) < SIMILAR:
        return False  # all images are as alike: that tells nothing
    return bool(np.quantile(np.abs(left - right), 0.95) < SIMILAR and np.corrcoef(left, right)[0, 1] > LIKE)


def _held_out(a: Rows, b: Rows) -> np.ndarray:
    """Cosines of images with what a linear map that was learned on other images makes of A; 0 where none can be."""
    tested = np.arange(len(a)) % HELD_OUT == 0
    if (~tested).sum() < ENOUGH * (a.shape[1] + 1):
        return np.zeros(int(tested.sum()))
    with_one = np.column_stack([unit(a), np.ones(len(a))]).astype(np.float64)
    found = np.linalg.lstsq(with_one[~tested], unit(b)[~tested], rcond=None)[0]
    return cosines(with_one[tested] @ found, b[tested])


@dataclass(frozen=True)
class Order:
    """Share of the images that are like another image's, by how many rows they moved, and what else was done."""

    elsewhere: float
    shift: int | None  # None where images do not agree
    change: str = ""  # of CHANGES


def order(a: Vectors, b: Vectors, sample: np.ndarray) -> Order:
    """Whether rows of A at the indices `sample` are rows of B at other indices, also of the opposite sign or reversed.

    Both hold the gallery's images in one order.
    """
    found = [_order(a, b, sample, name, change) for name, change in SIMPLE.items()]
    return max(found, key=lambda one: one.elsewhere)


def _order(a: Vectors, b: Vectors, sample: np.ndarray, name: str, change: Change) -> Order:
    moved, away = [], []
    for one, other, sign in ((a, b, 1), (b, a, -1)):
        rows = change(unit(one.rows(sample).astype(np.float32)))
        best = search(rows, other.through(unit), 1, block=BLOCK)
        nearest, similarity = best.order[:, 0], best.similarities[:, 0]
        own = (rows * unit(other.rows(sample).astype(np.float32))).sum(axis=1)
        elsewhere = (nearest != sample) & (similarity >= LIKE) & (similarity > own + (1 - LIKE))
        away.append(elsewhere.mean())
        moved += (sign * (nearest - sample)[elsewhere]).tolist()
    if not moved:
        return Order(0.0, None)
    steps, times = np.unique([_signed(step, a.count) for step in moved], return_counts=True)
    steady = times.max() >= AGREE * len(moved)
    return Order(float(np.mean(away)), int(steps[times.argmax()]) if steady else None, name)


def _signed(step: int, count: int) -> int:
    """The shorter way round.

    >>> _signed(9, 10), _signed(-1, 10)
    (-1, -1)
    """
    return (step + count // 2) % count - count // 2
