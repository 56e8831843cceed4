"""Local descriptors: the patch tokens of a vision backbone of `transformers`, as AMES and others store them.

Suma et al., AMES, ECCV 2024. Here the best patches are chosen by their norm or by their cosine to the CLS token; AMES
chooses by a detector that is trained for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bench.extractor import About, LocalFeatures, extractor
from bench.features.dense import Rank, cells_as_local, seen
from bench.features.extractors.hf import CARD, PACKAGES, TAKES, about_model, check_size


@extractor("hf-patches", gives="local", version=1, card=CARD, packages=PACKAGES, takes=TAKES, shared=True)
class HfPatches:
    """Patch tokens of a vision backbone of transformers (extra hf), at the centres of the patches."""

    @dataclass(frozen=True)
    class Options:
        model: str = ""  # a folder of save_pretrained, or a name on the hub, such as facebook/dinov2-base
        rank: Rank = "norm"  # what chooses the best patches: norm of the token, or cosine to the CLS token
        size: int | None = None  # pixels of the longer side of the image or crop; none: as --max-side says
        descriptors: int = 1000  # best-ranked patches kept

        def __post_init__(self) -> None:
            check_size(self.size)

    def __init__(self, options: Options, device: torch.device):
        from third_party.hf_backbone import HfBackbone

        self._backbone = HfBackbone(options.model, device)
        self._options, self._device = options, device

    @staticmethod
    def about(options: Options) -> About:
        return about_model(options.model, True, options.size)

    def __call__(self, image: np.ndarray) -> LocalFeatures:
        height, width = image.shape[:2]
        options = self._options
        tokens = seen(self._backbone, image, options.size, self._device)
        found = cells_as_local(tokens, (height, width), options.rank, options.descriptors)
        descriptors, keypoints, scales, scores = found
        return LocalFeatures(
            descriptors=descriptors,
            keypoints=keypoints.clip(0, [width - 1, height - 1]),
            scales=scales,
            orientations=np.zeros_like(scores),
            scores=scores,
        )
