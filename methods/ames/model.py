"""AMES (Suma et al., ECCV 2024): a transformer of masked self- and cross-attention over two sets of descriptors.

One pair is the sequence [match token, L_q, L_c] without positions. In self-attention a descriptor sees its own image,
in cross-attention the other one; the match token sees all in both, and its last value is the logit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._attention import first_attention
from methods._local_weights import load_checkpoint
from methods._parallel import each, together
from methods._transformer import Attention, EncoderConfig

FORMAT = "rerankbench-ames-1"
HINT = "expected a .safetensors of ours, or a .pt of the authors of AMES"


@dataclass(frozen=True)
class AmesConfig(EncoderConfig):
    """Sizes of the network; the defaults are those of the released weights for DINOv2's descriptors."""

    depth: int = 5
    heads: int = 2
    local_dim: int = 768
    binary: bool = False  # descriptors are made 128 signs before anything reads them


class Binarization(nn.Module):
    """Signs of a learned projection of unit descriptors."""

    def __init__(self, local_dim: int, dim: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(local_dim, dim))
        nn.init.orthogonal_(self.W)

    def forward(self, x: Tensor) -> Tensor:
        """(n, local_dim) -> (n, dim): signs; while training a smooth step, so that the projection learns."""
        projected = F.normalize(x, dim=-1) @ self.W
        return torch.erf(projected / (2e-6**0.5)) if self.training else projected.sign()


class AmesLayer(nn.Module):
    """Post-norm layer of two attentions and a feed-forward part with ReLU, without dropout."""

    def __init__(self, config: AmesConfig):
        super().__init__()
        self.self_attn = Attention(config.dim, config.heads)
        self.cross_attn = Attention(config.dim, config.heads)
        self.linear1 = nn.Linear(config.dim, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.dim) for _ in range(3))

    def forward(self, x: Tensor, own: Tensor, other: Tensor, first_only: bool = False) -> Tensor:
        """(b, t, dim); `own` and `other` are (t, t) masks, True = attended to; `first_only` gives (b, 1, dim)."""
        x = self.norm1(x + self.self_attn(x, own, False))
        # the match token attends to everything, so its row needs no mask
        x = self.norm2((x[:, :1] if first_only else x) + self.cross_attn(x, None if first_only else other, first_only))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class _Decoder(nn.Module):
    def __init__(self, config: AmesConfig):
        super().__init__()
        self.layers = nn.ModuleList(AmesLayer(config) for _ in range(config.depth))


class Ames(nn.Module):
    """Scores pairs of sets of unit local descriptors; parameter names and shapes equal the released checkpoints."""

    def __init__(self, config: AmesConfig = AmesConfig()):
        super().__init__()
        self.config = config
        self.mtc_token = nn.Parameter(torch.empty(config.dim))
        nn.init.trunc_normal_(self.mtc_token, std=0.02)
        narrow: list[nn.Module] = [Binarization(config.local_dim, config.dim)] if config.binary else []
        inputs = config.dim if config.binary else config.local_dim
        self.remap_local = nn.Sequential(*narrow, nn.Linear(inputs, config.dim), nn.LayerNorm(config.dim))
        self.decoder = _Decoder(config)
        self.classifier = nn.Linear(config.dim, 1)

    def embed(self, descriptors: Tensor, stored: bool = False) -> Tensor:
        """(…, n, local_dim) unit descriptors -> (…, n, dim) tokens; `stored`: halves, as the authors keep."""
        tokens = self.remap_local(descriptors)
        return tokens.half().float() if stored and not self.config.binary else tokens

    def forward(self, query: Tensor, candidate: Tensor) -> Tensor:
        """(b,) logits of (b, n, dim) and (b, m, dim) tokens of the two images."""
        return self._read(query, candidate)[1]

    def encode(self, query: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """(b, n + m, dim) tokens before the last layer, and (b,) logits, of b pairs of n and m descriptors."""
        tokens, logits = self._read(self.embed(query), self.embed(candidate))
        return tokens[:, 1:], logits

    def _read(self, query: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 1 + n + m, dim) tokens before the last layer, the match token first, and (b,) logits."""
        own, other = masks(query.shape[1], candidate.shape[1], query.device)
        x = torch.cat([self.mtc_token.expand(len(query), 1, -1), query, candidate], dim=1)
        for layer in self.decoder.layers[:-1]:
            x = layer(x, own, other)
        return x, self.classifier(self.decoder.layers[-1](x, own, other, first_only=True)[:, 0])[:, 0]

    @torch.inference_mode()
    def attention(self, query: Tensor, candidate: Tensor) -> Tensor:
        """(1 + n + m,) attention of the match token to itself, to the query's and to the candidate's descriptors.

        Of the last layer: the mean of self- and cross-attention and of their heads, in sum 1. `query` (n, local_dim)
        and `candidate` (m, local_dim) are as `score` is given them. It is not what the logit is made of.
        """
        one, other = self.embed(query), self.embed(candidate, stored=True)
        own, across = masks(len(one), len(other), one.device)
        x = torch.cat([self.mtc_token[None], one, other])[None]
        *layers, last = cast(Sequence[AmesLayer], self.decoder.layers)
        for layer in layers:
            x = layer(x, own, across)
        seen = last.norm1(x + last.self_attn(x, own, False))  # what cross-attention reads
        both = [first_attention(last.self_attn, x[0]), first_attention(last.cross_attn, seen[0])]
        return torch.cat(both).mean(dim=0)

    @torch.inference_mode()
    def score(self, query: Tensor, candidates: Sequence[Tensor]) -> Tensor:
        """(k,) logits of the query's (n, local_dim) descriptors with each candidate's, unpadded.

        On a CPU one pair at a time, elsewhere equally long candidates together.
        """
        source = self.embed(query)[None]
        if not candidates:
            return query.new_zeros(0)
        if query.device.type != "cpu":
            return together(partial(self._stack, source), candidates)

        @torch.inference_mode()  # thread-local
        def one(candidate: Tensor) -> Tensor:
            return self(source, self.embed(candidate, stored=True)[None])[0]

        return torch.stack(each(one, candidates))

    def _stack(self, source: Tensor, stack: Tensor) -> Tensor:
        """(b,) logits of the query's tokens (1, n, dim) with each of a stack (b, m, local_dim)."""
        return self(source.expand(len(stack), -1, -1), self.embed(stack, stored=True))


def masks(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(t, t) masks of self- and of cross-attention, True = attended to, of [match token, n tokens, m tokens].

    >>> own, other = masks(1, 2, torch.device("cpu"))
    >>> own.int().tolist()
    [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]
    >>> other.int().tolist()
    [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    """
    image = torch.arange(1 + n + m, device=device)
    image = (image > 0).int() + (image > n).int()  # 0: the match token; 1, 2: the images
    match = (image[:, None] == 0) | (image == 0)
    return match | (image[:, None] == image), match | (image[:, None] != image)


def load(path: Path) -> tuple[Ames, Mapping[str, Any]]:
    """The network of a file of weights, and its card. UserError."""
    return load_checkpoint(path, FORMAT, lambda sizes: Ames(AmesConfig(**sizes)), official, HINT)


def official(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Config and weights of the authors' file; its number of heads is always 2. ValueError."""
    depth = len({found[1] for name in state if (found := re.match(r"decoder\.layers\.(\d+)\.cross_attn", name))})
    binary = "remap_local.0.W" in state
    first = state.get("remap_local.0.W" if binary else "remap_local.0.weight")
    wide = state.get("decoder.layers.0.linear1.weight")
    if first is None or wide is None or first.ndim != 2 or wide.ndim != 2 or "mtc_token" not in state:
        raise ValueError(f"no mtc_token, remap_local and decoder.layers among {', '.join(sorted(state)[:3])}, …")
    feedforward, dim = wide.shape
    local_dim = first.shape[0 if binary else 1]
    sizes = {"depth": depth, "feedforward": feedforward, "dim": dim, "local_dim": local_dim, "binary": binary}
    return sizes, {**state, "mtc_token": state["mtc_token"].reshape(-1)}
