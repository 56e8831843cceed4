"""Scoring speed: RRT's encoder on a CPU, one pair of images at a time and without padding; and reduced precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.threads import threads
from methods._transformer import Attention, Layer

Precision = Literal["fp32", "tf32", "bf16"]
T = TypeVar("T")
PAIRS = 8  # that go through a layer one after the other, while the cache holds its weights
Linear = Callable[[Tensor, Tensor, Tensor], Tensor]  # input (rows, in), weight (out, in), bias (out,) -> (rows, out)


@contextmanager
def matmul_precision(device: torch.device, precision: Precision) -> Iterator[None]:
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
    query: Callable[[], Tensor],
    candidates: Sequence[T],
    embed: Callable[[T], Tensor],
    precision: Precision = "fp32",
) -> Tensor:
    """(k,) logits of the pairs [query(), embed(candidate)] on a CPU; the very first token is the one classified.

    `query` gives (s, dim) and `embed` (t, dim) tokens; t may differ. Every pair is computed without padding by one
    thread, as many pairs at a time as torch has threads: large batches are slower than the caches, and threads that
    share one pair wait for each other. So a score does not depend on the other candidates or on the number of threads.
    A thread takes `PAIRS` pairs through a layer before it goes on to the next one.
    """
    begun: _Begun | None = None

    @torch.inference_mode()
    def begin() -> _Begun:
        for weight in _weights(layers):  # measured alone, before the threads disturb each other
            _fastest_linear(precision, *weight.shape)
        return _Begun.of(query(), layers, precision)

    @torch.inference_mode()  # thread-local, as the precision is
    def logits(some: Sequence[T]) -> Tensor:
        assert begun is not None
        targets = [embed(candidate) for candidate in some]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            room = _Room(begun, targets, layers, precision)
            for number, layer in enumerate(layers[:-1]):
                for pair in room.pairs:
                    _layer(layer, room, pair, begun if number == 0 else None)
            first = torch.cat([_first_token(layers[-1], pair.x[: pair.tokens]) for pair in room.pairs])
        return torch.cat([classifier(token[None].float())[0] for token in first])

    side_by_side = torch.get_num_threads()
    count = -(-len(candidates) // (PAIRS * side_by_side)) * side_by_side  # as much work for each thread
    ends = [len(candidates) * i // max(count, 1) for i in range(count + 1)]
    chunks = [candidates[start:end] for start, end in pairwise(ends) if start < end]
    with threads(side_by_side) as pool:
        begun = pool.submit(begin).result()  # products of several threads round otherwise
        return torch.cat([begun.source.new_empty(0), *pool.map(logits, chunks)])


@dataclass(frozen=True, eq=False)
class _Begun:
    """What is the same for all candidates of a query."""

    source: Tensor  # (s, dim) its tokens
    rows: int  # numbers of rows are multiples of it
    projected: Tensor  # (t, 3 dim) queries, keys and values of the first t tokens in the first layer, t = s - s % rows

    @staticmethod
    def of(source: Tensor, layers: Sequence[Layer], precision: Precision) -> _Begun:
        ways = {_fastest_linear(precision, *weight.shape) for weight in _weights(layers)}
        rows = 32 if _onednn_linear in ways else 1  # few distinct shapes, since oneDNN compiles a kernel for each
        attention, whole = layers[0].self_attn, source[: len(source) // rows * rows]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return _Begun(source, rows, F.linear(whole, attention.in_proj_weight, attention.in_proj_bias))


@dataclass(frozen=True, eq=False)
class _Pair:
    """The state of one pair between layers."""

    x: Tensor  # (rows, dim)
    tokens: int  # of the rows; attention leaves the others out


class _Room:
    """Where the numbers of some pairs stand in all layers: memory that is asked for anew is slow."""

    def __init__(self, begun: _Begun, targets: Sequence[Tensor], layers: Sequence[Layer], precision: Precision):
        source, dim, wide = begun.source, begun.source.shape[1], layers[0].linear1.out_features
        tokens = [len(source) + len(target) for target in targets]
        rows = [-(-number // begun.rows) * begun.rows for number in tokens]
        self.pairs = [_Pair(source.new_zeros(r, dim), number) for r, number in zip(rows, tokens, strict=True)]
        self._seen = source.new_zeros(max(rows) * dim)
        self._wide = source.new_empty(max(rows) * max(3 * dim, wide))
        self._means, self._deviations = source.new_empty(2, max(rows), 1)
        for pair, target in zip(self.pairs, targets, strict=True):
            pair.x[: len(source)], pair.x[len(source) : pair.tokens] = source, target
        self._precision = precision

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor, seen: bool = False) -> Tensor:
        """(rows, out) of (rows, in), where what is wide stands or, with `seen`, what was seen."""
        way = _fastest_linear(self._precision, *weight.shape)
        if way is F.linear and self._precision != "bf16":
            out = (self._seen if seen else self._wide)[: len(x) * len(bias)].view(len(x), -1)
            return torch.addmm(bias, x, weight.T, out=out)
        return way(x, weight, bias)

    def project(self, x: Tensor, attention: Attention, begun: _Begun | None) -> Tensor:
        """(rows, 3 dim) queries, keys and values, of which `begun` has the first ones."""
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        if begun is None:
            return self.linear(x, weight, bias)
        rest = self.linear(x[len(begun.projected) :], weight, bias)
        return torch.cat([begun.projected, rest])

    def attend(self, pair: _Pair, parts: Tensor, heads: int) -> Tensor:
        """(rows, dim) what the tokens see, and anything of those that are none."""
        q, k, v = parts[: pair.tokens].view(pair.tokens, 3, heads, -1).permute(1, 2, 0, 3).unsqueeze(1)
        seen = self._seen[: pair.x.numel()].view(pair.x.shape)
        seen[: pair.tokens].unflatten(1, (heads, -1)).transpose(0, 1).copy_(F.scaled_dot_product_attention(q, k, v)[0])
        return seen

    def add(self, x: Tensor, y: Tensor, norm: nn.LayerNorm) -> None:
        """`x = norm(x + y)`, in the place of x, which the functions of `torch.nn` do not offer."""
        outs = {"out0": x, "out1": self._means[: len(x)], "out2": self._deviations[: len(x)]}
        torch.ops.aten.native_layer_norm.out(x.add_(y), x.shape[1:], norm.weight, norm.bias, norm.eps, **outs)


def _weights(layers: Sequence[Layer]) -> list[Tensor]:
    """Those of the linear layers that see every token."""
    return [
        weight
        for layer in layers[:-1]
        for weight in (
            layer.self_attn.in_proj_weight,
            layer.self_attn.out_proj.weight,
            layer.linear1.weight,
            layer.linear2.weight,
        )
    ]


def _layer(layer: Layer, room: _Room, pair: _Pair, begun: _Begun | None) -> None:
    """`Layer.forward` of the pair in `room`; `begun` where the layer is the first."""
    attention, x = layer.self_attn, pair.x
    seen = room.attend(pair, room.project(x, attention, begun), attention.heads)
    room.add(x, room.linear(seen, attention.out_proj.weight, attention.out_proj.bias), layer.norm1)
    wide = room.linear(x, layer.linear1.weight, layer.linear1.bias).relu_()
    room.add(x, room.linear(wide, layer.linear2.weight, layer.linear2.bias, seen=True), layer.norm2)


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


@cache
def _fastest_linear(precision: Precision, outputs: int, inputs: int) -> Linear:
    """The faster of two ways to the same product on this processor, measured once: torch's own (MKL) and oneDNN."""
    x, weight, bias = torch.ones(512, inputs), torch.ones(outputs, inputs), torch.ones(outputs)
    best: dict[Linear, float] = {F.linear: math.inf, _onednn_linear: math.inf}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
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
