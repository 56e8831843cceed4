"""Training the product variant, `rrt-sop`, in the paper's three stages (docs/protocols.md; defaults are the paper's).

`global`: trunk and global descriptor, contrastive loss. `frozen`: local map and matcher on that trunk, left as it is.
`joint`: trunk, local map and matcher together. The last two read triplets of an anchor, an image of the same instance
and one of the anchor's nearest images of other instances by the global descriptor, as binary cross-entropy on the two
pairs. Ours, not the paper's: `frozen` starts its local map as the centred global one (`_start_local`) and its
attention as a search for like descriptors (`_start_attention`); the figures that choose the weights are of instances
held out of training, never of a test set. Stages with the same images, seed and `held_out` hold out the same ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bench.datasets import folder
from bench.datasets.views.render import ViewOptions, make_view
from bench.device import resolve_device
from bench.errors import UserError
from bench.features.extractors.sop import CROPPED, RESIZED, prepare
from bench.images import decode, read_bytes
from bench.metrics import evaluate_query, mean, measures
from bench.training import LoopOptions, Progress, Recipe, fit
from methods.rrt_sop.matcher import tokens
from methods.rrt_sop.model import GLOBAL, OPTIONAL, SOPConfig, SOPModel, fingerprint, load_model, load_trunk, save_model

PAPER = {"global": (1e-3, 800), "frozen": (1e-4, 100), "joint": (1e-4, 100)}  # learning rate, batch
FLAT = ViewOptions(longer_side=(256, 320))  # views of photographs: no larger than what is read of them
READ = 32  # images read at a time outside training steps


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """What is trained on, which part and how."""

    images: Path | None = None  # folder with one sub-folder per instance, or the official Ebay_train.txt
    photos: Path | None = None  # folder of photographs; each is one more instance, seen in warped views
    limit: int | None = None  # use only the first so many photographs, by name
    views: int = 5  # warped views of a photograph
    stage: Literal["global", "frozen", "joint"] = "global"  # what is trained
    start: Path | None = None  # weights of the stage before; for global an ImageNet ResNet-50 of torchvision, or none
    trunk: Literal["resnet50", "efficientnet-lite0"] = "resnet50"  # lite0 starts from ImageNet weights (a package)
    depth: int = 6  # layers of the matcher
    feedforward: int = 1024  # width of its feed-forward part
    tuned: int = 0  # train only the last so many blocks of the trunk (resnet50 has 17, lite0 18; frozen: none); 0: all
    kept: int = 0  # random crops of an image made once and kept in memory behind the untrained blocks; 0: always new
    crop: float = 0.16  # least part of the area that a random crop shows
    flip: float = 0.5  # probability that an image is mirrored
    epochs: int = 100
    batch: int = 0  # images of a global step, or triplets of the others; 0: the paper's, 800 or 100
    per_class: int = 2  # images an instance in a batch of the stage global
    temperature: float = 0.05  # of the contrastive loss
    nearest: int = 100  # negatives are drawn from so many nearest images
    checked: int = 15  # candidates reranked in validation
    held_out: float = 0.1  # fraction of the instances kept for validation
    lr: float = 0.0  # 0: the paper's, 0.001 for global and 0.0001 else
    momentum: float = 0.9  # Nesterov's, of the stage global
    weight_decay: float = 4e-4
    milestones: tuple[int, ...] = (60, 80)  # epochs after which the learning rate falls to a tenth

    spared: ClassVar[frozenset[str]] = LoopOptions.spared | {"images", "photos", "epochs"}

    def __post_init__(self) -> None:
        lr, batch = PAPER[self.stage]
        object.__setattr__(self, "lr", self.lr or lr)
        object.__setattr__(self, "batch", self.batch or batch)
        super().__post_init__()
        if self.images is None and self.photos is None:
            raise UserError(
                "nothing to train on", hint="--images FOLDER with one sub-folder per instance, or --photos FOLDER"
            )
        if self.stage != "global" and self.start is None:
            before = {"frozen": "global", "joint": "frozen"}[self.stage]
            raise UserError(f"the stage {self.stage} starts from weights of the stage {before}", hint="--start FILE")
        for name in ("epochs", "batch", "nearest", "checked"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.views < 2 or self.per_class < 2:
            raise UserError(f"views {self.views} and per_class {self.per_class}: a positive pair needs 2 of each")
        if self.batch % self.per_class and self.stage == "global":
            raise UserError(f"batch {self.batch}: expected a multiple of per_class, {self.per_class}")
        if self.tuned < 0 or self.kept < 0 or (self.limit is not None and self.limit < 1):
            raise UserError("expected tuned and kept of at least 0 and limit of at least 1")
        if not (0 < self.crop <= 1 and 0 <= self.flip <= 1 and 0 < self.held_out < 1):
            raise UserError("expected crop and held_out between 0 and 1, and flip from 0 to 1")
        if not (self.temperature > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise UserError("expected temperature above 0, momentum in [0, 1) and weight_decay of at least 0")
        self.config()

    def config(self) -> SOPConfig:
        try:
            return SOPConfig(self.trunk, self.depth, self.feedforward)
        except ValueError as error:
            raise UserError(str(error)) from error


@dataclass(frozen=True)
class Sample:
    """One training image: a file, or a view of one."""

    path: Path
    instance: str
    view: int | None = None  # of a photograph that is seen warped


def samples(options: TrainOptions) -> list[Sample]:
    """Every image with its instance, sorted. UserError where there is nothing to learn from."""
    found = [] if options.images is None else _instances(options.images)
    if options.photos is not None:
        photos = list(folder.images(options.photos).items())[: options.limit]
        found += [Sample(path, f"photo/{name}", view) for name, path in photos for view in range(options.views)]
    if len({sample.instance for sample in found}) < 4:
        raise UserError(
            f"{options.images or options.photos}: images of {len({s.instance for s in found})} instances, expected at "
            "least 4: two to train and two to validate",
            hint="one sub-folder per instance, or the official Ebay_train.txt",
        )
    return found


def _instances(path: Path) -> list[Sample]:
    if path.is_dir():
        images = folder.images(path)
        loose = [file for image, file in images.items() if "/" not in image]
        if loose:
            raise UserError(f"{loose[0]}: lies outside any instance folder", hint="one sub-folder per instance")
        return [Sample(file, image.rpartition("/")[0]) for image, file in images.items()]
    try:
        _, *lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})", hint="a folder, or the official Ebay_train.txt") from error
    found = []
    for number, line in enumerate(lines, 2):
        match line.split():
            case [_, instance, _, name]:
                found.append(Sample(path.parent / name, instance))
            case _:
                raise UserError(
                    f"{path}:{number}: {line!r}: expected image_id class_id super_class_id path",
                    hint="the official Ebay_train.txt has a header and then four fields a line",
                )
    return found


class Views:
    """Reads samples: as a search would see them, or in random crops that depend on the generator given alone."""

    def __init__(self, of: Sequence[Sample], options: TrainOptions):
        self.samples, self.options = of, options
        photos = sorted({sample.path for sample in of if sample.view is not None})
        self._fillers = photos[:: max(1, len(photos) // 20)]

    def plain(self, index: int) -> np.ndarray:
        """(3, 224, 224) uint8, prepared as the feature set `sop` does."""
        return prepare(self._open(index))

    def random(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """(3, 224, 224) uint8: a random part, mirrored or not."""
        image = self._open(index).resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
        area, aspect = rng.uniform(self.options.crop, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = (min(1.0, np.sqrt(area * a)) * RESIZED for a in (aspect, 1 / aspect))
        x, y = rng.uniform(0, RESIZED - w), rng.uniform(0, RESIZED - h)
        image = image.resize((CROPPED, CROPPED), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
        if rng.random() < self.options.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image).transpose(2, 0, 1)

    def _open(self, index: int) -> Image.Image:
        sample = self.samples[index]
        image = _read(sample.path)
        if sample.view is None:
            return image
        name = hashlib.sha256(sample.instance.encode()).digest()
        rng = np.random.default_rng([self.options.seed, *name[:8], sample.view])
        filler = self._fillers[int(rng.integers(len(self._fillers)))]
        return Image.fromarray(make_view(image, [_read(filler)], rng, FLAT).image)


def _read(path: Path) -> Image.Image:
    return Image.fromarray(decode(read_bytes(path), path))


class _Eval(nn.ModuleDict):
    """What is trained, in eval mode throughout: batch norms keep their statistics, as the paper's did."""

    def train(self, mode: bool = True) -> _Eval:
        return super().train(False)


class Training:
    """One stage: the model, which of its parts are trained, and the data."""

    def __init__(self, options: TrainOptions, progress: Progress | None = None):
        self.options, self.device = options, resolve_device(options.device)
        every = samples(options)
        names = sorted({sample.instance for sample in every})
        rng = np.random.default_rng(options.seed)
        chosen = rng.permutation(len(names))[: max(2, round(options.held_out * len(names)))]
        held = {names[i] for i in chosen}
        self.train_set = [s for s in every if s.instance not in held]
        self.held_out = [s for s in every if s.instance in held]
        self.views, self.checker = Views(self.train_set, options), Views(self.held_out, options)
        self.members = _members(self.train_set)
        self.shared = sorted(name for name, of in self.members.items() if len(of) > 1)
        if not self.shared or not any(len(of) > 1 for of in _members(self.held_out).values()):
            raise UserError("no two images of one instance to train or to validate on", hint="give more images")
        self.anchors = np.array([i for name in self.shared for i in self.members[name]])
        with torch.random.fork_rng([]):
            torch.manual_seed(options.seed)
            self.model = _initial(options).to(self.device)
        blocks = self.model.blocks()
        if options.tuned > len(blocks):
            raise UserError(f"tuned {options.tuned}: the trunk has {len(blocks)} blocks")
        cut = len(blocks) if options.stage == "frozen" else len(blocks) - (options.tuned or len(blocks))
        self.front, self.tail = nn.Sequential(*blocks[:cut]), nn.Sequential(*blocks[cut:])
        parts: dict[str, nn.Module] = {"tail": self.tail}
        if options.stage == "global":
            parts["remap"] = self.model.remap
        else:
            parts |= {"remap_local": self.model.remap_local, "matcher": self.model.matcher}
        self.module = _Eval(parts)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.module.parameters():
            parameter.requires_grad_(True)
        self.lists: Tensor | None = None  # what validation reranks: the first stage of the weights started from
        if options.stage != "global":
            with torch.inference_mode():
                self._mine(progress)
                maps = self._plain(self.checker)
                self.lists = rankings(torch.cat([self.model.global_descriptors(m) for m in maps]))
        self.kept = self._keep(progress) if options.kept else None

    # --- images to maps -----------------------------------------------------------------------------------------

    def _front(self, pixels: Tensor) -> Tensor:
        """What the untrained blocks make of uint8 images (b, 3, 224, 224)."""
        with torch.no_grad():
            return self.front(self.model.normalise(pixels.to(self.device) / 255))

    def _maps(self, drawn: Tensor) -> Tensor:
        """(b, channels, 7, 7) of drawn images or of what was kept of them."""
        return self.tail(self._front(drawn) if drawn.dtype == torch.uint8 else drawn.float())

    def _plain(self, views: Views, progress: Progress | None = None) -> Iterator[Tensor]:
        """Maps (b, channels, 7, 7) of all images in order, as a search sees them, some at a time."""
        total = len(views.samples)
        for start in range(0, total, READ):
            pixels = np.stack([views.plain(i) for i in range(start, min(start + READ, total))])
            yield self._maps(torch.from_numpy(pixels))
            if progress:
                progress("reading images", min(start + READ, total), total)

    def _keep(self, progress: Progress | None) -> Tensor:
        """(n * kept, …) float16: `kept` random crops of each image, behind the untrained blocks."""
        wanted = [(i, view) for i in range(len(self.train_set)) for view in range(self.options.kept)]
        found = []
        for start in range(0, len(wanted), READ):
            crops = [
                self.views.random(i, np.random.default_rng([self.options.seed, 1, i, view]))
                for i, view in wanted[start : start + READ]
            ]
            found.append(self._front(torch.from_numpy(np.stack(crops))).half().cpu())
            if progress:
                progress("making crops", min(start + READ, len(wanted)), len(wanted))
        return torch.cat(found)

    def _mine(self, progress: Progress | None) -> None:
        """Nearest images of other instances by the global descriptor; starts a fresh local map."""
        found, moments = [], []
        for maps in self._plain(self.views, progress):
            found.append(self.model.global_descriptors(maps))
            values = F.conv2d(maps, self.model.remap.weight[..., None, None], self.model.remap.bias)
            moments.append((values.mean(dim=(2, 3)), values.square().sum(dim=1).mean(dim=(1, 2))))
        if self.options.stage == "frozen":
            means, squares = (torch.cat(parts).mean(dim=0) for parts in zip(*moments, strict=True))
            _start_local(self.model, means, squares)
        vectors = torch.cat(found)
        instances = np.array([sample.instance for sample in self.train_set])
        self.nearest = []
        for i, vector in enumerate(vectors):
            near = (vectors @ vector).topk(min(self.options.nearest + 1, len(vectors))).indices.cpu().numpy()
            self.nearest.append(near[instances[near] != instances[i]])
        self.anchors = np.array([i for i in self.anchors if len(self.nearest[i])])
        if not len(self.anchors):
            raise UserError(
                f"no image has one of another instance among its {self.options.nearest} nearest",
                hint="raise nearest, or give more instances",
            )

    # --- steps --------------------------------------------------------------------------------------------------

    def _drawn(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        if self.kept is not None:
            kept = self.options.kept
            return self.kept[[int(i) * kept + int(rng.integers(kept)) for i in indices]]
        return torch.from_numpy(np.stack([self.views.random(int(i), rng) for i in indices]))

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Images, and their instances' numbers (global) or nothing of use: anchors, positives, negatives in thirds."""
        rng = np.random.default_rng([self.options.seed, step])
        if self.options.stage == "global":
            per, wanted = self.options.per_class, self.options.batch // self.options.per_class
            names = rng.choice(len(self.shared), wanted, replace=wanted > len(self.shared))
            members = [self.members[self.shared[n]] for n in names]
            indices = np.concatenate([rng.choice(m, per, replace=len(m) < per) for m in members])
            return self._drawn(indices, rng), torch.from_numpy(np.repeat(names, per))
        anchors = rng.choice(self.anchors, self.options.batch, replace=self.options.batch > len(self.anchors))
        positive, negative = [], []
        for anchor in anchors:
            same = self.members[self.train_set[anchor].instance]
            positive.append(rng.choice(same[same != anchor]))
            negative.append(rng.choice(self.nearest[anchor]))
        indices = np.concatenate([anchors, positive, negative])
        return self._drawn(indices, rng), torch.from_numpy(indices)

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        maps = self._maps(batch[0])
        if self.options.stage == "global":
            return contrastive(self.model.global_descriptors(maps), batch[1], self.options.temperature)
        anchor, positive, negative = tokens(self.model.remap_local(maps)).chunk(3)
        logits = self.model.matcher(torch.cat([anchor, anchor]), torch.cat([positive, negative])).float()
        target = torch.cat([torch.ones(len(anchor)), torch.zeros(len(anchor))]).to(logits)
        return F.binary_cross_entropy_with_logits(logits, target)

    # --- validation ---------------------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        """mAP and recall@1/10/100 on the held-out instances, every image querying the others; reranked unless the
        stage is global."""
        found = [
            (self.model.global_descriptors(maps), tokens(self.model.remap_local(maps)))
            for maps in self._plain(self.checker)
        ]
        vectors, local = (torch.cat(parts) for parts in zip(*found, strict=True))
        members = _members(self.held_out)
        figures: dict[str, list[float]] = {name: [] for name in measures("instance")}
        for i, order in enumerate(rankings(vectors) if self.lists is None else self.lists.clone()):
            if self.lists is not None:
                head = order[: self.options.checked].clone()
                scores = self.model.matcher(local[i].expand(len(head), -1, -1), local[head])
                order[: len(head)] = head[scores.argsort(descending=True, stable=True)]
            positives = set(members[self.held_out[i].instance].tolist()) - {i}
            for name, value in evaluate_query(order.cpu().numpy(), positives, (), measures("instance")).items():
                figures[name].append(value)
        return {name: mean(values) for name, values in figures.items()}


def _members(of: Sequence[Sample]) -> dict[str, np.ndarray]:
    found: dict[str, list[int]] = {}
    for i, sample in enumerate(of):
        found.setdefault(sample.instance, []).append(i)
    return {name: np.array(indices) for name, indices in found.items()}


def rankings(vectors: Tensor) -> Tensor:
    """(n, n - 1): of each of n unit vectors (n, d) the others, by falling cosine; equal ones by index."""
    similarities = (vectors @ vectors.T).fill_diagonal_(-math.inf)
    return similarities.argsort(dim=1, descending=True, stable=True)[:, :-1]


def contrastive(vectors: Tensor, instances: Tensor, temperature: float) -> Tensor:
    """Mean over positive pairs of -log softmax of their cosine / temperature among all other images of the batch.

    vectors (b, d) of unit norm, instances (b,). Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2.
    """
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    logits = (vectors @ vectors.T / temperature).masked_fill(itself, -math.inf)
    same = (instances[:, None] == instances) & ~itself
    likely = logits.log_softmax(dim=1).masked_fill(~same, 0.0)
    return -(likely.sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()


def _initial(options: TrainOptions) -> SOPModel:
    """The model at step 0."""
    config = options.config()
    if options.stage == "global":
        model = SOPModel(config)
        if options.start is not None:
            if options.trunk != "resnet50":
                raise UserError(f"--start {options.start}: {options.trunk} starts from its package's ImageNet weights")
            load_trunk(model, options.start)
        return model
    assert options.start is not None  # TrainOptions requires it
    model = load_model(options.start)
    if model.config.trunk != config.trunk or (options.stage == "joint" and model.config != config):
        raise UserError(
            f"{options.start}: has {model.config}, expected {config}",
            hint="set trunk, depth and feedforward to those of the weights to start from",
        )
    if options.stage == "joint":
        if "matcher." in model.without:
            raise UserError(f"{options.start}: its matcher is not trained", hint="train the stage frozen first")
        return model
    fresh = SOPModel(config)
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith(GLOBAL)}, strict=False)
    _start_attention(fresh)
    return fresh


@torch.no_grad()
def _start_attention(model: SOPModel) -> None:
    """Segments small beside the descriptors, and keys equal to queries: attention starts as a soft search for like
    descriptors, not as a mean over all tokens, from which this network takes very long to find matches."""
    nn.init.normal_(model.matcher.seg_encoder.weight, std=1 / math.sqrt(model.matcher.positions.shape[1]))
    for layer in model.matcher.layers():
        query, key, _ = layer.self_attn.in_proj_weight.chunk(3)
        key.copy_(query)


@torch.no_grad()
def _start_local(model: SOPModel, mean: Tensor, square: Tensor) -> None:
    """The local map starts as the global one, which is linear: centred, and twice as long as a position embedding.

    mean (128,) of the remapped cells and their mean squared length.
    """
    length = (square - mean.square().sum()).clamp(min=1e-12).sqrt()
    gain = 2 * model.matcher.positions.norm(dim=1).mean() / length
    model.remap_local.weight.copy_(gain * model.remap.weight[..., None, None])
    assert model.remap_local.bias is not None
    model.remap_local.bias.copy_(gain * (model.remap.bias - mean))


def train(options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train one stage of the product variant (`rrt-sop`), and write OUT.

    An interrupted training goes on from its last saved state when called again, and ends at the same weights.
    """
    torch.set_num_threads(options.threads)
    return fit(recipe(options, progress), options, out, progress)


def recipe(options: TrainOptions, progress: Progress | None = None) -> Recipe[tuple[Tensor, Tensor]]:
    """What the loop trains: one stage, validated by retrieval among held-out instances."""
    training = Training(options, progress)
    model, trained = training.model, list(training.module.parameters())
    images = len(training.train_set)
    epoch = math.ceil((images if options.stage == "global" else len(training.anchors)) / options.batch)

    def optimizer() -> torch.optim.Optimizer:
        if options.stage == "global":
            return torch.optim.SGD(
                trained, options.lr, options.momentum, weight_decay=options.weight_decay, nesterov=options.momentum > 0
            )
        return torch.optim.AdamW(trained, options.lr, weight_decay=options.weight_decay, fused=True)

    def write(path: Path, card: Mapping[str, Any]) -> None:
        save_model(model, path, card, without=OPTIONAL if options.stage == "global" else ())

    return Recipe(
        module=training.module,
        optimizer=optimizer,
        draw=training.draw,
        loss=training.loss,
        validate=training.validate,
        selection="mAP",  # finer than recall@1 on few images
        write=write,
        steps=options.epochs * epoch,
        epoch=epoch,
        identity={"images": _digest(training.train_set + training.held_out)},
        card={
            "stage": options.stage,
            "first_stage": fingerprint(model, GLOBAL) if options.stage != "global" else None,
            "images": images,
            "instances": len(training.members),
            "held_out": len({sample.instance for sample in training.held_out}),
        },
    )


def _digest(of: Sequence[Sample]) -> str:
    """sha256 over the images' names, sizes and instances."""
    lines = (f"{s.instance} {s.path.name} {s.view} {s.path.stat().st_size}\n" for s in of)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
