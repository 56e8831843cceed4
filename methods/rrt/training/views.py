"""Training RRT on a bank of views: the recipe behind the shipped weights (`python cli.py train rrt`).

Pairs of views of one photograph or building against pairs with the neighbours nearest by global similarity, binary
cross-entropy; plus the training-only loss of docs/protocols.md (each local token: does it have a match in the other
image?). Attention starts as a search for matches (`start.py`). The weights are chosen by mAP of reranked shortlists of
held-out views, with and without their globals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.metrics import evaluate_query
from bench.training import LoopOptions, Progress, Recipe, fit
from methods.rrt.model import RRT, SINGLE_SCALE, RRTConfig, TokenBatch, Tokens, load_checkpoint, save_checkpoint
from methods.rrt.training.bank import KEPT, Bank, BankOptions, build_bank
from methods.rrt.training.start import start

SAME_COSINE = 0.8  # least cosine of a match in the auxiliary loss
SAME_PLACE = 0.02  # and, where places are known, how near they must be (fraction of the photograph's longer side)
QUERIES, CANDIDATES = 24, 30  # of a validation: photographs, and as many buildings; and views reranked for each


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """What is trained on, for how long and how."""

    photos: Path | None = None  # folder of photographs, warped into views
    limit: int | None = None  # use only the first so many of them, by name, rounded up to 25
    generated: tuple[int, ...] = (1,)  # seeds of generated buildings; 0 is the demo test set and refused
    checked_on: tuple[int, ...] = ()  # seeds of generated buildings that only validate
    views: int = 6  # per photograph
    landmarks: int = 60  # generated buildings per seed
    bank: Path = Path("build/rrt-bank")  # where extracted views are kept
    features: str = "xfeat"
    pairs: int = 300_000
    descriptors: int = 100  # local descriptors per image the weights are meant for
    fewest: int = 100  # of a step: it reads from so many…
    most: int = 100  # …to so many, drawn at random from the best-scored…
    spread: float = 1.4  # …so many times as many
    depth: int = 3
    feedforward: int = 256
    batch: int = 32  # pairs per step, half of them positive
    lr: float = 5e-4
    warmup: int = 500
    decay: float = 0.2
    clip: float = 1.0
    weight_decay: float = 5e-4
    auxiliary: float = 1.0  # weight of the auxiliary loss
    least_overlap: float = 0.3  # of the smaller view, for a positive pair
    hardest: int = 400  # negatives come from so many nearest neighbours by global similarity…
    hard: float = 0.9  # …this often, else from anywhere
    hide_global: float = 0.25  # probability that a pair's global descriptors are hidden
    start: Path | None = None  # weights to go on from (then depth and feedforward must be theirs)

    spared: ClassVar[frozenset[str]] = LoopOptions.spared | {"photos", "bank", "pairs"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 in (*self.generated, *self.checked_on):
            raise UserError(
                "generated seed 0 is the demo test set: training on it would spoil the comparison",
                hint="use other seeds, for example 1,2",
            )
        if self.photos is None and not self.generated:
            raise UserError("nothing to train on", hint="name a folder of photographs or seeds of generated buildings")
        if twice := set(self.generated) & set(self.checked_on):
            raise UserError(f"generated seeds {sorted(twice)}: given to train and to validate", hint="use other seeds")
        whole = ("views", "landmarks", "pairs", "descriptors", "fewest", "batch", "hardest")
        for name in whole:
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.views < 2:
            raise UserError(f"views {self.views}: expected at least 2, a positive pair needs two")
        if not self.fewest <= self.most <= KEPT or self.descriptors > KEPT or self.spread < 1:
            raise UserError(
                f"{self.descriptors} descriptors, from {self.fewest} to {self.most} a step, spread {self.spread}: "
                f"expected fewest <= most <= {KEPT}, as many as the bank keeps per view, and spread of at least 1"
            )
        if self.batch % 2:
            raise UserError(f"batch {self.batch}: expected an even number, half of the pairs are positive")
        if self.weight_decay < 0 or self.auxiliary < 0:
            raise UserError("expected weight_decay and auxiliary of at least 0")
        for name in ("least_overlap", "hard", "hide_global"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: expected a fraction from 0 to 1")
        try:
            RRTConfig(depth=self.depth, feedforward=self.feedforward)
        except ValueError as error:
            raise UserError(str(error)) from error

    @property
    def steps(self) -> int:
        return math.ceil(self.pairs / self.batch)


@dataclass(frozen=True)
class Pairs:
    """A batch of b pairs of views, each with the same number n of descriptors."""

    query: TokenBatch
    candidate: TokenBatch
    labels: Tensor  # (b,) 1 = same
    places: tuple[Tensor, Tensor]  # (b, n, 2) each, NaN where unknown
    blank: Tensor  # (global_dim,) mean global descriptor, which says nothing


class Sampler:
    """Draws pairs; what step s draws depends on the seed and s alone, so that a resumed run sees the same pairs."""

    def __init__(self, bank: Bank, options: TrainOptions):
        self.bank, self.options = bank, options
        usable = np.flatnonzero(~bank.held_out & (bank.counts >= options.most))
        self.positives = _positives(bank, usable, options.least_overlap)
        self.anchors = np.array(sorted(self.positives), dtype=np.int64)
        if not len(self.anchors) or len(np.unique(bank.groups[usable])) < 2:
            raise _too_little("train", len(self.anchors), bank, usable, options.most)
        self.usable = usable
        self.blank = torch.from_numpy(bank.global_[usable].astype(np.float32).mean(axis=0))
        self.neighbours = self._neighbours(usable)

    def _neighbours(self, usable: np.ndarray) -> dict[int, np.ndarray]:
        """The `hardest` views nearest to each anchor by global similarity that share no photograph or building."""
        vectors = torch.from_numpy(self.bank.global_[usable].astype(np.float32))
        found: dict[int, np.ndarray] = {}
        for anchors in np.array_split(self.anchors, max(1, len(self.anchors) // 512)):
            similar = torch.from_numpy(self.bank.global_[anchors].astype(np.float32)) @ vectors.T
            share = torch.from_numpy(self.bank.share(anchors, usable))
            similar[share] = -math.inf
            top = similar.topk(min(self.options.hardest, len(usable) - 1), dim=1).indices
            found |= {
                int(anchor): usable[row[~shared[row]].numpy()]
                for anchor, row, shared in zip(anchors, top, share, strict=True)
            }
        return found

    def draw(self, step: int) -> Pairs:
        """The pairs of one step: each anchor once with a positive and once with a negative."""
        rng = np.random.default_rng([self.options.seed, step])
        anchors = rng.choice(self.anchors, self.options.batch // 2)
        positive = np.array([rng.choice(self.positives[int(a)]) for a in anchors])
        negative = np.array([self._negative(int(a), rng) for a in anchors])
        first, second = np.concatenate([anchors, anchors]), np.concatenate([positive, negative])
        swap = rng.random(len(first)) < 0.5
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        labels = np.repeat([1.0, 0.0], len(anchors)).astype(np.float32)
        n = int(rng.integers(self.options.fewest, self.options.most + 1))
        one, two = self._rows(first, n, rng), self._rows(second, n, rng)
        return Pairs(
            self._tokens(*one),
            self._tokens(*two),
            torch.from_numpy(labels),
            (torch.from_numpy(self.bank.xy[one]), torch.from_numpy(self.bank.xy[two])),
            self.blank,
        )

    def _negative(self, anchor: int, rng: np.random.Generator) -> int:
        while True:
            near = self.neighbours[anchor] if rng.random() < self.options.hard else self.usable
            other = int(rng.choice(near if len(near) else self.usable))
            if self.bank.groups[other] != self.bank.groups[anchor]:
                return other

    def _rows(self, views: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Index (b, 1), (b, n) of the descriptors that are read: never quite the same ones of a view, against learning
        the views by heart."""
        order = rng.random((len(views), min(KEPT, math.ceil(self.options.spread * n), *self.bank.counts[views])))
        return views[:, None], order.argsort(axis=1)[:, :n]

    def _tokens(self, views: np.ndarray, rows: np.ndarray) -> TokenBatch:
        local = torch.from_numpy(self.bank.local[views, rows].astype(np.float32))
        return TokenBatch(
            local,
            torch.full(local.shape[:2], SINGLE_SCALE),
            torch.from_numpy(self.bank.global_[views[:, 0]].astype(np.float32)),
        )


def _positives(bank: Bank, usable: np.ndarray, least_overlap: float) -> dict[int, np.ndarray]:
    """Of each usable view that has any: the others of its scene that show enough of the same."""
    members = {group: usable[bank.groups[usable] == group] for group in np.unique(bank.groups[usable])}
    found = {int(v): bank.positives(int(v), members[bank.groups[v]], least_overlap) for v in usable}
    return {view: same for view, same in found.items() if len(same)}


def _too_little(to: str, anchors: int, bank: Bank, usable: np.ndarray, descriptors: int) -> UserError:
    return UserError(
        f"too little to {to} on: {anchors} views with {descriptors} descriptors that overlap another, of "
        f"{len(np.unique(bank.groups[usable]))} scenes",
        hint="give more photographs or buildings, more views, or fewer descriptors",
    )


class Shortlists:
    """Held-out views as queries, each with its nearest held-out views by global similarity, to be reranked."""

    def __init__(self, bank: Bank, options: TrainOptions):
        usable = np.flatnonzero(bank.held_out & (bank.counts >= options.descriptors))
        positives = _positives(bank, usable, options.least_overlap)
        if not positives or len(np.unique(bank.groups[usable])) < 2:
            raise _too_little("validate", len(positives), bank, usable, options.descriptors)
        self.bank, self.descriptors, self.positives = bank, options.descriptors, positives
        order = np.random.default_rng(options.seed).permutation(sorted(positives))
        kinds = {"photographs": order[bank.shows[order, 0] >= 0], "buildings": order[bank.shows[order, 0] < 0]}
        self.queries = {kind: views[:QUERIES].tolist() for kind, views in kinds.items() if len(views)}
        vectors = bank.global_[usable].astype(np.float32)
        self.candidates: dict[int, np.ndarray] = {}
        for query in (q for views in self.queries.values() for q in views):
            unfair = bank.share(np.array([query]), usable)[0] & ~np.isin(usable, positives[query])
            similar = np.where(unfair, -np.inf, vectors @ bank.global_[query].astype(np.float32))
            self.candidates[query] = usable[np.argsort(-similar, kind="stable")[: min(CANDIDATES, (~unfair).sum())]]

    def mean_ap(self, score: Callable[[Tokens, Sequence[Tokens]], Tensor], blank: Tensor | None) -> dict[str, float]:
        """mAP of the reranked shortlists by kind of query, in [0, 1]; with `blank` in the place of every global."""
        found: dict[str, float] = {}
        for kind, queries in self.queries.items():
            values = []
            for query in queries:
                candidates = self.candidates[query]
                scores = score(self._tokens(query, blank), [self._tokens(int(c), blank) for c in candidates])
                ranking = candidates[scores.cpu().argsort(descending=True, stable=True).numpy()]
                values.append(evaluate_query(ranking, set(self.positives[query].tolist()), (), ("mAP",))["mAP"])
            found[kind] = float(np.mean(values))
        return found

    def _tokens(self, view: int, blank: Tensor | None) -> Tokens:
        local = torch.from_numpy(self.bank.local[view, : self.descriptors].astype(np.float32))
        global_ = torch.from_numpy(self.bank.global_[view].astype(np.float32)) if blank is None else blank
        return Tokens(local, torch.full((len(local),), SINGLE_SCALE), global_)


def has_match(first: Tensor, second: Tensor, places: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """(b, n + m, 2) in {0, 1}: has the token a mutual nearest neighbour of cosine above SAME_COSINE in the other image;
    and is that match right: of a positive pair and, where places are known, in the same place.

    first (b, n, d) and second (b, m, d) unit vectors; places (b, n, 2) and (b, m, 2).
    """
    with torch.autocast(first.device.type, enabled=False):  # bf16 cosines would tie
        similar = first @ second.transpose(1, 2)
    best, there = similar.max(dim=2)
    back = similar.argmax(dim=1)
    n, m = similar.shape[1:]
    mutual = (back.gather(1, there) == torch.arange(n, device=first.device)) & (best > SAME_COSINE)
    other_place = places[1].gather(1, there[..., None].expand(-1, -1, 2))
    unknown = places[0].isnan().all(dim=(1, 2)) | places[1].isnan().all(dim=(1, 2))
    near = ((places[0] - other_place).norm(dim=-1) < SAME_PLACE) | unknown[:, None]
    right = mutual & near & (labels[:, None] > 0.5)
    source = torch.stack([mutual, right], dim=-1)
    # a token of the second image is matched if a mutual one of the first points at it
    target = torch.zeros(len(first), m, 2, dtype=torch.bool, device=first.device)
    batch, index = mutual.nonzero(as_tuple=True)
    target[batch, there[batch, index]] = source[batch, index]
    return torch.cat([source, target], dim=1).float()


def _initial(options: TrainOptions, bank: Bank) -> tuple[RRT, nn.Linear]:
    """The network and the auxiliary head at step 0."""
    config = RRTConfig(
        depth=options.depth,
        feedforward=options.feedforward,
        global_dim=bank.global_.shape[1],
        local_dim=bank.local.shape[2],
    )
    if options.start is not None:
        model = load_checkpoint(options.start)
        if model.config != config:
            raise UserError(
                f"{options.start}: has {model.config}, expected {config}",
                hint="set depth and feedforward to those of the weights to start from",
            )
    else:
        model = RRT(config)
        views = np.flatnonzero(~bank.held_out)
        rng = np.random.default_rng(options.seed)
        some = np.sort(rng.choice(views, min(500, len(views)), replace=False))
        local = bank.local[some, : bank.counts[some].min()]
        start(model, local.reshape(-1, local.shape[2]), bank.global_[views])
    return model.train(), nn.Linear(config.dim, 3)


def _hide(batch: TokenBatch, hidden: Tensor, noise: Tensor, blank: Tensor) -> TokenBatch:
    """Globals noised, and blank in `hidden` (b,) pairs: otherwise the network leans on them and reads no locals."""
    return replace(batch, global_=torch.where(hidden[:, None], blank, batch.global_ + noise))


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
    torch.set_num_threads(options.threads)
    material = BankOptions(
        photos=options.photos,
        limit=options.limit,
        views=options.views,
        generated=options.generated,
        checked_on=options.checked_on,
        landmarks=options.landmarks,
        features=options.features,
    )
    bank = build_bank(material, options.bank, workers=options.threads, progress=progress)
    return train_on(bank, options, out, progress)


def train_on(bank: Bank, options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """`train` on a bank already in memory."""
    return fit(recipe(bank, options), options, out, progress)


def recipe(bank: Bank, options: TrainOptions) -> Recipe[Pairs]:
    """What the loop trains: the network with its auxiliary head, validated by mAP of reranked held-out views."""
    sampler, checker = Sampler(bank, options), Shortlists(bank, options)
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        model, head = _initial(options, bank)
    module = nn.ModuleDict({"model": model, "head": head})
    digest = bank.digest()

    return Recipe(
        module=module,
        optimizer=lambda: torch.optim.AdamW(
            module.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
        ),
        draw=sampler.draw,
        loss=lambda pairs, step: loss_of(model, head, pairs, options, step)[0],
        validate=lambda: validate(model, checker, sampler.blank),
        selection="mAP",
        write=partial(save_checkpoint, model),
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


def validate(model: RRT, checker: Shortlists, blank: Tensor) -> dict[str, float]:
    """mAP of held-out shortlists in [0, 1]: by kind of query, each also with all globals hidden; and their mean."""
    shown, hidden = (checker.mean_ap(model.score, given) for given in (None, blank))
    figures = {f"mAP {kind}": value for kind, value in shown.items()}
    figures |= {f"mAP {kind}, no globals": value for kind, value in hidden.items()}
    return {"mAP": float(np.mean(list(figures.values()))), **figures}
