"""Global descriptors of any vision backbone of the package `timm`: ViTs, SigLIP, DINOv3, ConvNeXt, ResNets.

The CLS token is taken where there is one, whatever timm's own default: for DINOv3 that is the mean of the patches,
while its paper uses the CLS token. Pixels are normalised as the model's configuration says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.extractor import About, Card, extractor
from bench.features.dense import Pooling, pooled, seen_together
from bench.features.extractors.hf import check_size
from bench.places import slug

CARD = Card("that of the model; timm: Wightman, 2019", "that of the model")


@extractor("timm", gives="global", version=1, card=CARD, packages=("timm",), takes="NAME", shared=True)
class Timm:
    """Global descriptor of a vision backbone of timm (pip install timm), by its name there."""

    @dataclass(frozen=True)
    class Options:
        name: str = ""  # of the model and its weights, such as vit_base_patch14_reg4_dinov2.lvd142m
        pooling: Pooling = "own"  # own: the CLS token, or what the model pools itself where it has none
        size: int | None = None  # pixels of the longer side of the image or crop; none: as --max-side says
        weights: Path | None = None  # a .safetensors file; none: the hub's, from its local cache or downloaded

        def __post_init__(self) -> None:
            check_size(self.size)

    def __init__(self, options: Options, device: torch.device):
        from third_party.timm_backbone import TimmBackbone

        self._backbone = TimmBackbone(options.name, options.weights, device)
        self._options, self._device = options, device

    @staticmethod
    def about(options: Options) -> About:
        if not options.name:
            return About()
        from third_party.backbones import restricted
        from third_party.timm_backbone import find

        found = find(options.name, options.weights)
        return About(
            label=slug(options.name),
            files=(found.file,),
            named=("weights",),
            card=Card(CARD.paper, found.licence or CARD.licence, noncommercial=restricted(found.licence)),
            full_size=options.size is not None,
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.batch([image])[0]

    def batch(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        tokens = seen_together(self._backbone, images, self._options.size, self._device)
        return list(pooled(tokens, self._options.pooling).cpu().numpy())
