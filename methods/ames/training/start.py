"""Where the training of AMES starts: its sizes, and attention that looks for like descriptors from the first step on.

From random weights attention has to find by itself that like descriptors matter; `init=searching` starts from there, in
ordinary weights that training may change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from bench.errors import UserError
from methods._local_weights import go_on
from methods.ames.model import Ames, AmesConfig, AmesLayer, load

SHARPNESS = 2.0  # of the first layer's attention across images: of tokens of norm sqrt(dim)


@dataclass(frozen=True)
class Sizes:
    """What recipes are told of the network."""

    depth: int = 5
    feedforward: int = 1024
    binary: bool = False  # descriptors are made 128 signs before anything reads them
    half: bool = False  # write float16: half the bytes, and about three digits of each weight
    init: Literal["xavier", "searching"] = "searching"  # searching: attention across images prefers like descriptors

    def config(self, local_dim: int) -> AmesConfig:
        """For descriptors of that size. UserError for what is no size."""
        try:
            return AmesConfig(depth=self.depth, feedforward=self.feedforward, local_dim=local_dim, binary=self.binary)
        except ValueError as error:
            raise UserError(str(error)) from error


@torch.no_grad()
def start_searching(model: Ames) -> None:
    """Keys of the attention across images equal to its queries, and cosines of descriptors kept by the first map."""
    if not model.config.binary:
        nn.init.orthogonal_(cast(nn.Linear, model.remap_local[0]).weight)
    for number, layer in enumerate(model.decoder.layers):
        query, key, _ = cast(AmesLayer, layer).cross_attn.in_proj_weight.split(model.config.dim)
        query.mul_(SHARPNESS if number == 0 else 1.0)
        key.copy_(query)


def initial(sizes: Sizes, local_dim: int, weights: Path | None) -> Ames:
    """The network at step 0: of `weights` to go on from, else as `sizes.init` says."""
    config = sizes.config(local_dim)
    if weights is not None:
        return go_on(weights, load, config)
    model = Ames(config)
    if sizes.init == "searching":
        start_searching(model)
    return model
