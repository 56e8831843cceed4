"""Pairs of views to train on: what a recipe may be told of them, and how they are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError
from bench.training import LoopOptions, Progress
from methods._views.bank import KEPT, Bank, BankOptions, build_bank


@dataclass(frozen=True)
class PairOptions(LoopOptions):
    """What is trained on, for how long and how, whatever the network."""

    photos: Path | None = None  # folder of photographs, warped into views
    limit: int | None = None  # use only the first so many of them, by name, rounded up to 25
    generated: tuple[int, ...] = (1,)  # seeds of generated buildings; 0 is the demo test set and refused
    checked_on: tuple[int, ...] = ()  # seeds of generated buildings that only validate
    views: int = 6  # per photograph
    landmarks: int = 60  # generated buildings per seed
    bank: Path = Path("build/views-bank")  # where extracted views are kept
    features: str = "xfeat"
    pairs: int = 300_000
    descriptors: int = 100  # local descriptors per image the weights are meant for
    fewest: int = 100  # of a step: it reads from so many…
    most: int = 100  # …to so many, drawn at random from the best-scored…
    spread: float = 1.4  # …so many times as many
    batch: int = 32  # pairs per step, half of them positive
    lr: float = 5e-4
    warmup: int = 500
    decay: float = 0.2
    clip: float = 1.0
    weight_decay: float = 5e-4
    least_overlap: float = 0.3  # of the smaller view, for a positive pair
    hardest: int = 400  # negatives come from so many nearest neighbours by global similarity…
    hard: float = 0.9  # …this often, else from anywhere

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
        if self.weight_decay < 0:
            raise UserError(f"weight_decay {self.weight_decay}: expected at least 0")
        for name in ("least_overlap", "hard"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: expected a fraction from 0 to 1")

    @property
    def steps(self) -> int:
        return math.ceil(self.pairs / self.batch)


def bank_of(options: PairOptions, progress: Progress | None = None) -> Bank:
    """The views that `options` name, extracted where they are not in the folder `options.bank` yet."""
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
    return build_bank(material, options.bank, workers=options.threads, progress=progress)


@dataclass(frozen=True)
class Views:
    """What is read of b views, each with the same number n of descriptors."""

    local: Tensor  # (b, n, local_dim) unit vectors
    global_: Tensor  # (b, global_dim)


@dataclass(frozen=True)
class Pairs:
    """A batch of b pairs of views, all of n descriptors."""

    query: Views
    candidate: Views
    labels: Tensor  # (b,) 1 = same
    places: tuple[Tensor, Tensor]  # (b, n, 2) each, NaN where unknown
    blank: Tensor  # (global_dim,) mean global descriptor, which says nothing


class Sampler:
    """Draws pairs; what step s draws depends on the seed and s alone, so that a resumed run sees the same pairs."""

    def __init__(self, bank: Bank, options: PairOptions):
        self.bank, self.options = bank, options
        usable = np.flatnonzero(~bank.held_out & (bank.counts >= options.most))
        self.positives = positives(bank, usable, options.least_overlap)
        self.anchors = np.array(sorted(self.positives), dtype=np.int64)
        if not len(self.anchors) or len(np.unique(bank.groups[usable])) < 2:
            raise too_little("train", len(self.anchors), bank, usable, options.most)
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
            self._read(*one),
            self._read(*two),
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

    def _read(self, views: np.ndarray, rows: np.ndarray) -> Views:
        return Views(
            torch.from_numpy(self.bank.local[views, rows].astype(np.float32)),
            torch.from_numpy(self.bank.global_[views[:, 0]].astype(np.float32)),
        )


def positives(bank: Bank, usable: np.ndarray, least_overlap: float) -> dict[int, np.ndarray]:
    """Of each usable view that has any: the others of its scene that show enough of the same."""
    members = {group: usable[bank.groups[usable] == group] for group in np.unique(bank.groups[usable])}
    found = {int(v): bank.positives(int(v), members[bank.groups[v]], least_overlap) for v in usable}
    return {view: same for view, same in found.items() if len(same)}


def too_little(to: str, anchors: int, bank: Bank, usable: np.ndarray, descriptors: int) -> UserError:
    """What is said where a bank has no pairs to train on, or to validate on."""
    return UserError(
        f"too little to {to} on: {anchors} views with {descriptors} descriptors that overlap another, of "
        f"{len(np.unique(bank.groups[usable]))} scenes",
        hint="give more photographs or buildings, more views, or fewer descriptors",
    )
