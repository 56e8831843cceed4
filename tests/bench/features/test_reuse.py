"""The same photographs elsewhere, or under other names, are not extracted again; changed ones are."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.datasets import folder as folders
from bench.features import reuse
from bench.features.extract import ExtractOptions
from bench.features.fill import ExtractReport, fill
from bench.features.items import Item
from bench.features.sets import Progress, SetName, Stores, part_folder
from bench.features.shards import Entry
from bench.features.store import FeatureStore
from bench.images import Box
from bench.places import Places

Photos = Mapping[str, bytes]


class Cache:
    """A folder of stores, and what was read into them."""

    def __init__(self, root: Path, precision: str = "float16"):
        self.root, self.precision, self.read = root, precision, list[str]()

    def fill(
        self,
        name: str,
        photos: Path,
        boxes: Mapping[str, Box] | None = None,
        version: int = 1,
        reuse: bool = True,
    ) -> ExtractReport:
        """Bring the store of that name up to date with the files of a folder; `read` has the keys of what was read."""
        self.read = []
        files = sorted(path for path in photos.iterdir())
        wanted = [Item(path.stem, (path,), (boxes or {}).get(path.stem)) for path in files]
        identity = {"made": "from bytes", "version": version, "precision": self.precision}
        return fill(wanted, self.root / name, lambda: self._entry, identity, reuse=reuse)

    def _entry(self, item: Item) -> Entry:
        self.read.append(item.key)
        data = item.files[0].read_bytes()
        draw = np.random.default_rng(list(hashlib.sha256(data + str(item.box).encode()).digest()))
        n = int(draw.integers(0, 5))
        rows = draw.normal(size=(n, 16))
        arrays = {
            "global_descriptor": draw.normal(size=4),
            "descriptors": rows / np.linalg.norm(rows, axis=1, keepdims=True),
            "keypoints": draw.uniform(0, 9, (n, 2)),
            "scales": np.ones(n),
            "orientations": np.zeros(n),
            "scores": np.linspace(1, 0, n),
            "image_size": np.array([10, 8]),
        }
        error = "no image" if data.startswith(b"damaged") else None
        return Entry(hashlib.sha256(data).hexdigest(), arrays, error, (1.0, float(draw.integers(2, 9))))

    def store(self, name: str) -> FeatureStore:
        return FeatureStore(self.root / name)


def alike(one: FeatureStore, key: str, other: FeatureStore, other_key: str) -> bool:
    """Whether two images have equal features, contents and times of extraction."""
    pairs = zip(vars(one.read(key)).values(), vars(other.read(other_key)).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and one.times([key]) == other.times([other_key])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(5):
        (place / f"p{number}.jpg").write_bytes(bytes([number]) * 100)  # all of one size
    return place


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "features")


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_photographs_that_were_moved_are_not_read_again(photos: Path, tmp_path: Path, precision: str) -> None:
    cache = Cache(tmp_path / "features", precision)
    cache.fill("one", photos)
    assert cache.read == ["p0", "p1", "p2", "p3", "p4"]
    moved = photos.rename(tmp_path / "elsewhere")
    report = cache.fill("other", moved)
    assert (cache.read, report.extracted) == ([], 0)
    assert report.notes == (
        f"5 images with contents that were extracted before: features taken from {tmp_path / 'features' / 'one'}",
    )
    one, other = cache.store("one"), cache.store("other")
    assert all(alike(one, key, other, key) for key in one) and len(other) == 5
    assert one.content(sorted(one)) == other.content(sorted(other))
    assert one.dims == other.dims == (16, 4)
    assert cache.fill("other", moved).notes == () and cache.read == []


def test_copies_are_found_and_only_a_changed_one_is_read_again(photos: Path, cache: Cache, tmp_path: Path) -> None:
    cache.fill("one", photos)
    copy = shutil.copytree(photos, tmp_path / "copy")
    data = bytearray((copy / "p2.jpg").read_bytes())
    data[50] ^= 1
    (copy / "p2.jpg").write_bytes(data)
    report = cache.fill("other", copy)
    assert (cache.read, report.extracted) == (["p2"], 1)
    assert report.notes[0].startswith("4 images with contents")
    assert not alike(cache.store("one"), "p2", cache.store("other"), "p2")


def test_a_touched_photograph_is_not_read_again_and_one_of_the_same_size_and_other_bytes_is(
    photos: Path, cache: Cache
) -> None:
    cache.fill("one", photos)
    os.utime(photos / "p1.jpg", ns=(1, 1))
    assert cache.fill("one", photos).notes == () and cache.read == []
    (photos / "p1.jpg").write_bytes(b"\xff" * 100)
    report = cache.fill("one", photos)
    assert cache.read == ["p1"] and "p1.jpg changed since its features were stored" in report.notes[0]


def test_renamed_photographs_and_exchanged_ones_keep_their_features(photos: Path, cache: Cache) -> None:
    cache.fill("one", photos)
    before = cache.store("one")
    (photos / "p0.jpg").rename(photos / "new.jpg")
    (photos / "p1.jpg").rename(photos / "x")
    (photos / "p2.jpg").rename(photos / "p1.jpg")
    (photos / "x").rename(photos / "p2.jpg")
    report = cache.fill("one", photos)
    after = cache.store("one")
    assert cache.read == [] and "other names of this data set" in report.notes[0]
    assert report.notes[0].startswith("3 images with")
    for old, new in (("p0", "new"), ("p1", "p2"), ("p2", "p1"), ("p3", "p3")):
        assert alike(before, old, after, new)


def test_another_box_is_another_image(photos: Path, cache: Cache) -> None:
    cache.fill("one", photos, {"p0": (0, 0, 5, 5), "p1": (0, 0, 5, 5)})
    cache.fill("other", photos, {"p0": (0, 0, 5, 5), "p1": (0, 0, 5, 6), "p2": (0, 0, 5, 5)})
    assert cache.read == ["p1", "p2"]


def test_features_that_were_made_otherwise_are_not_taken(photos: Path, cache: Cache) -> None:
    cache.fill("one", photos)
    cache.fill("other", photos, version=2)
    assert len(cache.read) == 5
    cache.fill("third", photos, reuse=False)
    assert len(cache.read) == 5


def test_a_photograph_that_failed_is_tried_again_elsewhere(photos: Path, cache: Cache) -> None:
    (photos / "p3.jpg").write_bytes(b"damaged")
    cache.fill("one", photos)
    report = cache.fill("other", photos)
    assert cache.read == ["p3"] and report.unreadable == {"p3": "no image"}


def test_files_of_unknown_sizes_are_not_read_to_compare_them(
    photos: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fill("one", photos)
    others = tmp_path / "others"
    others.mkdir()
    (others / "short.jpg").write_bytes(b"short")
    (others / "p9.jpg").write_bytes(b"\x09" * 100)
    compared = []

    def content(files: tuple[Path, ...]) -> str:
        compared.append(files[0].name)
        return hashlib.sha256(files[0].read_bytes()).hexdigest()

    monkeypatch.setattr(reuse, "content", content)
    cache.fill("other", others)
    assert (compared, cache.read) == (["p9.jpg"], ["p9", "short"])


def test_what_lies_beside_a_store_and_is_none_is_passed_over(photos: Path, cache: Cache) -> None:
    cache.fill("one", photos)
    (cache.root / "file").write_text("no folder")
    (cache.root / "empty").mkdir()
    (cache.root / "broken").mkdir()
    (cache.root / "broken" / "set.json").write_text("{")
    shutil.copytree(cache.root / "one", cache.root / "damaged")
    for path in (cache.root / "damaged" / "shards").glob("*/descriptors.npy"):
        path.write_bytes(b"")
    cache.fill("other", photos)
    assert cache.read == []


def test_a_store_that_is_removed_meanwhile_costs_an_extraction(
    photos: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fill("one", photos)
    plain = reuse._found

    def found(*given: object) -> object:
        result = plain(*given)  # type: ignore[arg-type]
        shutil.rmtree(cache.root / "one")
        return result

    monkeypatch.setattr(reuse, "_found", found)
    report = cache.fill("other", photos)
    assert len(cache.read) == 5 and report.notes == ()


CHANGES = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([None, b"a", b"b", b"cc", b"dd", b"damaged"])), max_size=8
)


@settings(max_examples=40, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=4), st.booleans())
@example([[(0, b"a")], [(0, None)]], True)
def test_whatever_came_before_a_store_holds_what_a_new_one_would(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list], same: bool
) -> None:
    root = tmp_path_factory.mktemp("reuse")
    photos, cache, alone = root / "photos", Cache(root / "features"), Cache(root / "alone")
    photos.mkdir()
    contents: dict[str, bytes] = {}
    for number, changes in enumerate(rounds):
        for key, data in changes:
            path = photos / f"p{key}"
            path.unlink(missing_ok=True)
            contents.pop(path.name, None)
            if data is not None:
                path.write_bytes(data)
                os.utime(path, ns=(number + 1, number + 1))  # a clock may stand still between two rounds
                contents[path.name] = data
        name = "one" if same else f"store{number}"
        cache.fill(name, photos)
        alone.fill(f"alone{number}", photos, reuse=False)
        found, fresh = cache.store(name), alone.store(f"alone{number}")
        assert all(alike(found, key, fresh, key) for key in contents)
        if contents:  # a store that never had an image has no identity yet
            assert found.content(sorted(contents)) == fresh.content(sorted(contents))


def test_a_data_set_that_was_moved_has_the_features_of_before(
    write_instances: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, places = ExtractOptions(160, 50), Places.of(tmp_path / "cache")
    begun: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        begun.append(what)

    def stores(path: Path, watch: Progress) -> Stores:
        return Stores(folders.load(path), options, torch.device("cpu"), places, watch)

    name = SetName.parse("xfeat")
    images = write_instances(tmp_path / "images", 2, 2)
    before = stores(images, progress)
    first = before.of(name)
    keys = list(before.dataset.gallery)
    assert begun and before.report().extracted == len(keys)
    moved = images.rename(tmp_path / "moved")
    begun.clear()
    after = stores(moved, progress)
    second = after.of(name)
    assert begun == [] and after.report().extracted == 0 and len(after.report().notes) == 2
    assert second.content(lambda: keys) == first.content(lambda: keys)
    assert part_folder(after.dataset.name, name.parts[0], options, places).is_dir()
