"""A store finds its images whatever happened to its index, and whenever merging was killed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.errors import UserError
from bench.features import fill as filling
from bench.features import shards
from bench.features.fill import fill
from bench.features.index import NAME, Index
from bench.features.items import Item
from bench.features.shards import Entry, left_over
from bench.features.store import FeatureStore
from tests.programs import Start

IDENTITY = {"features": "made", "local_dim": 12}


def made(key: str, dim: int = 12) -> Entry:
    """Features that differ by key; some images have none."""
    draw = np.random.default_rng(int.from_bytes(key.encode(), "big") % 2**32)
    n = int(draw.integers(0, 4))
    rows = draw.normal(size=(n, dim))
    return Entry(
        "",
        {
            "global_descriptor": draw.normal(size=5),
            "descriptors": rows / np.linalg.norm(rows, axis=1, keepdims=True),
            "keypoints": draw.uniform(0, 9, (n, 2)),
            "scales": np.ones(n),
            "orientations": np.zeros(n),
            "scores": np.linspace(1, 0, n),
            "image_size": np.array([10, 8]),
        },
        "made so" if key.endswith("5") else None,
    )


def written(folder: Path, keys: list[str], identity: dict | None = None, make: Callable = made) -> FeatureStore:
    identity = identity or IDENTITY
    fill([Item(key, ()) for key in keys], folder, lambda: lambda item: make(item.key), identity)
    return FeatureStore(folder)


def content(store: FeatureStore, keys: list[str]) -> list[list[list[float]]]:
    found = []
    for key in keys:
        features = store.read(key)
        found.append([np.asarray(value).tolist() for value in vars(features).values()])
    return found


KEYS = [f"image {i}" for i in range(23)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SHARD_IMAGES", 2)
    monkeypatch.setattr(shards, "MERGED", 3)


def test_merged_shards_hold_the_same_bit_for_bit(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = written(tmp_path / "merged", KEYS)
    monkeypatch.setattr(shards, "MERGED", 1000)
    plain = written(tmp_path / "plain", KEYS)
    names = sorted(path.name for path in (tmp_path / "merged" / "shards").iterdir())
    assert names == ["000000-000002", "000003-000005", "000006-000008", "000009-000011"]
    assert len(list((tmp_path / "plain" / "shards").iterdir())) == 12
    assert content(merged, KEYS) == content(plain, KEYS)
    assert list(merged) == list(plain) == KEYS and len(merged) == 23
    assert merged.content(KEYS) == plain.content(KEYS)
    assert merged.counts(KEYS).tolist() == [plain.count(key) for key in KEYS]
    assert np.array_equal(merged.global_descriptors(KEYS[::-1]), plain.global_descriptors(KEYS)[::-1])
    assert merged.errors() == {key: "made so" for key in KEYS if key.endswith("5")}
    assert merged.error("image 5") == "made so" and merged.error("image 4") is None


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import shutil, os
from bench.features import fill as filling
from bench.features import shards
from test_index import KEYS, written
filling.SHARD_IMAGES, shards.MERGED = 2, 1000
folder, calls = Path(sys.argv[1]), 0
written(folder, KEYS)
def counted(call):
    def counting(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            os._exit(9)
        return call(*arguments, **options)
    return counting
for at in map(int, sys.argv[2:]):  # a process each, of one that has imported what it needs
    if (child := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    sys.exit()
folder = Path(shutil.copytree(folder, folder.with_name(f"killed-{{at}}")))
shards.MERGED = 3
shards.np.save, Path.rename, shutil.rmtree = map(counted, (shards.np.save, Path.rename, shutil.rmtree))
Path.write_text = counted(Path.write_text)
shards.merge(folder)
"""


ENDS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 13)  # of the calls that merging makes, the one that is not made any more


@pytest.fixture(scope="module")
def killed_stores(program: Start, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By where a merging process was killed: what it left."""
    place = tmp_path_factory.mktemp("stores") / "whole"
    code = KILLED.format(tests=str(Path(__file__).parent))
    done = program("-c", code, str(place), *map(str, ENDS)).finish()
    assert done.stdout.split() == ["9"] * len(ENDS), done.stderr
    return {at: place.with_name(f"killed-{at}") for at in ENDS}


@pytest.mark.parametrize("at", ENDS)
def test_a_process_killed_while_merging_loses_no_image(tmp_path: Path, killed_stores: dict[int, Path], at: int) -> None:
    plain = written(tmp_path / "plain", KEYS)
    killed = FeatureStore(killed_stores[at])
    assert list(killed) == KEYS and content(killed, KEYS) == content(plain, KEYS)
    written(killed_stores[at], KEYS)  # nothing is new, and what was left goes all the same
    assert not left_over(killed_stores[at])
    again = written(killed_stores[at], [*KEYS, "another"])  # goes on as if nothing had been
    assert content(again, KEYS) == content(plain, KEYS) and "another" in again


def test_a_later_shard_replaces_an_image_of_an_earlier_one_and_stays_so_when_merged(
    tmp_path: Path, small: None
) -> None:
    picture = tmp_path / "picture"
    picture.write_bytes(b"a")
    item, calls = Item("image 3", (picture,)), iter(["image 3", "other"])
    wanted = [Item(key, ()) for key in KEYS[:3]] + [item]
    fill(wanted, tmp_path / "s", lambda: lambda i: made(i.key if i.key != "image 3" else next(calls)), IDENTITY)
    picture.write_bytes(b"changed")
    report = fill(wanted, tmp_path / "s", lambda: lambda i: made(next(calls)), IDENTITY)
    assert report.extracted == 1 and "changed since" in report.notes[0]
    store = FeatureStore(tmp_path / "s")
    assert len(store) == 4 and len(list((tmp_path / "s" / "shards").iterdir())) == 1
    (whole,) = content(store, ["image 3"])
    reference = written(tmp_path / "r", ["other"])
    assert whole == content(reference, ["other"])[0]


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut", "another format", "of other shards"])
def test_the_index_is_made_anew_when_it_is_not_fresh(tmp_path: Path, small: None, damage: str) -> None:
    before = content(written(tmp_path / "s", KEYS), KEYS)
    path = tmp_path / "s" / NAME
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "of other shards":
        written(tmp_path / "other", KEYS[:5])
        shutil.copy(tmp_path / "other" / NAME, path)
    else:
        damaged = {"empty": b"", "garbage": b"SQLite format 3\0" * 99, "cut": whole[: len(whole) // 2]}
        path.write_bytes(damaged.get(damage, whole.replace(b"images INTEGER", b"imagos INTEGER")))
    store = FeatureStore(tmp_path / "s")
    assert list(store) == KEYS and content(store, KEYS) == before
    assert FeatureStore(tmp_path / "s")._index.find("image 7") is not None


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(tmp_path: Path, small: None) -> None:
    before = content(written(tmp_path / "s", KEYS), KEYS)
    (tmp_path / "s" / NAME).unlink()
    (tmp_path / "s" / NAME).mkdir()  # even root cannot write a file there
    store = FeatureStore(tmp_path / "s")
    assert content(store, KEYS) == before


def test_a_store_goes_to_another_process(tmp_path: Path, small: None) -> None:
    store = written(tmp_path / "s", KEYS)
    other = pickle.loads(pickle.dumps(store))
    assert content(other, KEYS) == content(store, KEYS)


def test_an_image_that_is_not_there_is_a_key_error(tmp_path: Path) -> None:
    store = written(tmp_path / "s", KEYS[:2])
    assert "nobody" not in store
    for ask in (store.read, store.count, lambda key: store.counts([key]), lambda key: store.content([key])):
        with pytest.raises(KeyError):
            ask("nobody")


def test_a_shard_that_vanishes_while_it_is_used_is_said(tmp_path: Path) -> None:
    store = written(tmp_path / "s", KEYS[:2])
    shutil.rmtree(tmp_path / "s" / "shards")
    with pytest.raises(UserError, match="removed while the store was in use"):
        store.read(KEYS[0])


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_a_store_in_use_finds_its_images_where_another_process_merged_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: int
) -> None:
    """Some images were extracted twice, the second time by themselves, and one came after the store was opened."""
    monkeypatch.setattr(filling, "SHARD_IMAGES", 2)
    folder = tmp_path / "s"
    items = {key: Item(key, ()) for key in KEYS}
    for again, key in enumerate(("", "image 3", "image 8", "image 3")):
        if key:
            items[key] = Item(key, (), box=(0, 0, again, again))
        fill(items.values(), folder, lambda: lambda item: made(f"{item.box}{item.key}"), IDENTITY)
    store, fresh = FeatureStore(folder), FeatureStore(shutil.copytree(folder, tmp_path / "fresh"))
    for key in KEYS[: 2 * opened]:
        store.read(key)
    monkeypatch.setattr(shards, "MERGED", 4)
    fill([*items.values(), Item("another", ())], folder, lambda: lambda item: made(item.key), IDENTITY)
    assert len(list((folder / "shards").iterdir())) < len(list((tmp_path / "fresh" / "shards").iterdir()))
    assert content(store, KEYS) == content(fresh, KEYS)
    assert store.counts(KEYS).tolist() == fresh.counts(KEYS).tolist() and store.dims == fresh.dims
    assert np.array_equal(store.global_descriptors(KEYS[::-1]), fresh.global_descriptors(KEYS[::-1]))
    for row, other in zip(store.rows(), fresh.rows(), strict=True):
        found, expected = store.stored(row), fresh.stored(other)
        assert found.entry == expected.entry and found.arrays.keys() == expected.arrays.keys()
        assert all(np.array_equal(found.arrays[name], expected.arrays[name]) for name in found.arrays)


def test_rows_are_found_in_any_order(tmp_path: Path, small: None) -> None:
    written(tmp_path / "s", KEYS)
    index = Index(tmp_path / "s")
    for keys in (KEYS, KEYS[::-1], KEYS[5:] + KEYS[:5], ["nobody", *KEYS[3:6], "nobody", KEYS[3]]):
        assert [None if row is None else row.key for row in index.rows(keys)] == [
            k if k in KEYS else None for k in keys
        ]


@pytest.mark.parametrize("precision", ["float16", "int8", "binary"])
def test_descriptors_are_stored_in_as_many_bytes_as_said(tmp_path: Path, precision: str) -> None:
    store = written(tmp_path / "s", KEYS, {**IDENTITY, "precision": precision})
    reference = written(tmp_path / "r", KEYS)
    size = {"float16": 24, "int8": 12, "binary": 2}[precision]
    (shard,) = (tmp_path / "s" / "shards").iterdir()
    stored = np.load(shard / "descriptors.npy")
    assert stored.nbytes == size * len(stored)
    assert store.bytes_per_image(frozenset({"local"}))[1] == size + 2 + 2  # and a scale and a score
    allowed = {"float16": 1e-3, "int8": 8e-3, "binary": 1.0}[precision]
    for key in KEYS:
        ours, theirs = store.read(key).descriptors, reference.read(key).descriptors
        assert ours.shape == theirs.shape
        if len(ours):
            assert float((ours - theirs).abs().max()) < allowed
            assert np.allclose(ours.norm(dim=1), 1, atol=2e-3)
            if precision == "binary":
                assert ((ours > 0) == (theirs > 0)).all()
    assert json.loads((tmp_path / "s" / "set.json").read_text())["precision"] == precision


@pytest.mark.parametrize("needs", [frozenset({"local"}), frozenset({"global"}), frozenset({"local", "keypoints"})])
def test_images_read_together_are_what_each_is_alone(tmp_path: Path, small: None, needs: frozenset[str]) -> None:
    store = written(tmp_path / "s", KEYS)
    chosen = [KEYS[9], KEYS[2], KEYS[9], KEYS[20], KEYS[5]]
    for together, key in zip(store.read_all(chosen, needs, lambda count: count // 2), chosen, strict=True):
        alone = store.read(key, needs, store.count(key) // 2)
        for name, value in vars(alone).items():
            assert np.array_equal(getattr(together, name), value), name
        assert len(together) == (store.count(key) // 2 if "local" in needs else 0)


def test_rows_that_are_not_sorted_are_refused(tmp_path: Path) -> None:
    def rising(key: str) -> Entry:
        entry = made("image 1")
        return Entry("", {**entry.arrays, "scores": np.arange(len(entry.arrays["scores"]), dtype=float)})

    assert len(made("image 1").arrays["scores"]) > 1
    store = written(tmp_path / "s", ["a"], make=rising)
    with pytest.raises(ValueError, match="not sorted"):
        store.read("a")
