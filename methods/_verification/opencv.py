"""OpenCV's USAC (Raguram et al., TPAMI 2013) and, for the similarity, its plain RANSAC."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from methods._verification import Verification

VERSIONS = (4, 5), (6, 0)  # USAC came with 4.5; nothing is known of 6


def missing() -> str | None:
    if find_spec("cv2") is None:
        return "the engine opencv needs the package opencv-python-headless"
    import cv2

    major, minor = map(int, re.findall(r"\d+", cv2.__version__)[:2])
    if not VERSIONS[0] <= (major, minor) < VERSIONS[1]:
        return f"the engine opencv needs OpenCV 4.5 to 5, this is {cv2.__version__}"
    return None


def inliers(source: np.ndarray, target: np.ndarray, settings: Verification) -> np.ndarray | None:
    import cv2

    try:
        model, found = MODELS[settings.model](cv2, source, target, settings)
    except cv2.error:  # raised for some degenerate points, of which others give no model
        return None
    return None if model is None or found is None else found[:, 0].astype(bool)


def _usac(name: str, cv2: Any, source: np.ndarray, target: np.ndarray, settings: Verification) -> tuple[Any, Any]:
    """Seeded in its parameters and not parallel, so that other threads change nothing."""
    parameters = cv2.UsacParams()
    parameters.threshold = settings.threshold
    parameters.maxIterations = settings.trials
    parameters.randomGeneratorState = settings.seed
    parameters.isParallel = False
    return getattr(cv2, name)(source, target, parameters)


def _similarity(cv2: Any, source: np.ndarray, target: np.ndarray, settings: Verification) -> tuple[Any, Any]:
    """Its generator is made anew by every call and cannot be seeded: all seeds give the same."""
    return cv2.estimateAffinePartial2D(
        source,
        target,
        method=cv2.RANSAC,
        ransacReprojThreshold=settings.threshold,
        maxIters=settings.trials,
    )


MODELS: Mapping[str, Callable[[Any, np.ndarray, np.ndarray, Verification], tuple[Any, Any]]] = {
    "affine": partial(_usac, "estimateAffine2D"),
    "similarity": _similarity,
    "homography": partial(_usac, "findHomography"),
    "fundamental": partial(_usac, "findFundamentalMat"),
}
