"""Training RRT on a bank of views: the recipe behind the shipped weights (`python cli.py train rrt`).

Pairs of views of one photograph or building against pairs with the neighbours nearest by global similarity, binary
cross-entropy; plus the training-only loss of docs/protocols.md (each local token: does it have a match in the other
image?). Attention starts as a search for matches (`start.py`). The weights are chosen by mAP of reranked shortlists of
held-out views, with and without their globals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.training import Progress, Recipe, fit
from methods._views.bank import Bank
from methods._views.matches import has_match
from methods._views.pairs import PairOptions, Pairs, Sampler, Views, bank_of
from methods._views.recipe import recipe_of
from methods._views.shortlists import Shortlists, View
from methods.rrt.model import RRT, SINGLE_SCALE, RRTConfig, TokenBatch, Tokens, load_checkpoint, save_checkpoint
from methods.rrt.training.start import begin


@dataclass(frozen=True)
class TrainOptions(PairOptions):
    """What is trained on, for how long and how."""

    depth: int = 3
    feedforward: int = 256
    dim: int = 128  # width of a token
    init: Literal["matching", "searching", "xavier"] = "matching"  # see start.py; matching: where the tokens have room
    auxiliary: float = 1.0  # weight of the auxiliary loss
    hide_global: float = 0.25  # probability that a pair's global descriptors are hidden
    start: Path | None = None  # weights to go on from (then depth, feedforward and dim must be theirs)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxiliary < 0:
            raise UserError(f"auxiliary {self.auxiliary}: expected at least 0")
        if not 0 <= self.hide_global <= 1:
            raise UserError(f"hide_global {self.hide_global}: expected a fraction from 0 to 1")
        try:
            RRTConfig(depth=self.depth, feedforward=self.feedforward, dim=self.dim)
        except ValueError as error:
            raise UserError(str(error)) from error


def _initial(options: TrainOptions, bank: Bank) -> tuple[RRT, nn.Linear]:
    """The network and the auxiliary head at step 0."""
    config = RRTConfig(
        depth=options.depth,
        feedforward=options.feedforward,
        dim=options.dim,
        global_dim=bank.global_.shape[1],
        local_dim=bank.local.shape[2],
    )
    if options.start is not None:
        model = load_checkpoint(options.start)
        if model.config != config:
            raise UserError(
                f"{options.start}: has {model.config}, expected {config}",
                hint="set depth, feedforward and dim to those of the weights to start from",
            )
    else:
        model = RRT(config)
        views = np.flatnonzero(~bank.held_out)
        rng = np.random.default_rng(options.seed)
        some = np.sort(rng.choice(views, min(500, len(views)), replace=False))
        local = bank.local[some, : bank.counts[some].min()]
        begin(model, options.init, local.reshape(-1, local.shape[2]), bank.global_[views])
    return model.train(), nn.Linear(config.dim, 3)


def _hide(views: Views, hidden: Tensor, noise: Tensor, blank: Tensor) -> TokenBatch:
    """Globals noised, and blank in `hidden` (b,) pairs: otherwise the network leans on them and reads no locals."""
    ids = torch.full(views.local.shape[:2], SINGLE_SCALE, device=views.local.device)
    return TokenBatch(views.local, ids, torch.where(hidden[:, None], blank, views.global_ + noise))


def loss_of(model: RRT, head: nn.Linear, pairs: Pairs, options: TrainOptions, step: int) -> tuple[Tensor, Tensor]:
    """Training loss and the pairs' logits (b,)."""
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)  # on the CPU: the same on any device
    device = pairs.labels.device
    hidden = (torch.rand(len(pairs.labels), generator=generator) < options.hide_global).to(device)
    scale = 0.3 / math.sqrt(pairs.query.global_.shape[1])
    query, candidate = (
        _hide(b, hidden, scale * torch.randn(b.global_.shape, generator=generator).to(device), pairs.blank)
        for b in (pairs.query, pairs.candidate)
    )
    tokens, logits = model.encode(query, candidate)
    logits = logits.float()
    loss = F.binary_cross_entropy_with_logits(logits, pairs.labels)
    if options.auxiliary:
        n = pairs.query.local.shape[1]
        local = torch.cat([tokens[:, 2 : 2 + n], tokens[:, 4 + n :]], dim=1)
        target = has_match(pairs.query.local, pairs.candidate.local, pairs.places, pairs.labels)
        loss = loss + options.auxiliary * F.binary_cross_entropy_with_logits(head(local)[..., :2].float(), target)
        said = head(tokens[:, [1, 3 + n]])[..., 2].float()
        error = (said - _likeness(pairs)[:, None]) ** 2 * (~hidden)[:, None]
        loss = loss + 4 * options.auxiliary * error.mean()
    return loss, logits


def _likeness(pairs: Pairs) -> Tensor:
    """(b,) cosine of the centred global descriptors, which the two global tokens are taught to tell."""
    one, two = (F.normalize(b.global_ - pairs.blank, dim=-1) for b in (pairs.query, pairs.candidate))
    return (one * two).sum(dim=-1)


def train(options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train on warped views of photographs and on generated buildings, and write OUT.

    An interrupted training goes on from its last saved state when called again, and ends at the same weights.
    """
    return train_on(bank_of(options, progress), options, out, progress)


def train_on(bank: Bank, options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """`train` on a bank already in memory."""
    return fit(recipe(bank, options), options, out, progress)


def recipe(bank: Bank, options: TrainOptions) -> Recipe[Pairs]:
    """What the loop trains: the network with its auxiliary head, validated by mAP of reranked held-out views."""
    sampler, checker = Sampler(bank, options), Shortlists(bank, options)
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        model, head = _initial(options, bank)
    return recipe_of(
        bank,
        options,
        sampler,
        module=nn.ModuleDict({"model": model, "head": head}),
        loss=lambda pairs, step: loss_of(model, head, pairs, options, step)[0],
        validate=lambda: validate(model, checker, sampler.blank),
        write=partial(save_checkpoint, model),
    )


def validate(model: RRT, checker: Shortlists, blank: Tensor) -> dict[str, float]:
    """mAP of held-out shortlists in [0, 1]: by kind of query, each also with all globals hidden; and their mean."""

    def score(query: View, candidates: Sequence[View]) -> Tensor:
        return model.score(_tokens(query), [_tokens(candidate) for candidate in candidates])

    shown, hidden = (checker.mean_ap(score, given) for given in (None, blank))
    figures = {f"mAP {kind}": value for kind, value in shown.items()}
    figures |= {f"mAP {kind}, no globals": value for kind, value in hidden.items()}
    return {"mAP": float(np.mean(list(figures.values()))), **figures}


def _tokens(view: View) -> Tokens:
    return Tokens(view.local, torch.full((len(view.local),), SINGLE_SCALE), view.global_)
