"""Why two feature sets of one data set differ: measured image by image, and concluded by rules.

Global descriptors, image sizes and numbers of descriptors are compared of all images, block by block. Keypoints and
local descriptors are compared on a sample that a seed draws, so that memory follows one image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench.datasets import Dataset
from bench.errors import UserError
from bench.features import Features
from bench.features.diff_globals import Aligned, Order, aligned, order
from bench.features.diff_local import Both, Change, Placed, chosen, cosines, geometry, placed, tried
from bench.features.diff_numbers import Globals, Lists, Local, Numbers, Side, Sizes, Spread
from bench.features.diff_rules import Cause, causes
from bench.features.items import items, query_key
from bench.features.store import FeatureStore
from bench.images import Box
from bench.names import shown
from bench.search import BLOCK, Vectors, search

BEYOND = 16  # pixels that features of a crop may reach beyond the query's box: the stride of DELG's feature map
LEARNED_ON = 4_096  # images at most by which a change of global descriptors is found
TRIED = 24  # images at most on which every change of keypoints is tried
BEST = 50  # local descriptors whose mean stands for an image
CHUNK = 256  # images read at a time
WORST = 10  # images named
ALIKE = 0.99  # agreement from which an image is not named
FULL = 0.9  # median overlap from which no change of keypoints is looked for
SHORTEST, SHARE = 10, 10  # lists are no longer than this, or this part of the gallery: all lists are alike in the end
ELSEWHERE = 0.5  # share of images that stand elsewhere from which the order is another
OTHER = 0.05  # relative difference of two sizes that rounding does not make

Progress = Callable[[str, int, int], None]  # what, done, of how many


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


@dataclass(frozen=True, eq=False)
class Stored:
    """A feature set to compare: its stores, and what its import said. Either part may be missing, not both."""

    name: str
    local: FeatureStore | None
    globals_: FeatureStore | None
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.local is None and self.globals_ is None:
            raise ValueError(f"{self.name}: neither local nor global descriptors")

    @property
    def stores(self) -> tuple[FeatureStore, ...]:
        """Each once."""
        found = {store.folder: store for store in (self.local, self.globals_) if store is not None}
        return tuple(found.values())


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


@dataclass(frozen=True, eq=False)
class _Subject:
    """The data set's images with features in both, in its own order: the gallery first."""

    dataset: Dataset
    keys: tuple[str, ...]
    boxes: Mapping[str, Box]

    @property
    def crops(self) -> np.ndarray:
        return np.array([key in self.boxes for key in self.keys], bool)


def diff(
    dataset: Dataset, a: Stored, b: Stored, options: DiffOptions = DiffOptions(), progress: Progress | None = None
) -> Difference:
    """Compare B with A. UserError where they share no image or no kind of descriptor."""
    keys = [*dataset.gallery, *(item.key for item in items(dataset) if item.key not in dataset.gallery)]
    without_a, without_b = _absent(a, keys), _absent(b, keys)
    shared = tuple(key for key in keys if key not in without_a and key not in without_b)
    if not shared:
        _refuse(dataset, (a, without_a), (b, without_b), len(keys))
    has = [
        (
            side.local is not None and side.local.dims[0] > 0,
            side.globals_ is not None and _has_globals(side.globals_),
        )
        for side in (a, b)
    ]
    if not any(one and other for one, other in zip(*has, strict=True)):
        raise UserError(
            f"{a.name} and {b.name}: no kind of descriptor in common: one has local ones alone, the other global ones",
            hint="name sets that have one kind in common, LOCAL+GLOBAL",
        )
    boxes = {query_key(dataset, i): query.box for i, query in enumerate(dataset.queries) if query.box is not None}
    subject = _Subject(dataset, shared, boxes)
    sample = _sample(subject, options)
    numbers = Numbers(
        dataset=dataset.name,
        images=len(keys),
        shared=len(shared),
        sampled=len(sample),
        seed=options.seed,
        boxed=sum(shared[i] in boxes for i in sample),
        a=_side(a, without_a, keys, subject, sample),
        b=_side(b, without_b, keys, subject, sample),
    )
    numbers = _with_sizes(numbers, a, b, subject)
    cosine: dict[str, float] = {}
    of_image: dict[str, Placed] = {}
    if has[0][1] and has[1][1]:
        found, cosine = _globals(a, b, subject, sample, progress)
        numbers = replace(numbers, globals_=found, lists=_lists(a, b, subject, options.top_k))
    if has[0][0] and has[1][0]:
        of_sizes = numbers.sizes or numbers.crop_sizes
        resized = of_sizes is not None and abs(np.log(of_sizes.factor.median)) > OTHER
        local, of_image = _local(a, b, subject, sample, resized, progress)
        numbers = replace(numbers, local=local)
    return Difference(numbers, causes(numbers), _worst(subject, cosine, of_image), tuple(_notes(numbers, a, b, has)))


def _notes(numbers: Numbers, a: Stored, b: Stored, has: Sequence[tuple[bool, bool]]) -> Iterator[str]:
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


def _absent(side: Stored, keys: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for store in side.stores:
        found |= store.errors().keys()
        found |= {key for key in keys if key not in store}
    return found & set(keys)


def _refuse(dataset: Dataset, a: tuple[Stored, set[str]], b: tuple[Stored, set[str]], total: int) -> None:
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


def _has_globals(store: FeatureStore) -> bool:
    return store.dims[1] > 0


def _sample(subject: _Subject, options: DiffOptions) -> list[int]:
    """Indices of the images whose keypoints are compared; up to half of them are queries with a box."""
    draw = np.random.default_rng(options.seed)
    crops = np.flatnonzero(subject.crops)
    whole = np.flatnonzero(~subject.crops)
    most = options.images
    of_crops = min(len(crops), max(most - len(whole), most // 2))
    picked = [draw.permutation(whole)[: most - of_crops], draw.permutation(crops)[:of_crops]]
    return sorted(np.concatenate(picked).astype(int).tolist())


def _read(store: FeatureStore, key: str) -> Features:
    return store.read(key, frozenset({"local", "keypoints"}))


def _side(stored: Stored, absent: set[str], keys: Sequence[str], subject: _Subject, sample: Sequence[int]) -> Side:
    local, whole = stored.local, stored.globals_
    present = [key for key in keys if key not in absent]
    side = Side(
        name=stored.name,
        places=tuple(shown(store.folder) for store in stored.stores),
        absent=tuple(_image(subject.dataset, key) for key in keys if key in absent),
        beyond=max((len(store) - sum(key in store for key in keys) for store in stored.stores), default=0),
        local_dim=0 if local is None else local.dims[0],
        global_dim=0 if whole is None else whole.dims[1],
        said=stored.said,
        made=_made(stored),
    )
    if whole is not None and side.global_dim:
        norms = np.concatenate([np.linalg.norm(rows, axis=1) for rows in _chunks(whole, present)])
        side = replace(side, global_norms=Spread.of(norms), zero_globals=int((norms == 0).sum()))
    if local is None or not side.local_dim:
        return side
    counts = local.counts(present)
    norms_of, sized, parts, boxes, bits = [], [], [], [0, 0], []
    for index in sample:
        key = subject.keys[index]
        image = _read(local, key)
        if not len(image):
            continue
        rows, points, size = (
            tensor.double().numpy() for tensor in (image.descriptors, image.keypoints, image.image_size)
        )
        norms_of.append(float(np.linalg.norm(rows, axis=1).mean()))
        bits.append(bool(np.allclose(np.abs(rows), 1 / np.sqrt(rows.shape[1]), atol=1e-3)))
        sized.append(not np.array_equal(size, np.ceil(points.max(axis=0)).clip(1)))
        parts.append(bool(points.max() <= 1 and points.min() >= 0 and size.max() > 2))
        if (box := subject.boxes.get(key)) is not None:
            side_of_box = np.array([box[2] - box[0], box[3] - box[1]])
            known = sized[-1]
            reach = np.maximum(points.max(axis=0), size if known else 0)
            boxes[0] += bool(known and (np.abs(size - side_of_box) <= 2).all())
            boxes[1] += bool((reach > side_of_box + BEYOND).any())
    most = int(counts.max(initial=0))
    return replace(
        side,
        counts=Spread.of(counts),
        most=most,
        at_most=float((counts == most).mean()) if len(counts) else 0.0,
        norms=Spread.of(norms_of),
        bits=bool(bits) and side.local_dim > 1 and all(bits),
        sized=bool(sized) and float(np.mean(sized)) > 0.5,
        parts=bool(parts) and all(parts),
        cropped=boxes[0],
        uncropped=boxes[1],
    )


def _made(stored: Stored) -> dict[str, object]:
    """What the stores record of how they were made, without what is so of each of them."""
    return {
        f"{'local' if store is stored.local else 'global'} {name}": value
        for store in stored.stores
        for name, value in (store.identity or {}).items()
        if (store.identity or {}).get("extractor")
    }


def _chunks(store: FeatureStore, keys: Sequence[str]) -> Iterator[np.ndarray]:
    """(n, D) float32 rows of some images after the other."""
    for start in range(0, len(keys), BLOCK):
        yield store.global_descriptors(keys[start : start + BLOCK])


def _image(dataset: Dataset, key: str) -> str:
    return shown(key if key in dataset.gallery else f"query {key.removeprefix('query/').removesuffix('/')}")


def _sizes_of(store: FeatureStore, keys: Sequence[str]) -> np.ndarray:
    """(n, 2) widths and heights."""
    found = [
        image.image_size.double().numpy()
        for start in range(0, len(keys), CHUNK)
        for image in store.read_all(keys[start : start + CHUNK], frozenset(), lambda count: 0)
    ]
    return np.array(found).reshape(-1, 2)


def _with_sizes(numbers: Numbers, a: Stored, b: Stored, subject: _Subject) -> Numbers:
    if not (numbers.a.sized and numbers.b.sized):
        return numbers
    of_a, of_b = (_sizes_of(side.stores[0], subject.keys) for side in (a, b))
    crops = subject.crops
    whole, cut = (_compared_sizes(of_a[these], of_b[these]) for these in (~crops, crops))
    usual = 1.0 if whole is None else whole.factor.median
    steady = whole is None or whole.factor.high / whole.factor.low < 1 + OTHER
    ratios = np.log(of_b[crops] / of_a[crops])
    other_shape = np.abs(ratios[:, 0] - ratios[:, 1]) > OTHER
    other_size = np.abs(ratios.mean(axis=1) - np.log(usual)) > OTHER
    swapped = whole is not None and whole.swapped > 0.5
    recut = 0 if swapped else int((other_shape | (other_size & steady)).sum())
    return replace(numbers, sizes=whole, crop_sizes=cut, recut=recut)


def _compared_sizes(a: np.ndarray, b: np.ndarray) -> Sizes | None:
    factor = Spread.of_factors(np.sqrt(b.prod(axis=1) / a.prod(axis=1)))
    if factor is None:
        return None
    equal = (np.abs(a - b) <= 1).all(axis=1)
    oblong = (np.abs(a[:, 0] - a[:, 1]) > 1) & (np.abs(b[:, 0] - b[:, 1]) > 1)
    turned = (np.abs(a - b[:, ::-1]) <= 1).all(axis=1)[oblong]
    return Sizes(float(equal.mean()), float(turned.mean()) if len(turned) else 0.0, factor)


def _globals(
    a: Stored, b: Stored, subject: _Subject, sample: Sequence[int], progress: Progress | None
) -> tuple[Globals, dict[str, float]]:
    """What is measured, and the cosine of each image after the change that was found."""
    one, other = a.globals_, b.globals_
    assert one is not None and other is not None
    alike = one.dims[1] == other.dims[1]
    crops = subject.crops
    whole_keys = [key for key, crop in zip(subject.keys, crops, strict=True) if not crop]
    learned = whole_keys or list(subject.keys)
    some = np.linspace(0, len(learned) - 1, min(len(learned), LEARNED_ON)).astype(int)
    found = aligned(*(store.global_descriptors([learned[i] for i in some]) for store in (one, other)))
    plain, after = [], []
    for start in range(0, len(subject.keys), BLOCK):
        keys = subject.keys[start : start + BLOCK]
        if progress is not None:
            progress("comparing global descriptors", start + len(keys), len(subject.keys))
        if alike:
            rows = one.global_descriptors(keys), other.global_descriptors(keys)
            plain.append(cosines(*rows))
            after.append(plain[-1] if found.make is None else cosines(found.make(rows[0]), rows[1]))
    cosine = np.concatenate(plain) if alike else np.zeros(0)
    gallery = [key for key in subject.keys if key in subject.dataset.gallery]
    moved = _order_of(one, other, gallery, subject, sample, found) if alike and gallery else None
    numbers = Globals(
        whole=Spread.of(cosine[~crops]) if alike else None,
        crops=Spread.of(cosine[crops]) if alike else None,
        change=found.change if moved is None or moved.elsewhere <= ELSEWHERE else moved.change,
        aligned=Spread.of(found.cosines),
        recognised=found.recognised,
        untried="" if moved is not None and moved.elsewhere > ELSEWHERE else found.untried,
        elsewhere=0.0 if moved is None else moved.elsewhere,
        shift=None if moved is None else moved.shift,
    )
    # images that stand elsewhere are compared as they are: their cosines are of two images
    compared = alike and (found.make is not None or not found.change)
    by_image = dict(zip(subject.keys, np.concatenate(after).tolist(), strict=True)) if compared else {}
    return numbers, by_image


def _order_of(
    one: FeatureStore,
    other: FeatureStore,
    gallery: Sequence[str],
    subject: _Subject,
    sample: Sequence[int],
    found: Aligned,
) -> Order | None:
    if found.change or (len(found.cosines) and np.median(found.cosines) >= FULL):
        return None
    places = {key: i for i, key in enumerate(gallery)}
    these = np.array([places[subject.keys[i]] for i in sample if subject.keys[i] in places], int)
    return order(one.vectors(gallery), other.vectors(gallery), these) if len(these) else None


def _lists(a: Stored, b: Stored, subject: _Subject, top_k: int) -> Lists | None:
    one, other = a.globals_, b.globals_
    assert one is not None and other is not None
    dataset = subject.dataset
    gallery = [key for key in subject.keys if key in dataset.gallery]
    places = {key: i for i, key in enumerate(gallery)}
    shared = set(subject.keys)
    queries = [key for i in range(len(dataset.queries)) if (key := query_key(dataset, i)) in shared]
    if not gallery or not queries:
        return None
    asked = {query_key(dataset, i): query for i, query in enumerate(dataset.queries)}
    own = np.array([places.get(asked[key].id, -1) if dataset.itself(asked[key]) else -1 for key in queries])
    k = min(top_k, max(SHORTEST, len(gallery) // SHARE), len(gallery) - int((own >= 0).any()))
    if k < 1:
        return None
    found = [
        search(store.global_descriptors(queries), store.vectors(gallery), k, own=own).order for store in (one, other)
    ]
    shares, moved = [], []
    for left, right in zip(*found, strict=True):
        both, at_left, at_right = np.intersect1d(left, right, return_indices=True)
        shares.append(len(both) / len(set(left.tolist()) | set(right.tolist())))
        if len(both):
            moved.append(float(np.abs(at_left - at_right).mean()))
    return Lists(k, len(queries), float(np.mean(shares)), float(np.mean(moved)) if moved else 0.0)


def _local(
    a: Stored, b: Stored, subject: _Subject, sample: Sequence[int], resized: bool, progress: Progress | None
) -> tuple[Local, dict[str, Placed]]:
    one, other = a.local, b.local
    assert one is not None and other is not None

    def both(index: int) -> Both:
        key = subject.keys[index]
        return Both(_read(one, key), _read(other, key), subject.boxes.get(key))

    def comparable(index: int) -> bool:
        key = subject.keys[index]
        return one.count(key) > 0 or other.count(key) > 0

    groups = [
        [i for i in sample if (subject.keys[i] in subject.boxes) == crop and comparable(i)] for crop in (False, True)
    ]
    total, done = sum(map(len, groups)), 0
    found: dict[str, Placed] = {}
    geometries, placings = [], []
    for crop, group in zip((False, True), groups, strict=True):
        plain: dict[int, Placed] = {}
        for index in group:
            plain[index] = placed(both(index), Change())
            done += 1
            if progress is not None:
                progress("comparing keypoints", done, total)
        change = Change()
        if plain and np.median([each.overlap for each in plain.values()]) < FULL:
            some = np.linspace(0, len(group) - 1, min(len(group), TRIED)).astype(int)
            change = chosen([tried(both(group[i]), crop) for i in some], resized)
        if change != Change():
            plain = {index: placed(both(index), change) for index in group}
        geometries.append(geometry(list(plain.values()), change))
        placings.append(list(plain.values()))
        found |= {subject.keys[index]: each for index, each in plain.items()}
    gallery = [key for key in subject.keys if key in subject.dataset.gallery]
    overlaps = [each.overlap for each in found.values()]
    moved = None
    if overlaps and np.median(overlaps) < FULL and one.dims[0] == other.dims[0] and gallery:
        places = {key: i for i, key in enumerate(gallery)}
        these = np.array([places[subject.keys[i]] for i in sample if subject.keys[i] in places], int)
        best = min(BEST, *(int(np.median(store.counts(gallery))) for store in (one, other)))
        means = [Vectors.of(_means(store, gallery, best)) for store in (one, other)]
        moved = order(means[0], means[1], these) if len(these) else None
    usual = placings[0] or placings[1]  # crops may be others
    change_of, changed, cosine = _descriptors(usual)
    orders = [each.order for each in usual if each.order is not None and each.overlap >= FULL]
    chances = [each.cosine.chance for each in usual if each.cosine is not None]
    local = Local(
        whole=geometries[0],
        crops=geometries[1],
        cosine=cosine,
        change=change_of,
        changed=changed,
        order=float(np.median(orders)) if orders else None,
        chance=float(np.median(chances)) if chances else 0.0,
        elsewhere=0.0 if moved is None else moved.elsewhere,
        shift=None if moved is None else moved.shift,
    )
    return local, found


def _means(store: FeatureStore, keys: Sequence[str], best: int) -> np.ndarray:
    """(n, d) mean of the best local descriptors of each image, less that of all images."""
    found = np.zeros((len(keys), store.dims[0]), np.float32)
    for start in range(0, len(keys), CHUNK):
        images = store.read_all(keys[start : start + CHUNK], frozenset({"local"}), lambda count: best)
        for place, image in enumerate(images, start):
            if len(image):
                found[place] = image.descriptors.mean(dim=0).numpy()
    return found - found.mean(axis=0)


def _descriptors(images: Sequence[Placed]) -> tuple[str, str, Spread | None]:
    """The change that makes local descriptors alike, the side that has gone through it, and cosines after it."""
    known = [each.cosine for each in images if each.cosine is not None]
    if not known:
        return "", "", None
    plain = Spread.of(each.plain for each in known)
    assert plain is not None
    after = {key: Spread.of(each.after[key] for each in known) for key in known[0].after}
    key, best = max(after.items(), key=lambda pair: pair[1].median if pair[1] else 0.0)
    if best is not None and plain.median < ALIKE and best.median >= ALIKE:
        return (*key, best)
    return "", "", plain


def _worst(subject: _Subject, cosine: Mapping[str, float], images: Mapping[str, Placed]) -> tuple[Worst, ...]:
    found = []
    for key in dict.fromkeys((*cosine, *images)):
        placed = images.get(key)
        descriptors = None if placed is None or placed.cosine is None else placed.cosine.plain
        overlap = None if placed is None else placed.overlap
        values = [value for value in (cosine.get(key), overlap, descriptors) if value is not None]
        if values and min(values) < ALIKE:
            found.append(Worst(_image(subject.dataset, key), min(values), cosine.get(key), overlap, descriptors))
    return tuple(sorted(found, key=lambda worst: (worst.agreement, worst.image))[:WORST])
