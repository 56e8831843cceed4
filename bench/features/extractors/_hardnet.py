"""What extractors have in common whose regions HardNet describes (Mishchuk et al., NeurIPS 2017).

A scale is the side of the described region over two. Orientations are counter-clockwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.extractor import LocalFeatures, pixels_of

if TYPE_CHECKING:
    from third_party.kornia_weights import Regions

DIM = 128


class HardNetOfRegions:
    """An extractor but for its detector: a subclass says which regions, of which files, and of which images."""

    smallest: ClassVar[int]  # pixels of the shorter side; an image of a smaller one has no regions

    def __init__(self, regions: Callable[[Tensor], Regions], device: torch.device):
        """`regions` takes (1, 3, h, w) float32 in [0, 1] on `device`."""
        self._regions, self._device = regions, device

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> LocalFeatures:
        if min(image.shape[:2]) < self.smallest:
            return LocalFeatures.none(DIM)
        found = self._regions(pixels_of(image, self._device))
        return LocalFeatures(
            descriptors=found.descriptors.cpu().numpy(),
            keypoints=found.centres.cpu().numpy(),
            scales=found.scales.cpu().numpy(),
            orientations=found.orientations.cpu().numpy(),
            scores=found.scores.cpu().numpy(),
        )
