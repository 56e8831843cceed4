"""Several images at once give the features that each gives alone, and never hide what a single one costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.conformance import check_extractor
from bench.datasets import Dataset, Query
from bench.errors import UserError
from bench.extractor import Card, extractor
from bench.features import extract as extracting
from bench.features.extract import ExtractOptions, Part, PartExtractor, extract
from bench.features.extractors.gem_lite0 import GemLite0
from bench.features.items import TIMED, Item, items
from bench.features.store import FeatureStore
from bench.options import NoOptions

SIZES = [(40, 60), (60, 40), (40, 60), (40, 60), (50, 50), (60, 40), (40, 60)]  # height, width


@extractor("counted", gives="global", version=1, global_dim=3, card=Card("a test", "MIT"))
class Counted:
    """The mean colour."""

    asked: list[int]  # how many images each call was given

    def __init__(self, options: NoOptions, device: torch.device):
        self.asked = Counted.asked

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self.asked.append(1)
        return self._of(image)

    def batch(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert len({image.shape for image in images}) == 1
        self.asked.append(len(images))
        return [self._of(image) for image in images]

    @staticmethod
    def _of(image: np.ndarray) -> np.ndarray:
        mean = image.reshape(-1, 3).mean(axis=0) + 1
        return (mean / np.linalg.norm(mean)).astype(np.float32)


@pytest.fixture
def photographs(tmp_path: Path) -> list[Item]:
    """Images of three sizes, the second of which cannot be read."""
    draw, found = np.random.default_rng(0), []
    for number, size in enumerate(SIZES):
        path = tmp_path / f"{number}.png"
        Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)).save(path)
        found.append(Item(str(number), (path,)))
    found[1].files[0].write_bytes(b"no image")
    Counted.asked = []
    return found


def stored(wanted: Sequence[Item], folder: Path, batch: int = 1) -> FeatureStore:
    part, options = Part(Counted, NoOptions()), ExtractOptions(batch=batch)
    extract(wanted, folder, lambda: PartExtractor(part, options), part.identity(options))
    return FeatureStore(folder)


def test_images_of_one_size_go_together_and_each_gets_its_own_features(photographs: list[Item], tmp_path: Path) -> None:
    together = stored(photographs, tmp_path / "together", 3)
    assert sorted(Counted.asked) == [1, 1, 1, 3]  # 40 x 60 thrice and once, 60 x 40, 50 x 50
    alone = stored(photographs, tmp_path / "alone", 1)
    keys = [item.key for item in photographs]
    assert np.array_equal(together.global_descriptors(keys), alone.global_descriptors(keys))
    assert len(np.unique(together.global_descriptors(keys), axis=0)) == len(SIZES)  # each of them is another image's
    assert together.errors().keys() == alone.errors().keys() == {"1"}
    assert together.content(keys) == alone.content(keys)  # how many at once is no part of what the features are


def test_one_at_a_time_is_the_rule(photographs: list[Item], tmp_path: Path) -> None:
    stored(photographs, tmp_path / "store")
    assert set(Counted.asked) == {1}


def test_only_images_that_went_alone_have_a_time(photographs: list[Item], tmp_path: Path) -> None:
    first = [Item(item.key, item.files, alone=item.key in "02") for item in photographs]
    store = stored(first, tmp_path / "store", 8)
    assert store.times(["0"]) is not None and store.times(["2"]) is not None
    assert store.times(["3"]) is None and store.times(["6"]) is None  # these two went together
    assert store.times(["4"]) is None  # no other has its size, but others were read beside it


def test_the_first_queries_of_a_data_set_go_alone_so_that_their_time_is_known(tmp_path: Path) -> None:
    gallery = {f"g{number}": tmp_path / f"g{number}.png" for number in range(5)}
    queries = tuple(Query(f"q{number}", tmp_path / f"q{number}.png") for number in range(TIMED + 3))
    data = Dataset("d", "instance", "v", queries, gallery, {})
    alone = [item.alone for item in items(data)]
    assert alone == [True] * TIMED + [False] * 3 + [False] * 5


def test_few_wait_where_images_are_large(
    photographs: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(photographs, tmp_path / "one" / "many", 8)
    assert sorted(Counted.asked) == [1, 1, 4]
    Counted.asked.clear()
    monkeypatch.setattr(extracting, "HELD", 3 * 40 * 60 * 3 - 1)  # the third image is too much: the largest group goes
    stored(photographs, tmp_path / "other" / "few", 8)  # beside no store that has them already
    assert sorted(Counted.asked) == [1, 1, 1, 3]


def test_an_extractor_that_gives_fewer_results_than_images_is_refused(
    photographs: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counted, "batch", lambda self, images: [self._of(images[0])])
    with pytest.raises(UserError, match=r"0\.png: the extractor 'counted' gave 1 results for 3 images at once"):
        stored(photographs, tmp_path / "store", 3)


def test_conformance_notices_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    Counted.asked = []
    check_extractor(Counted)
    monkeypatch.setattr(Counted, "batch", lambda self, images: [self._of(images[0])] * len(images))
    with pytest.raises(AssertionError, match="counted: several pictures at once give other global_descriptor"):
        check_extractor(Counted)


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(UserError, match="batch 0: expected at least 1 image at once"):
        ExtractOptions(batch=0)


def test_the_default_descriptor_is_the_same_at_once() -> None:
    draw = np.random.default_rng(1)
    images = [draw.integers(0, 256, (90, 120, 3), np.uint8) for _ in range(3)]
    model = GemLite0(NoOptions(), torch.device("cpu"))
    for one, many in zip(map(model, images), model.batch(images), strict=True):
        assert np.abs(one - many).max() < 1e-4 and np.linalg.norm(many) == pytest.approx(1, abs=1e-5)
