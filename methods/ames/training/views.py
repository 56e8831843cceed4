"""Training AMES on a bank of views: the same pairs, budget and choice of weights as RRT and ELViS (`train ames`).

The authors' optimizer and loss: AdamW, binary cross-entropy of pairs. From random weights attention has to find by
itself that like descriptors matter; `--init searching` starts from there, in ordinary weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from bench.errors import UserError
from bench.training import Progress, Recipe, fit
from methods._local_weights import save_checkpoint
from methods._views.bank import Bank
from methods._views.network import NetworkOptions, started
from methods._views.network import recipe as network_recipe
from methods._views.pairs import Pairs, bank_of
from methods.ames.model import FORMAT, Ames, AmesConfig, AmesLayer, load

SHARPNESS = 2.0  # of the first layer's attention across images: of tokens of norm sqrt(dim)


@dataclass(frozen=True)
class TrainOptions(NetworkOptions):
    """What is trained on, for how long and how."""

    depth: int = 5
    feedforward: int = 1024
    binary: bool = False  # descriptors are made 128 signs before anything reads them
    init: Literal["xavier", "searching"] = "searching"  # searching: attention across images prefers like descriptors

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            AmesConfig(depth=self.depth, feedforward=self.feedforward)
        except ValueError as error:
            raise UserError(str(error)) from error


@torch.no_grad()
def start_searching(model: Ames) -> None:
    """Keys of the attention across images equal to its queries, and cosines of descriptors kept by the first map."""
    if not model.config.binary:
        linear = cast(nn.Linear, model.remap_local[0])
        nn.init.orthogonal_(linear.weight)
    for number, layer in enumerate(model.decoder.layers):
        query, key, _ = cast(AmesLayer, layer).cross_attn.in_proj_weight.split(model.config.dim)
        query.mul_(SHARPNESS if number == 0 else 1.0)
        key.copy_(query)


def initial(options: TrainOptions, local_dim: int) -> Ames:
    """The network at step 0."""
    config = AmesConfig(
        depth=options.depth, feedforward=options.feedforward, local_dim=local_dim, binary=options.binary
    )
    if options.start is not None:
        return started(load, config, options)
    model = Ames(config)
    if options.init == "searching":
        start_searching(model)
    return model


def train(options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train on warped views of photographs and on generated buildings, and write OUT.

    An interrupted training goes on from its last saved state when called again, and ends at the same weights.
    """
    return train_on(bank_of(options, progress), options, out, progress)


def train_on(bank: Bank, options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """`train` on a bank already in memory."""
    return fit(recipe(bank, options), options, out, progress)


def recipe(bank: Bank, options: TrainOptions) -> Recipe[Pairs]:
    """What the loop trains."""
    return network_recipe(
        lambda local_dim: initial(options, local_dim),
        lambda config: config.dim,
        bank,
        options,
        lambda model, path, card: save_checkpoint(model, FORMAT, path, card),
    )
