"""The recipe on landmarks of networks that read the local descriptors of two images alone, such as AMES and ELViS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from methods._pair_network import PairNetwork, loss_of, with_head

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


def read(store: FeatureStore, options: NetworkOptions, checks: bool, keys: Sequence[str], step: int) -> Triple:
    """So many of the best descriptors as the step's number draws, or where it `checks` as the weights are meant for.

    UserError for an image without any.
    """
    drawn = np.random.default_rng([options.seed, step, 1]).integers(options.fewest, options.most + 1)
    n = options.descriptors if checks else int(drawn)
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
    """What the loop trains: the network and head that `with_head` makes of `make` and `width`, written by `write`."""
    data = landmarks(options, lambda store, checks: partial(read, store, options, checks), progress)
    example, device = data.store.read(data.images.keys[0], READ, 1), resolve_device(options.device)
    module = with_head(make, width, example.descriptors.shape[1], options.seed)
    model: Any = module["model"]

    def loss(batch: Triple, step: int) -> Tensor:
        anchor, positive, negative = batch.local.chunk(3)
        labels = torch.cat([anchor.new_ones(len(anchor)), anchor.new_zeros(len(anchor))])
        query, candidate = torch.cat([anchor, anchor]), torch.cat([positive, negative])
        return loss_of(module, query, candidate, labels, options.auxiliary)

    return Recipe(
        module=module,
        optimizer=lambda: torch.optim.AdamW(
            module.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
        ),
        draw=data.sampler.draw,
        loss=loss,
        validate=lambda: validate(model, data.checker, device),
        selection="triplets",
        write=partial(write, model),
        steps=data.steps,
        identity={"data": data.digest},
        card=data.card(),
        epoch=data.sampler.epoch,
    )
