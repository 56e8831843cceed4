"""What is measured of two stored feature sets: each by itself, and both image by image.

Global descriptors, image sizes and numbers of descriptors are compared of all images, block by block. Keypoints and
local descriptors are compared on a sample, so that memory follows one image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from bench.features.diff_globals import Aligned, Order, aligned, order
from bench.features.diff_local import Both, Change, Placed, chosen, cosines, geometry, placed, tried
from bench.features.diff_numbers import Globals, Lists, Local, Numbers, Side, Sizes, Spread
from bench.features.diff_stored import StoredSet, Subject, image_name, read
from bench.features.items import query_key
from bench.features.store import FeatureStore
from bench.names import shown
from bench.search import BLOCK, Vectors, search

BEYOND = 16  # pixels that features of a crop may reach beyond the query's box: the stride of DELG's feature map
LEARNED_ON = 4_096  # images at most by which a change of global descriptors is found
TRIED = 24  # images at most on which every change of keypoints is tried
BEST = 50  # local descriptors whose mean stands for an image
CHUNK = 256  # images read at a time
ALIKE = 0.99  # agreement from which an image is not named
FULL = 0.9  # median overlap from which no change of keypoints is looked for
SHORTEST, SHARE = 10, 10  # lists are no longer than this, or this part of the gallery: all lists are alike in the end
ELSEWHERE = 0.5  # share of images that stand elsewhere from which the order is another
OTHER = 0.05  # relative difference of two sizes that rounding does not make
Progress = Callable[[str, int, int], None]  # what, done, of how many


def side_alone(
    stored: StoredSet, absent: set[str], keys: Sequence[str], subject: Subject, sample: Sequence[int]
) -> Side:
    """One set by itself; `keys` are all images of the data set, and `sample` are places among the subject's."""
    local, whole = stored.local, stored.globals_
    present = [key for key in keys if key not in absent]
    side = Side(
        name=stored.name,
        places=tuple(shown(store.folder) for store in stored.stores),
        absent=tuple(image_name(subject.dataset, key) for key in keys if key in absent),
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
        image = read(local, key)
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


def _made(stored: StoredSet) -> dict[str, object]:
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


def _sizes_of(store: FeatureStore, keys: Sequence[str]) -> np.ndarray:
    """(n, 2) widths and heights."""
    found = [
        image.image_size.double().numpy()
        for start in range(0, len(keys), CHUNK)
        for image in store.read_all(keys[start : start + CHUNK], frozenset(), lambda count: 0)
    ]
    return np.array(found).reshape(-1, 2)


def with_sizes(numbers: Numbers, a: StoredSet, b: StoredSet, subject: Subject) -> Numbers:
    """The numbers, with what the image sizes that both sets keep say; as they are where one keeps none."""
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


def globals_of(
    a: StoredSet, b: StoredSet, subject: Subject, sample: Sequence[int], progress: Progress | None
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
    subject: Subject,
    sample: Sequence[int],
    found: Aligned,
) -> Order | None:
    if found.change or (len(found.cosines) and np.median(found.cosines) >= FULL):
        return None
    places = {key: i for i, key in enumerate(gallery)}
    these = np.array([places[subject.keys[i]] for i in sample if subject.keys[i] in places], int)
    return order(one.vectors(gallery), other.vectors(gallery), these) if len(these) else None


def lists_of(a: StoredSet, b: StoredSet, subject: Subject, top_k: int) -> Lists | None:
    """How alike the lists of both first stages are; None without a query, or a gallery to search."""
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


def local_of(
    a: StoredSet, b: StoredSet, subject: Subject, sample: Sequence[int], resized: bool, progress: Progress | None
) -> tuple[Local, dict[str, Placed]]:
    """What is measured of the sample, and where keypoints of each of its images lie after the change that was found.

    `resized` says that image sizes tell of another size.
    """
    one, other = a.local, b.local
    assert one is not None and other is not None

    def both(index: int) -> Both:
        key = subject.keys[index]
        return Both(read(one, key), read(other, key), subject.boxes.get(key))

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
