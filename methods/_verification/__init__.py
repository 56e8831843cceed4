"""Geometric verification of matches: which of them agree with one model of how the candidate moved into the query.

Every engine maps candidate -> query and measures residuals in pixels of the query image, as DELG does. The other way
round, many matches that share one candidate keypoint would be explained by a model that shrinks the query to a point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from methods._verification import colmap, opencv, trials

Model = Literal["affine", "similarity", "homography", "fundamental"]
EngineName = Literal["pycolmap", "opencv", "trials"]
# model -> matches that determine it
MINIMAL: Mapping[str, int] = {"similarity": 2, "affine": 3, "homography": 4, "fundamental": 7}


class Engine(Protocol):
    """What a module of this package offers."""

    @property
    def MODELS(self) -> Mapping[str, object]:
        """Its models."""

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def inliers(self, source: np.ndarray, target: np.ndarray, settings: Verification) -> np.ndarray | None:
        """(m,) bool inliers of the best model source (m, 2) -> target (m, 2), float64; None where it finds no model."""


ENGINES: Mapping[str, Engine] = {"pycolmap": colmap, "opencv": opencv, "trials": trials}


@dataclass(frozen=True)
class Verification:
    """How matches are verified. ValueError for what an engine does not have and for values out of range."""

    model: Model = "affine"
    engine: EngineName = "pycolmap"
    trials: int = 1000  # at most; `trials` does exactly these
    threshold: float = 8.0  # pixels of the query image, between a match's keypoint and where the model puts it
    seed: int = 0  # of every pair

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}, known are {', '.join(ENGINES)}")
        if self.model not in ENGINES[self.engine].MODELS:
            have = "; ".join(f"{name}: {', '.join(engine.MODELS)}" for name, engine in ENGINES.items())
            raise ValueError(f"the engine {self.engine} has no model {self.model!r}; there are {have}")
        if self.trials < 1 or not self.threshold > 0:
            raise ValueError("trials must be at least 1 and threshold above 0")
        if not 0 <= self.seed < 2**31:
            raise ValueError("seed must be in [0, 2**31)")


@dataclass(frozen=True, eq=False)
class Verdict:
    """What verification says of m matches."""

    inliers: np.ndarray  # (m,) bool, whether a match agrees with the model

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.inliers))


def missing(settings: Verification) -> str | None:
    """Why these settings cannot run here, or None."""
    return ENGINES[settings.engine].missing()


def prepare(settings: Verification) -> None:
    """Have the engine import and compile what it needs, so that this is no part of a measured time."""
    points = np.random.default_rng(0).uniform(0, 100, (MINIMAL[settings.model] + 1, 2))
    verify(points, points, settings)


def verify(query_points: np.ndarray, candidate_points: np.ndarray, settings: Verification) -> Verdict:
    """Inliers of m matches: row i of (m, 2) query points goes with row i of (m, 2) candidate points, x, y in pixels.

    No match is an inlier where there are no more than the model needs (DELG's rule), since these always agree, or where
    no model is found. The same input gives the same verdict on any number of threads; the GIL is released.
    """
    target, source = (np.ascontiguousarray(points, dtype=np.float64) for points in (query_points, candidate_points))
    if target.shape != source.shape or target.shape[1:] != (2,):
        raise ValueError(f"points of shapes {target.shape} and {source.shape}: expected (m, 2) twice")
    found = None
    if len(target) > MINIMAL[settings.model]:
        found = ENGINES[settings.engine].inliers(source, target, settings)
    return Verdict(np.zeros(len(target), dtype=bool) if found is None else found)
