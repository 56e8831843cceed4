"""XFeat local descriptors (Potje et al., CVPR 2024): 64-d, one scale, sorted by keypoint score times reliability."""

from __future__ import annotations

import numpy as np
import torch

from bench.features.extractors import LocalFeatures
from third_party.xfeat_weights import load_xfeat


class XFeat:
    def __init__(self, descriptors: int, device: torch.device):
        self._model = load_xfeat(descriptors, device)
        self._device = device

    def __call__(self, image: np.ndarray) -> LocalFeatures:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(self._device, torch.float32) / 255
        found = self._model.detectAndCompute(pixels)[0]
        scores = found["scores"].cpu().numpy()
        return LocalFeatures(
            descriptors=found["descriptors"].cpu().numpy(),
            keypoints=found["keypoints"].cpu().numpy(),
            scales=np.ones_like(scores),
            orientations=np.zeros_like(scores),
            scores=scores,
        )
