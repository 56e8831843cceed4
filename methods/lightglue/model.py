"""LightGlue (Lindenberger et al., ICCV 2023), written from the paper for one query and many images on a CPU.

All layers see all keypoints. Weights are named as in kornia's `LightGlue`. The images of a pair share every weight, so
they are rows of one matrix. Linear maps without anything between them are one product, and nothing is padded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.reranker import Features
from methods._parallel import each

Linear = tuple[Tensor, Tensor]  # weight (out, in), bias (out,)
EPSILON = 1e-5  # of the layer norms


@dataclass(frozen=True)
class LightGlueConfig:
    """What the weights do not say of themselves. ValueError for what cannot be."""

    heads: int = 4  # of every attention
    oriented: bool = False  # whether scale and orientation are part of a keypoint's place
    scale: float = 1.0  # what a scale is multiplied by before

    def __post_init__(self) -> None:
        if self.heads < 1 or not self.scale > 0:
            raise ValueError(f"heads {self.heads} and scale {self.scale}: expected at least 1, and above 0")


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image before the first layer that sees the other one; n at least 1."""

    state: Tensor  # (n, dim) after the first self-attention
    turns: Tensor  # (n, 1, dim / heads / 2) complex, of norm 1: how the place turns queries and keys

    def __len__(self) -> int:
        return len(self.state)


class _Room:
    """Where the numbers of one or two images stand in all layers: memory that is asked for anew is slow."""

    def __init__(self, rows: Sequence[int], dim: int, heads: int):
        self.rows = list(rows)
        self.both = torch.empty(sum(rows), 2 * dim)
        self.state, self.message = self.both.split(dim, dim=1)
        self._wide = torch.empty(sum(rows) * 3 * dim)
        self._means, self._deviations = torch.empty(2, sum(rows), 1)
        if len(rows) == 2:
            self.similarity, self.weights = torch.empty(2, heads, *rows)

    def linear(self, x: Tensor, weights: Linear) -> Tensor:
        """(n, out) of (n, in), where the one before stood."""
        weight, bias = weights
        out = self._wide[: len(x) * len(bias)].view(len(x), -1)
        return torch.addmm(bias, x, weight.T, out=out)

    def activate(self, x: Tensor, norm: Linear) -> Tensor:
        """`gelu(layer_norm(x))` in the place of x, which the functions of `torch.nn` do not offer."""
        outs = {"out0": x, "out1": self._means, "out2": self._deviations}
        torch.ops.aten.native_layer_norm.out(x, x.shape[1:], *norm, EPSILON, **outs)
        return F.gelu(x, out=x)  # type: ignore[call-arg]  # its stub knows no `out`


@dataclass(frozen=True, eq=False)
class _Update:
    """What a state takes from its message: state + out(gelu(norm(hidden([state, message]))))."""

    hidden: Linear  # with the projection of the message, and of its values where there is one head
    norm: Linear
    out: Linear

    def __call__(self, room: _Room) -> None:
        wide = room.activate(room.linear(room.both, self.hidden), self.norm)
        room.state.add_(self.out[1]).addmm_(wide, self.out[0].T)


@dataclass(frozen=True, eq=False)
class _Layer:
    """With one head, a weighted mean of values is the value of a weighted mean, so `_Update` makes values of that."""

    project: Linear  # to queries, keys and, of several heads, values of self-attention
    update: _Update
    # To keys, which are the queries too, and values of cross-attention. Of one head, (K x + k)·(K y + k) is
    # (K^T K x + K^T k)·y + (k^T K x + k·k): one image is projected to these dim + 1 numbers, the other is not.
    project_across: Linear
    update_across: _Update


class LightGlueNetwork:
    """The network with given weights."""

    def __init__(self, state: Mapping[str, Tensor], config: LightGlueConfig):
        state = {name: tensor.float() for name, tensor in state.items()}
        layers = 1 + max(int(found[1]) for name in state if (found := re.match(r"transformers\.(\d+)\.", name)))
        self.config = config
        self._project = _linear(state, "input_proj") if "input_proj.weight" in state else None
        self._frequencies = state["posenc.Wr.weight"]
        self._layers = [_layer(state, f"transformers.{i}", config.heads) for i in range(layers)]
        weight, bias = _linear(state, f"log_assignment.{layers - 1}.final_proj")
        self._matchable = _linear(state, f"log_assignment.{layers - 1}.matchability")
        self._dim = len(bias)
        self._final = weight * self._dim**-0.25, bias * self._dim**-0.25  # both factors of a similarity have it

    def match(self, query: Features, candidates: Sequence[Features], threshold: float) -> list[Tensor]:
        """(m, 2) rows of the query and of each candidate, sorted by the query's, that are more likely than `threshold`.

        Each pair has a thread of its own, and what only the query decides is computed once.
        """
        with torch.inference_mode():
            one = self.encode(query) if len(query) else None

        @torch.inference_mode()
        def pair(candidate: Features) -> Tensor:
            if one is None or not len(candidate):
                return torch.zeros(0, 2, dtype=torch.long)
            return assign(self.log_assignment(one, self.encode(candidate)), threshold)

        return each(pair, candidates)

    def encode(self, image: Features) -> Encoded:
        """The first self-attention of an image with at least one keypoint, which does not see the other image."""
        places = (image.keypoints - image.image_size / 2) / (image.image_size.max() / 2)
        if self.config.oriented:
            more = [image.scales * self.config.scale, image.orientations]
            places = torch.cat([places, torch.stack(more, dim=1)], dim=1)
        angles = F.linear(places, self._frequencies)[:, None]
        turns = torch.polar(torch.ones_like(angles), angles)
        room = _Room([len(image)], self._dim, self.config.heads)
        room.state.copy_(image.descriptors if self._project is None else F.linear(image.descriptors, *self._project))
        self._attend(self._layers[0], room, turns)
        return Encoded(room.state, turns)

    def log_assignment(self, query: Encoded, candidate: Encoded) -> Tensor:
        """(n, m) log of the soft partial assignment, its dustbins aside (section 3.2)."""
        n = len(query)
        room = _Room([n, len(candidate)], self._dim, self.config.heads)
        room.state[:n], room.state[n:] = query.state, candidate.state
        turns = torch.cat([query.turns, candidate.turns])
        for number, layer in enumerate(self._layers):
            if number:
                self._attend(layer, room, turns)
            self._attend_across(layer, room)
        matchable = F.logsigmoid(F.linear(room.state, *self._matchable))
        final = room.linear(room.state, self._final)
        similarity = torch.mm(final[:n], final[n:].T, out=room.similarity[0])
        of_rows = torch.log_softmax(similarity, dim=1, out=room.weights[0]).add_(matchable[:n])
        return torch.log_softmax(similarity, dim=0).add_(matchable[n:].T).add_(of_rows)

    def _attend(self, layer: _Layer, room: _Room, turns: Tensor) -> None:
        """Self-attention of each image, whose queries and keys are turned by their places."""
        heads, dim = self.config.heads, self._dim
        parts = room.linear(room.state, layer.project)
        pairs = parts[:, : 2 * dim].unflatten(1, (2 * heads, -1, 2))  # of numbers that turn together
        torch.view_as_complex(pairs).mul_(turns)
        values = room.state if heads == 1 else parts[:, 2 * dim :]
        sides = (t.split(room.rows) for t in (parts[:, :dim], parts[:, dim : 2 * dim], values, room.message))
        for q, k, v, message in zip(*sides, strict=True):
            q, k, v = (_headed(t, heads)[None] for t in (q, k, v))
            _headed(message, heads).copy_(F.scaled_dot_product_attention(q, k, v)[0])
        layer.update(room)

    def _attend_across(self, layer: _Layer, room: _Room) -> None:
        """Cross-attention of both images, whose similarities are computed once for both ways."""
        heads, n = self.config.heads, room.rows[0]
        if heads == 1:
            first = room.linear(room.state[:n], layer.project_across)
            values = room.state
            torch.mm(first[:, :-1], values[n:].T, out=room.similarity[0]).add_(first[:, -1:])
        else:
            keys, values = room.linear(room.state, layer.project_across).split(self._dim, dim=1)
            torch.bmm(_headed(keys[:n], heads), _headed(keys[n:], heads).mT, out=room.similarity)
        values, message = _headed(values, heads), _headed(room.message, heads)
        torch.softmax(room.similarity, dim=2, out=room.weights)
        message[:, :n] = room.weights @ values[:, n:]
        torch.softmax(room.similarity, dim=1, out=room.weights)
        message[:, n:] = room.weights.mT @ values[:, :n]
        layer.update_across(room)


def assign(log_assignment: Tensor, threshold: float) -> Tensor:
    """(k, 2) rows and columns of an (n, m) log assignment that are each other's most likely, and above `threshold`.

    n and m are at least 1. Of equally likely ones the first is chosen.

    >>> assign(torch.tensor([[0.6, 0.1], [0.3, 0.2], [0.05, 0.7]]).log(), 0.1).tolist()
    [[0, 0], [2, 1]]
    """
    best, there = log_assignment.max(dim=1)
    back = log_assignment.argmax(dim=0)
    kept = (back[there] == torch.arange(len(there))) & (best.exp() > threshold)
    rows = kept.nonzero()[:, 0]
    return torch.stack([rows, there[rows]], dim=1)


def _headed(x: Tensor, heads: int) -> Tensor:
    """(n, dim) -> (heads, n, dim / heads), the same memory."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def _linear(state: Mapping[str, Tensor], name: str) -> Linear:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def _layer(state: Mapping[str, Tensor], name: str, heads: int) -> _Layer:
    alone, across = f"{name}.self_attn", f"{name}.cross_attn"
    weight, bias = _linear(state, f"{alone}.Wqkv")
    dim = weight.shape[1]
    order = torch.arange(3 * dim).view(heads, -1, 3).permute(2, 0, 1).flatten()  # queries, keys, values: stored mixed
    weight, bias = weight[order], bias[order]
    (key, key_bias), value = _linear(state, f"{across}.to_qk"), _linear(state, f"{across}.to_v")
    scale = (dim // heads) ** -0.25  # both factors of a similarity have it
    key, key_bias = scale * key, scale * key_bias
    messages = [f"{alone}.out_proj", f"{across}.to_out"]
    updates = [f"{alone}.ffn", f"{across}.ffn"]
    if heads > 1:
        update, update_across = (_update(state, *names, None) for names in zip(updates, messages, strict=True))
        project_across = torch.cat([key, value[0]]), torch.cat([key_bias, value[1]])
        return _Layer((weight, bias), update, project_across, update_across)
    values = [(weight[2 * dim :], bias[2 * dim :]), value]
    update, update_across = (_update(state, *names) for names in zip(updates, messages, values, strict=True))
    k, b = key.double(), key_bias.double()
    project_across = torch.cat([k.T @ k, (b @ k)[None]]).float(), torch.cat([b @ k, (b @ b)[None]]).float()
    return _Layer((weight[: 2 * dim].clone(), bias[: 2 * dim].clone()), update, project_across, update_across)


def _update(state: Mapping[str, Tensor], name: str, message: str, value: Linear | None) -> _Update:
    """With the projection of the message, and of values before it, in the first layer; float64 keeps its rounding."""
    weight, bias = (t.double() for t in _linear(state, f"{name}.0"))
    of_state, of_message = weight.chunk(2, dim=1)
    for projection, more in (_linear(state, message), *([] if value is None else [value])):
        bias = bias + of_message @ more.double()
        of_message = of_message @ projection.double()
    hidden = torch.cat([of_state, of_message], dim=1).float(), bias.float()
    return _Update(hidden, _linear(state, f"{name}.1"), _linear(state, f"{name}.3"))
