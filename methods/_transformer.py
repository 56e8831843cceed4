"""The transformer layers of both variants of RRT, under the parameter names of its released checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder; the defaults are those of the released checkpoints. ValueError for what is no size."""

    depth: int = 6  # layers
    feedforward: int = 1024  # width of a layer's hidden part
    heads: int = 4  # of the attention
    dim: int = 128  # of a token

    def __post_init__(self) -> None:
        sizes = {field.name: getattr(self, field.name) for field in fields(self) if field.type == "int"}
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} {value!r}: expected an integer of at least 1")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} cannot be split over {self.heads} heads")


class Attention(nn.Module):
    """Self-attention under the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, keep: Tensor | None, first_only: bool) -> Tensor:
        dim = x.shape[-1]
        if first_only:
            q = F.linear(x[:, :1], self.in_proj_weight[:dim], self.in_proj_bias[:dim])
            k, v = F.linear(x, self.in_proj_weight[dim:], self.in_proj_bias[dim:]).split(dim, dim=-1)
        else:
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).split(dim, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Post-norm transformer layer with ReLU and no dropout."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.self_attn = Attention(config.dim, config.heads)
        self.linear1 = nn.Linear(config.dim, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.dim)
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, keep: Tensor | None, first_only: bool = False) -> Tensor:
        """(b, t, dim); `first_only` gives (b, 1, dim), the first token alone."""
        y = self.norm1((x[:, :1] if first_only else x) + self.self_attn(x, keep, first_only))
        return self.norm2(y + self.linear2(F.relu(self.linear1(y))))


class Encoder(nn.Module):
    """The layers, as `layers.0` and so on."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
