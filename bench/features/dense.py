"""From a backbone's map of an image to a global descriptor, or to local descriptors at the centres of its cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UserError
from third_party.backbones import Backbone, Tokens

Pooling = Literal["own", "cls", "mean", "gem", "max", "cls-gem", "pooler"]
Rank = Literal["norm", "cls"]
POWER = 3.0  # of generalised means
EPSILON = 1e-6


def fitted(image: np.ndarray, size: int | None, multiple: int) -> np.ndarray:
    """The image with its longer side `size` pixels (None: as it is), each side rounded to a multiple, at least one.

    (h, w, 3) uint8 to the same, by bicubic interpolation with antialiasing. The two sides may be scaled differently.
    """
    height, width = image.shape[:2]
    ratio = 1.0 if size is None else size / max(height, width)
    sides = [max(1, round(side * ratio / multiple)) * multiple for side in (width, height)]
    if sides == [width, height]:
        return image
    return np.asarray(Image.fromarray(image).resize((sides[0], sides[1]), Image.Resampling.BICUBIC))


def normalised(image: np.ndarray, mean: Tensor, std: Tensor, device: torch.device) -> Tensor:
    """(1, 3, h, w) float32 of an (h, w, 3) uint8 image."""
    pixels = torch.from_numpy(np.ascontiguousarray(image).copy()).permute(2, 0, 1).float()
    return ((pixels - mean) / std)[None].to(device)


def seen(backbone: Backbone, image: np.ndarray, size: int | None, device: torch.device) -> Tokens:
    """What a backbone says of one image, made to fit its cells."""
    return seen_together(backbone, [image], size, device)


@torch.inference_mode()
def seen_together(backbone: Backbone, images: Sequence[np.ndarray], size: int | None, device: torch.device) -> Tokens:
    """What a backbone says of images of one size, made to fit its cells."""
    fit = (fitted(image, size, backbone.stride) for image in images)
    return backbone(torch.cat([normalised(image, backbone.mean, backbone.std, device) for image in fit]))


def gem(maps: Tensor) -> Tensor:
    """(b, D, h, w) to (b, D): generalised mean over the cells (Radenovic, Tolias, Chum, TPAMI 2018), power 3.

    A transformer's values are negative as often as not. So each channel is first shifted by its minimum, and shifted
    back: clamping at 0, as for rectified maps, would lose half of them.
    """
    least = maps.amin(dim=(2, 3))
    shifted = maps - least[:, :, None, None] + EPSILON
    return shifted.pow(POWER).mean(dim=(2, 3)).pow(1 / POWER) + least - EPSILON


def _own(tokens: Tokens) -> Tensor:
    if tokens.cls is not None:
        return tokens.cls
    return tokens.maps.mean(dim=(2, 3)) if tokens.pooled is None else tokens.pooled


def _cls(tokens: Tokens) -> Tensor:
    if tokens.cls is None:
        raise UserError(
            "pooling=cls: the model has no CLS token (SigLIP and convolutional models have none)",
            hint="pooling=own takes what the model pools itself; mean, gem and max pool its cells",
        )
    return tokens.cls


def _pooler(tokens: Tokens) -> Tensor:
    if tokens.pooled is None:
        raise UserError("pooling=pooler: the model pools nothing itself", hint="pooling=own, mean, gem or max")
    return tokens.pooled


POOLINGS: Mapping[Pooling, Callable[[Tokens], Tensor]] = {
    "own": _own,
    "cls": _cls,
    "mean": lambda tokens: tokens.maps.mean(dim=(2, 3)),
    "gem": lambda tokens: gem(tokens.maps),
    "max": lambda tokens: tokens.maps.amax(dim=(2, 3)),
    "cls-gem": lambda tokens: torch.cat([F.normalize(_cls(tokens)), F.normalize(gem(tokens.maps))], dim=1),
    "pooler": _pooler,
}


def pooled(tokens: Tokens, how: Pooling) -> Tensor:
    """(b, D) descriptors of unit norm; of `cls-gem`, (b, 2 D). UserError for what the model does not have."""
    return F.normalize(POOLINGS[how](tokens).float())


def cells_as_local(
    tokens: Tokens, image: tuple[int, int], rank: Rank, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The best cells of one image of (height, width) pixels: descriptors, keypoints x, y, scales, scores.

    Descriptors (n, D) have unit norm; they are ranked by their norm before that, or by their cosine to the CLS token.
    A keypoint is the centre of its cell in the image's pixels, a scale the geometric mean of the cell's sides.
    """
    maps = tokens.maps[0]
    rows, columns = maps.shape[1:]
    across, down = image[1] / columns, image[0] / rows  # of a cell, in pixels of the image
    vectors = maps.flatten(1).T.float()
    unit = F.normalize(vectors)
    scores = vectors.norm(dim=1) if rank == "norm" else unit @ F.normalize(_ranking_cls(tokens)[0].float(), dim=0)
    scores, order = scores.sort(descending=True, stable=True)
    order, scores = order[:most], scores[:most]
    at = order.cpu().numpy()
    keypoints = np.stack([(at % columns + 0.5) * across - 0.5, (at // columns + 0.5) * down - 0.5], axis=1)
    scales = np.full(len(at), np.sqrt(across * down), np.float32)
    return unit[order].cpu().numpy(), keypoints.astype(np.float32), scales, scores.cpu().numpy()


def _ranking_cls(tokens: Tokens) -> Tensor:
    if tokens.cls is None:
        raise UserError("rank=cls: the model has no CLS token to compare its patches with", hint="rank=norm")
    return tokens.cls
