"""The reranker of R2Former (Zhu et al., CVPR 2023): a transformer over correlations of local descriptors and places.

A token of either image is made of its five best correlations, each the places and attentions of two descriptors and
their cosine. Names and shapes are those of the authors' checkpoints; what they hold and do not use is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._local_weights import load_checkpoint
from methods._parallel import each
from methods._transformer import EncoderConfig

FORMAT = "rerankbench-r2former-1"
HINT = (
    "expected a .safetensors of ours, or the authors' CVPR23_DeitS_Rerank.pth (github.com/bytedance/R2Former); a file "
    "with more than tensors is refused: if you trust it, keep its model_state_dict alone"
)
KEY, PART = "model_state_dict", "Reranker."  # where the authors' files have the weights
UNUSED = ("ratio", "decoder_pos_embed")  # the blend that training learns, and places that nothing reads
CLASSES = 2  # other, same
EPSILON = 1e-6  # of the norms
PERIOD = 10000.0  # of the slowest wave of a place


@dataclass(frozen=True)
class R2FormerConfig(EncoderConfig):
    """Sizes of the network; the defaults are those of the released weights."""

    depth: int = 6  # blocks over all tokens
    feedforward: int = 128
    heads: int = 4
    dim: int = 32
    pair_depth: int = 2  # blocks over the correlations of a token
    correlations: int = 5  # of a token
    local_dim: int = 128  # of the descriptors that it was trained on; any size can be correlated

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % 4:
            raise ValueError(f"dim {self.dim}: expected a multiple of 4, for sine and cosine of two coordinates")


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, first_only: bool) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q[:, :, :1] if first_only else q, k, v)
        return self.proj(seen.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer layer of a vision transformer, without dropout."""

    def __init__(self, config: R2FormerConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=EPSILON)
        self.attn = _Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=EPSILON)
        self.mlp = _Mlp(config.dim, config.feedforward)

    def forward(self, x: Tensor, first_only: bool = False) -> Tensor:
        """(b, t, dim); `first_only` gives (b, 1, dim), the first token alone."""
        x = (x[:, :1] if first_only else x) + self.attn(self.norm1(x), first_only)
        return x + self.mlp(self.norm2(x))


class R2Former(nn.Module):
    """Scores pairs of images by (n, 3 + local_dim) rows of x, y, attention, descriptor; see `tokens`."""

    def __init__(self, config: R2FormerConfig = R2FormerConfig()):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.cls_token_2 = nn.Parameter(torch.empty(1, 1, config.dim))
        for token in (self.cls_token, self.cls_token_2):
            nn.init.trunc_normal_(token, std=0.02)
        self.pair_head = nn.Linear(7, config.dim)
        self.blocks_2 = nn.ModuleList(Block(config) for _ in range(config.pair_depth))
        self.pair_head_2 = nn.Linear(config.dim, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.decoder_norm = nn.LayerNorm(config.dim, eps=EPSILON)
        self.decoder_pred = nn.Linear(config.dim, CLASSES)

    def forward(self, query: Tensor, candidate: Tensor) -> Tensor:
        """() logit of "same place" less that of "other", of (n, 3 + d) and (m, 3 + d) rows, n and m at least 1."""
        groups = correlated(query, candidate, self.config.correlations)
        x = torch.cat([self.cls_token[0], *map(self._token, groups)])[None]
        logits = self.decoder_pred(self._first(x, self.blocks))[0]
        return logits[1] - logits[0]

    def _token(self, pairs: Tensor) -> Tensor:
        """(t, dim) of (t, c, 7) correlations, the best first."""
        x = self.pair_head(pairs) + waves(pairs[..., 3:5], self.config.dim)
        x = torch.cat([self.cls_token_2.expand(len(x), 1, -1), x], dim=1)
        return self.pair_head_2(self._first(x, self.blocks_2)) + waves(pairs[:, 0, :2], self.config.dim)

    def _first(self, x: Tensor, blocks: nn.ModuleList) -> Tensor:
        """(b, dim), the first of (b, t, dim) tokens after the blocks."""
        for number, block in enumerate(blocks, 1):
            x = block(x, first_only=number == len(blocks))
        return self.decoder_norm(x[:, 0])

    @torch.inference_mode()
    def score(self, query: Tensor, candidates: Sequence[Tensor]) -> Tensor:
        """(k,) logits of the query's rows with each candidate's; 0 where either has none."""
        nothing = query.new_zeros(())

        @torch.inference_mode()  # thread-local
        def one(candidate: Tensor) -> Tensor:
            return self(query, candidate) if len(query) and len(candidate) else nothing

        return torch.stack(each(one, candidates))


def tokens(descriptors: Tensor, keypoints: Tensor, scores: Tensor, image_size: Tensor) -> Tensor:
    """(n, 3 + d) x and y as shares of the longer side, attention as a share of the largest, and unit descriptors."""
    places = keypoints / image_size.max()
    most = scores[:1].clamp(min=torch.finfo(scores.dtype).tiny)  # they descend
    return torch.cat([places.clamp(0, 1), (scores / most).clamp(0, 1)[:, None], descriptors], dim=1)


def correlated(query: Tensor, candidate: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(n, c, 7) and (m, c, 7) best correlations of each token of the query and of the candidate, c at most `count`.

    A correlation is x, y, attention of the query's token, those of the candidate's, and their cosine. The query's come
    first in both, as in the authors' code.
    """
    cosine = F.normalize(query[:, 3:], dim=1) @ F.normalize(candidate[:, 3:], dim=1).T
    best, at = cosine.topk(min(count, len(candidate)), dim=1)
    of_query = [query[:, None, :3].expand(*at.shape, 3), candidate[at, :3], best[..., None]]
    best, at = cosine.T.topk(min(count, len(query)), dim=1)
    of_candidate = [query[at, :3], candidate[:, None, :3].expand(*at.shape, 3), best[..., None]]
    return torch.cat(of_query, dim=-1), torch.cat(of_candidate, dim=-1)


def waves(places: Tensor, dim: int) -> Tensor:
    """(…, dim) sines and cosines of x, and then of y, of (…, 2) places."""
    rates = PERIOD ** -(torch.arange(dim // 4, device=places.device) / (dim // 4))
    angles = places[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def load(path: Path) -> tuple[R2Former, Mapping[str, Any]]:
    """The network of a file of weights, and its card. UserError."""
    model, card = load_checkpoint(path, FORMAT, lambda sizes: R2Former(R2FormerConfig(**sizes)), official, HINT, KEY)
    return model, {"descriptors": 500, **card}


def official(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Config and weights of the authors' file, which has the backbone, too; it always has 4 heads. ValueError."""
    own = {name.removeprefix(PART): tensor for name, tensor in state.items() if name.startswith(PART)}
    wide, local = own.get("blocks.0.mlp.fc1.weight"), state.get("local_head.weight")
    if wide is None or local is None or wide.ndim != 2 or local.ndim != 2:
        raise ValueError(f"no {PART}blocks and local_head among {', '.join(sorted(state)[:3])}, …")
    feedforward, dim = wide.shape
    sizes = {
        "depth": _blocks(own, "blocks"),
        "pair_depth": _blocks(own, "blocks_2"),
        "feedforward": feedforward,
        "dim": dim,
        "local_dim": len(local),
    }
    return sizes, {name: tensor for name, tensor in own.items() if name not in UNUSED}


def _blocks(state: Mapping[str, Tensor], name: str) -> int:
    return len({found[1] for key in state if (found := re.match(rf"{name}\.(\d+)\.", key))})
