"""HardNet descriptors (Mishchuk et al., NeurIPS 2017) of DoG blobs (Lowe 2004) in AffNet's shapes (ECCV 2018).

A scale is the side of the described region over two, 12 sigma of the blob. Orientations are counter-clockwise.
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
    "dog-affnet-hardnet",
    gives="local",
    version=1,
    local_dim=DIM,
    card=Card(
        "Lowe, IJCV 2004; Mishkin et al., AffNet, ECCV 2018; Mishchuk et al., HardNet, NeurIPS 2017",
        "MIT",
        trained_on="patches of photographs of landmarks (Brown et al., Liberty)",
    ),
    packages=("kornia",),
    fetches="AFFNET,HARDNET",
)
class DogAffnetHardnet(HardNetOfRegions):
    """HardNet local descriptors of DoG keypoints with AffNet's affine shapes, with scale and orientation."""

    smallest = 16  # pixels of the shorter side: a smaller one holds no blob

    @dataclass(frozen=True)
    class Options:
        weights: tuple[Path, ...] = ()  # AFFNET,HARDNET: files of their authors; none: they are fetched
        descriptors: int = 1000  # best-scored descriptors kept

        def __post_init__(self) -> None:
            if len(self.weights) not in (0, 2):
                raise ValueError(f"{len(self.weights)} weights files, expected AFFNET,HARDNET or none")

    def __init__(self, options: Options, device: torch.device):
        from third_party.kornia_weights import load_dog_affnet_hardnet

        paths = weights_of(DogAffnetHardnet, options)
        super().__init__(load_dog_affnet_hardnet(paths, options.descriptors, device), device)

    @staticmethod
    def weights(options: Options) -> tuple[Path | Released, ...]:
        from third_party.kornia_weights import dog_affnet_hardnet_files

        return options.weights or dog_affnet_hardnet_files()
