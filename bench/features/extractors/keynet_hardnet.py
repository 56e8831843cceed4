"""HardNet descriptors (Mishchuk et al., NeurIPS 2017) of Key.Net's keypoints (ICCV 2019) turned by OriNet (ECCV 2018).

A scale is the side of the described region over two. Orientations are counter-clockwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.extractor import Card, extractor, weights_of
from bench.features.extractors._hardnet import DIM, HardNetOfRegions

if TYPE_CHECKING:
    from third_party.released import Released


@extractor(
    "keynet-hardnet",
    gives="local",
    version=1,
    local_dim=DIM,
    card=Card(
        "Barroso-Laguna et al., Key.Net, ICCV 2019; Mishkin et al., OriNet, ECCV 2018; "
        "Mishchuk et al., HardNet, NeurIPS 2017",
        "BSD-3-Clause-Clear (Key.Net), MIT (OriNet, HardNet)",
        trained_on="ImageNet (Key.Net); patches of photographs of landmarks (Brown et al., Liberty)",
    ),
    packages=("kornia",),
    fetches="KEYNET,ORINET,HARDNET",
)
class KeynetHardnet(HardNetOfRegions):
    """HardNet local descriptors of Key.Net's keypoints, with scale and orientation."""

    smallest = 22  # pixels of the shorter side: 15 at each edge of the image made larger are left out

    @dataclass(frozen=True)
    class Options:
        weights: tuple[Path, ...] = ()  # KEYNET,ORINET,HARDNET: files of their authors; none: they are fetched
        descriptors: int = 1000  # best-scored descriptors kept

        def __post_init__(self) -> None:
            if len(self.weights) not in (0, 3):
                raise ValueError(f"{len(self.weights)} weights files, expected KEYNET,ORINET,HARDNET or none")

    def __init__(self, options: Options, device: torch.device):
        from third_party.kornia_weights import load_keynet_hardnet

        paths = weights_of(KeynetHardnet, options)
        super().__init__(load_keynet_hardnet(paths, options.descriptors, device), device)

    @staticmethod
    def weights(options: Options) -> tuple[Path | Released, ...]:
        from third_party.kornia_weights import keynet_hardnet_files

        return options.weights or keynet_hardnet_files()
