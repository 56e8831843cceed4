"""What a vision backbone gives, whichever library it comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bench.errors import UserError

# words of a licence's name that keep commercial users out
RESTRICTED = re.compile(r"(^|[^a-z])(nc|non-?commercial|amlr|research)([^a-z]|$)", re.IGNORECASE)

MOST_PREFIX = 16  # CLS and register tokens; a detector's tokens of objects are more


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a backbone says of a batch of images of one size."""

    maps: Tensor  # (b, D, h, w): a vector of each cell; no prefix token (CLS, registers) is among them
    cls: Tensor | None  # (b, D) the CLS token, where the model has one
    pooled: Tensor | None  # (b, E) what the model's own pooling gives, where it has one

    def __post_init__(self) -> None:
        if self.maps.ndim != 4:
            raise ValueError(f"maps {tuple(self.maps.shape)}, expected (b, D, h, w)")


class Backbone(Protocol):
    """A model ready to run."""

    name: str  # of its architecture
    stride: int  # pixels of a side of a cell
    mean: Tensor  # (3, 1, 1) that is taken from pixel values of 0 to 255, and
    std: Tensor  # (3, 1, 1) by which the rest is divided

    def __call__(self, pixels: Tensor) -> Tokens:
        """Of (b, 3, H, W) normalised pixels, sides multiples of `stride`."""
        ...


def restricted(licence: str | None) -> str | None:
    """The licence where its name says that commercial use is not allowed, else None.

    >>> restricted("cc-by-nc-4.0"), restricted("apache-2.0"), restricted(None)
    ('cc-by-nc-4.0', None, None)
    """
    return licence if licence is not None and RESTRICTED.search(licence) else None


def as_maps(tokens: Tensor, cells: tuple[int, int], name: str) -> tuple[Tensor, Tensor]:
    """(b, T, D) tokens as maps (b, D, h, w) of the last h * w of them, and the prefix (b, T - h * w, D).

    UserError for a model that has fewer tokens than cells, or so many more that they are no prefix.
    """
    rows, columns = cells
    prefix = tokens.shape[1] - rows * columns
    if not 0 <= prefix <= MOST_PREFIX:
        raise UserError(
            f"the backbone {name} gives {tokens.shape[1]} tokens for {rows}x{columns} cells",
            hint="take a vision backbone that keeps a token of every patch, not a detector or a masked autoencoder",
        )
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns)), tokens[:, :prefix]


@torch.inference_mode()
def probe(backbone: Backbone, device: torch.device) -> Tokens:
    """What the backbone gives of a grey image of 2 x 3 cells. UserError where it gives no cells, or no numbers."""
    size = (2 * backbone.stride, 3 * backbone.stride)
    grey = ((127.0 - backbone.mean) / backbone.std).expand(3, *size)[None].to(device)
    try:
        tokens = backbone(grey)
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"the model {backbone.name} cannot be run on an image of {size[1]}x{size[0]} pixels "
            f"({type(error).__name__}: {line})",
            hint="take a vision backbone that gives a map of its last layer",
        ) from error
    if tokens.maps.shape[2:] != (2, 3):
        raise UserError(
            f"the model {backbone.name} gives {tuple(tokens.maps.shape[2:])} cells for 2x3 of {backbone.stride} pixels",
            hint="take a vision backbone with one cell a patch, or a convolutional one",
        )
    for part in (tokens.maps, tokens.cls, tokens.pooled):
        if part is not None and not torch.isfinite(part).all():
            raise UserError(
                f"the model {backbone.name} gives values that are not finite for a grey image",
                hint="its weights are damaged: copy or download them again",
            )
    return tokens
