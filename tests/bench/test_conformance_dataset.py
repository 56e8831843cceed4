"""Every data set that is shipped keeps the promises of data sets, and one that breaks a promise is caught."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.conformance_dataset import check_dataset
from bench.datasets import demo, views
from bench.datasets.dataset import Dataset, Loader, Place, Query, dataset
from bench.datasets.demo import DemoSpec
from bench.errors import UserError

SAID = {"summary": "a set of a test", "licence": "MIT", "needs": "nothing"}


def photograph(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(path)


def revisited(root: Path) -> None:
    for number, folder in enumerate(("roxford5k", "rparis6k")):
        truth = {"bbx": [1, 2.5, 30, 40], "easy": [0], "hard": [2], "junk": [1]}
        for image in "abcq":
            photograph(root / folder / "jpg" / f"{image}.jpg", number)
        content = {"imlist": ["a", "b", "c"], "qimlist": ["q"], "gnd": [truth]}
        (root / folder / f"gnd_{folder}.pkl").write_bytes(pickle.dumps(content, 3))
    photograph(root / "revisitop1m" / "jpg" / "x" / "1.jpg")
    (root / "revisitop1m" / "revisitop1m.txt").write_text("jpg/x/1.jpg\n")


def landmarks(root: Path) -> None:
    base = root / "gldv2"
    for part, images in (("index", ("aaa1", "aab2")), ("test", ("t001", "t002"))):
        for image in images:
            photograph(base / part / image[0] / image[1] / image[2] / f"{image}.jpg")
    for name, text in (
        ("metadata/index.csv", "id\naaa1\naab2\n"),
        ("ground_truth/retrieval_solution_v2.1.csv", "id,images,Usage\nt001,aaa1,Public\nt002,aab2,Private\n"),
    ):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)


def products(root: Path) -> None:
    lines = ["image_id class_id super_class_id path", "1 7 1 a_final/0.JPG", "2 7 1 a_final/1.JPG"]
    folder = root / "sop" / "Stanford_Online_Products"
    for number in range(2):
        photograph(folder / "a_final" / f"{number}.JPG", number)
    (folder / "Ebay_test.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a few images of each official data set."""
    root = tmp_path_factory.mktemp("root")
    revisited(root)
    landmarks(root)
    products(root)
    return root


@pytest.mark.parametrize(
    "name", ["roxford", "rparis", "roxford+1m", "rparis+1m", "gldv2", "gldv2-public", "gldv2-private", "sop"]
)
def test_the_official_data_sets_conform(name: str, root: Path, tmp_path: Path) -> None:
    check_dataset(name, Place(root, tmp_path))
    check_dataset(name, Place(root, tmp_path, images=False))


def test_folders_conform(instances: Path, buildings: Path, tmp_path: Path) -> None:
    for path in (instances, buildings):
        check_dataset("folder", Place(tmp_path, tmp_path, path))


def test_generated_data_sets_conform(tmp_path: Path) -> None:
    """In small: what is drawn differs in number alone."""
    spec = DemoSpec(landmarks=1, views=2, distractors=1)
    small = dataset("demo", **SAID)(lambda place: demo.load(place.cache, place.progress, spec))
    check_dataset(small, Place(tmp_path, tmp_path / "demo"))
    for number in range(12):
        photograph(tmp_path / "photographs" / f"{number}.png", number)
    few = views.ViewsSpec(landmarks=2, views=2, distractors=2)
    made = dataset("views", **SAID, takes="PATH")(lambda place: views.load(place.path, place.cache, None, few))
    check_dataset(made, Place(tmp_path, tmp_path / "views", tmp_path / "photographs"))


def honest(place: Place) -> Dataset:
    """A query with a box and two gallery images."""
    gallery = {image: place.data / f"{image}.png" for image in ("a", "b")}
    queries = (Query("q", place.data / "q.png", (10, 5, 60, 40)),)
    return Dataset(place.name, "instance", "v1", queries, gallery, {"q": {"a": "easy"}})


def shuffled(place: Place) -> Dataset:
    images = random.sample(["a", "b"], 2) + [str(random.random())]
    return replace(honest(place), gallery=dict.fromkeys(("a", *images), place.data / "a.png"))


def as_listed(place: Place) -> Dataset:
    return replace(honest(place), gallery={Path(file).stem: place.data / file for file in os.listdir(place.data)})


def as_scanned(place: Place) -> Dataset:
    with os.scandir(place.data) as entries:
        return replace(honest(place), gallery={Path(entry.name).stem: Path(entry.path) for entry in entries})


def as_globbed(place: Place) -> Dataset:
    return replace(honest(place), gallery={file.stem: file for file in place.data.glob("*.png")})


def changed(**more: Any) -> Callable[[Place], Dataset]:
    return lambda place: replace(honest(place), **more)


def boxed(*box: float) -> Callable[[Place], Dataset]:
    return lambda place: replace(honest(place), queries=(Query("q", place.data / "q.png", box),))  # type: ignore[arg-type]


MUTANTS: dict[str, tuple[Callable[[Place], Dataset], str]] = {
    "no file": (changed(gallery={"a": Path("/nowhere/a.png")}), "/nowhere/a.png is no file"),
    "a box beyond": (boxed(10, 5, 90, 40), "box .* of query 'q' does not lie inside"),
    "a box outside": (boxed(100, 100, 200, 200), "box .* of query 'q' does not lie inside"),
    "a box of fractions": (boxed(0.1, 0.1, 0.9, 0.9), "box .* of query 'q' does not lie inside"),
    "no positive": (changed(grades={"q": {"a": "junk"}}), "no query has a positive"),
    "no ground truth": (changed(grades={}), "no query has a positive"),
    "grades of nobody": (changed(grades={"q": {"a": "easy"}, "p": {"b": "easy"}}), "grades of 'p', which is no query"),
    "no version": (changed(image_set=""), "image_set is empty"),
    "an id that is no text": (changed(gallery={"a": Path(), "\udcff": Path()}), "is no text"),
    "an empty id": (changed(gallery={"a": Path(), "": Path()}), "is no text"),
    "by chance": (shuffled, "the gallery, or its order, differs"),
    "as listed": (as_listed, "the gallery, or its order, differs"),
    "as scanned": (as_scanned, "the gallery, or its order, differs"),
    "as globbed": (as_globbed, "the gallery, or its order, differs"),
    "others without images": (
        lambda place: replace(honest(place), grades={"q": {"a" if place.images else "b": "easy"}}),
        "queries or grades differ where photographs need not be here",
    ),
}


@pytest.fixture
def here(tmp_path: Path) -> Place:
    for image in "abq":
        photograph(tmp_path / "data" / f"{image}.png")
    return Place(tmp_path / "data", tmp_path)


def declared(read: Callable[[Place], Dataset]) -> Loader:
    return dataset("tried", **SAID)(read)


def test_an_honest_data_set_conforms(here: Place) -> None:
    listed = os.listdir, os.scandir
    check_dataset(declared(honest), here)
    noted = changed(notes=("Query boxes that reach beyond their image were cut to it: q.",))
    wide = declared(lambda place: replace(noted(place), queries=boxed(10, 5, 90, 40)(place).queries))
    check_dataset(wide, here)
    assert (os.listdir, os.scandir) == listed


@pytest.mark.parametrize("what", list(MUTANTS))
def test_a_broken_promise_is_caught(what: str, here: Place) -> None:
    read, says = MUTANTS[what]
    with pytest.raises(AssertionError, match=f"tried: .*{says}"):
        check_dataset(declared(read), here)


def test_a_data_set_that_cannot_be_read_is_the_users_to_mend(here: Place) -> None:
    with pytest.raises(UserError, match="0 queries"):
        check_dataset(declared(changed(queries=())), here)
    with pytest.raises(UserError, match="unknown data set 'nothing'"):
        check_dataset("nothing", here)
