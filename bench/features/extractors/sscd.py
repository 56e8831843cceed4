"""Global descriptors for copies and near duplicates: SSCD (Pizzi et al., CVPR 2022).

ResNet-50, generalised mean of power 3, and a linear layer to 512 values. Images are made 288 pixels on their shorter
side, as the authors recommend.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bench.extractor import Card, extractor
from bench.features.dense import normalised
from methods.rrt_sop.resnet import ResNet50

SHORTER = 288  # pixels
LONGEST = 4096  # pixels: a strip's shorter side is then less than 288
MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # of ImageNet
STD = 255 * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
POWER, EPSILON = 3.0, 1e-6
CHANNELS = 2048


class Network(ResNet50):
    """(b, 3, h, w) normalised pixels to (b, dims) of unit norm."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.fc = nn.Linear(CHANNELS, dims)

    def forward(self, images: Tensor) -> Tensor:
        maps = super().forward(images)
        pooled = maps.clamp(min=EPSILON).pow(POWER).mean(dim=(2, 3)).pow(1 / POWER)
        return F.normalize(self.fc(pooled))


def load(path: Path, device: torch.device) -> Network:
    """The network with the weights of a file. UserError where they are another network's."""
    from third_party import checkpoints
    from third_party.sscd_weights import LAST, read

    state = read(path)
    network = Network(len(state[LAST])).eval()
    checkpoints.check(network.state_dict(), state, path)
    network.load_state_dict(state)
    return network.to(device)


def resized(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 with its shorter side 288 pixels, by bilinear interpolation with antialiasing."""
    height, width = image.shape[:2]
    ratio = min(SHORTER / min(height, width), LONGEST / max(height, width))
    # whole pixels, as torchvision's Resize has them; the sum of floats must not lose one
    size = [max(1, int(side * ratio + 1e-6)) for side in (width, height)]
    return np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BILINEAR))


@extractor(
    "sscd",
    gives="global",
    version=1,
    card=Card("Pizzi et al., SSCD, CVPR 2022", "MIT"),
    takes="WEIGHTS",
    full_size=True,
)
class Sscd:
    """SSCD copy-detection descriptor (ResNet-50) with weights you give: *.torchvision.pt."""

    @dataclass(frozen=True)
    class Options:
        weights: Path | None = None  # sscd_disc_mixup.torchvision.pt, or another of its kind

    def __init__(self, options: Options, device: torch.device):
        assert options.weights is not None  # else the feature set has said so
        self._network, self._device = load(options.weights, device), device

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self._network(normalised(resized(image), MEAN, STD, self._device))[0].cpu().numpy()
