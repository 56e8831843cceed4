"""Reranking Transformer (Tan, Yuan, Ordonez, ICCV 2021): the Google Landmarks architecture, and its checkpoints.

One pair of images is the sequence [CLS, g_s, L_s, SEP, g_t, L_t] of a global and local descriptors each; a post-norm
encoder without positions reads it and the logit is a linear map of its first token. Written from docs/protocols.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from methods._attention import first_attention
from methods._transformer import Encoder, EncoderConfig, Layer
from methods.rrt.engine import Precision, matmul_precision, pair_logits
from third_party.checkpoints import check, read_safetensors, read_torch, require

SEGMENTS = {"src_local": 0, "tgt_local": 1, "cls": 2, "sep": 3, "src_global": 4, "tgt_global": 5}
SCALES = 7  # DELG's image pyramid
SINGLE_SCALE = 3  # scale 1 of the pyramid: the id of descriptors that have no scale
FORMAT = "rerankbench-rrt-1"


@dataclass(frozen=True)
class RRTConfig(EncoderConfig):
    """Sizes of the network; the defaults are those of the released Google Landmarks checkpoints."""

    global_dim: int = 2048
    local_dim: int = 128


@dataclass(frozen=True)
class Tokens:
    """What RRT reads of one image; n may be 0."""

    local: Tensor  # (n, local_dim)
    scale_ids: Tensor  # (n,) int64 in [0, SCALES)
    global_: Tensor  # (global_dim,)


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of several images, padded to one length."""

    local: Tensor  # (b, n, local_dim)
    scale_ids: Tensor  # (b, n)
    global_: Tensor  # (b, global_dim)
    mask: Tensor | None = None  # (b, n) bool, True = padding; None: no padding


class RRT(nn.Module):
    """Scores pairs of images; parameter names and shapes equal the released Google Landmarks checkpoints."""

    def __init__(self, config: RRTConfig = RRTConfig(), card: Mapping[str, Any] | None = None):
        super().__init__()
        self.config = config
        self.card: dict[str, Any] = dict(card or {})  # features, descriptors and recipe of shipped weights
        self.encoder = Encoder(config)
        self.remap = nn.Linear(config.global_dim, config.dim)
        if config.local_dim != config.dim:
            self.local_remap = nn.Linear(config.local_dim, config.dim)
        self.scale_encoder = nn.Embedding(SCALES, config.dim)
        self.seg_encoder = nn.Embedding(len(SEGMENTS), config.dim)
        self.classifier = nn.Linear(config.dim, 1)

    def forward(self, query: TokenBatch, candidates: TokenBatch) -> Tensor:
        """(b,) logits of b pairs."""
        x, keep = self._join(self.embed(query, "src"), self.embed(candidates, "tgt")), _keep(query, candidates)
        for layer in self.encoder.layers:
            x = layer(x, keep)
        return self.classifier(x[:, 0]).squeeze(-1)

    def encode(self, query: TokenBatch, candidates: TokenBatch) -> tuple[Tensor, Tensor]:
        """(b, 4 + n + m, dim) tokens before the last layer, [CLS, g_s, L_s, SEP, g_t, L_t], and (b,) logits."""
        return self._read(self._join(self.embed(query, "src"), self.embed(candidates, "tgt")), _keep(query, candidates))

    def _read(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        for layer in self.encoder.layers[:-1]:
            x = layer(x, keep)
        # the logit reads the first token only, so the last layer computes that query alone
        first = self.encoder.layers[-1](x, keep, first_only=True)[:, 0]
        with torch.autocast(x.device.type, enabled=False):  # a logit of 8 bits would tie what bf16 tokens tell apart
            return x, self.classifier(first.float()).squeeze(-1)

    def embed(self, batch: TokenBatch, side: str) -> Tensor:
        """(b, 1 + n, dim) global and local tokens of one side, "src" (query) or "tgt" (candidate)."""
        local = batch.local if self.config.local_dim == self.config.dim else self.local_remap(batch.local)
        segment = self.seg_encoder.weight
        local = F.normalize(local, dim=-1) + self.scale_encoder(batch.scale_ids) + segment[SEGMENTS[f"{side}_local"]]
        global_ = F.normalize(self.remap(batch.global_), dim=-1) + segment[SEGMENTS[f"{side}_global"]]
        return torch.cat([global_[:, None], local], dim=1)

    def _tokens(self, before: str, side: str, image: Tokens) -> Tensor:
        """(2 + n, dim) CLS or SEP, and `embed` of one image, with fewer calls."""
        segment = self.seg_encoder.weight
        tokens = segment.new_empty(2 + len(image.local), self.config.dim)
        places = self.scale_encoder.weight + segment[SEGMENTS[f"{side}_local"]]
        local = image.local.float()
        local = local if self.config.local_dim == self.config.dim else self.local_remap(local)
        tokens[0] = segment[SEGMENTS[before]]
        tokens[1] = F.normalize(self.remap(image.global_.float()), dim=0) + segment[SEGMENTS[f"{side}_global"]]
        torch.add(F.normalize(local, dim=1), places[image.scale_ids], out=tokens[2:])
        return tokens

    def _join(self, source: Tensor, target: Tensor) -> Tensor:
        cls, sep = (self._segment(name).expand(len(source), 1, -1) for name in ("cls", "sep"))
        return torch.cat([cls, source, sep, target], dim=1)

    def _segment(self, name: str) -> Tensor:
        """(1, 1, dim) embedding of a segment: the whole token of CLS and of SEP."""
        return self.seg_encoder.weight[SEGMENTS[name]][None, None]

    @torch.inference_mode()
    def score(
        self, query: Tokens, candidates: Sequence[Tokens], batch: int | None = None, precision: Precision = "fp32"
    ) -> Tensor:
        """(k,) logits of the query with each candidate, in the order given.

        On a CPU pair by pair (`pair_logits`); elsewhere, or where `batch` is given, that many candidates (default
        128) together, padded to the longest. `precision` is that of the matrix products; other than fp32, ranks may
        change.
        """
        device = self.classifier.weight.device
        if batch is None and device.type == "cpu":
            layers = cast(Sequence[Layer], self.encoder.layers)

            first, second = partial(self._tokens, "cls", "src", query), partial(self._tokens, "sep", "tgt")
            return pair_logits(layers, self.classifier, first, candidates, second, precision)
        scores, batch = [torch.empty(0, device=device)], batch or 128
        with matmul_precision(device, precision):
            for start in range(0, len(candidates), batch):
                chosen = candidates[start : start + batch]
                scores.append(self.encode(pad([query] * len(chosen), device), pad(chosen, device))[1])
        return torch.cat(scores)

    @torch.inference_mode()
    def attention(self, query: Tokens, candidate: Tokens) -> Tensor:
        """(4 + n + m,) attention of CLS to [CLS, g_s, L_s, SEP, g_t, L_t] in the last layer: the mean of all heads.

        In sum 1. It says what the last layer looks at, which earlier layers have mixed, and not what the logit is of.
        In fp32, whatever the precision of scores.
        """
        device = self.classifier.weight.device
        x, _ = self.encode(pad([query], device), pad([candidate], device))
        return first_attention(cast(Layer, self.encoder.layers[-1]).self_attn, x[0]).mean(dim=0)


def pad(images: Sequence[Tokens], device: torch.device) -> TokenBatch:
    """The images as float32 on `device`, padded with zeros to the longest; no mask where all are equally long."""
    lengths = torch.tensor([len(t.local) for t in images])
    mask = torch.arange(int(lengths.max())) >= lengths[:, None]
    return TokenBatch(
        nn.utils.rnn.pad_sequence([t.local for t in images], batch_first=True).to(device, torch.float32),
        nn.utils.rnn.pad_sequence([t.scale_ids for t in images], batch_first=True).to(device, torch.int64),
        torch.stack([t.global_ for t in images]).to(device, torch.float32),
        mask.to(device) if mask.any() else None,
    )


def _keep(query: TokenBatch, candidates: TokenBatch) -> Tensor | None:
    """(b, 1, 1, t) bool attention mask, True = attended to; None where nothing is padded."""
    if query.mask is None and candidates.mask is None:
        return None
    parts = []
    for batch in (query, candidates):
        b, n = batch.local.shape[:2]
        mask = batch.mask if batch.mask is not None else torch.zeros(b, n, dtype=torch.bool, device=batch.local.device)
        parts += [mask.new_zeros(b, 2), mask]  # CLS or SEP, and the global, are never padding
    return ~torch.cat(parts, dim=1)[:, None, None, :]


def save_checkpoint(model: RRT, path: Path, card: Mapping[str, Any] | None = None) -> None:
    """Write the weights (float32, safetensors) with their config and card, atomically."""
    state = {name: tensor.detach().float().contiguous().cpu() for name, tensor in model.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(model.config)),
        "card": json.dumps(dict(card if card is not None else model.card)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(state, metadata=metadata))
    part.replace(path)


def load_checkpoint(path: Path | str) -> RRT:
    """RRT in eval mode from our safetensors or from a released `.pt`; every problem is a UserError naming the file."""
    path = Path(path)
    hint = "give one written by `train rrt` or a released RRT .pt of the Google Landmarks kind"
    require(path, hint)
    if path.suffix == ".safetensors":
        state, sizes, card = read_safetensors(path, FORMAT, hint)
        try:
            config = RRTConfig(**sizes)
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: its configuration cannot be used ({error})", hint=hint) from error
    else:
        state, card = read_torch(path, hint), {}
        config = _config_of(state, path)
    model = RRT(config, card)
    check(model.state_dict(), state, path)
    model.load_state_dict(state)
    return model.eval()


def _config_of(state: Mapping[str, Tensor], path: Path) -> RRTConfig:
    """The sizes of a released checkpoint, which stores none; its number of heads is always 4."""
    if any(name.startswith("matcher.") for name in state):
        raise UserError(
            f"{path}: RRT's other architecture (Stanford Online Products, weights under 'matcher.')",
            hint="give a Google Landmarks checkpoint",
        )
    layers = {int(m[1]) for name in state if (m := re.match(r"encoder\.layers\.(\d+)\.", name))}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    try:
        dim, global_dim = shapes["remap.weight"]
        feedforward = shapes["encoder.layers.0.linear1.weight"][0]
        local_dim = shapes["local_remap.weight"][1] if "local_remap.weight" in shapes else dim
        return replace(
            RRTConfig(), depth=len(layers), feedforward=feedforward, dim=dim, global_dim=global_dim, local_dim=local_dim
        )
    except (KeyError, ValueError, IndexError) as error:
        some = ", ".join(sorted(state)[:3]) or "nothing"
        raise UserError(
            f"{path}: another architecture: expected encoder.layers.*, remap, scale_encoder, seg_encoder, "
            f"classifier; found {some}, …",
            hint="give a Google Landmarks checkpoint of RRT",
        ) from error
