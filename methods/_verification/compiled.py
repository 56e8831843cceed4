"""The search of `trials` as machine code, where the package numba is installed: the same inliers, in less time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np

FLAT = 1e-9  # least area of a sample's triangle, relative to the square of the points' extent
WORD = 1 << 32  # values of a random word


def missing() -> str | None:
    """Why compiled code cannot run although numba is installed, or None."""
    if find_spec("numba") is None:
        return None
    try:
        import numba  # noqa: F401
    except ImportError as error:  # it refuses versions of numpy that it does not know
        return f"the package numba is installed and cannot be imported ({error}): install another version, or none"
    return None


@cache
def search() -> Callable[..., tuple[bool, np.ndarray]] | None:
    """`best`, compiled; None where numba is not installed.

    The first call on a machine compiles for some seconds. Later processes read the code from `__pycache__` beside this
    file, or from numba's folder in the user's cache; where neither can be written to, each process compiles again.
    """
    if find_spec("numba") is None:
        return None
    from numba import njit, types

    def read_only(kind: types.Type, dimensions: int) -> types.Array:
        return types.Array(kind, dimensions, "C", readonly=True)

    points, found = read_only(types.float64, 2), types.Tuple((types.boolean, types.boolean[::1]))
    signature = found(read_only(types.uint32, 1), types.int64, points, points, types.float64)
    how = {"nogil": True, "error_model": "numpy"}  # divided by zero is infinite; no fastmath: operations as written
    try:
        compiled: Callable[..., tuple[bool, np.ndarray]] = njit(signature, cache=True, **how)(best)
    except (RuntimeError, OSError):  # there is no place for a cache, or writing to it failed
        compiled = njit(signature, **how)(best)
    return compiled


def best(
    words: np.ndarray, trials: int, source: np.ndarray, target: np.ndarray, limit: float
) -> tuple[bool, np.ndarray]:
    """Whether the random words sufficed, and the (m,) bool inliers of the best sample; all False where there is none.

    `words` are (w,) uint32, the points (m, 2) float64; squared residuals of inliers are below `limit`. Samples, models,
    residuals and ties are those of the module `trials`, operation by operation.
    """
    matches = len(source)
    inliers = np.zeros(matches, np.bool_)
    x, y, u, v = np.empty(matches), np.empty(matches), np.empty(matches), np.empty(matches)
    for i in range(matches):
        x[i], y[i], u[i], v[i] = source[i, 0], source[i, 1], target[i, 0], target[i, 1]
    extent = 0.0
    for axis in (x, y):
        low = high = axis[0]
        for value in axis:
            low, high = min(low, value), max(high, value)
            if value != value:  # not a number: no area is above this
                extent = np.inf
        extent = max(extent, high - low)
    flat = FLAT * (extent * extent)
    rows = np.empty((3, trials), np.uint64)
    at = 0
    for part in range(3):
        bound = np.uint64(matches - part)
        least = np.uint64(WORD) % bound
        for trial in range(trials):
            while True:
                if at == len(words):
                    return False, inliers
                product = np.uint64(words[at]) * bound
                at += 1
                if product & np.uint64(WORD - 1) >= least:
                    break
            rows[part, trial] = product >> np.uint64(32)
    most, lowest = 0, np.inf
    chosen = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    for trial in range(trials):
        i, j, k = rows[0, trial], rows[1, trial], rows[2, trial]
        j += np.uint64(j >= i)
        k += np.uint64(k >= min(i, j))
        k += np.uint64(k >= max(i, j))
        e, f, g, h = x[j] - x[i], y[j] - y[i], x[k] - x[i], y[k] - y[i]
        area = e * h - f * g
        if not abs(area) > flat:
            continue
        one, other = u[j] - u[i], u[k] - u[i]
        a, b = (one * h - other * f) / area, (other * e - one * g) / area
        c = u[i] - a * x[i] - b * y[i]
        one, other = v[j] - v[i], v[k] - v[i]
        p, q = (one * h - other * f) / area, (other * e - one * g) / area
        r = v[i] - p * x[i] - q * y[i]
        count = 0
        for row in range(matches):  # a loop without branches, of several matches at a time
            across = a * x[row] + b * y[row] + c - u[row]
            down = p * x[row] + q * y[row] + r - v[row]
            count += across * across + down * down < limit
        if count < most or count == 0:
            continue
        total = 0.0
        for row in range(matches):
            across = a * x[row] + b * y[row] + c - u[row]
            down = p * x[row] + q * y[row] + r - v[row]
            total += across * across + down * down
        if total != total:
            total = np.inf
        if count > most or total < lowest:
            most, lowest, chosen = count, total, (a, b, c, p, q, r)
    if most > 0:
        a, b, c, p, q, r = chosen
        for row in range(matches):
            across = a * x[row] + b * y[row] + c - u[row]
            down = p * x[row] + q * y[row] + r - v[row]
            inliers[row] = across * across + down * down < limit
    return True, inliers
