"""ALIKED local descriptors (Zhao et al., IEEE TIM 2023): deformable, one scale, the strongest maxima first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from bench.extractor import Card, LocalFeatures, extractor, pixels_of, weights_of

if TYPE_CHECKING:
    from third_party.released import Released

DIMS = {"t16": 64, "n16": 128, "n16rot": 128, "n32": 128}
SMALLEST = 8  # pixels of a side: the detector leaves out two at each edge, and the sampled patches need some


@extractor(
    "aliked",
    gives="local",
    version=1,
    card=Card("Zhao et al., ALIKED, IEEE TIM 2023", "BSD-3-Clause", trained_on="MegaDepth and aerial photographs"),
    packages=("kornia",),
    fetches="FILE",
)
class Aliked:
    """ALIKED local descriptors (`make models`); aliked:VARIANT is n16, t16, n16rot or n32."""

    @dataclass(frozen=True)
    class Options:
        variant: Literal["n16", "t16", "n16rot", "n32"] = "n16"  # t16: a quarter of the time, 64-d; n16rot: rotations
        weights: Path | None = None  # a file of its authors; none: the installed package's, else fetched
        descriptors: int = 1000  # best-scored descriptors kept

    def __init__(self, options: Options, device: torch.device):
        from third_party.kornia_weights import load_aliked

        (path,) = weights_of(Aliked, options)
        # channels last: 1.4 times as fast on a CPU as channels first
        self._model = load_aliked(path, options.variant, options.descriptors, device).to(
            memory_format=torch.channels_last
        )
        self._device, self._dim = device, DIMS[options.variant]

    @staticmethod
    def weights(options: Options) -> tuple[Path | Released, ...]:
        from third_party.kornia_weights import ALIKED_FILES

        return (options.weights or ALIKED_FILES[options.variant],)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> LocalFeatures:
        if min(image.shape[:2]) < SMALLEST:
            return LocalFeatures.none(self._dim)
        pixels = pixels_of(image, self._device)
        found = self._model(pixels.contiguous(memory_format=torch.channels_last))[0]
        scores, order = found.keypoint_scores.cpu().sort(descending=True, stable=True)
        return LocalFeatures(
            descriptors=found.descriptors.cpu()[order].numpy(),
            keypoints=found.keypoints.cpu()[order].numpy(),
            scales=np.ones(len(order), dtype=np.float32),
            orientations=np.zeros(len(order), dtype=np.float32),
            scores=scores.numpy(),
        )
