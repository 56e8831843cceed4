"""Reranking Transformer (Tan, Yuan, Ordonez, ICCV 2021): the Google Landmarks architecture, and its checkpoints.

One pair of images is the sequence [CLS, g_s, L_s, SEP, g_t, L_t] of a global and local descriptors each; a post-norm
encoder without positions reads it and the logit is a linear map of its first token. Written from FACTS section 4.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError

SEGMENTS = {"src_local": 0, "tgt_local": 1, "cls": 2, "sep": 3, "src_global": 4, "tgt_global": 5}
SCALES = 7  # DELG's image pyramid
SINGLE_SCALE = 3  # scale 1 of the pyramid: the id of descriptors that have no scale
FORMAT = "rerankbench-rrt-1"


@dataclass(frozen=True)
class RRTConfig:
    """Sizes of the network; the defaults are those of the released Google Landmarks checkpoints."""

    depth: int = 6
    feedforward: int = 1024
    heads: int = 4
    dim: int = 128
    global_dim: int = 2048
    local_dim: int = 128

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} {value!r}: expected an integer of at least 1")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} cannot be split over {self.heads} heads")


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


class _Attention(nn.Module):
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

    def __init__(self, config: RRTConfig):
        super().__init__()
        self.self_attn = _Attention(config.dim, config.heads)
        self.linear1 = nn.Linear(config.dim, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.dim)
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, keep: Tensor | None, first_only: bool = False) -> Tensor:
        """(b, t, dim); `first_only` gives (b, 1, dim), the first token alone."""
        y = self.norm1((x[:, :1] if first_only else x) + self.self_attn(x, keep, first_only))
        return self.norm2(y + self.linear2(F.relu(self.linear1(y))))


class _Encoder(nn.Module):
    def __init__(self, config: RRTConfig):
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))


class RRT(nn.Module):
    """Scores pairs of images; parameter names and shapes equal the released Google Landmarks checkpoints."""

    def __init__(self, config: RRTConfig = RRTConfig(), card: Mapping[str, Any] | None = None):
        super().__init__()
        self.config = config
        self.card: dict[str, Any] = dict(card or {})  # features, descriptors and recipe of shipped weights
        self.encoder = _Encoder(config)
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
            source = torch.cat([self._segment("cls"), self.embed(_pad([query], device), "src")], dim=1)[0]

            def embed(candidate: Tokens) -> Tensor:
                return torch.cat([self._segment("sep"), self.embed(_pad([candidate], device), "tgt")], dim=1)[0]

            return pair_logits(layers, self.classifier, source, candidates, embed, precision)
        scores, batch = [torch.empty(0, device=device)], batch or 128
        with _matmul_precision(device, precision):
            for start in range(0, len(candidates), batch):
                chosen = candidates[start : start + batch]
                scores.append(self.encode(_pad([query] * len(chosen), device), _pad(chosen, device))[1])
        return torch.cat(scores)


def _pad(images: Sequence[Tokens], device: torch.device) -> TokenBatch:
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


Precision = Literal["fp32", "tf32", "bf16"]
T = TypeVar("T")
Linear = Callable[[Tensor, Tensor, Tensor], Tensor]  # input (rows, in), weight (out, in), bias (out,) -> (rows, out)


@contextmanager
def _matmul_precision(device: torch.device, precision: Precision) -> Iterator[None]:
    """Matrix products of the body: fp32, tf32 (on CUDA) or bf16; these keep 10 and 7 bits of a factor instead of 23."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def pair_logits(
    layers: Sequence[Layer],
    classifier: nn.Linear,
    source: Tensor,
    candidates: Sequence[T],
    embed: Callable[[T], Tensor],
    precision: Precision = "fp32",
) -> Tensor:
    """(k,) logits of the pairs [source, embed(candidate)] on a CPU; the first token of `source` is the one classified.

    `source` is (s, dim) and `embed` gives (t, dim) tokens; t may differ. Every pair is computed without padding by one
    thread, as many pairs at a time as torch has threads: large batches are slower than the caches, and threads that
    share one pair wait for each other. So a score does not depend on the other candidates or on the number of threads.
    """

    @torch.inference_mode()  # thread-local, as the precision is
    def logit(candidate: T) -> Tensor:
        target = embed(candidate)
        tokens = len(source) + len(target)
        # few distinct shapes, since oneDNN compiles a kernel for each; attention leaves the rows added here out
        x = source.new_zeros(-(-tokens // 32) * 32, source.shape[1])
        x[: len(source)], x[len(source) : tokens] = source, target
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            for layer in layers[:-1]:
                x = _layer(layer, x, tokens)
            first = _first_token(layers[-1], x[:tokens])
        return classifier(first.float())[0]

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat([source.new_empty(0), *pool.map(logit, candidates)])
    finally:
        torch.set_num_threads(threads)  # the workers set what later threads start with


def _layer(layer: Layer, x: Tensor, tokens: int) -> Tensor:
    """(rows, dim) -> (rows, dim): `Layer.forward` of one sequence, of which the first `tokens` rows are attended to."""
    attention = layer.self_attn
    parts = _linear(x, attention.in_proj_weight, attention.in_proj_bias).view(len(x), 3, attention.heads, -1)
    q, k, v = parts[:tokens].permute(1, 2, 0, 3).unsqueeze(1)
    seen = torch.zeros_like(x)
    seen[:tokens] = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
    y = layer.norm1(x + _linear(seen, attention.out_proj.weight, attention.out_proj.bias))
    wide = _linear(y, layer.linear1.weight, layer.linear1.bias).relu_()
    return layer.norm2(y + _linear(wide, layer.linear2.weight, layer.linear2.bias))


def _first_token(layer: Layer, x: Tensor) -> Tensor:
    """(tokens, dim) -> (1, dim): the first token of `Layer.forward`, without keys and values of the others.

    q · (K x + b) is (K^T q) · x plus what softmax drops, and a weighted mean of V x + b is V (mean of x) + b.
    """
    attention, dim = layer.self_attn, x.shape[1]
    q_weight, k_weight, v_weight = attention.in_proj_weight.view(3, attention.heads, -1, dim)
    q_bias, _, v_bias = attention.in_proj_bias.view(3, attention.heads, -1, 1)
    q = q_weight @ x[0, :, None] + q_bias  # (heads, dim / heads, 1)
    weights = torch.softmax(q.mT @ k_weight @ x.T / math.sqrt(dim / attention.heads), dim=-1)
    seen = v_weight @ (weights @ x).mT + v_bias
    y = layer.norm1(x[:1] + attention.out_proj(seen.flatten()[None]))
    return layer.norm2(y + layer.linear2(F.relu(layer.linear1(y))))


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _fastest_linear(*weight.shape)(x, weight, bias)


@cache
def _fastest_linear(outputs: int, inputs: int) -> Linear:
    """The faster of two ways to the same product on this processor, measured once: torch's own (MKL) and oneDNN."""
    x, weight, bias = torch.ones(512, inputs), torch.ones(outputs, inputs), torch.ones(outputs)
    best: dict[Linear, float] = {F.linear: math.inf, _onednn_linear: math.inf}
    for _ in range(9):
        for way in best:
            start = time.perf_counter()
            way(x, weight, bias)
            best[way] = min(best[way], time.perf_counter() - start)
    # a close call always falls alike, so that processes agree to the last bit
    return _onednn_linear if best[_onednn_linear] < 0.8 * best[F.linear] else F.linear


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer as a channels-last 1x1 convolution: the public way to oneDNN's matrix product."""
    image = x.view(1, len(x), 1, -1).permute(0, 3, 1, 2)
    return F.conv2d(image, weight[:, :, None, None], bias)[0, :, :, 0].T


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
    if not path.is_file():
        raise UserError(f"{path}: no such weights file", hint="give one written by `train rrt` or a released RRT .pt")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the weights file is empty (0 bytes)", hint="copy or download it again")
    if path.suffix == ".safetensors":
        state, config, card = _read_safetensors(path)
    else:
        state, card = _read_torch(path), {}
        config = _config_of(state, path)
    model = RRT(config, card)
    _check_shapes(model.state_dict(), state, path)
    model.load_state_dict(state)
    return model.eval()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], RRTConfig, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error})", hint="copy or download it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: not RRT weights: format {metadata.get('format')!r}, expected {FORMAT!r}",
            hint="give a file written by `train rrt`",
        )
    try:
        config, card = RRTConfig(**json.loads(metadata["config"])), json.loads(metadata.get("card", "{}"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its configuration cannot be used ({error})", hint="give a file written by `train rrt`"
        ) from error
    return state, config, card


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise UserError(
                f"{path}: refused: it holds pickled objects other than tensors, which could run code",
                hint="expected a checkpoint of plain tensors, {'state': {name: tensor}}",
            ) from error
        raise UserError(f"{path}: not a readable torch checkpoint", hint="copy or download it again") from error
    except Exception as error:  # torch.load raises RuntimeError, EOFError, KeyError, … on damaged files
        raise UserError(
            f"{path}: truncated or not a torch checkpoint ({type(error).__name__})", hint="copy or download it again"
        ) from error
    state = content.get("state") if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{path}: expected a dictionary with the weights under 'state', found {found}",
            hint="give a released RRT checkpoint of the Google Landmarks kind",
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


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


def _check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    hint = "the file belongs to another architecture or is damaged"
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(f"{path}: {len(missing)} weights are missing, first {missing[0]!r}", hint=hint)
    if extra := sorted(found.keys() - expected.keys()):
        raise UserError(f"{path}: {len(extra)} weights are not RRT's, first {extra[0]!r}", hint=hint)
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}", hint=hint
            )
        if not found[name].is_floating_point() or not math.isfinite(float(found[name].sum())):
            raise UserError(f"{path}: {name} holds values that are not finite floats", hint=hint)
