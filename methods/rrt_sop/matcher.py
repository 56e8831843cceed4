"""The product variant of the Reranking Transformer: reads the 7x7 local maps of two images, without global tokens.

One pair is the sequence [CLS, L_s, SEP, L_t] of 49 local tokens each, with sine positions; the encoder layers are those
of the landmark variant. Tan, Yuan, Ordonez, ICCV 2021; written from docs/protocols.md, Checkpoints of RRT.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from methods._transformer import Encoder, EncoderConfig, Layer

GRID = 7  # cells per side of the local map
CELLS = GRID * GRID
SEGMENTS = {"cls": 0, "sep": 1, "src": 2, "tgt": 3}


def sine_positions(dim: int, side: int = GRID, scale: float = 2.0, temperature: float = 10_000.0) -> Tensor:
    """(side * side, dim) fixed position embeddings in grid order, of DETR's kind (Carion et al., ECCV 2020, section 3).

    The first half of the channels encodes the row, the second the column: sines and cosines, in turn, of the 1-based
    coordinate over the side times `scale`, at dim / 4 wavelengths.
    """
    at = torch.arange(1, side + 1, dtype=torch.float32) / (side + 1e-6) * scale
    angles = at[:, None] / temperature ** (torch.arange(0, dim // 2, 2) / (dim // 2))
    one = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (side, dim / 2)
    rows, columns = one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class Matcher(nn.Module):
    """Scores pairs of local maps; parameter names and shapes are those of the released checkpoints' `matcher.`"""

    positions: Tensor  # (49, dim)

    def __init__(self, config: EncoderConfig = EncoderConfig()):
        super().__init__()
        self.encoder = Encoder(config)
        self.seg_encoder = nn.Embedding(len(SEGMENTS), config.dim)
        self.classifier = nn.Linear(config.dim, 1)
        self.register_buffer("positions", sine_positions(config.dim), persistent=False)

    def layers(self) -> list[Layer]:
        return list(cast(Iterable[Layer], self.encoder.layers))

    def forward(self, query: Tensor, candidate: Tensor) -> Tensor:
        """(b,) logits of b pairs; local tokens (b, n, dim) and (b, m, dim) in grid order, n and m at most 49.

        The descriptors are not normalised. The order of the two matters: the segments differ.
        """
        b = len(query)
        cls, sep, src, tgt = (self.seg_encoder.weight[SEGMENTS[name]] for name in SEGMENTS)
        query = query + self.positions[: query.shape[1]] + src
        candidate = candidate + self.positions[: candidate.shape[1]] + tgt
        x = torch.cat([cls.expand(b, 1, -1), query, sep.expand(b, 1, -1), candidate], dim=1)
        *layers, last = self.layers()
        for layer in layers:
            x = layer(x, None)
        return self.classifier(last(x, None, first_only=True)[:, 0]).squeeze(-1)


def tokens(local: Tensor) -> Tensor:
    """(b, 49, d) tokens in grid order (row by row) of local maps (b, d, 7, 7)."""
    return local.flatten(2).transpose(1, 2)
