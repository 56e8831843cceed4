"""Training RRT on Google Landmarks as the paper does (docs/protocols.md, Training): `train rrt --recipe gld`.

Features stay frozen and on disk. Anchors are images with at least 5 of their landmark among their 100 nearest by global
similarity; a triplet is an anchor, a positive and a negative drawn uniformly from those 100; the loss is binary
cross-entropy over the pairs (anchor, positive) and (anchor, negative), 12 triplets a step. The paper's learning rate
falls after epochs 16 and 18 of 15, that is, never: the default here is a constant rate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.datasets.gldv2 import read_list
from bench.device import resolve_device
from bench.errors import UserError
from bench.features.store import FeatureStore
from bench.training import LoopOptions, Progress, Recipe, fingerprint, fit, move
from methods._views.matches import has_match
from methods.rrt import RELEASED, scale_ids
from methods.rrt.model import RRT, SINGLE_SCALE, RRTConfig, TokenBatch, load_checkpoint, save_checkpoint
from methods.rrt.training.start import start_searching

READ = frozenset({"global", "local"})
BLOCK = (4096, 16384)  # images, and images they are compared with, of one step of the neighbour search


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """What is trained on, for how long and how; the defaults are the paper's."""

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
    scale_ids: Literal["released", "fixed"] | None = "fixed"  # of DELG's scales; none: features without such scales
    depth: int = 6  # layers
    feedforward: int = 1024  # width of a layer's hidden part
    heads: int = 4  # of the attention
    dim: int = 128  # width of a token
    weight_decay: float = 5e-4
    auxiliary: float = 0.0  # weight of the auxiliary loss (has a local descriptor a match?); not the paper's
    start: Path | None = None  # weights to go on from, ours or a released .pt (then depth, … must be theirs)

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
        if not 0 < self.epochs < math.inf or self.weight_decay < 0 or self.auxiliary < 0:
            raise UserError("expected epochs above 0, and weight_decay and auxiliary of at least 0")
        try:
            RRTConfig(depth=self.depth, feedforward=self.feedforward, heads=self.heads, dim=self.dim)
        except ValueError as error:
            raise UserError(str(error)) from error


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
            np.lib.format.open_memmap(empty, "w+", np.int32, (n, k))[:] = -1
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
    rows = np.lib.format.open_memmap(part, "w+", np.float16, (len(keys), wide))
    for first in range(0, len(keys), BLOCK[0]):
        rows[first : first + BLOCK[0]] = store.global_descriptors(keys[first : first + BLOCK[0]])
        if progress:
            progress("reading global descriptors", min(first + BLOCK[0], len(keys)), len(keys))
    rows.flush()
    part.replace(path)


class Triplets:
    """Draws triplets; what step s draws depends on the seed and s alone. Every epoch has each anchor once."""

    def __init__(self, store: FeatureStore, images: Images, near: np.ndarray, options: TrainOptions, what: str):
        self.store, self.images, self.near, self.options = store, images, near, options
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

    def draw(self, step: int) -> TokenBatch:
        """The (3 * triplets) images of one step, anchors first, then positives, then negatives."""
        return tokens(self.store, [self.images.keys[int(i)] for i in self.choose(step).ravel()], self.options)


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


def validate(model: RRT, checker: Triplets, device: torch.device) -> dict[str, float]:
    """On held-out triplets: how often the positive scores above the negative (the network, and the first stage alone),
    and area under the ROC curve and accuracy over all pairs."""
    from sklearn.metrics import roc_auc_score

    scores, similar = [], []
    for step in range(-(-checker.options.checked // checker.options.triplets)):
        query, candidate, _ = pairs(move(checker.draw(step), device))
        scores.append(model(query, candidate).cpu().chunk(2))
        similar.append(F.cosine_similarity(query.global_, candidate.global_).cpu().chunk(2))
    network, first_stage = (torch.stack([torch.cat(side) for side in zip(*s, strict=True)]) for s in (scores, similar))
    labels = torch.tensor([1, 0])[:, None].expand_as(network)
    return {
        "triplets": _ordered(network),
        "auc": float(roc_auc_score(labels.flatten(), network.flatten())),
        "accuracy": float(((network > 0) == (labels > 0)).double().mean()),
        "triplets_first_stage": _ordered(first_stage),
    }


def _ordered(scores: Tensor) -> float:
    """Part of the columns of scores (2, n), of positives and of negatives, that are in order; ties count half."""
    positive, negative = scores
    return float(((positive > negative).double() + 0.5 * (positive == negative).double()).mean())


def train(options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train on the features of a landmark data set (Google Landmarks) and write OUT.

    Defaults are the paper's. The weights are chosen on held-out landmarks; the paper chose its own on ROxford, the test
    set. Expect the loss to stay at 0.69 for the first 30,000 pairs and more. An interrupted training goes on from its
    last saved state when called again, and ends at the same weights.
    """
    return fit(recipe(options, progress), options, out, progress)


def recipe(options: TrainOptions, progress: Progress | None = None) -> Recipe[TokenBatch]:
    """What the loop trains: the network, and with `auxiliary` its head."""
    assert options.store is not None and options.list is not None
    torch.set_num_threads(options.threads)
    device, store, listed = resolve_device(options.device), FeatureStore(options.store), read_list(options.list)
    images = images_of(store, listed)
    parts = split(images, options.held_out, options.seed)
    near = [neighbours(store, part, options.neighbours, options.cache, device, progress) for part in parts]
    sampler = Triplets(store, parts[0], near[0], options, "train")
    checker = Triplets(store, parts[1], near[1], options, "validate")
    example = store.read(images.keys[0], READ, 1)
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        model = initial(options, example.descriptors.shape[1], len(example.global_descriptor))
        head = nn.Linear(options.dim, 2) if options.auxiliary else None
    module = nn.ModuleDict({"model": model} | ({"head": head} if head is not None else {}))
    steps = max(1, round(options.epochs * sampler.epoch))
    digest = hashlib.sha256((store.content(images.keys) + images.labels.tobytes().hex()).encode()).hexdigest()[:16]

    return Recipe(
        module=module,
        optimizer=lambda: torch.optim.AdamW(
            module.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
        ),
        draw=sampler.draw,
        loss=lambda batch, step: loss_of(model, head, batch, options),
        validate=lambda: validate(model, checker, device),
        selection="triplets",
        write=partial(save_checkpoint, model),
        steps=steps,
        identity={"data": digest},
        card={
            "features": (store.identity or {}).get("features", "unknown"),
            "descriptors": options.descriptors,
            **({"scale_ids": options.scale_ids} if options.scale_ids else {}),
            "list": {"name": options.list.name, "sha256": fingerprint(options.list)},
            "data": digest,
            "images": {"listed": len(listed), "trained on": len(parts[0].keys), "held out": len(parts[1].keys)},
            "labels": {"trained on": len(np.unique(parts[0].labels)), "held out": len(np.unique(parts[1].labels))},
            "anchors": {"trained on": len(sampler.anchors), "held out": len(checker.anchors)},
            "pairs": 2 * steps * options.triplets,
        },
        epoch=sampler.epoch,
    )
