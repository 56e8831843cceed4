"""Differences between two methods on the same queries (FACTS section 8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

DRAWS = 10_000
SEED = 0


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
    draws = np.random.default_rng(SEED).integers(len(delta), size=(DRAWS, len(delta)))
    low, high = np.percentile(delta[draws].mean(axis=1), [2.5, 97.5])
    return Difference(
        float(delta.mean()),
        float(low),
        float(high),
        int((delta > 0).sum()),
        int((delta == 0).sum()),
        int((delta < 0).sum()),
    )
