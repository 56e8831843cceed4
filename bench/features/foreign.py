"""Features of other programs brought into a store: hloc, AMES, COLMAP, or arrays of one's own.

An image of the data set is the one whose name there ends with its id, with the name of its file, or with the last part
of either, whatever folder and suffix the name has; a query's features are those of its crop if the other program was
given the crop. Without a global descriptor there is no first stage: then `run` needs --shortlist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from bench.datasets import Dataset
from bench.errors import UserError
from bench.features.store import Entry, ExtractReport, FeatureStore, Item, fill, items, query_key
from third_party.foreign_features import Ames, Arrays, Colmap, Foreign, Hloc, ImageFiles

VERSION = 1
KINDS: Mapping[str, Callable[[Path, Path | None], Foreign]] = {
    "hloc": Hloc,
    "ames": Ames,
    "colmap": lambda path, _: Colmap(path),
    "arrays": lambda path, _: ImageFiles(path),
}


def identity(kind: str) -> dict[str, object]:
    return {"features": kind, "version": VERSION}


def import_foreign(
    kind: str,
    dataset: Dataset,
    source: Path,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    globals_: Path | None = None,
) -> ExtractReport:
    """Bring the store in `folder` up to date. UserError for images that are not there, and for values that are none."""
    if not source.exists() or (globals_ is not None and not globals_.exists()):
        raise UserError(f"{globals_ if source.exists() else source}: no such file or folder")
    foreign = KINDS[kind](source, globals_)
    names = _matched(kind, dataset, foreign.names(), source)
    wanted = [Item(item.key, (), item.box) for item in items(dataset)]
    first = _arranged(foreign.read(names[wanted[0].key]), source, wanted[0].key)
    sizes = {name: first[name].shape[-1] for name in ("global_descriptor", "descriptors")}

    def read(item: Item) -> Entry:
        arrays = _arranged(foreign.read(names[item.key]), source, item.key)
        for name, size in sizes.items():
            if arrays[name].shape[-1] != size:
                raise UserError(f"{source}: {name} of {item.key!r} has {arrays[name].shape[-1]} values, others {size}")
        return Entry("", arrays)

    return fill(wanted, folder, lambda: read, identity(kind), progress, exact=True)


def check_foreign(kind: str, dataset: Dataset, folder: Path) -> ExtractReport:
    """Nothing to do for a store that has every image of the data set; else UserError with the command to give."""
    store = FeatureStore(folder)
    missing = (
        sum(item.key not in store for item in items(dataset))
        if store.identity == identity(kind)
        else len(dataset.gallery)
    )
    if missing:
        raise UserError(
            f"feature set {kind!r} of {dataset.name}: {missing} images have not been imported",
            hint=f"python cli.py features import {kind} FILE --dataset {dataset.name}",
        )
    return ExtractReport(0, {}, ())


def _matched(kind: str, dataset: Dataset, listed: Sequence[str], source: Path) -> dict[str, str]:
    """The store's key of each image -> the other program's name of it."""
    if kind == "ames":
        keys = list(dataset.gallery)
        own = [query_key(dataset, i) for i in range(len(dataset.queries))]
        order = [*keys, *(key for key in own if key not in dataset.gallery)]
        if len(listed) != len(order):
            raise UserError(f"{source}: {len(listed)} images, expected the gallery's {len(keys)} and then the queries")
        return dict(zip(order, listed, strict=True))
    ends: dict[str, set[str]] = {}  # every end of a name, with and without suffix
    for name in listed:
        for text in (name, str(PurePosixPath(name).with_suffix(""))):
            parts = text.split("/")
            for start in range(len(parts)):
                ends.setdefault("/".join(parts[start:]), set()).add(name)
    files = {query_key(dataset, i): (query.id, query.image) for i, query in enumerate(dataset.queries)}
    found = {}
    for item in items(dataset):
        image, path = files.get(item.key) or (item.key, dataset.gallery[item.key])
        fitting: set[str] = next((ends[t] for t in (image, path.name, path.stem, Path(image).name) if t in ends), set())
        if len(fitting) != 1:
            raise UserError(f"{source}: {'more than one image' if fitting else 'no image'} fits {image!r}")
        (found[item.key],) = fitting
    return found


def _arranged(given: Arrays, source: Path, key: str) -> Arrays:
    """Every array of Features, rows by descending score, descriptors of unit norm. UserError naming what is wrong."""
    try:
        descriptors, keypoints = given["descriptors"], given["keypoints"]
        n = len(descriptors)
        filled = {
            "global_descriptor": np.zeros(1),
            "scales": np.ones(n),
            "orientations": np.zeros(n),
            "scores": np.linspace(1, 0, n),
            "image_size": np.ceil(keypoints.max(axis=0, initial=1)).clip(1, 2**30),
            **given,
        }
        shapes = {
            "global_descriptor": (len(filled["global_descriptor"]),),
            "descriptors": (n, descriptors.shape[1]),
            "keypoints": (n, 2),
            **dict.fromkeys(("scales", "orientations", "scores"), (n,)),
            "image_size": (2,),
        }
        best = np.argsort(-np.asarray(filled["scores"], np.float64), kind="stable")
        arrays = {name: np.asarray(filled[name], np.float32) for name in shapes}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{source}: features of {key!r} lack or do not fit {error}") from error
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise UserError(f"{source}: {name} of {key!r} is {arrays[name].shape}, expected finite numbers {shape}")
    for name in ("descriptors", "keypoints", "scales", "orientations", "scores"):
        arrays[name] = arrays[name][best]
    for name in ("descriptors", "global_descriptor"):
        arrays[name] = arrays[name] / np.maximum(np.linalg.norm(arrays[name], axis=-1, keepdims=True), 1e-12)
    return arrays
