"""Training ELViS on a bank of views: the same pairs, budget and choice of weights as RRT and AMES (`train elvis`).

The authors' optimizer and loss: AdamW, binary cross-entropy of a logit of the sum of votes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from bench.training import Progress, Recipe, fit
from methods._local_weights import save_checkpoint
from methods._views.bank import Bank
from methods._views.network import NetworkOptions, started
from methods._views.network import recipe as network_recipe
from methods._views.pairs import Pairs, bank_of
from methods.elvis.model import FORMAT, Elvis, ElvisConfig, load

STEEPNESS = 8.0  # of a vote's logit in the strength, at step 0
SLOPE = 0.1  # of the pair's logit in the sum of votes, at step 0


@dataclass(frozen=True)
class TrainOptions(NetworkOptions):
    """What is trained on, for how long and how."""

    init: Literal["xavier", "counting"] = "counting"  # counting: the sum of votes counts matches from the start


@torch.no_grad()
def start_counting(model: Elvis, tokens: int) -> None:
    """Ordinary weights from which a vote grows with a token's strength, and the logit with the sum of the votes.

    Elsewhere the network begins with votes that hardly depend on strengths, since a layer norm of multiples of one
    vector is constant, and with a logit that may as well fall as rise with their sum: training may then end with
    votes against what matches, which ranks the wrong way round. `tokens` are those of a pair.
    """
    nn.init.orthogonal_(cast(nn.Linear, model.remap[0]).weight)  # keeps cosines
    first, last = cast(nn.Linear, model.vote[0]), cast(nn.Linear, model.vote[3])
    nn.init.uniform_(first.bias, -1.0, 1.0)
    strengths = torch.linspace(0, 1, 101)[:, None]
    features = model.vote[:3](strengths).double()
    design = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    ridge = 1e-3 * torch.eye(design.shape[1], dtype=torch.float64)
    wanted = STEEPNESS * (strengths.double() - 0.5)
    # rounded, since the last bits of a solution are not the same twice
    found = torch.linalg.solve(design.T @ design + ridge, design.T @ wanted)[:, 0].round(decimals=4)
    last.weight.copy_(found[None, :-1])
    last.bias.copy_(found[-1:])
    rise, end = cast(nn.Linear, model.logit[0]), cast(nn.Linear, model.logit[2])
    rise.weight.abs_()
    end.weight.abs_()
    end.weight.mul_(SLOPE / (end.weight @ rise.weight).item())
    end.bias.fill_(-SLOPE * tokens / 4)


def initial(options: TrainOptions, local_dim: int) -> Elvis:
    """The network at step 0."""
    config = ElvisConfig(local_dim)
    if options.start is not None:
        return started(load, config, options)
    model = Elvis(config)
    if options.init == "counting":
        start_counting(model, 2 * options.descriptors)
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
        lambda config: 1,
        bank,
        options,
        lambda model, path, card: save_checkpoint(model, FORMAT, path, card),
    )
