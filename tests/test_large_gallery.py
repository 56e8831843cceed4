"""What a run holds of each image of a large gallery, and how often it asks for its file."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.datasets.catalogue import load
from bench.datasets.revisited import load as load_revisited
from bench.features.items import Item, items
from bench.features.precision import PRECISIONS
from bench.features.shards import write_shard
from bench.features.store import FeatureStore, Places
from bench.places import Places as Folders
from bench.prepare import prepare
from bench.setup import Selection, Setup
from tests.speed.scale import DATASET, FEATURES, lay_out, write_features

FEW, MANY = 20_000, 60_000
SHARD = 8_192


def most(work: Callable[[], Any]) -> int:
    """Bytes that were held at most meanwhile."""
    tracemalloc.start()
    work()
    _, found = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found


def key(number: int) -> str:
    return f"1m/{number // 1000:03d}/{number:07d}"


def keys(count: int) -> Iterator[str]:
    return map(key, range(count))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MANY images, of two local descriptors and a global one of four values each."""
    folder = tmp_path_factory.mktemp("large") / "store"
    (folder / "shards").mkdir(parents=True)
    (folder / "set.json").write_text("{}")
    for start in range(0, MANY, SHARD):
        numbers = range(start, min(start + SHARD, MANY))
        listed = [{"key": key(n), "sha256": f"{n:064d}", "stat": (n, n), "box": None, "error": None} for n in numbers]
        arrays = [
            {
                "descriptors": np.ones((n % 3, 2)),
                "keypoints": np.zeros((n % 3, 2)),
                **{name: np.ones(n % 3) for name in ("scales", "orientations", "scores")},
                "global_descriptor": np.array([n, 1, 2, 3]),
                "image_size": np.array([6, 4]),
            }
            for n in numbers
        ]
        write_shard(folder, listed, arrays, PRECISIONS["float16"])
    assert len(FeatureStore(folder)) == MANY  # its index is made
    return folder


def through(store: FeatureStore, count: int) -> None:
    vectors = store.vectors(keys(count))
    assert len(vectors.rows(np.array([count - 1, 0]))) == 2
    for _ in vectors.blocks(1024):
        pass


GONE_THROUGH: dict[str, tuple[float, Callable[[FeatureStore, int], object]]] = {  # bytes an image at most
    "contents": (0.5, lambda store, count: store.content(keys(count))),
    "what is stale": (0.5, lambda store, count: list(store.stale(Item(key(n), (), stat=(n, n)) for n in range(count)))),
    "copies": (0.5, lambda store, count: store.copies([key(0)], keys(count))),
    "global descriptors": (0.5, through),
    "numbers of descriptors": (8.5, lambda store, count: store.counts(keys(count))),
}


@pytest.mark.parametrize("what", list(GONE_THROUGH))
def test_going_through_a_store_does_not_hold_its_images(store: Path, what: str) -> None:
    allowed, work = GONE_THROUGH[what]
    opened = FeatureStore(store)
    work(opened, MANY)  # files are open
    few, many = (most(lambda count=count: work(opened, count)) for count in (FEW, MANY))
    assert (many - few) / (MANY - FEW) < allowed


def test_images_that_follow_one_another_have_one_place() -> None:
    draw = np.random.default_rng(0)
    pairs = [(shard, row) for shard in (1, 0, 0, 2) for row in range(shard, 50)]
    mixed = [pairs[number] for number in draw.permutation(len(pairs))]
    for some in (pairs, mixed, [], [(0, 0), (0, 0), (1, 1)]):
        places, numbers = Places(some), draw.permutation(len(some))
        assert len(places) == len(some)
        assert places.at(numbers).tolist() == [list(some[number]) for number in numbers]
    few, many = (most(lambda count=count: Places((0, row) for row in range(count))) for count in (1_000, 50_000))
    assert many - few < 20_000  # 49,000 places more; what comes and goes with nothing is some thousand bytes


def test_a_data_set_is_read_without_holding_the_names_of_its_images(tmp_path: Path) -> None:
    lay_out(tmp_path, 1_000)
    listed = tmp_path / "revisitop1m" / "revisitop1m.txt"

    def read(count: int) -> None:
        assert len(load_revisited(DATASET, tmp_path, images=False).gallery) == 1_000 + count

    found = []
    for count in (FEW, MANY):
        listed.write_text("".join(f"{name.removeprefix('1m/')}.jpg\n" for name in keys(count)))
        found.append(most(lambda count=count: read(count)))
    # 26 bytes an image are kept, and about as many needed meanwhile; a name alone would be 63
    assert (found[1] - found[0]) / (MANY - FEW) < 60


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was asked for."""
    found: Counter[str] = Counter()
    ask = os.stat

    def count(path: Any, *given: Any, **more: Any) -> os.stat_result:
        found[str(path)] += 1
        return ask(path, *given, **more)

    monkeypatch.setattr(os, "stat", count)
    return found


def test_each_file_is_asked_for_once_whatever_is_read_and_a_changed_one_is_noticed(
    tmp_path: Path, asked: Counter[str]
) -> None:
    folders = Folders(tmp_path / "cache", tmp_path / "data", tmp_path / "runs")
    lay_out(folders.data, 1_100)
    write_features(folders)
    asked.clear()
    ready = prepare(Setup(DATASET, FEATURES, first_stage="gem-lite0"), [Selection(("identity", "mnn"))], folders, None)
    distractors = [file for image, file in ready.scorer.dataset.gallery.items() if image.startswith("1m/")]
    assert len(ready.contents) == 2 and len(distractors) == 100
    assert [asked[str(file)] for file in distractors] == [1] * 100

    distractors[7].write_bytes(b"no picture")
    again = load(DATASET, folders)
    for known in (True, False):
        (part,) = (folders.cache / "features").glob("*xfeat*")
        stale = [item.key for item, _ in FeatureStore(part).stale(items(again, asked=known))]
        assert stale == [list(again.gallery)[1_007]]
