"""The recipe on landmarks of networks that read the local descriptors of two images alone, such as AMES and ELViS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.device import resolve_device
from bench.errors import UserError
from bench.features import Features
from bench.features.store import FeatureStore
from bench.training import Progress, Recipe, move
from methods._landmarks.triplets import LandmarkOptions, Triplets, landmarks, orders
from methods._views.matches import has_match
from methods._views.network import PairNetwork

READ = frozenset({"global", "local"})


@dataclass(frozen=True)
class NetworkOptions(LandmarkOptions):
    """As for all recipes on landmarks, with what networks of local descriptors share."""

    lr: float = 5e-4
    warmup: int = 500
    clip: float = 1.0
    fewest: int = 25  # descriptors an image: a step reads from so many…
    most: int = 400  # …to so many, the best-scored, and no more than every image of the step has
    auxiliary: float = 0.0  # weight of the auxiliary loss: has a local descriptor a match, and is it right?
    start: Path | None = None  # weights to go on from (then all sizes must be theirs)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.fewest <= self.most:
            raise UserError(f"from {self.fewest} to {self.most} descriptors a step: expected 1 <= fewest <= most")
        if self.auxiliary < 0:
            raise UserError(f"auxiliary {self.auxiliary}: expected at least 0")


@dataclass(frozen=True)
class Triple:
    """The anchors, positives and negatives of t triplets, each image with the same number n of descriptors."""

    local: Tensor  # (3 t, n, local_dim) unit vectors; anchors first, then positives, then negatives
    global_: Tensor  # (3 t, global_dim)


def read(store: FeatureStore, options: NetworkOptions, keys: Sequence[str], step: int) -> Triple:
    """So many of the best descriptors as the step's number draws. UserError for an image without any."""
    n = int(np.random.default_rng([options.seed, step, 1]).integers(options.fewest, options.most + 1))
    return _stack([store.read(key, READ, n) for key in keys], keys)


def _stack(images: Sequence[Features], keys: Sequence[str]) -> Triple:
    shortest = min(range(len(images)), key=lambda index: len(images[index]))
    n = len(images[shortest])
    if not n:
        raise UserError(
            f"{keys[shortest]!r}: no local descriptors, expected some of every image that is trained on",
            hint="leave the image out of the list",
        )
    local = torch.stack([image.descriptors[:n] for image in images]).float()
    return Triple(F.normalize(local, dim=-1), torch.stack([image.global_descriptor for image in images]).float())


def loss_of(model: PairNetwork, head: nn.Linear, batch: Triple, auxiliary: float) -> Tensor:
    """Binary cross-entropy of (anchor, positive) and (anchor, negative); and of the head's answers for each token."""
    anchor, positive, negative = batch.local.chunk(3)
    query, candidate = torch.cat([anchor, anchor]), torch.cat([positive, negative])
    labels = torch.cat([query.new_ones(len(anchor)), query.new_zeros(len(anchor))])
    tokens, logits = model.encode(query, candidate)
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
    if auxiliary:
        unknown = torch.full((*query.shape[:2], 2), torch.nan, device=query.device)
        target = has_match(query, candidate, (unknown, unknown), labels)
        loss = loss + auxiliary * F.binary_cross_entropy_with_logits(head(tokens).float(), target)
    return loss


def validate(model: PairNetwork, checker: Triplets[Triple], device: torch.device) -> dict[str, float]:
    """As `orders`, of scores as they rank, on held-out triplets read at `descriptors`."""
    scores, similar = [], []
    for step in range(-(-checker.options.checked // checker.options.triplets)):
        batch = move(checker.draw(step), device)
        anchor, positive, negative = batch.local.chunk(3)
        pairs = zip(anchor, positive, negative, strict=True)
        scores.append(torch.stack([model.score(a, [p, n]).cpu() for a, p, n in pairs], dim=1))
        a, p, n = batch.global_.chunk(3)
        similar.append(torch.stack([F.cosine_similarity(a, other).cpu() for other in (p, n)]))
    return orders(torch.cat(scores, dim=1), torch.cat(similar, dim=1))


def recipe(
    make: Callable[[int], nn.Module],
    width: Callable[[Any], int],
    options: NetworkOptions,
    write: Callable[[nn.Module, Path, Mapping[str, Any]], None],
    progress: Progress | None = None,
) -> Recipe[Triple]:
    """What the loop trains: `make` of the size of a descriptor, with an auxiliary head.

    `make` gives a PairNetwork at step 0, and `width` of its config is w of its `encode`.
    """
    data = landmarks(options, lambda store: lambda keys, step: read(store, options, keys, step), progress)
    store = data.store

    def all_read(keys: list[str], step: int) -> Triple:
        return _stack([store.read(key, READ, options.descriptors) for key in keys], keys)

    checker = Triplets(all_read, data.checker.images, data.checker.near, options, "validate")
    example = store.read(data.images.keys[0], READ, 1)
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        model: Any = make(example.descriptors.shape[1]).train()
        head = nn.Linear(width(model.config), 2)
    module, device = nn.ModuleDict({"model": model, "head": head}), resolve_device(options.device)
    return Recipe(
        module=module,
        optimizer=lambda: torch.optim.AdamW(
            module.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
        ),
        draw=data.sampler.draw,
        loss=lambda batch, step: loss_of(model, head, batch, options.auxiliary),
        validate=lambda: validate(model, checker, device),
        selection="triplets",
        write=lambda path, card: write(model, path, card),
        steps=data.steps,
        identity={"data": data.digest},
        card=data.card(),
        epoch=data.sampler.epoch,
    )
