"""How much the first of some tokens attends to each of them: what fused attention computes and does not give away."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from methods._transformer import Attention


def first_attention(attention: Attention, x: Tensor) -> Tensor:
    """(heads, t) attention of the first of (t, dim) tokens to all of them: at least 0, and 1 in sum for each head.

    Values weighted by it, through the output projection, are `attention(x[None], None, True)[0, 0]`. A score needs only
    that, so it takes the fused way; this one is for looking at.
    """
    dim, heads = x.shape[-1], attention.heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    q = F.linear(x[:1], weight[:dim], bias[:dim]).unflatten(-1, (heads, -1)).transpose(0, 1)
    k = F.linear(x, weight[dim : 2 * dim], bias[dim : 2 * dim]).unflatten(-1, (heads, -1)).transpose(0, 1)
    return torch.softmax(q @ k.mT / math.sqrt(dim / heads), dim=-1)[:, 0]
