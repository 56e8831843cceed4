"""Training RRT on Google Landmarks as the paper does (docs/protocols.md, Training): `train rrt --recipe gld`.

Features stay frozen and on disk. The loss is binary cross-entropy over the pairs (anchor, positive) and (anchor,
negative), 12 triplets a step (methods/_landmarks/triplets.py). The paper's learning rate falls after epochs 16 and 18
of 15, that is, never: the default here is a constant rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.device import resolve_device
from bench.errors import UserError
from bench.features.store import FeatureStore
from bench.training import Progress, Recipe, fit, move
from methods._landmarks.triplets import LandmarkOptions, Triplets, landmarks, orders
from methods._views.matches import has_match
from methods.rrt import RELEASED, scale_ids
from methods.rrt.model import RRT, SINGLE_SCALE, RRTConfig, TokenBatch, load_checkpoint, save_checkpoint
from methods.rrt.training.start import start_searching

READ = frozenset({"global", "local"})


@dataclass(frozen=True)
class TrainOptions(LandmarkOptions):
    """What is trained on, for how long and how; the defaults are the paper's."""

    scale_ids: Literal["released", "fixed"] | None = "fixed"  # of DELG's scales; none: features without such scales
    depth: int = 6  # layers
    feedforward: int = 1024  # width of a layer's hidden part
    heads: int = 4  # of the attention
    dim: int = 128  # width of a token
    auxiliary: float = 0.0  # weight of the auxiliary loss (has a local descriptor a match?); not the paper's
    start: Path | None = None  # weights to go on from, ours or a released .pt (then depth, … must be theirs)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxiliary < 0:
            raise UserError(f"auxiliary {self.auxiliary}: expected at least 0")
        try:
            RRTConfig(depth=self.depth, feedforward=self.feedforward, heads=self.heads, dim=self.dim)
        except ValueError as error:
            raise UserError(str(error)) from error


def tokens(store: FeatureStore, keys: Iterable[str], options: TrainOptions) -> TokenBatch:
    """The images' tokens, padded to the longest of them."""
    found = [store.read(key, READ, options.descriptors) for key in keys]
    length = max(1, *(len(image) for image in found))
    local = torch.zeros(len(found), length, found[0].descriptors.shape[1])
    ids = torch.full((len(found), length), SINGLE_SCALE)
    mask = torch.ones(len(found), length, dtype=torch.bool)
    for row, image in enumerate(found):
        n = len(image)
        local[row, :n], mask[row, :n] = image.descriptors, False
        if options.scale_ids:
            ids[row, :n] = scale_ids(image.scales, options.scale_ids)
    return TokenBatch(local, ids, torch.stack([image.global_descriptor for image in found]), mask)


def pairs(batch: TokenBatch) -> tuple[TokenBatch, TokenBatch, Tensor]:
    """Query, candidate and label (2 t,) of the pairs of t triplets: the positive ones, then the negative ones."""
    anchor, positive, negative = (_third(batch, part) for part in range(3))
    labels = torch.ones(2 * len(anchor.local), device=batch.local.device)
    labels[len(anchor.local) :] = 0
    return _joined(anchor, anchor), _joined(positive, negative), labels


def _third(batch: TokenBatch, part: int) -> TokenBatch:
    return TokenBatch(*(getattr(batch, f.name).chunk(3)[part] for f in fields(TokenBatch)))


def _joined(one: TokenBatch, two: TokenBatch) -> TokenBatch:
    return TokenBatch(*(torch.cat([getattr(one, f.name), getattr(two, f.name)]) for f in fields(TokenBatch)))


def initial(options: TrainOptions, local_dim: int, global_dim: int) -> RRT:
    """The network at step 0: the released architecture, its matrices and embeddings xavier-uniform; or `start`."""
    config = RRTConfig(options.depth, options.feedforward, options.heads, options.dim, global_dim, local_dim)
    if options.start is None:
        model = RRT(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        if options.auxiliary:
            start_searching(model)
        return model
    model = load_checkpoint(options.start)
    if model.config != config:
        raise UserError(
            f"{options.start}: has {model.config}, expected {config}",
            hint="set depth, feedforward, heads and dim to those of the weights to start from",
        )
    trained = (model.card or RELEASED).get("scale_ids")
    if trained != options.scale_ids:
        raise UserError(
            f"{options.start}: trained with scale ids {trained or 'none'}, to go on with {options.scale_ids or 'none'}",
            hint=f"--scale-ids {trained or 'none'}",
        )
    return model


def loss_of(model: RRT, head: nn.Linear | None, batch: TokenBatch, options: TrainOptions) -> Tensor:
    """Binary cross-entropy of the triplets' pairs; with a head, also that of its answers for every local token."""
    query, candidate, labels = pairs(batch)
    read, logits = model.encode(query, candidate)
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
    if head is not None:
        assert query.mask is not None and candidate.mask is not None
        n = query.local.shape[1]
        one, two = (F.normalize(side.local, dim=-1) for side in (query, candidate))
        unknown = torch.full((*one.shape[:2], 2), torch.nan, device=one.device)
        target = has_match(one, two, (unknown, unknown), labels)
        said = head(torch.cat([read[:, 2 : 2 + n], read[:, 4 + n :]], dim=1)).float()
        real = ~torch.cat([query.mask, candidate.mask], dim=1)
        loss = loss + options.auxiliary * F.binary_cross_entropy_with_logits(said[real], target[real])
    return loss


def validate(model: RRT, checker: Triplets[TokenBatch], device: torch.device) -> dict[str, float]:
    """On held-out triplets: as `orders`, and accuracy over all pairs."""
    scores, similar = [], []
    for step in range(-(-checker.options.checked // checker.options.triplets)):
        query, candidate, _ = pairs(move(checker.draw(step), device))
        scores.append(model(query, candidate).cpu().chunk(2))
        similar.append(F.cosine_similarity(query.global_, candidate.global_).cpu().chunk(2))
    network, first_stage = (torch.stack([torch.cat(side) for side in zip(*s, strict=True)]) for s in (scores, similar))
    labels = torch.tensor([1, 0])[:, None].expand_as(network)
    return {**orders(network, first_stage), "accuracy": float(((network > 0) == (labels > 0)).double().mean())}


def train(options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train on the features of a landmark data set (Google Landmarks) and write OUT.

    Defaults are the paper's. The weights are chosen on held-out landmarks; the paper chose its own on ROxford, the test
    set. Expect the loss to stay at 0.69 for the first 30,000 pairs and more. An interrupted training goes on from its
    last saved state when called again, and ends at the same weights.
    """
    return fit(recipe(options, progress), options, out, progress)


def recipe(options: TrainOptions, progress: Progress | None = None) -> Recipe[TokenBatch]:
    """What the loop trains: the network, and with `auxiliary` its head."""
    data = landmarks(options, lambda store, _: lambda keys, step: tokens(store, keys, options), progress)
    device, example = resolve_device(options.device), data.store.read(data.images.keys[0], READ, 1)
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        model = initial(options, example.descriptors.shape[1], len(example.global_descriptor))
        head = nn.Linear(options.dim, 2) if options.auxiliary else None
    module = nn.ModuleDict({"model": model} | ({"head": head} if head is not None else {}))
    return Recipe(
        module=module,
        optimizer=lambda: torch.optim.AdamW(
            module.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
        ),
        draw=data.sampler.draw,
        loss=lambda batch, step: loss_of(model, head, batch, options),
        validate=lambda: validate(model, data.checker, device),
        selection="triplets",
        write=partial(save_checkpoint, model),
        steps=data.steps,
        identity={"data": data.digest},
        card=data.card() | ({"scale_ids": options.scale_ids} if options.scale_ids else {}),
        epoch=data.sampler.epoch,
    )
