"""Training RRT on a bank of views: the recipe behind the shipped weights (`python cli.py train rrt`).

Pairs of views of one photograph or building against pairs with the neighbours nearest by global similarity, binary
cross-entropy; plus the training-only loss of FACTS section 6 (each local token: does it have a match in the other
image?), without which this network stays at chance for very long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from methods.rrt.bank import KEPT, Bank, BankOptions, build_bank
from methods.rrt.loop import LoopOptions, Progress, Recipe, device_of, fit, move
from methods.rrt.model import RRT, SINGLE_SCALE, Layer, RRTConfig, TokenBatch, load_checkpoint, save_checkpoint

SAME_COSINE = 0.8  # least cosine of a match in the auxiliary loss
SAME_PLACE = 0.02  # and, where places are known, how near they must be (fraction of the photograph's longer side)
CHECKED = 40  # batches of a validation


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """What is trained on, for how long and how."""

    photos: Path | None = None  # folder of photographs, warped into views
    limit: int | None = None  # use only the first so many of them, by name
    generated: tuple[int, ...] = (1,)  # seeds of generated buildings; 0 is the demo test set and refused
    views: int = 6  # per photograph
    landmarks: int = 60  # generated buildings per seed
    bank: Path = Path("build/rrt-bank")  # where extracted views are kept
    features: str = "xfeat"
    pairs: int = 300_000
    descriptors: int = 64  # local descriptors per image, drawn at random…
    pool: int = 100  # …from so many best-scored ones
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
    pca: bool = True  # the global map starts as the principal components of the training views' globals
    start: Path | None = None  # weights to go on from (then depth and feedforward must be theirs)

    spared: ClassVar[frozenset[str]] = LoopOptions.spared | {"photos", "bank", "pairs"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 in self.generated:
            raise UserError(
                "generated seed 0 is the demo test set: training on it would spoil the comparison",
                hint="use other seeds, for example 1,2",
            )
        if self.photos is None and not self.generated:
            raise UserError("nothing to train on", hint="name a folder of photographs or seeds of generated buildings")
        whole = ("views", "landmarks", "pairs", "descriptors", "pool", "batch", "hardest")
        for name in whole:
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.views < 2:
            raise UserError(f"views {self.views}: expected at least 2, a positive pair needs two")
        if not self.descriptors <= self.pool <= KEPT:
            raise UserError(
                f"descriptors {self.descriptors} of a pool of {self.pool}: expected descriptors <= pool <= "
                f"{KEPT}, what the bank keeps per view"
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

    def __init__(self, bank: Bank, options: TrainOptions, held_out: bool = False):
        self.bank, self.options = bank, options
        self.pool = options.descriptors if held_out else options.pool
        usable = np.flatnonzero((bank.held_out == held_out) & (bank.counts >= self.pool))
        members = {group: usable[bank.groups[usable] == group] for group in np.unique(bank.groups[usable])}
        self.positives = {
            int(view): found
            for view in usable
            if len(found := bank.positives(int(view), members[bank.groups[view]], options.least_overlap))
        }
        self.anchors = np.array(sorted(self.positives), dtype=np.int64)
        if not len(self.anchors) or len(members) < 2:
            raise UserError(
                f"too little to {'validate' if held_out else 'train'} on: {len(self.anchors)} views with "
                f"{self.pool} descriptors that overlap another, of {len(members)} scenes",
                hint="give more photographs or buildings, more views, or fewer descriptors",
            )
        self.usable = usable
        self.blank = torch.from_numpy(bank.global_[usable].astype(np.float32).mean(axis=0))
        self.neighbours = self._neighbours(usable)

    def _neighbours(self, usable: np.ndarray) -> dict[int, np.ndarray]:
        """The `hardest` views of other scenes nearest to each anchor by global similarity."""
        vectors = torch.from_numpy(self.bank.global_[usable].astype(np.float32))
        groups = torch.from_numpy(self.bank.groups[usable])
        found: dict[int, np.ndarray] = {}
        for anchors in np.array_split(self.anchors, max(1, len(self.anchors) // 512)):
            similar = torch.from_numpy(self.bank.global_[anchors].astype(np.float32)) @ vectors.T
            same = torch.from_numpy(self.bank.groups[anchors])[:, None] == groups
            similar[same] = -math.inf
            others = len(usable) - int(same.sum(1).max())
            top = similar.topk(min(self.options.hardest, others), dim=1).indices.numpy()
            found |= {int(anchor): usable[row] for anchor, row in zip(anchors, top, strict=True)}
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
        one, two = self._rows(first, rng), self._rows(second, rng)
        return Pairs(
            self._tokens(*one),
            self._tokens(*two),
            torch.from_numpy(labels),
            (torch.from_numpy(self.bank.xy[one]), torch.from_numpy(self.bank.xy[two])),
            self.blank,
        )

    def _negative(self, anchor: int, rng: np.random.Generator) -> int:
        if rng.random() < self.options.hard:
            return int(rng.choice(self.neighbours[anchor]))
        while True:
            other = int(rng.choice(self.usable))
            if self.bank.groups[other] != self.bank.groups[anchor]:
                return other

    def _rows(self, views: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Index (b, 1), (b, n) of the descriptors that are read: never quite the same ones of a view, against learning
        the views by heart."""
        order = rng.random((len(views), self.pool)).argsort(axis=1)
        return views[:, None], order[:, : self.options.descriptors]

    def _tokens(self, views: np.ndarray, rows: np.ndarray) -> TokenBatch:
        local = torch.from_numpy(self.bank.local[views, rows].astype(np.float32))
        return TokenBatch(
            local,
            torch.full(local.shape[:2], SINGLE_SCALE),
            torch.from_numpy(self.bank.global_[views[:, 0]].astype(np.float32)),
        )


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
        start_as_search(model)
    if options.pca:
        _start_from_components(model.remap, bank.global_[~bank.held_out])
    return model.train(), nn.Linear(config.dim, 3)


@torch.no_grad()
def start_as_search(model: RRT) -> None:
    """Let attention start as a soft search for like descriptors: keys equal to queries, and sharper in the first layer,
    whose tokens have unit norm (later ones are normalised to sqrt(dim)). Otherwise it starts as a mean over all tokens,
    from which this network takes very long to find matches."""
    config = model.config
    # embeddings small beside unit-norm descriptors, which they would drown otherwise
    for table in (model.seg_encoder, model.scale_encoder):
        nn.init.normal_(table.weight, std=0.5 / math.sqrt(config.dim))
    if config.local_dim != config.dim:
        nn.init.orthogonal_(model.local_remap.weight)  # keeps cosines where the space grows
        nn.init.zeros_(model.local_remap.bias)
    for layer, gain in zip(model.encoder.layers[:-1], [12.0] + [1.0] * config.depth, strict=False):
        assert isinstance(layer, Layer)
        query, key, _ = layer.self_attn.in_proj_weight.split(config.dim)
        query.mul_(gain)
        key.copy_(query)


@torch.no_grad()
def _start_from_components(remap: nn.Linear, globals_: np.ndarray) -> None:
    """Centred principal components, half whitened: they keep similarities that a random map to so few dimensions blurs,
    and turn the mean descriptor into the zero vector."""
    vectors = torch.from_numpy(globals_.astype(np.float32))
    mean = vectors.mean(dim=0)
    values, directions = torch.linalg.eigh((vectors - mean).T @ (vectors - mean) / len(vectors))
    kept = min(remap.out_features, len(values), len(vectors) - 1)
    values, directions = values[-kept:].clamp(min=1e-8), directions[:, -kept:].T
    remap.weight.zero_()
    remap.weight[:kept] = directions * (values.mean() / values)[:, None] ** 0.25
    remap.bias.copy_(-remap.weight @ mean)


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
        landmarks=options.landmarks,
        features=options.features,
    )
    bank = build_bank(material, options.bank, workers=options.threads, progress=progress)
    return train_on(bank, options, out, progress)


def train_on(bank: Bank, options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """`train` on a bank already in memory."""
    return fit(recipe(bank, options), options, out, progress)


def recipe(bank: Bank, options: TrainOptions) -> Recipe[Pairs]:
    """What the loop trains: the network with its auxiliary head, validated by AUC on held-out scenes."""
    sampler, checker = Sampler(bank, options), Sampler(bank, options, held_out=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        model, head = _initial(options, bank)
    module = nn.ModuleDict({"model": model, "head": head})
    device = device_of(options)
    digest = bank.digest()

    def write(path: Path, card: Mapping[str, Any]) -> None:
        save_checkpoint(model, path, card)

    return Recipe(
        module=module,
        optimizer=lambda: torch.optim.AdamW(
            module.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
        ),
        draw=sampler.draw,
        loss=lambda pairs, step: loss_of(model, head, pairs, options, step)[0],
        validate=lambda: validate(model, checker, device),
        selection="auc",
        write=write,
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


def validate(model: RRT, checker: Sampler, device: torch.device) -> dict[str, float]:
    """Accuracy and area under the ROC curve on pairs of held-out scenes, globals shown."""
    from sklearn.metrics import roc_auc_score

    scores, labels = [], []
    for step in range(CHECKED):
        pairs = move(checker.draw(step), device)
        scores.append(model(pairs.query, pairs.candidate).cpu())
        labels.append(pairs.labels.cpu())
    score, label = torch.cat(scores).numpy(), torch.cat(labels).numpy() > 0.5
    return {"accuracy": float(((score > 0) == label).mean()), "auc": float(roc_auc_score(label, score))}
