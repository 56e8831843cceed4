"""Training networks that read the local descriptors of two images alone, such as AMES and ELViS, whatever the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._views.matches import has_match


class PairNetwork(Protocol):
    """What is trained: a module whose `encode` and `score` do this."""

    config: Any

    def encode(self, query: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """(b, n, d) and (b, m, d) unit descriptors -> (b, n + m, w) what is known of each, and (b,) logits."""
        ...

    def score(self, query: Tensor, candidates: Sequence[Tensor]) -> Tensor:
        """(k,) scores of (n, d) with each of k (m, d)."""
        ...


def with_head(
    make: Callable[[int], nn.Module], width: Callable[[Any], int], local_dim: int, seed: int
) -> nn.ModuleDict:
    """`model`, a PairNetwork at step 0 that `make` gives of the size of a descriptor; and `head`, a linear layer.

    The head says of each token whether it has a match, and whether the match is right; `width` of the network's config
    is w of its `encode`.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model: Any = make(local_dim).train()
        return nn.ModuleDict({"model": model, "head": nn.Linear(width(model.config), 2)})


def loss_of(
    module: nn.ModuleDict,
    query: Tensor,
    candidate: Tensor,
    labels: Tensor,
    auxiliary: float,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """() binary cross-entropy of the pairs' logits, and `auxiliary` times that of the head's answers for each token.

    query (b, n, d) and candidate (b, m, d) unit descriptors; labels (b,) 1 = same; places (b, n, 2) and (b, m, 2) as
    `has_match` takes them, None where none is known.
    """
    model: Any = module["model"]
    tokens, logits = model.encode(query, candidate)
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
    if auxiliary:
        if places is None:
            one, two = (side.new_full((*side.shape[:2], 2), torch.nan) for side in (query, candidate))
            places = one, two
        target = has_match(query, candidate, places, labels)
        loss = loss + auxiliary * F.binary_cross_entropy_with_logits(module["head"](tokens).float(), target)
    return loss
