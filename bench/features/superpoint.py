"""SuperPoint local descriptors (DeTone et al., CVPR workshops 2018): 256-d, one scale, from grey images.

The network is that of the package `transformers`; the weights are yours. Magic Leap's may be used for academic and
non-profit research only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.features.extractors import LocalFeatures
from third_party.superpoint_weights import load_superpoint

CELL = 8  # pixels that the network pools into one: smaller images have no keypoints
GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


class SuperPoint:
    """Keypoints with a score above 0.005, non-maximum suppression within 4 pixels, 4 pixels of border left out."""

    def __init__(self, descriptors: int, device: torch.device, weights: Path):
        self._descriptors, self._device = descriptors, device
        self._model = load_superpoint(weights, device)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> LocalFeatures:
        if min(image.shape[:2]) < CELL:
            none = np.zeros(0, dtype=np.float32)
            return LocalFeatures(np.zeros((0, 256), np.float32), np.zeros((0, 2), np.float32), none, none, none)
        grey = torch.from_numpy(image.astype(np.float32) @ np.array(GREY, dtype=np.float32) / 255)
        found = self._model(grey.expand(1, 3, *grey.shape).to(self._device))
        scores, order = found.scores[0].cpu().sort(descending=True, stable=True)
        kept = order[: min(self._descriptors, int((scores > 0).sum()))]
        height, width = grey.shape
        scores = scores[: len(kept)].numpy()
        return LocalFeatures(
            descriptors=found.descriptors[0].cpu()[kept].numpy(),
            keypoints=found.keypoints[0].cpu()[kept].numpy() * np.array([width, height], dtype=np.float32),
            scales=np.ones_like(scores),
            orientations=np.zeros_like(scores),
            scores=scores,
        )


class SuperPoint320(SuperPoint):
    """Of the image made 320 x 320, whatever its shape: the settings of Tan's SuperGlue runs on products."""

    SIDE = 320

    def __call__(self, image: np.ndarray) -> LocalFeatures:
        square = np.asarray(Image.fromarray(image).resize((self.SIDE, self.SIDE), Image.Resampling.BILINEAR))
        found = super().__call__(square)
        back = np.array([image.shape[1], image.shape[0]], dtype=np.float32) / self.SIDE
        return LocalFeatures(**{**vars(found), "keypoints": found.keypoints * back})
