"""Differences between two methods on the same queries (docs/protocols.md, Statistics)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

DRAWS = 10_000
SEED = 0
DRAWN = 2**22  # queries drawn at a time, which is what is held of ten thousand times sixty thousand


@dataclass(frozen=True)
class Difference:
    """Mean paired difference with its 95 % percentile bootstrap interval over queries, and wins, ties, losses."""

    mean: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


def difference(ours: pd.Series, theirs: pd.Series) -> Difference:
    """`ours` minus `theirs`, paired by query; queries without positives (NaN) are left out of both."""
    delta = (ours - theirs.reindex(ours.index)).dropna().to_numpy()
    if len(delta) == 0:
        return Difference(float("nan"), float("nan"), float("nan"), 0, 0, 0)
    draw, at_once = np.random.default_rng(SEED), max(1, DRAWN // len(delta))
    sizes = [min(at_once, DRAWS - start) for start in range(0, DRAWS, at_once)]
    means = [delta[draw.integers(len(delta), size=(rows, len(delta)))].mean(axis=1) for rows in sizes]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Difference(
        float(delta.mean()),
        float(low),
        float(high),
        int((delta > 0).sum()),
        int((delta == 0).sum()),
        int((delta < 0).sum()),
    )
