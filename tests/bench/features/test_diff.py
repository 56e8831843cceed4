"""Each mistake that makes two feature sets differ is made on purpose, and named; what is the same is called so."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from bench.datasets import Dataset, Query
from bench.errors import UserError
from bench.features.diff import DiffOptions, Difference, Stored, diff
from bench.features.diff_rules import RULES
from bench.features.fill import fill
from bench.features.items import items, query_key
from bench.features.shards import Entry
from bench.features.store import FeatureStore

GALLERY, QUERIES, N, D, G = 40, 6, 60, 16, 12
Images = dict[str, dict[str, np.ndarray]]
Mistake = Callable[[Dataset, Images], Images]


def dataset_of(gallery: int = GALLERY, queries: int = QUERIES) -> Dataset:
    """Queries are boxes of pictures that no gallery has; nothing reads the files."""
    boxed = tuple(
        Query(f"q{i}", Path(f"/nowhere/q{i}.png"), (30.0 + i, 20.0 + 2 * i, 230.0, 180.0)) for i in range(queries)
    )
    images = {f"g{i:02d}": Path(f"/nowhere/g{i:02d}.png") for i in range(gallery)}
    return Dataset("planted", "revisited", "none", boxed, images, {q.id: {"g00": "easy"} for q in boxed})


DATASET = dataset_of()
BOXES = {query_key(DATASET, i): query.box for i, query in enumerate(DATASET.queries)}


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def image_of(seed: int, size: tuple[int, int], descriptors: int = N) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "descriptors": _unit(np.abs(draw.normal(size=(descriptors, D)))),
        "keypoints": draw.uniform(0, 1, (descriptors, 2)) * (np.array(size) - 1),
        "scales": np.ones(descriptors),
        "orientations": np.zeros(descriptors),
        "scores": np.linspace(1, 0.1, descriptors),
        "image_size": np.array(size),
        "global_descriptor": _unit(draw.normal(size=G) + 0.5),
    }


def right(dataset: Dataset = DATASET) -> Images:
    """What both sets have before a mistake: pictures of several sizes, queries cropped to their box."""
    found = {}
    for number, item in enumerate(items(dataset)):
        size = (
            (320 + 8 * (number % 3), 240)
            if item.box is None
            else tuple(int(item.box[i + 2] - item.box[i]) for i in range(2))
        )
        found[item.key] = image_of(number, size)
    return found


def stored(folder: Path, images: Images, name: str, dataset: Dataset = DATASET, exact: bool = True, **made) -> Stored:
    """A store of these images; `made` is what it records of how."""
    wanted = [item for item in items(dataset) if item.key in images]
    report = fill(
        [dataclasses.replace(item, files=()) for item in wanted],
        folder / name,
        lambda: lambda item: Entry("", images[item.key]),
        {"features": name, **made},
        exact=exact,
    )
    assert report.extracted == len(wanted)
    store = FeatureStore(folder / name)
    return Stored(name, store if store.dims[0] else None, store if store.dims[1] else None)


def each(change: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]) -> Mistake:
    """A mistake that is made of every image alike."""
    return lambda dataset, images: {key: {**image, **change(image)} for key, image in images.items()}


def of_queries(change: Callable[[dict[str, np.ndarray], tuple], Mapping[str, np.ndarray]]) -> Mistake:
    return lambda dataset, images: {
        key: {**image, **change(image, BOXES[key])} if key in BOXES else image for key, image in images.items()
    }


def moved(names: tuple[str, ...], step: int) -> Mistake:
    """Rows of the gallery that stand `step` places further down."""

    def go(dataset: Dataset, images: Images) -> Images:
        keys = [key for key in dataset.gallery if key in images]
        other = {
            key: {**images[key], **{name: images[keys[(place - step) % len(keys)]][name] for name in names}}
            for place, key in enumerate(keys)
        }
        return {**images, **other}

    return go


def shuffled(rows: np.ndarray) -> np.ndarray:
    return np.random.default_rng(7).permutation(len(rows))


def whole_image(image: dict[str, np.ndarray], box: tuple) -> Mapping[str, np.ndarray]:
    """As if the query had not been cropped: more is found, and counted from the picture's corner."""
    draw = np.random.default_rng(int(image["keypoints"].sum()))
    inside = image["keypoints"] + np.array(box[:2])
    replaced = np.arange(len(inside)) % 2 == 0
    places = np.where(replaced[:, None], draw.uniform(0, 1, inside.shape) * [319, 239], inside)
    rows = np.where(
        replaced[:, None], _unit(np.abs(draw.normal(size=image["descriptors"].shape))), image["descriptors"]
    )
    other = _unit(image["global_descriptor"] + draw.normal(size=G))
    return {"keypoints": places, "descriptors": rows, "image_size": np.array([320, 240]), "global_descriptor": other}


def whitened(dataset: Dataset, images: Images) -> Images:
    draw = np.random.default_rng(3)
    map_, mean = draw.normal(size=(G, G)), 0.1 * draw.normal(size=G)
    return each(lambda image: {"global_descriptor": _unit((image["global_descriptor"] - mean) @ map_)})(dataset, images)


def rotated(dataset: Dataset, images: Images) -> Images:
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(G, G)))[0]
    return each(lambda image: {"global_descriptor": image["global_descriptor"] @ turn})(dataset, images)


def others(seed: int) -> Mistake:
    """The images by another extractor: as many descriptors of the same lengths, at other places."""
    return lambda dataset, images: {
        key: image_of(seed + number, tuple(image["image_size"])) for number, (key, image) in enumerate(images.items())
    }


LOCAL = ("descriptors", "keypoints", "scales", "orientations", "scores")
MISTAKES: dict[str, Mistake] = {
    "other query crops": of_queries(whole_image),
    "other query crops ": of_queries(lambda image, box: {"keypoints": image["keypoints"] + np.array(box[:2])}),
    "globals are not normalised in b": each(lambda image: {"global_descriptor": 3 * image["global_descriptor"]}),
    "local descriptors are not normalised in b": each(lambda image: {"descriptors": 300 * image["descriptors"]}),
    "x and y swapped": each(lambda image: {"keypoints": image["keypoints"][:, ::-1]}),
    "widths and heights of images swapped": each(lambda image: {"image_size": image["image_size"][::-1]}),
    "images resized differently (factor 1.5)": each(
        lambda image: {"keypoints": 1.5 * image["keypoints"], "image_size": 1.5 * image["image_size"]}
    ),
    "images resized differently (factor 2)": each(lambda image: {"keypoints": image["keypoints"] / 2}),
    "images resized differently (factor 1.25)": each(lambda image: {"image_size": 1.25 * image["image_size"]}),
    "descriptors cut at another number (60 against 25)": each(lambda image: {name: image[name][:25] for name in LOCAL}),
    "other images (3 missing in b)": lambda dataset, images: {
        key: image for key, image in images.items() if key not in ("g03", "g04", "query/q1/")
    },
    "another extractor or other weights": others(10_000),
    "keypoints shifted by half a pixel": each(lambda image: {"keypoints": image["keypoints"] + 0.5}),
    "keypoints shifted by 8, 0 pixels": each(lambda image: {"keypoints": image["keypoints"] + [8, 0]}),
    "keypoints of b are parts of the sides, not pixels": each(
        lambda image: {"keypoints": image["keypoints"] / image["image_size"]}
    ),
    "globals in another order of images (row shift +2)": moved(("global_descriptor",), 2),
    "local descriptors in another order of images (row shift -1)": moved((*LOCAL, "image_size"), -1),
    "globals have the opposite sign": each(lambda image: {"global_descriptor": -image["global_descriptor"]}),
    "globals have their dimensions reversed": each(
        lambda image: {"global_descriptor": image["global_descriptor"][::-1]}
    ),
    "globals have their dimensions in another order": each(
        lambda image: {"global_descriptor": image["global_descriptor"][shuffled(image["global_descriptor"])]}
    ),
    "globals are rotated": rotated,
    "globals are whitened, or projected by PCA, on one side": whitened,
    "local descriptors in another order of quality": each(
        lambda image: {name: image[name][shuffled(image["scores"])] for name in ("descriptors", "keypoints")}
    ),
    "square roots of descriptors in b": each(lambda image: {"descriptors": _unit(np.sqrt(image["descriptors"]))}),
    "globals of another length (12 against 8 values)": each(
        lambda image: {"global_descriptor": _unit(image["global_descriptor"][:8])}
    ),
    "another extractor (16 against 8 values)": each(lambda image: {"descriptors": _unit(image["descriptors"][:, :8])}),
    "some images differ": lambda dataset, images: {**images, "g07": image_of(99_999, (320, 240))},
}


def planted(folder: Path, *names: str) -> Difference:
    images = right()
    for name in names:
        images = MISTAKES[name](DATASET, images)
    return diff(DATASET, stored(folder, right(), "a"), stored(folder, images, "b"))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_no_other_is(name: str, tmp_path: Path) -> None:
    found = planted(tmp_path, name)
    print(found)
    expected = {name.strip()}
    if "projected" not in name and name.startswith("globals of another length"):
        expected |= {"globals are whitened, or projected by PCA, on one side"}  # a cut is a projection
    assert {cause.name for cause in found.causes} == expected, found


PAIRS = [
    ("x and y swapped", "globals are not normalised in b"),
    ("x and y swapped", "images resized differently (factor 1.5)"),
    ("x and y swapped", "keypoints shifted by half a pixel"),
    ("x and y swapped", "descriptors cut at another number (60 against 25)"),
    ("images resized differently (factor 1.5)", "other images (3 missing in b)"),
    ("images resized differently (factor 2)", "globals have their dimensions reversed"),
    ("other query crops", "images resized differently (factor 1.5)"),
    ("other query crops", "globals are not normalised in b"),
    ("other query crops ", "x and y swapped"),
    ("descriptors cut at another number (60 against 25)", "globals in another order of images (row shift +2)"),
    ("descriptors cut at another number (60 against 25)", "keypoints shifted by half a pixel"),
    ("descriptors cut at another number (60 against 25)", "images resized differently (factor 1.5)"),
    ("globals have their dimensions reversed", "globals in another order of images (row shift +2)"),
    ("globals are whitened, or projected by PCA, on one side", "square roots of descriptors in b"),
    ("local descriptors in another order of quality", "widths and heights of images swapped"),
    ("local descriptors in another order of images (row shift -1)", "globals have the opposite sign"),
]


@pytest.mark.parametrize("names", PAIRS, ids=" + ".join)
def test_of_two_mistakes_both_are_named_and_no_other(names: tuple[str, str], tmp_path: Path) -> None:
    assert {cause.name for cause in planted(tmp_path, *names).causes} == {name.strip() for name in names}
