"""Why two feature sets of one data set differ: measured image by image, and concluded by rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench.datasets import Dataset
from bench.errors import UserError
from bench.features.diff_local import Placed
from bench.features.diff_measured import ALIKE, OTHER, Progress, globals_of, lists_of, local_of, side_alone, with_sizes
from bench.features.diff_numbers import Numbers
from bench.features.diff_rules import Cause, causes
from bench.features.diff_stored import StoredSet, Subject, absent_from, image_name
from bench.features.items import items, query_key
from bench.names import shown

WORST = 10  # images named


@dataclass(frozen=True)
class DiffOptions:
    """How much is compared. UserError for less than one image or one place of a list."""

    images: int = 200  # sampled for keypoints, at most
    top_k: int = 100  # places of the first stages' lists
    seed: int = 0  # of the sample

    def __post_init__(self) -> None:
        if self.images < 1 or self.top_k < 1 or self.seed < 0:
            raise UserError(
                f"images {self.images}, top_k {self.top_k}, seed {self.seed}: "
                "expected at least 1 image, 1 place and a seed of 0 or more"
            )


@dataclass(frozen=True)
class Worst:
    """An image on which both differ most, after the change that the verdict names."""

    image: str
    agreement: float  # the least of the three that there are
    cosine: float | None  # of global descriptors
    overlap: float | None  # of keypoints; None where the image is not in the sample
    descriptors: float | None  # median cosine of local descriptors at overlapping keypoints


@dataclass(frozen=True)
class Difference:
    """What was measured, and what follows."""

    numbers: Numbers
    causes: tuple[Cause, ...]
    worst: tuple[Worst, ...]  # at most WORST
    notes: tuple[str, ...] = field(default=())

    @property
    def same(self) -> bool:
        return not self.causes

    @property
    def verdict(self) -> str:
        """One sentence."""
        return "; ".join(cause.name for cause in self.causes) if self.causes else "same"


def diff(
    dataset: Dataset, a: StoredSet, b: StoredSet, options: DiffOptions = DiffOptions(), progress: Progress | None = None
) -> Difference:
    """Compare B with A. UserError where they share no image or no kind of descriptor."""
    keys = [*dataset.gallery, *(item.key for item in items(dataset) if item.key not in dataset.gallery)]
    without_a, without_b = absent_from(a, keys), absent_from(b, keys)
    shared = tuple(key for key in keys if key not in without_a and key not in without_b)
    if not shared:
        _refuse(dataset, (a, without_a), (b, without_b), len(keys))
    has = a.kinds, b.kinds
    if not any(one and other for one, other in zip(*has, strict=True)):
        raise UserError(
            f"{a.name} and {b.name}: no kind of descriptor in common: one has local ones alone, the other global ones",
            hint="name sets that have one kind in common, LOCAL+GLOBAL",
        )
    boxes = {query_key(dataset, i): query.box for i, query in enumerate(dataset.queries) if query.box is not None}
    subject = Subject(dataset, shared, boxes)
    sample = _sample(subject, options)
    numbers = Numbers(
        dataset=dataset.name,
        images=len(keys),
        shared=len(shared),
        sampled=len(sample),
        seed=options.seed,
        boxed=sum(shared[i] in boxes for i in sample),
        a=side_alone(a, without_a, keys, subject, sample),
        b=side_alone(b, without_b, keys, subject, sample),
    )
    numbers = with_sizes(numbers, a, b, subject)
    cosine: dict[str, float] = {}
    of_image: dict[str, Placed] = {}
    if has[0][1] and has[1][1]:
        found, cosine = globals_of(a, b, subject, sample, progress)
        numbers = replace(numbers, globals_=found, lists=lists_of(a, b, subject, options.top_k))
    if has[0][0] and has[1][0]:
        of_sizes = numbers.sizes or numbers.crop_sizes
        resized = of_sizes is not None and abs(np.log(of_sizes.factor.median)) > OTHER
        local, of_image = local_of(a, b, subject, sample, resized, progress)
        numbers = replace(numbers, local=local)
    return Difference(numbers, causes(numbers), _worst(subject, cosine, of_image), tuple(_notes(numbers, a, b, has)))


def _notes(numbers: Numbers, a: StoredSet, b: StoredSet, has: Sequence[tuple[bool, bool]]) -> Iterator[str]:
    for place, what in enumerate(("local", "global")):
        having = [side.name for side, of in zip((a, b), has, strict=True) if of[place]]
        if len(having) == 1:
            yield f"only {having[0]} has {what} descriptors: these are not compared"
    if numbers.local is not None and numbers.sampled < numbers.shared:
        yield (
            f"keypoints and local descriptors are compared on {numbers.sampled} of {numbers.shared} images, "
            f"drawn with seed {numbers.seed}"
        )
    if numbers.globals_ is not None and numbers.globals_.untried:
        yield f"global descriptors: {numbers.globals_.untried}"
    for side in (numbers.a, numbers.b):
        yield from (f"{side.name}: {sentence}" for sentence in side.said)


def _refuse(dataset: Dataset, a: tuple[StoredSet, set[str]], b: tuple[StoredSet, set[str]], total: int) -> None:
    for side, absent in (a, b):
        if len(absent) == total:
            places = ", ".join(shown(store.folder) for store in side.stores)
            example = next((shown(key) for store in side.stores for key in store), None)
            holds = "no image" if example is None else f"others, such as {example!r}"
            raise UserError(
                f"{side.name}: none of the {total} images of {dataset.name} is in {places}, which holds {holds}",
                hint="both sets must be of the data set that --dataset names",
            )
    raise UserError(f"{a[0].name} and {b[0].name} share no image of {dataset.name}", hint="extract or import both anew")


def _sample(subject: Subject, options: DiffOptions) -> list[int]:
    """Indices of the images whose keypoints are compared; up to half of them are queries with a box."""
    draw = np.random.default_rng(options.seed)
    crops = np.flatnonzero(subject.crops)
    whole = np.flatnonzero(~subject.crops)
    most = options.images
    of_crops = min(len(crops), max(most - len(whole), most // 2))
    picked = [draw.permutation(whole)[: most - of_crops], draw.permutation(crops)[:of_crops]]
    return sorted(np.concatenate(picked).astype(int).tolist())


def _worst(subject: Subject, cosine: Mapping[str, float], images: Mapping[str, Placed]) -> tuple[Worst, ...]:
    found = []
    for key in dict.fromkeys((*cosine, *images)):
        placed = images.get(key)
        descriptors = None if placed is None or placed.cosine is None else placed.cosine.plain
        overlap = None if placed is None else placed.overlap
        values = [value for value in (cosine.get(key), overlap, descriptors) if value is not None]
        if values and min(values) < ALIKE:
            found.append(Worst(image_name(subject.dataset, key), min(values), cosine.get(key), overlap, descriptors))
    return tuple(sorted(found, key=lambda worst: (worst.agreement, worst.image))[:WORST])
