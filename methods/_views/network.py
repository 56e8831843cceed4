"""The recipe of networks that read the local descriptors of two images alone, such as AMES and ELViS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.training import Recipe
from methods._pair_network import PairNetwork, loss_of, with_head
from methods._views.bank import Bank
from methods._views.pairs import PairOptions, Pairs, Sampler
from methods._views.recipe import recipe_of
from methods._views.shortlists import Shortlists, View


@dataclass(frozen=True)
class NetworkOptions(PairOptions):
    """As for all recipes on views, with what networks of local descriptors share."""

    auxiliary: float = 1.0  # weight of the auxiliary loss: has a local descriptor a match, and is it right?
    start: Path | None = None  # weights to go on from (then all sizes must be theirs)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxiliary < 0:
            raise UserError(f"auxiliary {self.auxiliary}: expected at least 0")


def validate(model: PairNetwork, checker: Shortlists, device: torch.device) -> dict[str, float]:
    """mAP of held-out shortlists in [0, 1]: by kind of query, and their mean."""

    def score(query: View, candidates: Sequence[View]) -> Tensor:
        return model.score(query.local.to(device), [candidate.local.to(device) for candidate in candidates])

    found = checker.mean_ap(score)
    return {"mAP": float(np.mean(list(found.values()))), **{f"mAP {kind}": value for kind, value in found.items()}}


def recipe(
    make: Callable[[int], nn.Module],
    width: Callable[[Any], int],
    bank: Bank,
    options: NetworkOptions,
    write: Callable[[nn.Module, Path, Mapping[str, Any]], None],
) -> Recipe[Pairs]:
    """What the loop trains: the network and head that `with_head` makes of `make` and `width`, written by `write`."""
    torch.set_num_threads(options.threads)  # on whose number the last bits of an orthogonal start depend
    sampler, checker = Sampler(bank, options), Shortlists(bank, options)
    module = with_head(make, width, bank.local.shape[2], options.seed)
    model: Any = module["model"]

    def loss(pairs: Pairs, step: int) -> Tensor:
        query, candidate = pairs.query.local, pairs.candidate.local
        return loss_of(module, query, candidate, pairs.labels, options.auxiliary, pairs.places)

    def check() -> dict[str, float]:
        return validate(model, checker, next(model.parameters()).device)

    return recipe_of(bank, options, sampler, module, loss, check, partial(write, model))
