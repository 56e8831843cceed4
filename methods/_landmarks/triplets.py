"""Triplets of landmark images by their stored features: what a recipe may be told of them, and how they are drawn.

Anchors are images with at least 5 of their landmark among their 100 nearest by global similarity; a triplet is an
anchor, a positive and a negative drawn uniformly from those 100 (Tan, Yuan, Ordonez, ICCV 2021; docs/protocols.md).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.datasets.gldv2 import read_list
from bench.device import resolve_device
from bench.errors import UserError
from bench.features.store import FeatureStore
from bench.files import new_map
from bench.training import LoopOptions, Progress, fingerprint

B = TypeVar("B")  # a recipe's batch
BLOCK = (4096, 16384)  # images, and images they are compared with, of one step of the neighbour search


@dataclass(frozen=True)
class LandmarkOptions(LoopOptions):
    """What is trained on, for how long and how, whatever the network."""

    store: Path | None = None  # feature store of the training images
    list: Path | None = None  # their labels: lines `jpg/NAME.jpg,LABEL,WIDTH,HEIGHT`, or GLDv2's train_clean.csv
    cache: Path = Path("build/rrt-gld")  # where nearest neighbours are kept
    epochs: float = 15  # times that every anchor is drawn
    triplets: int = 12  # per step: as many positive and as many negative pairs
    neighbours: int = 100  # nearest by global similarity, from which positives and negatives come
    least_positives: int = 5  # among them, for an anchor
    held_out: float = 0.02  # part of the labels, which validates and is not trained on
    checked: int = 1200  # triplets of a validation
    check_every: int = 5000
    descriptors: int = 500  # best-scored local descriptors per image
    weight_decay: float = 5e-4

    spared: ClassVar[frozenset[str]] = LoopOptions.spared | {"store", "list", "cache", "epochs"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.store is None or self.list is None:
            raise UserError(
                "nothing to train on", hint="name a feature store (--store) and the list of its labels (--list)"
            )
        for name in ("triplets", "neighbours", "least_positives", "checked", "descriptors"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: expected at least 1")
        if not self.least_positives < self.neighbours:
            raise UserError(f"least_positives {self.least_positives}: expected fewer than neighbours {self.neighbours}")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out {self.held_out}: expected a fraction between 0 and 1")
        if not 0 < self.epochs < math.inf or self.weight_decay < 0:
            raise UserError("expected epochs above 0, and weight_decay of at least 0")


@dataclass(frozen=True, eq=False)
class Images:
    """n images of a store, in its order."""

    keys: Sequence[str]
    labels: np.ndarray  # (n,) int32

    def take(self, chosen: np.ndarray) -> Images:
        """Those where `chosen` (n,) bool is True."""
        return Images([self.keys[int(i)] for i in np.flatnonzero(chosen)], self.labels[chosen])


def images_of(store: FeatureStore, listed: Mapping[str, str]) -> Images:
    """The listed images that the store has: under their name, without its suffix, or without its folder too."""
    by_key: dict[str, str] = {}
    for name, label in listed.items():
        path = Path(name)
        key = next((k for k in (name, str(path.parent / path.stem), path.stem) if k in store), None)
        if key is not None and store.error(key) is None and by_key.setdefault(key, label) != label:
            raise UserError(
                f"{name!r}: stored as {key!r}, which is listed twice, with labels {by_key[key]!r} and {label!r}"
            )
    keys = [key for key in store if key in by_key]
    if not keys:
        raise UserError(
            f"{store.folder}: none of the {len(listed)} listed images is in this feature store "
            f"(listed: {next(iter(listed), 'nothing')!r}; stored: {next(iter(store), 'nothing')!r})"
        )
    numbers = {label: i for i, label in enumerate(sorted(set(by_key.values())))}
    return Images(keys, np.array([numbers[by_key[key]] for key in keys], dtype=np.int32))


def split(images: Images, held_out: float, seed: int) -> tuple[Images, Images]:
    """Those to train on and those to validate on; no label is in both."""
    labels = np.unique(images.labels)
    count = min(max(1, round(held_out * len(labels))), len(labels) - 1)
    chosen = np.isin(images.labels, np.random.default_rng(seed).permutation(labels)[:count])
    return images.take(~chosen), images.take(chosen)


def nearest(
    vectors: np.ndarray, k: int, found: np.ndarray, device: torch.device, progress: Progress | None = None
) -> None:
    """Fill `found` (n, k) with the k rows of `vectors` (n, D) of greatest cosine with each, best first, not itself.

    Goes block by block, never over more than BLOCK similarities, and skips blocks of `found` that hold no -1: after an
    interruption it goes on. 2 n² D operations: for a million images a matter of hours on a CPU.
    """
    n = len(vectors)

    def unit(first: int, size: int) -> Tensor:
        return F.normalize(torch.from_numpy(vectors[first : first + size].astype(np.float32)).to(device), dim=1)

    for start in range(0, n, BLOCK[0]):
        rows = slice(start, min(start + BLOCK[0], n))
        if (found[rows] < 0).any():
            ours = unit(start, BLOCK[0])
            best = torch.full((len(ours), 0), 0.0, device=device)
            where = torch.full((len(ours), 0), 0, device=device)
            for first in range(0, n, BLOCK[1]):
                similar = ours @ unit(first, BLOCK[1]).T
                itself = torch.arange(start - first, start - first + len(ours), device=device)
                inside = (itself >= 0) & (itself < similar.shape[1])
                similar[inside.nonzero()[:, 0], itself[inside]] = -torch.inf
                value, index = similar.topk(min(k + 1, similar.shape[1]), dim=1)
                best, where = torch.cat([best, value], dim=1), torch.cat([where, index + first], dim=1)
                best, kept = best.topk(min(k, best.shape[1]), dim=1)
                where = where.gather(1, kept)
            found[rows] = where.cpu().numpy()
        if progress:
            progress("searching neighbours", rows.stop, n)


def neighbours(
    store: FeatureStore, images: Images, k: int, cache: Path, device: torch.device, progress: Progress | None = None
) -> np.ndarray:
    """(n, k) int32, memory-mapped: `nearest` by the stored global descriptors; a smaller k where images are fewer."""
    n, k = len(images.keys), min(k, len(images.keys) - 1)
    if k < 1:
        raise UserError(f"{store.folder}: {n} images are too few", hint="give more, or another part to hold out")
    cache.mkdir(parents=True, exist_ok=True)
    whole = cache / f"neighbours-{store.content(images.keys)[:16]}-{k}.npy"
    if not whole.exists():
        part, vectors = whole.with_suffix(".part.npy"), whole.with_suffix(".globals.npy")
        if not vectors.exists():
            _gather(store, images.keys, vectors, progress)
        if not part.exists():
            empty = part.with_suffix(".tmp.npy")
            new_map(empty, np.dtype(np.int32), (n, k))[:] = -1
            empty.replace(part)
        found = np.load(part, mmap_mode="r+", allow_pickle=False)
        nearest(np.load(vectors, mmap_mode="r", allow_pickle=False), k, found, device, progress)
        found.flush()
        part.replace(whole)
        vectors.unlink()
    return np.load(whole, mmap_mode="r", allow_pickle=False)


def _gather(store: FeatureStore, keys: Sequence[str], path: Path, progress: Progress | None) -> None:
    """The global descriptors of all images in one file, float16, for the search to read again and again."""
    wide = store.global_descriptors(keys[:1]).shape[1]
    part = path.with_suffix(".tmp.npy")
    rows = new_map(part, np.dtype(np.float16), (len(keys), wide))
    for first in range(0, len(keys), BLOCK[0]):
        rows[first : first + BLOCK[0]] = store.global_descriptors(keys[first : first + BLOCK[0]])
        if progress:
            progress("reading global descriptors", min(first + BLOCK[0], len(keys)), len(keys))
    rows.flush()
    part.replace(path)


class Triplets(Generic[B]):
    """Draws triplets; what step s draws depends on the seed and s alone. Every epoch has each anchor once.

    `read` gives the batch of so many keys of images at a step.
    """

    def __init__(
        self, read: Callable[[list[str], int], B], images: Images, near: np.ndarray, options: LandmarkOptions, what: str
    ):
        self.read, self.images, self.near, self.options = read, images, near, options
        labels = images.labels
        blocks = np.array_split(np.arange(len(labels)), len(labels) // BLOCK[0] + 1)
        positives = np.concatenate([(labels[near[rows]] == labels[rows, None]).sum(axis=1) for rows in blocks])
        self.anchors = np.flatnonzero((positives >= options.least_positives) & (positives < near.shape[1]))
        self.epoch = len(self.anchors) // options.triplets  # steps
        if not self.epoch:
            raise UserError(
                f"too little to {what} on: of {len(labels)} images of {len(np.unique(labels))} labels, "
                f"{len(self.anchors)} have {options.least_positives} of their label and one of another among their "
                f"{near.shape[1]} neighbours, expected at least {options.triplets}",
                hint="give more images per label, another held_out, fewer neighbours or a lower least_positives",
            )
        self._order = lru_cache(2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.options.seed, epoch, 0]).permutation(self.anchors)

    def choose(self, step: int) -> np.ndarray:
        """(3, triplets) indices of anchors, positives and negatives."""
        epoch, place = divmod(step, self.epoch)
        count, rng = self.options.triplets, np.random.default_rng([self.options.seed, step])
        anchors = self._order(epoch)[place * count : (place + 1) * count]
        chosen = []
        for anchor in anchors:
            near = self.near[anchor]
            same = self.images.labels[near] == self.images.labels[anchor]
            chosen.append([anchor, rng.choice(near[same]), rng.choice(near[~same])])
        return np.array(chosen).T

    def draw(self, step: int) -> B:
        """The (3 * triplets) images of one step, anchors first, then positives, then negatives."""
        return self.read([self.images.keys[int(i)] for i in self.choose(step).ravel()], step)


@dataclass(frozen=True, eq=False)
class Landmarks(Generic[B]):
    """Triplets to train on and to validate by, of one store and list."""

    store: FeatureStore
    images: Images  # all that are listed and stored
    listed: int  # images of the list
    sampler: Triplets[B]
    checker: Triplets[B]

    @property
    def steps(self) -> int:
        return max(1, round(self.sampler.options.epochs * self.sampler.epoch))

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the features and labels of all images."""
        found = self.store.content(self.images.keys) + self.images.labels.tobytes().hex()
        return hashlib.sha256(found.encode()).hexdigest()[:16]

    def card(self) -> dict[str, Any]:
        """What a card says of the data."""
        options, trained, held = self.sampler.options, self.sampler.images, self.checker.images
        assert options.list is not None
        return {
            "features": (self.store.identity or {}).get("features", "unknown"),
            "descriptors": options.descriptors,
            "list": {"name": options.list.name, "sha256": fingerprint(options.list)},
            "data": self.digest,
            "images": {"listed": self.listed, "trained on": len(trained.keys), "held out": len(held.keys)},
            "labels": {"trained on": len(np.unique(trained.labels)), "held out": len(np.unique(held.labels))},
            "anchors": {"trained on": len(self.sampler.anchors), "held out": len(self.checker.anchors)},
            "pairs": 2 * self.steps * options.triplets,
        }


def landmarks(
    options: LandmarkOptions,
    reading: Callable[[FeatureStore, bool], Callable[[list[str], int], B]],
    progress: Progress | None = None,
) -> Landmarks[B]:
    """The triplets that `options` name.

    `reading` gives what reads a batch of keys at a step from the store: to train on, or where True to validate by.
    """
    assert options.store is not None and options.list is not None
    torch.set_num_threads(options.threads)
    device, store, listed = resolve_device(options.device), FeatureStore(options.store), read_list(options.list)
    images = images_of(store, listed)
    parts = split(images, options.held_out, options.seed)
    near = [neighbours(store, part, options.neighbours, options.cache, device, progress) for part in parts]
    sampler, checker = (
        Triplets(reading(store, checks), part, of, options, what)
        for checks, part, of, what in zip((False, True), parts, near, ("train", "validate"), strict=True)
    )
    return Landmarks(store, images, len(listed), sampler, checker)


def orders(scores: Tensor, similar: Tensor) -> dict[str, float]:
    """Of scores (2, n) of the positives and negatives of n triplets, and of their global similarities.

    How often the positive is above the negative, for the network and for the first stage alone; and over all pairs the
    area under the ROC curve.
    """
    from sklearn.metrics import roc_auc_score

    labels = torch.tensor([1, 0])[:, None].expand_as(scores)
    return {
        "triplets": _ordered(scores),
        "auc": float(roc_auc_score(labels.flatten(), scores.flatten())),
        "triplets_first_stage": _ordered(similar),
    }


def _ordered(scores: Tensor) -> float:
    """Part of the columns of scores (2, n), of positives and of negatives, that are in order; ties count half."""
    positive, negative = scores
    return float(((positive > negative).double() + 0.5 * (positive == negative).double()).mean())
