"""Each mistake that makes two feature sets differ is made on purpose, and named; what is the same is called so."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image

from bench.datasets import Dataset, Query, folder
from bench.errors import UserError
from bench.features.diff import Difference, DiffOptions, diff
from bench.features.diff_rules import RULES
from bench.features.diff_stored import StoredSet
from bench.features.fill import fill
from bench.features.items import items, query_key
from bench.features.sets import ExtractOptions, features_of
from bench.features.shards import Entry
from bench.features.store import FeatureStore
from bench.places import Places

GALLERY, QUERIES, N, D, G = 30, 6, 60, 16, 12
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


def stored(place: Path, images: Images, name: str, dataset: Dataset = DATASET, exact: bool = True, **made) -> StoredSet:
    """A store of these images; `made` is what it records of how."""
    wanted = [item for item in items(dataset) if item.key in images]
    report = fill(
        [dataclasses.replace(item, files=()) for item in wanted],
        place / name,
        lambda: lambda item: Entry("", images[item.key]),
        {"features": name, **made},
        exact=exact,
    )
    assert report.extracted == len(wanted)
    store = FeatureStore(place / name)
    return StoredSet(name, store if store.dims[0] else None, store if store.dims[1] else None)


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


def resampled(rows: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Unit rows a little off, as of an image that was read at another size."""
    return _unit(rows + noise * _unit(np.random.default_rng(seed).normal(size=rows.shape)))


def others(seed: int) -> Mistake:
    """The images by another extractor: as many descriptors of the same lengths, at other places."""
    return lambda dataset, images: {
        key: image_of(seed + number, tuple(image["image_size"])) for number, (key, image) in enumerate(images.items())
    }


LOCAL = ("descriptors", "keypoints", "scales", "orientations", "scores")
MISTAKES: dict[str, Mistake] = {
    "other query crops": of_queries(whole_image),
    "other query crops ": of_queries(lambda image, box: {"keypoints": image["keypoints"] + np.array(box[:2])}),
    "globals are not normalised in B": each(lambda image: {"global_descriptor": 3 * image["global_descriptor"]}),
    "local descriptors are not normalised in B": each(lambda image: {"descriptors": 300 * image["descriptors"]}),
    "x and y swapped": each(lambda image: {"keypoints": image["keypoints"][:, ::-1]}),
    "widths and heights of images swapped": each(lambda image: {"image_size": image["image_size"][::-1]}),
    "images resized differently (factor 1.5)": each(
        lambda image: {"keypoints": 1.5 * image["keypoints"], "image_size": 1.5 * image["image_size"]}
    ),
    "images resized differently (factor 2)": each(lambda image: {"keypoints": image["keypoints"] / 2}),
    "images resized differently (factor 1.25)": each(lambda image: {"image_size": 1.25 * image["image_size"]}),
    "descriptors cut at another number (60 against 25)": each(lambda image: {name: image[name][:25] for name in LOCAL}),
    "other images (3 missing in B)": lambda dataset, images: {
        key: image for key, image in images.items() if key not in ("g03", "g04", "query/q1/")
    },
    "another extractor or other weights": others(10_000),
    "keypoints shifted by half a pixel": each(lambda image: {"keypoints": image["keypoints"] + 0.5}),
    "keypoints shifted by 8, 0 pixels": each(lambda image: {"keypoints": image["keypoints"] + [8, 0]}),
    "keypoints shifted by another offset in each image": lambda dataset, images: {
        key: {**image, "keypoints": image["keypoints"] + [10 + 7 * (number % 3), 5 * (number % 4)]}
        for number, (key, image) in enumerate(images.items())
    },
    "keypoints of B are parts of the sides, not pixels": each(
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
    "square roots of descriptors in B": each(lambda image: {"descriptors": _unit(np.sqrt(image["descriptors"]))}),
    "globals of another length (12 against 8 values)": each(
        lambda image: {"global_descriptor": _unit(image["global_descriptor"][:8])}
    ),
    "another extractor (16 against 8 values)": each(lambda image: {"descriptors": _unit(image["descriptors"][:, :8])}),
    "images of another size or decoding": lambda dataset, images: {
        key: {
            **image,
            "descriptors": resampled(image["descriptors"], 0.45, number),
            "global_descriptor": resampled(image["global_descriptor"], 0.6, number),
        }
        for number, (key, image) in enumerate(images.items())
    },
    "small differences, as of another decoder or other resizing": lambda dataset, images: {
        key: {**image, "descriptors": resampled(image["descriptors"], 0.2, number)}
        for number, (key, image) in enumerate(images.items())
    },
    "descriptors in one bit a value in B": each(
        lambda image: {"descriptors": np.where(image["descriptors"] > 0.2, 1, -1) / np.sqrt(D)}
    ),
    "globals of zeros": lambda dataset, images: {
        **images,
        **{key: {**images[key], "global_descriptor": np.zeros(G)} for key in ("g01", "g05")},
    },
    "some images differ": lambda dataset, images: {**images, "g07": image_of(99_999, (320, 240))},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Planted:
    """The right features, those with mistakes, and their difference."""

    a: StoredSet
    b: StoredSet
    found: Difference


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Planted]:
    """`planted(name, …)`: with these mistakes, made once."""
    place = tmp_path_factory.mktemp("planted")
    a, made = stored(place, right(), "a"), {}

    def go(*names: str) -> Planted:
        if names not in made:
            images = right()
            for name in names:
                images = MISTAKES[name](DATASET, images)
            b = stored(place, images, f"b{len(made)}")
            made[names] = Planted(a, b, diff(DATASET, a, b))
        return made[names]

    return go


# what is true besides: a cut is a projection, and an image without a descriptor differs
ALSO = {
    "globals of another length (12 against 8 values)": {"globals are whitened, or projected by PCA, on one side"},
    "globals of zeros": {"some images differ"},
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_no_other_is(name: str, planted: Callable[..., Planted]) -> None:
    found = planted(name).found
    assert {cause.name for cause in found.causes} == {name.strip(), *ALSO.get(name, ())}
    assert not found.same and name.strip() in found.verdict


PAIRS = [
    ("x and y swapped", "globals are not normalised in B"),
    ("x and y swapped", "images resized differently (factor 1.5)"),
    ("x and y swapped", "keypoints shifted by half a pixel"),
    ("x and y swapped", "descriptors cut at another number (60 against 25)"),
    ("images resized differently (factor 1.5)", "other images (3 missing in B)"),
    ("images resized differently (factor 2)", "globals have their dimensions reversed"),
    ("other query crops", "images resized differently (factor 1.5)"),
    ("other query crops", "globals are not normalised in B"),
    ("other query crops ", "x and y swapped"),
    ("descriptors cut at another number (60 against 25)", "globals in another order of images (row shift +2)"),
    ("descriptors cut at another number (60 against 25)", "keypoints shifted by half a pixel"),
    ("descriptors cut at another number (60 against 25)", "images resized differently (factor 1.5)"),
    ("globals have their dimensions reversed", "globals in another order of images (row shift +2)"),
    ("globals are whitened, or projected by PCA, on one side", "square roots of descriptors in B"),
    ("local descriptors in another order of quality", "widths and heights of images swapped"),
    ("local descriptors in another order of images (row shift -1)", "globals have the opposite sign"),
]


@pytest.mark.parametrize("names", PAIRS, ids=" + ".join)
def test_of_two_mistakes_both_are_named_and_no_other(names: tuple[str, str], planted: Callable[..., Planted]) -> None:
    assert {cause.name for cause in planted(*names).found.causes} == {name.strip() for name in names}


def test_every_rule_is_shown_by_a_mistake(planted: Callable[..., Planted]) -> None:
    """But `options`, which needs stores that were extracted here."""
    shown = {rule.__name__ for name in MISTAKES for rule in RULES if rule(planted(name).found.numbers) is not None}
    assert shown == {rule.__name__ for rule in RULES} - {"options"}


def test_storage_in_half_precision_is_no_difference(tmp_path: Path) -> None:
    a, b = stored(tmp_path, right(), "a"), stored(tmp_path, right(), "b", exact=False)
    found = diff(DATASET, a, b)
    assert found.same and found.verdict == "same" and not found.worst
    assert found.numbers.local is not None and found.numbers.local.cosine is not None
    assert found.numbers.local.cosine.least < 1  # it was rounded


def test_two_extractions_of_the_same_images_are_the_same_and_of_smaller_images_are_not(
    buildings: Path, tmp_path: Path
) -> None:
    dataset = folder.load(buildings)

    def extracted(name: str, side: int) -> StoredSet:
        options, places = ExtractOptions(max_side=side, descriptors=150), Places.of(tmp_path / name)
        found, _ = features_of(dataset, "xfeat", options, torch.device("cpu"), places)
        return StoredSet(name, found.local, found.globals_)

    def copied(name: str, side: StoredSet) -> StoredSet:
        """As another program's, which does not say how it was made."""
        images = {item.key: side.local.read(item.key, frozenset({"local", "keypoints"})) for item in items(dataset)}
        whole = {key: side.globals_.global_descriptors([key])[0] for key in images}
        arrays = {
            key: {**{field: value.numpy() for field, value in vars(image).items()}, "global_descriptor": whole[key]}
            for key, image in images.items()
        }
        return stored(tmp_path, arrays, name, dataset)

    one, again, small = extracted("one", 160), extracted("again", 160), extracted("small", 110)
    assert diff(dataset, one, again).same
    assert diff(dataset, one, copied("one copied", one)).same
    assert diff(dataset, one, small).verdict == "extracted with other options (max_side 160 against 110)"
    assert diff(dataset, one, copied("small copied", small)).verdict == "images of another size or decoding"


def close(one: object, other: object) -> None:
    """Equal but for rounding, field by field."""
    if dataclasses.is_dataclass(one):
        assert type(one) is type(other)
        for field in dataclasses.fields(one):
            close(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, float | tuple) and all(isinstance(x, float) for x in np.atleast_1d(one).tolist()):
        assert one == pytest.approx(other, abs=1e-6)
    else:
        assert one == other


SYMMETRIC = [*((name,) for name in MISTAKES), *PAIRS]


@pytest.mark.parametrize("names", SYMMETRIC, ids=" + ".join)
def test_the_other_way_round_the_numbers_are_the_inverse(
    names: tuple[str, ...], planted: Callable[..., Planted]
) -> None:
    made = planted(*names)
    there, back = made.found, diff(DATASET, made.b, made.a)
    close(back.numbers, there.numbers.swap)
    assert len(back.causes) == len(there.causes) and [w.image for w in back.worst] == [w.image for w in there.worst]


NUMBERS = st.floats(-2, 2, width=32)


@st.composite
def any_images(draw: st.DrawFn) -> tuple[Dataset, Images]:
    """Any number of images with any features: none, zeros, twins, all in one place, of any norm."""
    dataset = dataset_of(draw(st.integers(1, 4)), draw(st.integers(1, 2)))
    d, g, few = draw(st.integers(1, 4)), draw(st.integers(0, 3)), st.sampled_from([0.0, 1.0, 7.5, 90.0])
    found = {}
    for item in items(dataset):
        n = draw(st.integers(0, 12))
        found[item.key] = {
            "descriptors": draw(arrays_of.arrays(np.float32, (n, d), elements=NUMBERS)),
            "keypoints": draw(arrays_of.arrays(np.float32, (n, 2), elements=few)),
            "scales": np.ones(n),
            "orientations": np.zeros(n),
            "scores": np.sort(draw(arrays_of.arrays(np.float32, n, elements=NUMBERS)))[::-1],
            "image_size": np.array(draw(st.tuples(st.integers(1, 400), st.integers(1, 400)))),
        }
        if g:
            found[item.key]["global_descriptor"] = draw(arrays_of.arrays(np.float32, g, elements=NUMBERS))
    return dataset, found


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(any_images())
def test_a_set_is_the_same_as_itself(made: tuple[Dataset, Images]) -> None:
    dataset, images = made
    with TemporaryDirectory() as place:
        one, other = (stored(Path(place), images, name, dataset) for name in ("a", "b"))
        for side in (one, other):
            found = diff(dataset, one, dataclasses.replace(side, name="again"))
            assert found.same and not found.worst


def test_the_images_that_differ_most_are_named_first_and_no_more_than_ten(
    tmp_path: Path, planted: Callable[..., Planted]
) -> None:
    images = right()
    for number, key in enumerate(("g20", "g11", "query/q2/")):
        off = resampled(images[key]["global_descriptor"], 3.0 - number, number)
        images[key] = {**images[key], "global_descriptor": off}
    found = diff(DATASET, stored(tmp_path, right(), "a"), stored(tmp_path, images, "b"))
    assert sorted(worst.image for worst in found.worst) == ["g11", "g20", "query q2"]
    assert [worst.agreement for worst in found.worst] == sorted(worst.agreement for worst in found.worst)
    assert found.worst[0].cosine == found.worst[0].agreement and found.worst[0].overlap == 1
    everything = planted("another extractor or other weights").found
    assert len(everything.worst) == 10 and everything.numbers.images == GALLERY + QUERIES


def test_keypoints_are_compared_on_a_sample_that_the_seed_draws(tmp_path: Path) -> None:
    a = stored(tmp_path, right(), "a")
    images = MISTAKES["x and y swapped"](DATASET, right())
    b = stored(tmp_path, images, "b")
    few = DiffOptions(images=8, seed=3)
    found = diff(DATASET, a, b, few)
    assert (found.numbers.sampled, found.numbers.boxed) == (8, 4) and found.verdict == "x and y swapped"
    assert "compared on 8 of 36 images, drawn with seed 3" in " ".join(found.notes)
    assert diff(DATASET, a, b, few) == found
    assert not diff(DATASET, a, a).notes


def test_memory_follows_an_image_and_not_the_set(tmp_path: Path) -> None:
    """Of 20 MB of descriptors in each store, no more than some images are held at a time."""
    dataset = dataset_of(300, 2)
    images = {item.key: image_of(number, (320, 240), 1000) for number, item in enumerate(items(dataset))}
    a, b = (stored(tmp_path, images, name, dataset) for name in ("a", "b"))
    diff(DATASET, *(stored(tmp_path / "small", right(), name) for name in ("a", "b")))  # what is imported when needed
    tracemalloc.start()
    found = diff(dataset, a, b, DiffOptions(images=50))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.same and most < 10e6 < 300 * 1000 * D * 4


def test_a_part_that_one_set_has_alone_is_said_and_not_compared(tmp_path: Path) -> None:
    def without(*names: str) -> Images:
        return {
            key: {name: array for name, array in image.items() if name not in names} for key, image in right().items()
        }

    both, local = stored(tmp_path, right(), "both"), stored(tmp_path, without("global_descriptor"), "local")
    whole = stored(tmp_path, without(*LOCAL), "whole")
    found = diff(DATASET, both, local)
    assert found.same and found.notes == ("only both has global descriptors: these are not compared",)
    assert diff(DATASET, whole, both).notes == ("only both has local descriptors: these are not compared",)
    with pytest.raises(UserError, match="no kind of descriptor in common"):
        diff(DATASET, local, whole)


def test_sets_of_other_data_sets_are_refused_and_the_folder_is_named(tmp_path: Path) -> None:
    other = Dataset("other", "revisited", "none", (Query("x", Path("/x")),), {"y": Path("/y")}, {})
    images = {item.key: image_of(number, (320, 240)) for number, item in enumerate(items(other))}
    a, b = stored(tmp_path, right(), "a"), stored(tmp_path, images, "b", other)
    with pytest.raises(UserError, match=r"b: none of the 36 images of planted is in .*/b, which holds") as refusal:
        diff(DATASET, a, b)
    assert "--dataset" in str(refusal.value.hint)
    halves = [
        stored(tmp_path, {key: image for key, image in right().items() if key.startswith(begin)}, begin)
        for begin in ("g", "q")
    ]
    with pytest.raises(UserError, match="share no image of planted"):
        diff(DATASET, *halves)


def test_lists_of_the_first_stage_move_with_the_globals(tmp_path: Path) -> None:
    a = stored(tmp_path, right(), "a")
    same = diff(DATASET, a, a).numbers.lists
    assert same is not None and (same.k, same.queries, same.jaccard, same.moved) == (10, 6, 1, 0)
    turned = stored(tmp_path, rotated(DATASET, right()), "turned")
    assert diff(DATASET, a, turned).numbers.lists == same
    away = diff(DATASET, a, stored(tmp_path, moved(("global_descriptor",), 2)(DATASET, right()), "away")).numbers.lists
    assert away is not None and away.jaccard < 0.5 and away.moved > 0


@pytest.mark.parametrize("wrong", [{"images": 0}, {"top_k": 0}, {"seed": -1}])
def test_options_that_compare_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected at least 1 image"):
        DiffOptions(**wrong)


def test_sides_that_were_stretched_to_a_square_are_named_with_the_ratio(tmp_path: Path) -> None:
    square = each(lambda image: {"keypoints": image["keypoints"] * (200 / image["image_size"])})
    found = diff(DATASET, stored(tmp_path, right(), "a"), stored(tmp_path, square(DATASET, right()), "b"))
    (cause,) = found.causes
    assert cause.name == "images resized differently (factor 1.4)"
    assert "another factor in x than in y" in cause.why


def test_an_extraction_at_half_the_size_is_told_from_another_extractor(buildings: Path, tmp_path: Path) -> None:
    """Other keypoints are found, and their descriptors differ; sizes and what is alike tell what was done."""
    whole, half = (enlarged(buildings, tmp_path / str(times), times) for times in (2, 1))
    sides = []
    for place in (whole, half):
        places, options = Places.of(tmp_path / f"cache{place.name}"), ExtractOptions(max_side=320, descriptors=150)
        found, _ = features_of(folder.load(place), "xfeat", options, torch.device("cpu"), places)
        sides.append(StoredSet(place.name, found.local, None))
    assert diff(folder.load(whole), *sides).verdict == "images resized differently (factor 2)"


def enlarged(images: Path, to: Path, times: int) -> Path:
    """The same images at another size, and the boxes of their queries."""
    for path in images.glob("*/*.png"):
        (to / path.parent.name).mkdir(parents=True, exist_ok=True)
        picture = Image.open(path)
        picture.resize((picture.width * times, picture.height * times)).save(to / path.parent.name / path.name)
    truth = json.loads((images / "gnd.json").read_text())
    for query in truth["queries"]:
        query["box"] = [value * times for value in query["box"]]
    (to / "gnd.json").write_text(json.dumps(truth))
    return to
