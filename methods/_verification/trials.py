"""RANSAC as DELG used it (scikit-image's `ransac`, stop probability 1): a fixed number of trials and nothing more.

Where the package numba is installed, compiled code searches. Both ways do the same operations in the same order, so
that they find the same inliers on every machine: sums of products are not left to a library of linear algebra.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from methods._verification import compiled

if TYPE_CHECKING:
    from methods._verification import Verification

MODELS: Mapping[str, None] = {"affine": None}
CHUNK = 1 << 15  # residuals at a time: what they are made from stays in the second-level cache
SPARE = 64  # random words beyond one a row, since some are rejected: fewer than one in a million for 4,000 matches


def missing() -> str | None:
    return compiled.missing()


def inliers(source: np.ndarray, target: np.ndarray, settings: Verification) -> np.ndarray | None:
    """Inliers of the sample of 3 with most (residual strictly below the threshold), ties: least sum of squares.

    Samples of points on a line, or too nearly, are left out. The inliers are those of the sample's own model: there
    is no refinement, no early stop and no final fit.
    """
    search = compiled.search() or best
    number, enough = 3 * settings.trials + SPARE, False
    while not enough:
        enough, found = search(_words(settings.seed, number), settings.trials, source, target, settings.threshold**2)
        number *= 2
    return found if found.any() else None


@lru_cache(maxsize=8)  # all pairs of a method use the same
def _words(seed: int, number: int) -> np.ndarray:
    """At least so many random words of 32 bits, (w,) uint32: those that `numpy.random.default_rng(seed)` uses."""
    words = np.random.PCG64(seed).random_raw((number + 1) // 2).astype("<u8").view("<u4").astype(np.uint32)
    words.flags.writeable = False
    return words


def best(
    words: np.ndarray, trials: int, source: np.ndarray, target: np.ndarray, limit: float
) -> tuple[bool, np.ndarray]:
    """What `compiled.best` finds, by numpy."""
    inliers = np.zeros(len(source), dtype=bool)
    samples = _samples(words, len(source), trials)
    if samples is None:
        return False, inliers
    points = np.concatenate([source.T, target.T])  # (4, m): x, y, u, v
    models = _affine(points, samples)
    most, least, step = 0, np.inf, max(1, CHUNK // len(source))
    for start in range(0, models.shape[1], step):
        squares = _squares(models[:, start : start + step], points)
        inside = squares < limit
        counts = np.count_nonzero(inside, axis=1)
        if (top := counts.max()) >= max(1, most):
            ties = np.flatnonzero(counts == top)
            sums = np.cumsum(squares[ties], axis=1)[:, -1]  # from first to last, as a loop adds
            sums[np.isnan(sums)] = np.inf
            at = sums.argmin()
            if top > most or sums[at] < least:
                inliers, most, least = inside[ties[at]], top, sums[at]
    return True, inliers


def _samples(words: np.ndarray, matches: int, trials: int) -> np.ndarray | None:
    """(3, trials) different rows out of `matches` each, all equally likely; None where there are too few words.

    A word is scaled to the range, and rejected where that would favour some rows (Lemire, TOMACS 2019), as numpy does.
    """
    parts, rest = [], words.astype(np.uint64)
    for bound in (matches, matches - 1, matches - 2):
        products = rest * np.uint64(bound)
        kept = np.flatnonzero((products & np.uint64(compiled.WORD - 1)) >= compiled.WORD % bound)[:trials]
        if len(kept) < trials:
            return None
        parts.append((products[kept] >> np.uint64(32)).astype(np.int64))
        rest = rest[kept[-1] + 1 :]
    first, second, third = parts
    second += second >= first  # counted among the rows that are left
    third += third >= np.minimum(first, second)
    third += third >= np.maximum(first, second)
    return np.stack(parts)


def _affine(points: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """(6, c) models with u = a x + b y + c and v = p x + q y + r, of the c samples that determine one."""
    x, y, *targets = points
    i, j, k = samples
    e, f, g, h = x[j] - x[i], y[j] - y[i], x[k] - x[i], y[k] - y[i]
    area = e * h - f * g
    good = np.abs(area) > compiled.FLAT * np.ptp(points[:2], axis=1).max() ** 2
    e, f, g, h, area, i, j, k = (value[good] for value in (e, f, g, h, area, i, j, k))
    models = []
    for to in targets:
        start, one, other = to[i], to[j] - to[i], to[k] - to[i]
        across, down = (one * h - other * f) / area, (other * e - one * g) / area
        models += [across, down, start - across * x[i] - down * y[i]]
    return np.stack(models)


def _squares(models: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(c, m) squared residuals of (6, c) models for the matches of (4, m) points."""
    x, y, u, v = points
    a, b, c, p, q, r = models[:, :, None]
    across, down, product = a * x, p * x, b * y
    for residuals, add, to in ((across, c, u), (down, r, v)):
        residuals += product
        residuals += add
        residuals -= to
        residuals *= residuals
        np.multiply(q, y, out=product)
    across += down
    return across
