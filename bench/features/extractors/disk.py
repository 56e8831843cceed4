"""DISK local descriptors (Tyszkiewicz et al., NeurIPS 2020): 128-d, one scale, keypoints at whole pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.extractor import Card, LocalFeatures, extractor, pixels_of, weights_of

if TYPE_CHECKING:
    from third_party.released import Released

DIM = 128
SMALLEST = 8  # pixels of the shorter side: a maximum needs a whole window of five
CELL = 16  # pixels that the network pools into one: it normalises over cells, so that it needs two


@extractor(
    "disk",
    gives="local",
    version=1,
    local_dim=DIM,
    card=Card("Tyszkiewicz et al., DISK, NeurIPS 2020", "Apache-2.0", trained_on="MegaDepth"),
    packages=("kornia",),
    fetches="FILE",
)
class Disk:
    """DISK local descriptors, trained with depth (`make models`)."""

    @dataclass(frozen=True)
    class Options:
        weights: Path | None = None  # a file of its authors; none: the installed package's, else fetched
        descriptors: int = 1000  # best-scored descriptors kept

    def __init__(self, options: Options, device: torch.device):
        from third_party.kornia_weights import load_disk

        (path,) = weights_of(Disk, options)
        self._model = load_disk(path, device)
        self._device, self._descriptors = device, options.descriptors

    @staticmethod
    def weights(options: Options) -> tuple[Path | Released, ...]:
        from third_party.kornia_weights import DISK_FILE

        return (options.weights or DISK_FILE,)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> LocalFeatures:
        if min(image.shape[:2]) < SMALLEST or max(image.shape[:2]) <= CELL:
            return LocalFeatures.none(DIM)
        pixels = pixels_of(image, self._device)
        found = self._model(pixels, n=self._descriptors, pad_if_not_divisible=True)[0]
        scores, order = found.detection_scores.cpu().sort(descending=True, stable=True)  # they come row by row
        return LocalFeatures(
            descriptors=found.descriptors.cpu()[order].numpy(),
            keypoints=found.keypoints.cpu()[order].numpy(),
            scales=np.ones(len(order), dtype=np.float32),
            orientations=np.zeros(len(order), dtype=np.float32),
            scores=scores.numpy(),
        )
