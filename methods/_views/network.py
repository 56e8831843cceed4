"""The recipe of networks that read the local descriptors of two images alone, such as AMES and ELViS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.training import Recipe
from methods._views.bank import Bank
from methods._views.matches import has_match
from methods._views.pairs import PairOptions, Pairs, Sampler
from methods._views.shortlists import Shortlists, View

Write = Callable[[Path, Mapping[str, Any]], None]


@dataclass(frozen=True)
class NetworkOptions(PairOptions):
    """As for all recipes on views, with what networks of local descriptors share."""

    auxiliary: float = 1.0  # weight of the auxiliary loss: has a local descriptor a match, and is it right?
    start: Path | None = None  # weights to go on from (then all sizes must be theirs)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxiliary < 0:
            raise UserError(f"auxiliary {self.auxiliary}: expected at least 0")


class PairNetwork(Protocol):
    """What is trained: a module whose `encode` and `score` do this."""

    config: Any

    def encode(self, query: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """(b, n, d) and (b, m, d) unit descriptors -> (b, n + m, w) what is known of each, and (b,) logits."""
        ...

    def score(self, query: Tensor, candidates: Sequence[Tensor]) -> Tensor:
        """(k,) scores of (n, d) with each of k (m, d)."""
        ...


def loss_of(model: PairNetwork, head: nn.Linear, pairs: Pairs, auxiliary: float) -> Tensor:
    """Binary cross-entropy of the pairs' logits, and `auxiliary` times that of the head's answers for each token."""
    tokens, logits = model.encode(pairs.query.local, pairs.candidate.local)
    loss = F.binary_cross_entropy_with_logits(logits.float(), pairs.labels)
    if auxiliary:
        target = has_match(pairs.query.local, pairs.candidate.local, pairs.places, pairs.labels)
        loss = loss + auxiliary * F.binary_cross_entropy_with_logits(head(tokens).float(), target)
    return loss


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
    """What the loop trains: `make` of the size of a descriptor, with an auxiliary head.

    `make` gives a PairNetwork at step 0, and `width` of its config is w of its `encode`.
    """
    torch.set_num_threads(options.threads)  # on whose number the last bits of an orthogonal start depend
    sampler, checker = Sampler(bank, options), Shortlists(bank, options)
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        model: Any = make(bank.local.shape[2]).train()
        head = nn.Linear(width(model.config), 2)
    module = nn.ModuleDict({"model": model, "head": head})
    digest = bank.digest()

    return Recipe(
        module=module,
        optimizer=lambda: torch.optim.AdamW(
            module.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
        ),
        draw=sampler.draw,
        loss=lambda pairs, step: loss_of(model, head, pairs, options.auxiliary),
        validate=lambda: validate(model, checker, head.weight.device),
        selection="mAP",
        write=lambda path, card: write(model, path, card),
        steps=options.steps,
        identity={"bank": digest},
        card={
            "features": options.features,
            "descriptors": options.descriptors,
            "photos": options.photos is not None,
            "pairs": options.steps * options.batch,
            "bank": digest,
            "views": len(bank),
        },
    )
