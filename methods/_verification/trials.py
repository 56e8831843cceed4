"""RANSAC as DELG used it (scikit-image's `ransac`, stop probability 1): a fixed number of trials and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from methods._verification import Verification

MODELS: Mapping[str, None] = {"affine": None}
CHUNK = 1 << 15  # residuals at a time: what they are made from stays in the second-level cache
FLAT = 1e-9  # least area of a sample's triangle, relative to the square of the points' extent


def missing() -> str | None:
    return None


def inliers(source: np.ndarray, target: np.ndarray, settings: Verification) -> np.ndarray | None:
    """Inliers of the sample of 3 with most (residual strictly below the threshold), ties: least sum of squares.

    Samples of points on a line, or too nearly, are left out. The inliers are those of the sample's own model: there
    is no refinement, no early stop and no final fit.
    """
    samples = _samples(len(source), settings.trials, np.random.default_rng(settings.seed))
    models = _affine(source, target, samples)
    if len(models) == 0:
        return None
    best, most, least = models[0], -1, np.inf
    columns = np.column_stack([source, np.ones(len(source)), target]).T  # (5, m): x, y, 1, u, v
    across, down = columns[:4], columns[[0, 1, 2, 4]]
    step = max(1, CHUNK // len(source))
    for start in range(0, len(models), step):
        chunk = models[start : start + step]  # (c, 2, 4)
        squares = _squares(chunk, across, down)
        counts = np.count_nonzero(squares < settings.threshold**2, axis=1)
        if (top := counts.max()) >= most:
            ties = np.flatnonzero(counts == top)
            sums = squares[ties].sum(axis=1)
            at = sums.argmin()
            if top > most or sums[at] < least:
                best, most, least = chunk[ties[at]], top, sums[at]
    return _squares(best[None], across, down)[0] < settings.threshold**2 if most > 0 else None


def _samples(matches: int, trials: int, draw: np.random.Generator) -> np.ndarray:
    """(trials, 3) different rows out of `matches` each, all equally likely."""
    first, second, third = draw.integers(0, [[matches], [matches - 1], [matches - 2]], size=(3, trials))
    second += second >= first  # counted among the rows that are left
    third += third >= np.minimum(first, second)
    third += third >= np.maximum(first, second)
    return np.stack([first, second, third], axis=1)


def _affine(source: np.ndarray, target: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """(c, 2, 4) models a, b, c, -1 with a x + b y + c - u = 0 (and v), of the c samples that determine one."""
    p, q = (np.take(points, samples, axis=0) for points in (source, target))  # (trials, 3, 2); faster than [samples]
    (e, f), (g, h) = (p[:, 1] - p[:, 0]).T, (p[:, 2] - p[:, 0]).T
    area = e * h - f * g
    good = np.abs(area) > FLAT * np.ptp(source, axis=0).max() ** 2
    e, f, g, h, area = (value[good, None] for value in (e, f, g, h, area))
    origin, one, two = q[good, 0], q[good, 1] - q[good, 0], q[good, 2] - q[good, 0]  # (c, 2): u, v
    a, b = (one * h - two * f) / area, (two * e - one * g) / area
    start = p[good, 0]
    return np.stack([a, b, origin - a * start[:, :1] - b * start[:, 1:], np.full_like(a, -1)], axis=2)


def _squares(models: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(c, m) squared residuals of (c, 2, 4) models for m matches."""
    squares = models[:, 0] @ across
    squares *= squares
    other = models[:, 1] @ down
    other *= other
    squares += other
    return squares
