"""Where training starts: attention that looks for like descriptors from the first step on, in ordinary weights.

From random weights this network stays at chance for tens of thousands of pairs (docs/protocols.md). Where tokens have
room for it (`fits`), `start_matching` writes a match counter into the first two layers: every local token of one image
attends to like descriptors of the other, or to CLS and SEP where there are none, and notes how surely it found one; the
two globals do the same; the second layer averages these notes into CLS. Training goes on from there and may change
every weight. Elsewhere `start_searching` only makes attention prefer like tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from methods._transformer import Layer
from methods.rrt.model import RRT, SEGMENTS

# Heads of the first layer, the last for globals: how sharply they compare, and the cosine (of centred, whitened
# vectors) from which on a match is likelier than none.
HEADS = ((20.0, 0.75), (40.0, 0.65), (40.0, 0.75), (20.0, 0.25))
LOCAL_HEADS = len(HEADS) - 1
MARKERS = 4  # token dimensions that say what a token is: side of a local, CLS or SEP, global, side of a global
SPARE = 24  # least number of dimensions that must be left for the global descriptor
SIDE = 0.7  # size of the components that tell the two images apart


def fits(model: RRT) -> bool:
    """Whether tokens hold descriptors, markers, notes and globals side by side, and layers and heads are enough."""
    config = model.config
    needed = config.local_dim + MARKERS + len(HEADS) + SPARE
    return config.local_dim != config.dim >= needed and config.heads == len(HEADS) and config.depth >= 2


@torch.no_grad()
def begin(model: RRT, init: str, locals_: np.ndarray, globals_: np.ndarray) -> None:
    """Set the weights of `model` from samples of what it will read; torch's generator decides the rest.

    `locals_` (m, local_dim) and `globals_` (n, global_dim), unit vectors, give the principal axes. `init`: matching
    (searching where tokens have no room for it), searching, or xavier, which reads no samples.
    """
    if init == "xavier":
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    elif init == "matching" and fits(model):
        start_matching(model, locals_, globals_)
    else:
        start_searching(model)
        _set_components(model.remap, slice(0, model.config.dim), _Components.of(globals_), 0.25)


@torch.no_grad()
def start_searching(model: RRT) -> None:
    """Keys equal to queries, and sharper in the first layer, whose tokens have unit norm (later ones are normalised to
    sqrt(dim)). Otherwise attention starts as a mean over all tokens."""
    config = model.config
    # embeddings small beside unit-norm descriptors, which they would drown otherwise
    for table in (model.seg_encoder, model.scale_encoder):
        nn.init.normal_(table.weight, std=0.5 / math.sqrt(config.dim))
    if config.local_dim != config.dim:
        nn.init.orthogonal_(model.local_remap.weight)  # keeps cosines where the space grows
        nn.init.zeros_(model.local_remap.bias)
    for layer, gain in zip(_layers(model)[:-1], [12.0] + [1.0] * config.depth, strict=False):
        query, key, _ = layer.self_attn.in_proj_weight.split(config.dim)
        query.mul_(gain)
        key.copy_(query)


@torch.no_grad()
def start_matching(model: RRT, locals_: np.ndarray, globals_: np.ndarray) -> None:
    """A match counter in the first two layers, for a model that `fits`."""
    local, global_ = _Components.of(locals_), _Components.of(globals_)
    places = _Places(model.config.local_dim, model.config.dim)
    _start_tokens(model, places, local, global_)
    layers = _layers(model)
    for layer in layers:  # what is not set below starts small
        nn.init.xavier_uniform_(layer.self_attn.in_proj_weight, gain=0.5)
        nn.init.xavier_uniform_(layer.self_attn.out_proj.weight, gain=0.1)
        layer.linear2.weight.mul_(0.3)
    _start_finding(_Heads.of(layers[0]), places, local)
    _start_counting(_Heads.of(layers[1]), places)
    nn.init.normal_(model.classifier.weight, std=0.02)
    nn.init.zeros_(model.classifier.bias)
    model.classifier.weight[0, places.notes] = 0.5


@dataclass(frozen=True)
class _Places:
    """Token dimensions by their use: the local descriptor, markers, a note per head, the global descriptor."""

    local: int
    dim: int

    @property
    def markers(self) -> tuple[int, int, int, int]:
        """Side of a local token, CLS or SEP, global, side of a global token."""
        return self.local, self.local + 1, self.local + 2, self.local + 3

    @property
    def notes(self) -> slice:
        return slice(self.local + MARKERS, self.local + MARKERS + len(HEADS))

    @property
    def global_(self) -> slice:
        return slice(self.notes.stop, self.dim)


def _start_tokens(model: RRT, places: _Places, local: _Components, global_: _Components) -> None:
    side, special, is_global, global_side = places.markers
    for table in (model.seg_encoder, model.scale_encoder):
        nn.init.normal_(table.weight, std=0.02)
    for name, at, value in (
        ("src_local", side, SIDE),
        ("tgt_local", side, -SIDE),
        ("cls", special, 1.0),
        ("sep", special, 1.0),
        ("src_global", is_global, 1.0),
        ("tgt_global", is_global, 1.0),
        ("src_global", global_side, SIDE),
        ("tgt_global", global_side, -SIDE),
    ):
        model.seg_encoder.weight[SEGMENTS[name], at] += value
    nn.init.zeros_(model.local_remap.weight)
    nn.init.zeros_(model.local_remap.bias)
    model.local_remap.weight[: places.local] = local.axes
    _set_components(model.remap, places.global_, global_, 0.5)


def _start_finding(heads: _Heads, places: _Places, local: _Components) -> None:
    """Layer 1: a token attends to the like of the other image, or to CLS and SEP, and notes 1 - 2 P(CLS or SEP)."""
    side, special, _, global_side = places.markers
    width = heads.query.shape[1]
    kept = width - 2  # components compared; one more tells the images apart, one is the threshold
    whiten = (local.variances[:kept] / local.variances[:kept].mean()) ** -0.25  # on both sides: half whitened
    centre = (local.axes @ local.mean)[:kept]
    size = (whiten.square() * local.variances[:kept]).sum()  # mean square of a whitened descriptor
    root = math.sqrt(width)  # attention divides by it
    heads.query.zero_()
    heads.key.zero_()
    for head, (gain, least) in enumerate(HEADS):
        is_local = head < LOCAL_HEADS
        if is_local:
            scale = (gain / size * root).sqrt() * whiten
            for weights, bias in ((heads.query, heads.query_bias), (heads.key, heads.key_bias)):
                weights[head, :kept, :kept] = torch.diag(scale)
                bias[head, :kept] = -scale * centre
                weights[head, :kept, special] = scale * centre  # CLS and SEP have no descriptor: put at the centre
        else:
            first, last = places.global_.start, places.global_.stop
            compared = min(kept, last - first)
            for weights in (heads.query, heads.key):
                weights[head, :compared, first : first + compared] = math.sqrt(gain * root) * torch.eye(compared)
        # tokens of the other image gain, and those of this one lose, as much as a perfect match counts
        across, sides = math.sqrt(gain * root) / SIDE, side if is_local else global_side
        heads.query[head, kept, sides], heads.key[head, kept, sides] = across, -across
        heads.query_bias[head, kept + 1] = root
        heads.key[head, kept + 1, special] = gain * (least + 1)
        heads.value[head, 0] = 0.0
        heads.value[head, 0, special], heads.value_bias[head, 0] = -1.0, 1.0
        note = places.notes.start + head
        heads.out[note] = 0.0
        heads.out[note, head * width] = 2.0


def _start_counting(heads: _Heads, places: _Places) -> None:
    """Layer 2: CLS gets the means of the notes, of locals over all tokens and of globals over the two globals."""
    is_global, width = places.markers[2], heads.query.shape[1]
    heads.query[:2], heads.key[:2], heads.value[:2] = 0.0, 0.0, 0.0
    heads.query_bias[1, 0], heads.key[1, 0, is_global] = math.sqrt(width), 2.0
    heads.out[places.notes] = 0.0
    for head in range(len(HEADS)):
        note, reads = places.notes.start + head, int(head >= LOCAL_HEADS)
        heads.value[reads, head, note] = 1.0
        heads.out[note, reads * width + head] = 1.0 if reads else 4.0


@dataclass(frozen=True)
class _Heads:
    """Views of an attention's weights, head by head."""

    query: Tensor  # (heads, width, dim)
    key: Tensor
    value: Tensor
    query_bias: Tensor  # (heads, width)
    key_bias: Tensor
    value_bias: Tensor
    out: Tensor  # (dim, heads * width)

    @classmethod
    def of(cls, layer: Layer) -> _Heads:
        attention = layer.self_attn
        weights = attention.in_proj_weight.data.view(3, attention.heads, -1, attention.in_proj_weight.shape[1])
        biases = attention.in_proj_bias.data.view(3, attention.heads, -1)
        (q, k, v), (q_bias, k_bias, v_bias) = weights.unbind(), biases.unbind()
        return cls(q, k, v, q_bias, k_bias, v_bias, attention.out_proj.weight.data)


@dataclass(frozen=True)
class _Components:
    """Principal components of vectors (n, d), those of largest variance first."""

    mean: Tensor  # (d,)
    axes: Tensor  # (d, d), in rows
    variances: Tensor  # (d,)

    @classmethod
    def of(cls, vectors: np.ndarray) -> _Components:
        rows = torch.from_numpy(vectors.astype(np.float32))
        mean = rows.mean(dim=0)
        values, columns = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        return cls(mean, columns.flip(1).T.contiguous(), values.flip(0).clamp(min=1e-8))


def _set_components(remap: nn.Linear, rows: slice, found: _Components, whiten: float) -> None:
    """`remap` gives the principal components in its outputs `rows`, over their variances to the power `whiten`.

    They keep similarities that a random map to so few dimensions blurs, and turn the mean descriptor into the zero
    vector.
    """
    kept = min(rows.stop - rows.start, len(found.axes))
    remap.weight.zero_()
    scale = (found.variances[:kept].mean() / found.variances[:kept]) ** whiten
    remap.weight[rows.start : rows.start + kept] = found.axes[:kept] * scale[:, None]
    remap.bias.copy_(-remap.weight @ found.mean)


def _layers(model: RRT) -> list[Layer]:
    return [cast(Layer, layer) for layer in model.encoder.layers]
