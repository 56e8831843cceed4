"""Global descriptors of any vision backbone of the package `transformers`: DINOv2, DINOv3, SigLIP 2, CLIP, ConvNeXt V2.

The model's own preprocessor says how pixels are normalised. Its position encodings are interpolated to the image's
size. Prefix tokens (CLS, registers) are never pooled as patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bench.extractor import About, Card, extractor
from bench.features.dense import Pooling, pooled, seen_together

CARD = Card("that of the model; transformers: Wolf et al., EMNLP 2020", "that of the model")
PACKAGES = ("transformers",)
TAKES = "NAME_OR_FOLDER"


def about_model(model: str, local: bool, size: int | None, twice: bool = False) -> About:
    """What a model's folder tells: its kind, files, channels and licence; `twice` for two descriptors in a row."""
    if not model:
        return About()
    from third_party.backbones import restricted
    from third_party.hf_backbone import find

    found = find(model)
    licence = found.licence or CARD.licence
    dim = None if found.dim is None else found.dim * (1 + twice)
    return About(
        label=found.kind.replace("_", "-"),
        files=found.files,
        named=("model",),
        local_dim=dim if local else None,
        global_dim=None if local else dim,
        card=Card(CARD.paper, licence, noncommercial=restricted(found.licence)),
        full_size=size is not None,
    )


@extractor("hf", gives="global", version=1, card=CARD, packages=PACKAGES, takes=TAKES, shared=True)
class Hf:
    """Global descriptor of a vision backbone of transformers (extra hf): a folder, or a name on its hub."""

    @dataclass(frozen=True)
    class Options:
        model: str = ""  # a folder of save_pretrained, or a name on the hub, such as facebook/dinov2-base
        pooling: Pooling = "own"  # own: the CLS token, or what the model pools itself where it has none
        size: int | None = None  # pixels of the longer side of the image or crop; none: as --max-side says

        def __post_init__(self) -> None:
            check_size(self.size)

    def __init__(self, options: Options, device: torch.device):
        from third_party.hf_backbone import HfBackbone

        self._backbone = HfBackbone(options.model, device)
        self._options, self._device = options, device

    @staticmethod
    def about(options: Options) -> About:
        return about_model(options.model, False, options.size, options.pooling == "cls-gem")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.batch([image])[0]

    def batch(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        tokens = seen_together(self._backbone, images, self._options.size, self._device)
        return list(pooled(tokens, self._options.pooling).cpu().numpy())


def check_size(size: int | None) -> None:
    if size is not None and not 32 <= size <= 8192:
        raise ValueError(f"size {size}, expected none or 32 to 8192 pixels")
