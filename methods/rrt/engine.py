"""Scoring speed: RRT's encoder on a CPU, one pair of images at a time and without padding; and reduced precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._transformer import Layer

Precision = Literal["fp32", "tf32", "bf16"]
T = TypeVar("T")
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
    """

    linear = partial(_linear, precision)

    @torch.inference_mode()  # thread-local, as the precision is
    def logit(source: Tensor, candidate: T) -> Tensor:
        target = embed(candidate)
        tokens = len(source) + len(target)
        # few distinct shapes, since oneDNN compiles a kernel for each; attention leaves the rows added here out
        x = source.new_zeros(-(-tokens // 32) * 32, source.shape[1])
        x[: len(source)], x[len(source) : tokens] = source, target
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            for layer in layers[:-1]:
                x = _layer(layer, x, tokens, linear)
            first = _first_token(layers[-1], x[:tokens])
        return classifier(first.float())[0]

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            source = pool.submit(torch.inference_mode()(query)).result()  # products of several threads round otherwise
            for weight in _weights(layers):  # measured alone, before the threads disturb each other
                pool.submit(_fastest_linear, precision, *weight.shape).result()
            return torch.cat([source.new_empty(0), *pool.map(partial(logit, source), candidates)])
    finally:
        torch.set_num_threads(threads)  # the workers set what later threads start with


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


def _layer(layer: Layer, x: Tensor, tokens: int, linear: Linear) -> Tensor:
    """(rows, dim) -> (rows, dim): `Layer.forward` of one sequence, of which the first `tokens` rows are attended to."""
    attention = layer.self_attn
    parts = linear(x, attention.in_proj_weight, attention.in_proj_bias).view(len(x), 3, attention.heads, -1)
    q, k, v = parts[:tokens].permute(1, 2, 0, 3).unsqueeze(1)
    seen = torch.zeros_like(x)
    seen[:tokens] = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
    y = layer.norm1(x + linear(seen, attention.out_proj.weight, attention.out_proj.bias))
    wide = linear(y, layer.linear1.weight, layer.linear1.bias).relu_()
    return layer.norm2(y + linear(wide, layer.linear2.weight, layer.linear2.bias))


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


def _linear(precision: Precision, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _fastest_linear(precision, *weight.shape)(x, weight, bias)


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
