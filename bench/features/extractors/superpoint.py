"""SuperPoint local descriptors (DeTone et al., CVPR workshops 2018): 256-d, one scale, from grey images.

The network is that of the package `transformers`; the weights are yours. Magic Leap's may be used for academic and
non-profit research only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.extractor import Card, LocalFeatures, extractor

CELL = 8  # pixels that the network pools into one: smaller images have no keypoints
GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


PACKAGES = ("transformers",)
CARD = Card(
    "DeTone et al., SuperPoint, CVPR workshops 2018",
    "that of the weights (Magic Leap's: academic, non-commercial)",
    noncommercial="magic-leap",
)


@extractor("superpoint", gives="local", version=1, card=CARD, local_dim=256, packages=PACKAGES, takes="WEIGHTS")
class SuperPoint:
    """SuperPoint local descriptors (extra hf) with weights you give; full resolution: --max-side 4096.

    Keypoints with a score above 0.005, non-maximum suppression within 4 pixels, 4 pixels of border left out.
    """

    @dataclass(frozen=True)
    class Options:
        weights: Path | None = None  # model.safetensors of the hub, or superpoint_v1.pth
        descriptors: int = 1000  # best-scored descriptors kept

    def __init__(self, options: Options, device: torch.device):
        from third_party.superpoint_weights import load_superpoint

        assert options.weights is not None  # else the feature set has said so
        self._descriptors, self._device = options.descriptors, device
        self._model = load_superpoint(options.weights, device)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> LocalFeatures:
        if min(image.shape[:2]) < CELL:
            return LocalFeatures.none(256)
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
