"""Keypoints and local descriptors of one image in two feature sets: where they lie, and how alike they are.

Keypoints are compared under a few changes that mistakes make of them: x and y swapped, a scale, the corner of a query's
box, a shift. Where a scale or a shift must be known, sizes, extents and alike descriptors propose it; what counts is
how many keypoints lie at one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bench.features import Features
from bench.features.diff_numbers import Geometry, Spread
from bench.images import Box

RADIUS = 2.0  # pixels of the larger of both within which two keypoints lie at one place
NEAR = 0.05  # pixels: of keypoints as near as the nearest, the one with the most alike descriptor is meant
BESIDE = 8  # keypoints looked at around one
ALIKE = 0.9  # cosine of descriptors that propose a scale or a shift
ENOUGH = 5  # pairs that may propose one
PLAIN = 0.9  # overlap at which nothing else is tried
GAIN, TIMES = 0.2, 2  # overlap that a change must add, and how many times as large it must make it
CLOSE = 0.05  # overlaps as near as this are equal: then the simpler change is meant
TOGETHER = 0.8  # overlap from which a shift of all is looked for
STEADY = 0.25  # pixels within which a shift must be the same in all images

Points = np.ndarray  # (n, 2) x, y


@dataclass(frozen=True)
class Change:
    """A kind of change of keypoints. Its numbers are those of each image."""

    swapped: bool = False
    late: bool = False  # swapped after the corner was added
    scale: str = ""  # what proposes it; empty: none
    corner: int = 0
    shift: bool = False

    @property
    def steps(self) -> int:
        """How many mistakes it takes."""
        return int(self.swapped) + bool(self.scale) + abs(self.corner) + 2 * self.shift  # of no known cause


@dataclass(frozen=True, eq=False)
class Both:
    """One image in A and in B; `box` where it is a query's crop."""

    a: Features
    b: Features
    box: Box | None = None

    @property
    def comparable(self) -> bool:
        """Whether descriptors have one length."""
        return self.a.descriptors.shape[1] == self.b.descriptors.shape[1] > 0

    @cached_property
    def alike(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of A and of B that are each other's nearest by descriptors, and alike."""
        if not self.comparable or not len(self.a) or not len(self.b):
            return np.zeros(0, int), np.zeros(0, int)
        cosines = unit(self.a.descriptors.numpy()) @ unit(self.b.descriptors.numpy()).T
        to, back = cosines.argmax(axis=1), cosines.argmax(axis=0)
        rows = np.arange(len(to))
        kept = (back[to] == rows) & (cosines[rows, to] > ALIKE)
        return rows[kept], to[kept]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Keypoints of both in one frame, that of the larger, and the scale (2,) of B over A."""

    a: Points
    b: Points
    scale: np.ndarray


Scale = Callable[[Both, Points, Points], np.ndarray | None]


def _by_sizes(both: Both, a: Points, b: Points) -> np.ndarray | None:
    sizes = both.a.image_size.double().numpy(), both.b.image_size.double().numpy()
    return np.full(2, np.sqrt(sizes[1].prod() / sizes[0].prod()))


def _by_extent(both: Both, a: Points, b: Points) -> np.ndarray | None:
    most = min(len(a), len(b))
    spread = a[:most].std(axis=0), b[:most].std(axis=0)
    return None if most < 2 or min(map(np.min, spread)) <= 0 else spread[1] / spread[0]


def _by_descriptors(both: Both, a: Points, b: Points) -> np.ndarray | None:
    one, other = both.alike
    if len(one) < ENOUGH:
        return None
    steps = range(1, min(len(one), 8))
    apart = [np.concatenate([np.abs(p - np.roll(p, step, axis=0)) for step in steps]) for p in (a[one], b[other])]
    ratios = []
    for axis in range(2):
        far = (apart[0][:, axis] > 0) & (apart[1][:, axis] > 0)
        if not far.any():
            return None
        ratios.append(np.exp(np.median(np.log(apart[1][far, axis] / apart[0][far, axis]))))
    return np.array(ratios)


EXACT = "sizes"  # what proposes a scale without an error, where it holds
SCALES: Mapping[str, Scale] = {EXACT: _by_sizes, "extent": _by_extent, "descriptors": _by_descriptors}


def _points(both: Both, swapped: bool) -> tuple[Points, Points]:
    a, b = both.a.keypoints.double().numpy(), both.b.keypoints.double().numpy()
    return (a[:, ::-1] if swapped else a), b


def scale_of(both: Both, change: Change) -> np.ndarray | None:
    """(2,) B over A in x and y; None where nothing says how much it is. No shift changes it."""
    return SCALES[change.scale](both, *_points(both, change.swapped)) if change.scale else np.ones(2)


def fitted(both: Both, change: Change, scale: np.ndarray | None) -> Fitted | None:
    """The keypoints after a change of that scale; None where nothing says by how much."""
    if scale is None:
        return None
    a, b = _points(both, change.swapped)
    if change.corner:
        if both.box is None:
            return None
        corner = np.array(both.box[:2], np.float64)[:: -1 if change.late else 1]
        a, b = (a + corner, b) if change.corner > 0 else (a, b + corner)
    a, b = a * np.maximum(scale, 1), b * np.maximum(1 / scale, 1)
    if change.shift:
        one, other = both.alike
        if len(one) < ENOUGH:
            return None
        a = a + np.median(b[other] - a[one], axis=0)
    return Fitted(a, b, scale)


def overlap(a: Points, b: Points) -> float:
    """Share of the keypoints of the fewer, or the larger of the two shares, that have one of the other within RADIUS.

    1 where both have none, 0 where one has none.
    """
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    from scipy.spatial import cKDTree

    shares = [
        np.isfinite(cKDTree(there).query(here, distance_upper_bound=RADIUS)[0]).mean()
        for here, there in ((a, b), (b, a))
    ]
    return float(max(shares))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows of A and of B at one place."""

    a: np.ndarray
    b: np.ndarray
    alone: np.ndarray  # (n,) bool: no other keypoint is as near
    crowded: np.ndarray  # (n,) bool: so many are as near that not all were looked at


def pairs(fit: Fitted, both: Both) -> Pairs:
    """For each keypoint of A the nearest of B, and for each of B the nearest of A, within RADIUS.

    Where several are as near, as of a keypoint with several orientations, the descriptor decides.
    """
    there = _nearest(fit.a, fit.b, both.a, both.b, both.comparable)
    back = _nearest(fit.b, fit.a, both.b, both.a, both.comparable)
    return Pairs(
        np.concatenate([there.a, back.b]),
        np.concatenate([there.b, back.a]),
        np.concatenate([there.alone, back.alone]),
        np.concatenate([there.crowded, back.crowded]),
    )


def _nearest(a: Points, b: Points, of_a: Features, of_b: Features, comparable: bool) -> Pairs:
    if not len(a) or not len(b):
        return Pairs(*np.zeros((2, 0), int), *np.zeros((2, 0), bool))
    from scipy.spatial import cKDTree

    most = min(BESIDE, len(b))
    apart, rows = cKDTree(b).query(a, k=most, distance_upper_bound=RADIUS)
    apart, rows = apart.reshape(len(a), most), rows.reshape(len(a), most)
    inside = np.isfinite(apart[:, 0])
    apart, rows = apart[inside], rows[inside]
    near = apart <= apart[:, :1] + NEAR
    rank = -apart
    if comparable:
        left, right = of_a.descriptors.numpy()[inside], of_b.descriptors.numpy()
        there = np.where(near, rows, 0)
        rank = np.einsum("nd,nkd->nk", unit(left), unit(right)[there])
        rank = np.where(_zero(left)[:, None] & _zero(right)[there], 1.0, rank)
    best = np.where(near, rank, -np.inf).argmax(axis=1)
    together = near.sum(axis=1)
    return Pairs(
        np.flatnonzero(inside),
        rows[np.arange(len(rows)), best],
        together == 1,
        (together == most) & (most < len(b)) & (most > 1),
    )


def unit(rows: np.ndarray) -> np.ndarray:
    """(n, d) float64 rows of length 1, however short they were; rows of zeros stay what they are."""
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)


def _zero(rows: np.ndarray) -> np.ndarray:
    return (rows == 0).all(axis=1)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) cosines of the rows of (n, d) each. Those of two rows of zeros are 1, of one row of zeros 0."""
    left, right = unit(a), unit(b)
    return np.where(_zero(a) & _zero(b), 1.0, np.einsum("nd,nd->n", left, right))


def chance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of the rows of (n, d) each with all rows of the other but their own; 0 of a single row."""
    left, right = unit(a), unit(b)
    if len(a) < 2:
        return 0.0
    every, own = left.sum(axis=0) @ right.sum(axis=0), np.einsum("nd,nd->", left, right)
    return float((every - own) / (len(a) * (len(a) - 1)))


def _rooted(rows: np.ndarray) -> np.ndarray:
    return np.sign(rows) * np.sqrt(np.abs(rows))


def _bits(rows: np.ndarray) -> np.ndarray:
    return np.where(rows > 0, 1.0, -1.0)


# what descriptors of one side may have gone through: a square root (RootSIFT), or a bit a value
CHANGES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"roots": _rooted, "bits": _bits}


@dataclass(frozen=True)
class Descriptors:
    """Cosines of one image's overlapping keypoints: the median as they are, and after a change of A or of B."""

    plain: float
    after: Mapping[tuple[str, str], float]  # (change, the side that is so already)
    chance: float  # of keypoints that are not at one place


def descriptors(both: Both, at: Pairs) -> Descriptors | None:
    """None where there are none to compare."""
    if not both.comparable or at.crowded.all():
        return None
    a, b = both.a.descriptors.numpy()[at.a[~at.crowded]], both.b.descriptors.numpy()[at.b[~at.crowded]]
    after = {}
    for name, change in CHANGES.items():
        after[name, "b"] = float(np.median(cosines(change(a), b)))
        after[name, "a"] = float(np.median(cosines(a, change(b))))
    return Descriptors(float(np.median(cosines(a, b))), after, chance(a, b))


def order(at: Pairs) -> float | None:
    """Rank correlation of the rows of keypoints at one place, where no other is; None of fewer than ENOUGH."""
    one, other = at.a[at.alone], at.b[at.alone]
    if len(set(one.tolist())) < ENOUGH or len(set(other.tolist())) < ENOUGH:
        return None
    ranks = [_ranks(rows) for rows in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(rows: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(rows)


def _changes(crops: bool) -> Iterator[Change]:
    for swapped in (False, True):
        for scale in ("", *SCALES):
            yield Change(swapped, scale=scale)
            yield Change(swapped, scale=scale, shift=True)
            for late in (False, True)[: crops * (1 + swapped)]:
                yield from (Change(swapped, late, scale, corner) for corner in (1, -1))


@dataclass(frozen=True, eq=False)
class Tried:
    """Overlaps of an image under each change that could be tried on it."""

    overlaps: Mapping[Change, float]


def tried(both: Both, crops: bool) -> Tried:
    """Overlaps under every change."""
    found, scales = {}, {}
    for change in _changes(crops):
        alone = Change(change.swapped, scale=change.scale)
        if alone not in scales:
            scales[alone] = scale_of(both, alone)
        if (fit := fitted(both, change, scales[alone])) is not None:
            found[change] = overlap(fit.a, fit.b)
    return Tried(found)


def chosen(images: Sequence[Tried], resized: bool = False) -> Change:
    """The simplest change under which keypoints overlap as much as under any; none, where none helps.

    `resized`: image sizes differ, so where nothing else helps their ratio is undone if that helps at all.
    """
    known = {change: [each.overlaps.get(change, 0.0) for each in images] for each in images for change in each.overlaps}
    medians = {change: float(np.median(values)) for change, values in known.items()}
    plain = medians.get(Change(), 0.0)
    most = max(medians.values(), default=0.0)
    if most < max(plain + GAIN, TIMES * plain):
        by_sizes = Change(scale=EXACT)
        return by_sizes if resized and medians.get(by_sizes, 0.0) > plain else Change()
    good = [change for change, value in medians.items() if value >= most - CLOSE]
    return min(good, key=lambda change: (change.steps, change.scale not in ("", EXACT), -medians[change], str(change)))


@dataclass(frozen=True, eq=False)
class Placed:
    """An image under the change that was chosen."""

    plain: float
    overlap: float
    scale: np.ndarray
    offset: np.ndarray | None  # median of B minus A, pixels of the larger; None without overlap
    cosine: Descriptors | None
    order: float | None


def placed(both: Both, change: Change) -> Placed:
    """Where a change cannot be made of an image, it is compared as it is."""
    plain, scale = fitted(both, Change(), np.ones(2)), scale_of(both, change)
    assert plain is not None
    fit = plain if change == Change() else fitted(both, change, scale) or plain
    at = pairs(fit, both)
    moved = fit
    if change.shift:  # what is asked is where keypoints lie, not where they were moved to
        still = fitted(both, replace(change, shift=False), scale)
        moved = fit if still is None else still
    offset = np.median(moved.b[at.b] - moved.a[at.a], axis=0) if len(at.a) else None
    as_is = overlap(plain.a, plain.b)
    return Placed(
        as_is,
        as_is if fit is plain else overlap(fit.a, fit.b),
        fit.scale,
        offset,
        descriptors(both, at),
        order(at),
    )


def geometry(images: Sequence[Placed], change: Change) -> Geometry | None:
    """Of all images under a change; None of none."""
    plain, after = Spread.of(each.plain for each in images), Spread.of(each.overlap for each in images)
    if plain is None or after is None:
        return None
    factor, stretch = None, 1.0
    if change.scale:
        factor = Spread.of_factors(float(np.sqrt(each.scale.prod())) for each in images)
        stretch = float(np.exp(np.median([np.log(each.scale[0] / each.scale[1]) for each in images])))
    offsets = np.array([each.offset for each in images if each.offset is not None]).reshape(-1, 2)
    steady = None
    if len(offsets) and after.median >= TOGETHER:
        low, high = np.quantile(offsets, [0.25, 0.75], axis=0)
        if (high - low <= STEADY).all():
            x, y = np.median(offsets, axis=0).tolist()
            steady = (x, y)
    return Geometry(plain, after, change.swapped, factor, stretch, change.corner, change.shift, steady)
