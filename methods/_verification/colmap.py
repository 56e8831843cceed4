"""LO-RANSAC of COLMAP, which stops as soon as a better model has become unlikely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from methods._verification import Verification

# model -> its function of pycolmap. A 3-d similarity of points in a plane may mirror them, so there is none.
MODELS: Mapping[str, str] = {
    "affine": "estimate_affine2d_robust",
    "homography": "estimate_homography_matrix",
    "fundamental": "estimate_fundamental_matrix",
}


def missing() -> str | None:
    return None  # pycolmap is a dependency of the project


def inliers(source: np.ndarray, target: np.ndarray, settings: Verification) -> np.ndarray | None:
    import pycolmap

    options = pycolmap.RANSACOptions()
    options.max_error = settings.threshold
    options.min_num_trials = min(100, settings.trials)
    options.max_num_trials = settings.trials
    options.random_seed = settings.seed
    estimate: Callable[..., dict | None] = getattr(pycolmap, MODELS[settings.model])
    found = estimate(source, target, options)
    return None if found is None else np.asarray(found["inlier_mask"], dtype=bool)
