"""SuperGlue (Sarlin et al., CVPR 2020), written from the paper for scoring one pair of images at a time.

Batch norms are folded into the linear layers before them, heads are contiguous, images are (n, dim) without padding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UserError
from methods._parallel import each
from methods._sinkhorn import transport
from third_party import checkpoints

HEADS = 4
EPSILON = 1e-5  # of the batch norms

Linear = tuple[Tensor, Tensor]  # weight (out, in), bias (out,)


@dataclass(frozen=True)
class SuperGlueConfig:
    """Sizes of the network; the released ones have 256 dimensions, 18 layers and (32, 64, 128, 256) in the encoder."""

    dim: int = 256
    layers: int = 18
    encoder: tuple[int, ...] = (32, 64, 128, 256)

    def __post_init__(self) -> None:
        if self.dim < HEADS or self.dim % HEADS or self.layers < 1 or not all(n > 0 for n in self.encoder):
            raise ValueError(f"dim must be a multiple of {HEADS}, layers at least 1 and encoder sizes positive")

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> SuperGlueConfig:
        """Sizes that the names and shapes of official weights imply. ValueError where they are of another network."""
        numbers = {int(found[1]) for name in state if (found := re.match(r"gnn\.layers\.(\d+)\.", name))}
        convolutions = sorted(
            (int(found[1]), len(tensor))
            for name, tensor in state.items()
            if (found := re.fullmatch(r"kenc\.encoder\.(\d+)\.weight", name)) and tensor.ndim == 3
        )
        if "final_proj.weight" not in state or not numbers or len(convolutions) < 1:
            raise ValueError("no final_proj, gnn.layers and kenc.encoder")
        return SuperGlueConfig(
            len(state["final_proj.weight"]), max(numbers) + 1, tuple(size for _, size in convolutions[:-1])
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Official name -> shape of every weight."""
        found: dict[str, tuple[int, ...]] = {"bin_score": ()}

        def convolution(name: str, outputs: int, inputs: int) -> None:
            found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs, 1), (outputs,)

        def norm(name: str, size: int) -> None:
            for part in ("weight", "bias", "running_mean", "running_var"):
                found[f"{name}.{part}"] = (size,)
            found[f"{name}.num_batches_tracked"] = ()

        sizes = (3, *self.encoder, self.dim)
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            convolution(f"kenc.encoder.{3 * i}", outputs, inputs)
            if i < len(self.encoder):
                norm(f"kenc.encoder.{3 * i + 1}", outputs)
        for i in range(self.layers):
            layer = f"gnn.layers.{i}"
            for part in ("merge", "proj.0", "proj.1", "proj.2"):
                convolution(f"{layer}.attn.{part}", self.dim, self.dim)
            convolution(f"{layer}.mlp.0", 2 * self.dim, 2 * self.dim)
            norm(f"{layer}.mlp.1", 2 * self.dim)
            convolution(f"{layer}.mlp.3", self.dim, 2 * self.dim)
        convolution("final_proj", self.dim, self.dim)
        return found


@dataclass(frozen=True, eq=False)
class Keypoints:
    """What is read of one image."""

    keypoints: Tensor  # (n, 2) x, y in pixels
    scores: Tensor  # (n,) detector response
    descriptors: Tensor  # (n, dim) unit norm
    image_size: Tensor  # (2,) width, height


@dataclass(frozen=True)
class _Layer:
    query: Linear
    key_value: Linear
    merge_mlp: Linear  # of [x, message before merging], since merging and the first linear layer are one product
    out: Linear


class SuperGlue:
    """The network with given weights, named and shaped as in the official files."""

    def __init__(self, state: Mapping[str, Tensor], device: torch.device = torch.device("cpu")):
        self.config = SuperGlueConfig.of(state)
        state = {name: tensor.to(device, torch.float32) for name, tensor in state.items()}
        depth = len(self.config.encoder)
        self._encoder = [
            _folded(state, f"kenc.encoder.{3 * i}", f"kenc.encoder.{3 * i + 1}" if i < depth else None)
            for i in range(depth + 1)
        ]
        self._layers = [_layer(state, f"gnn.layers.{i}", self.config.dim) for i in range(self.config.layers)]
        self._final = _linear(state, "final_proj")
        self._bin = state["bin_score"]

    def encode(self, image: Keypoints) -> Tensor:
        """(n, dim) descriptors with their places and scores mixed in (section 3.1)."""
        size = image.image_size.to(image.keypoints)
        places = (image.keypoints - size / 2) / (0.7 * size.max())
        x = torch.cat([places, image.scores[:, None]], dim=1)
        for weight, bias in self._encoder[:-1]:
            x = F.linear(x, weight, bias).relu_()
        return image.descriptors + F.linear(x, *self._encoder[-1])

    def first(self, x: Tensor) -> Tensor:
        """The first layer, of self-attention, which does not see the other image: once a query, not once a pair."""
        return x + self._message(self._layers[0], x, x)

    def score(
        self, query: Keypoints, candidates: Sequence[Keypoints], iterations: int, threshold: float
    ) -> list[tuple[Tensor, Tensor]]:
        """`matches` of the query with each candidate; on a CPU each pair has a thread of its own."""
        with torch.inference_mode():
            one = self.first(self.encode(query))

        @torch.inference_mode()
        def pair(candidate: Keypoints) -> tuple[Tensor, Tensor]:
            other = self.first(self.encode(candidate))
            return matches(self.log_assignment(one, other, iterations), threshold)

        return each(pair, candidates) if self._bin.device.type == "cpu" else list(map(pair, candidates))

    def log_assignment(self, query: Tensor, candidate: Tensor, iterations: int = 20) -> Tensor:
        """(n + 1, m + 1) log of the soft assignment, dustbins last, of what `first` gave of two images."""
        x, y = query, candidate
        for number, layer in enumerate(self._layers[1:], 1):
            sources = (x, y) if number % 2 == 0 else (y, x)
            x, y = x + self._message(layer, x, sources[0]), y + self._message(layer, y, sources[1])
        x, y = F.linear(x, *self._final), F.linear(y, *self._final)
        return sinkhorn(x @ y.T / math.sqrt(self.config.dim), self._bin, iterations)

    def _message(self, layer: _Layer, x: Tensor, source: Tensor) -> Tensor:
        heads = (-1, HEADS, self.config.dim // HEADS)
        q = F.linear(x, *layer.query).view(heads).transpose(0, 1)
        k, v = F.linear(source, *layer.key_value).chunk(2, dim=1)
        k, v = k.reshape(heads).transpose(0, 1), v.reshape(heads).transpose(0, 1)
        seen = F.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1)
        return F.linear(F.linear(torch.cat([x, seen], dim=1), *layer.merge_mlp).relu_(), *layer.out)


def sinkhorn(similarity: Tensor, bin_score: Tensor, iterations: int) -> Tensor:
    """(n + 1, m + 1) log assignment of (n, m) similarities with dustbins (section 3.3), times n + m."""
    n, m = similarity.shape
    couplings = similarity.new_empty(n + 1, m + 1)
    couplings[:n, :m], couplings[n], couplings[:, m] = similarity, bin_score, bin_score
    return transport(couplings, iterations)


def matches(log_assignment: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """(n,) the candidate's keypoint for each of the query's, -1 for none, and (n,) its confidence, 0 for none."""
    inner = log_assignment[:-1, :-1]
    if 0 in inner.shape:
        none = inner.new_full((len(inner),), -1, dtype=torch.long)
        return none, inner.new_zeros(len(inner))
    best, there = inner.max(dim=1)
    back = inner.argmax(dim=0)
    mutual = back[there] == torch.arange(len(inner), device=inner.device)
    confidence = torch.where(mutual, best.exp(), 0)
    return torch.where(confidence > threshold, there, -1), confidence


def _linear(state: Mapping[str, Tensor], name: str) -> Linear:
    return state[f"{name}.weight"][:, :, 0].contiguous(), state[f"{name}.bias"]


def _folded(state: Mapping[str, Tensor], name: str, norm: str | None) -> Linear:
    """A linear layer and, in evaluation, the batch norm after it."""
    weight, bias = _linear(state, name)
    if norm is None:
        return weight, bias
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
    return weight * scale[:, None], (bias - state[f"{norm}.running_mean"]) * scale + state[f"{norm}.bias"]


def _layer(state: Mapping[str, Tensor], name: str, dim: int) -> _Layer:
    # official channels count heads fastest; contiguous heads need no copies
    order = torch.arange(dim).view(dim // HEADS, HEADS).T.flatten()
    (q, qb), (k, kb), (v, vb) = (_linear(state, f"{name}.attn.proj.{i}") for i in range(3))
    merge, merge_bias = _linear(state, f"{name}.attn.merge")
    first, first_bias = _folded(state, f"{name}.mlp.0", f"{name}.mlp.1")
    merged = first[:, dim:] @ merge[:, order]
    return _Layer(
        (q[order], qb[order]),
        (torch.cat([k[order], v[order]]), torch.cat([kb[order], vb[order]])),
        (torch.cat([first[:, :dim], merged], dim=1), first_bias + first[:, dim:] @ merge_bias),
        _linear(state, f"{name}.mlp.3"),
    )


def load(path: Path, device: torch.device = torch.device("cpu")) -> SuperGlue:
    """The network of a file in the official layout. UserError for a file that is not one."""
    hint = "expected the layout of Magic Leap's superglue_outdoor.pth"
    checkpoints.require(path, hint)
    state = checkpoints.read_torch(path, hint)
    try:
        config = SuperGlueConfig.of(state)
    except ValueError as error:
        raise UserError(f"{path}: weights of another architecture ({error})", hint=hint) from error
    expected = {
        name: torch.empty(shape, dtype=torch.long if name.endswith("num_batches_tracked") else torch.float32)
        for name, shape in config.shapes().items()
    }
    checkpoints.check(expected, state, path)
    return SuperGlue(state, device)
