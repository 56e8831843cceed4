"""DeDoDe local descriptors (Edstedt et al., 3DV 2024): 256-d, one scale, keypoints at whole pixels.

The detector is that of DeDoDe v2 (Edstedt, Bökman and Zhao, CVPR workshops 2024), whose keypoints cluster less.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.extractor import Card, LocalFeatures, extractor, pixels_of, weights_of

if TYPE_CHECKING:
    from third_party.released import Released

DIM = 256
SMALLEST = 15  # pixels of the shorter side: it is filled up to a multiple of 14, and four poolings need 16


@extractor(
    "dedode",
    gives="local",
    version=1,
    local_dim=DIM,
    card=Card(
        "Edstedt et al., DeDoDe, 3DV 2024; Edstedt et al., DeDoDe v2, CVPR workshops 2024",
        "MIT",
        trained_on="MegaDepth",
    ),
    packages=("kornia",),
    fetches="DETECTOR,DESCRIPTOR",
)
class DeDoDe:
    """DeDoDe local descriptors: detector L-C4-v2, descriptor B; seconds an image without a GPU."""

    @dataclass(frozen=True)
    class Options:
        weights: tuple[Path, ...] = ()  # DETECTOR,DESCRIPTOR: files of its authors; none: they are fetched
        descriptors: int = 1000  # best-scored descriptors kept

        def __post_init__(self) -> None:
            if len(self.weights) not in (0, 2):
                raise ValueError(f"{len(self.weights)} weights files, expected DETECTOR,DESCRIPTOR or none")

    def __init__(self, options: Options, device: torch.device):
        from third_party.kornia_weights import load_dedode

        # channels last: a fifth faster on a CPU than channels first
        self._model = load_dedode(weights_of(DeDoDe, options), device).to(memory_format=torch.channels_last)
        self._device, self._descriptors = device, options.descriptors

    @staticmethod
    def weights(options: Options) -> tuple[Path | Released, ...]:
        from third_party.kornia_weights import dedode_files

        return options.weights or dedode_files()

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> LocalFeatures:
        if min(image.shape[:2]) < SMALLEST:
            return LocalFeatures.none(DIM)
        pixels = pixels_of(image, self._device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        (keypoints,), (scores,), (descriptors,) = self._model(pixels, n=self._descriptors)
        return LocalFeatures(
            descriptors=torch.nn.functional.normalize(descriptors, dim=1).cpu().numpy(),
            # the centre of the first pixel comes as 0.5 and something less or more
            keypoints=(keypoints - 0.5).round().cpu().numpy(),
            scales=np.ones(len(scores), dtype=np.float32),
            orientations=np.zeros(len(scores), dtype=np.float32),
            scores=scores.cpu().numpy(),
        )
