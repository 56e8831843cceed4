"""Spatial verification (Philbin et al., CVPR 2007): mutual nearest neighbours, then inliers of a geometric model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pycolmap
import torch
from torch import Tensor

from bench.features import FeatureBatch, Features
from bench.registry import register
from bench.reranker import Card, Reranker

# model -> (COLMAP's estimator, matches it needs)
ESTIMATORS: Mapping[str, tuple[Callable[..., dict | None], int]] = {
    "affine": (pycolmap.estimate_affine2d_robust, 3),
    "homography": (pycolmap.estimate_homography_matrix, 4),
    "fundamental": (pycolmap.estimate_fundamental_matrix, 7),
}


def mutual_nearest_neighbours(query: Tensor, candidate: Tensor) -> Tensor:
    """(m, 2) row pairs (query, candidate) that are each other's most similar descriptor; inputs (n, d), unit norm."""
    if len(query) == 0 or len(candidate) == 0:
        return torch.zeros((0, 2), dtype=torch.long)
    similarity = query @ candidate.T
    forward, backward = similarity.argmax(dim=1), similarity.argmax(dim=0)
    rows = torch.arange(len(query), device=query.device)
    mutual = backward[forward] == rows
    return torch.stack([rows[mutual], forward[mutual]], dim=1)


@register(
    "ransac",
    needs={"local", "keypoints"},
    card=Card(paper="Philbin et al., CVPR 2007; LO-RANSAC of COLMAP", licence="Apache-2.0; pycolmap BSD-3-Clause"),
)
class Ransac(Reranker):
    """Score: number of inliers, 0 where there are no more matches than the model needs. Ties keep first-stage order."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 500  # best-scored local descriptors used per image
        model: Literal["affine", "homography", "fundamental"] = "affine"
        threshold: float = 12.0  # pixels of the candidate image
        trials: int = 1000  # at most
        seed: int = 0  # of every pair

        def __post_init__(self) -> None:
            if self.descriptors < 1 or self.trials < 1 or not self.threshold > 0:
                raise ValueError("descriptors and trials must be at least 1 and threshold above 0")

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        query = query.top(self.options.descriptors)
        return torch.tensor(
            [self._inliers(query, image.top(self.options.descriptors)) for image in candidates], dtype=torch.float32
        )

    def _inliers(self, query: Features, candidate: Features) -> int:
        pairs = mutual_nearest_neighbours(query.descriptors, candidate.descriptors).cpu()
        estimate, needed = ESTIMATORS[self.options.model]
        if len(pairs) <= needed:
            return 0
        source = query.keypoints.cpu()[pairs[:, 0]].numpy().astype(np.float64)
        target = candidate.keypoints.cpu()[pairs[:, 1]].numpy().astype(np.float64)
        options = pycolmap.RANSACOptions()
        options.max_error = self.options.threshold
        options.min_num_trials = min(100, self.options.trials)
        options.max_num_trials = self.options.trials
        options.random_seed = self.options.seed
        found = estimate(source, target, options)
        return 0 if found is None else int(found["num_inliers"])
