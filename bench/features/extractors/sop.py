"""Features of the product variant of RRT: the 49 cells of a trunk's last map, and its pooled global descriptor.

Preprocessing is the paper's: both sides resized to 256 pixels, the central 224 kept (docs/protocols.md). Descriptors
are in grid order, their scores equal, and they are not of unit norm: the matcher reads them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.errors import UserError
from bench.extractor import Card, LocalFeatures, extractor
from methods.rrt_sop.matcher import CELLS, GRID, tokens
from methods.rrt_sop.model import load_model

RESIZED = 256  # pixels of both sides
CROPPED = 224  # central part that the trunk sees


def prepare(image: Image.Image) -> np.ndarray:
    """(3, 224, 224) uint8: what the trunk sees of an RGB image."""
    edge = (RESIZED - CROPPED) // 2
    small = image.resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
    return np.asarray(small.crop((edge, edge, edge + CROPPED, edge + CROPPED))).transpose(2, 0, 1)


def cell_centres(width: int, height: int) -> np.ndarray:
    """(49, 2) float32 x, y in pixels of an image of that size: centres of the cells, row by row."""
    at = ((np.arange(GRID) + 0.5) * (CROPPED / GRID) + (RESIZED - CROPPED) / 2) / RESIZED
    x, y = np.meshgrid(at * width - 0.5, at * height - 0.5)
    return np.stack([x.ravel(), y.ravel()], axis=1).clip(0, [width - 1, height - 1]).astype(np.float32)


@extractor(
    "sop",
    gives="both",
    version=1,
    local_dim=128,
    global_dim=128,
    card=Card("Tan, Yuan, Ordonez, ICCV 2021", "that of the weights"),
    takes="WEIGHTS[,FIRST_STAGE_WEIGHTS]",
    full_size=True,
    unit_norm=False,
)
class Sop:
    """7x7 local map and global descriptor of a product trunk (RRT, ICCV 2021) with weights you give."""

    @dataclass(frozen=True)
    class Options:
        # of the local descriptors, and of the global one where that is another file's: the paper reranks the lists of
        # its first stage also with a trunk finetuned later
        weights: tuple[Path, ...] = ()  # one file, or two
        descriptors: int = 1000  # at least the map's 49

        def __post_init__(self) -> None:
            if len(self.weights) > 2:
                raise ValueError(f"{len(self.weights)} weights files, expected one or two")

    def __init__(self, options: Options, device: torch.device):
        weights = options.weights
        if options.descriptors < CELLS:
            raise UserError(
                f"{options.descriptors} descriptors: sop has {CELLS} an image, in the order of its grid",
                hint=f"--keep-descriptors of at least {CELLS}",
            )
        self._models = [load_model(path).to(device) for path in weights]
        self._device = device
        if "remap_local." in self._models[0].without:
            raise UserError(
                f"{weights[0]}: weights of the first stage alone, without local descriptors (remap_local)",
                hint="give weights of the stage frozen or joint, and these after a comma",
            )

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> tuple[LocalFeatures, np.ndarray]:
        height, width = image.shape[:2]
        pixels = torch.from_numpy(prepare(Image.fromarray(image)).copy())[None].to(self._device) / 255
        global_, local = self._models[0](pixels)
        if len(self._models) > 1:
            global_ = self._models[1](pixels)[0]
        features = LocalFeatures(
            descriptors=tokens(local)[0].cpu().numpy(),
            keypoints=cell_centres(width, height),
            scales=np.ones(CELLS, np.float32),
            orientations=np.zeros(CELLS, np.float32),
            scores=np.ones(CELLS, np.float32),
        )
        return features, global_[0].cpu().numpy()
