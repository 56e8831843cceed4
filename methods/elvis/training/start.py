"""Where the training of ELViS starts: votes that count matches from the first step on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from methods._local_weights import go_on
from methods.elvis.model import Elvis, ElvisConfig, load

STEEPNESS = 8.0  # of a vote's logit in the strength, at step 0
SLOPE = 0.1  # of the pair's logit in the sum of votes, at step 0


@dataclass(frozen=True)
class Start:
    """What recipes are told of the network."""

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


def initial(start: Start, local_dim: int, tokens: int, weights: Path | None) -> Elvis:
    """The network at step 0: of `weights` to go on from, else as `start.init` says; `tokens` are those of a pair."""
    config = ElvisConfig(local_dim)
    if weights is not None:
        return go_on(weights, load, config)
    model = Elvis(config)
    if start.init == "counting":
        start_counting(model, tokens)
    return model
