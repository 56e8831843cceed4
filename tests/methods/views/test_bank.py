"""The bank of views: what is extracted, kept, and known of each view."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from methods._views import bank
from methods._views.bank import KEPT, BankOptions, build_bank


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(30):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        (tmp_path / "photos").mkdir(exist_ok=True)
        small.resize((160, 120), Image.Resampling.NEAREST).save(tmp_path / "photos" / f"{i:02d}.png")
    return tmp_path / "photos"


class Extractor:
    """Random features, as many as an image is wide; counts its images."""

    seen = 0

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, image: np.ndarray, ratio: float = 1.0) -> dict[str, np.ndarray]:
        Extractor.seen += 1
        rng, n = np.random.default_rng(int(image.sum())), 10
        return {
            "global_descriptor": rng.normal(size=8),
            "descriptors": rng.normal(size=(n, 4)),
            "keypoints": rng.uniform(0, 50, (n, 2)),
        }


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.features import sets

    Extractor.seen = 0
    monkeypatch.setattr(sets, "FeatureExtractor", Extractor)


def test_every_photograph_is_seen_so_often_and_every_20th_is_held_out(photos: Path, tmp_path: Path) -> None:
    found = build_bank(BankOptions(photos=photos, views=2), tmp_path / "bank")
    assert len(found) == 60 == Extractor.seen and found.local.shape == (60, KEPT, 4)
    assert found.groups.tolist() == np.repeat(np.arange(30), 2).tolist()
    assert set(found.groups[found.held_out].tolist()) == {0, 20}


def test_finished_shards_are_not_extracted_again(photos: Path, tmp_path: Path) -> None:
    options = BankOptions(photos=photos, views=2)

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bank(options, tmp_path / "bank", progress=stop)
    assert Extractor.seen == 50  # the first of two shards
    whole = build_bank(options, tmp_path / "bank")
    assert Extractor.seen == 60
    assert build_bank(options, tmp_path / "bank").digest() == whole.digest() and Extractor.seen == 60


def test_the_bank_knows_which_photographs_fill_a_view(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    before = bank._open

    def note(file: Path) -> Image.Image:
        opened.append(int(file.stem))
        return before(file)

    monkeypatch.setattr(bank, "_open", note)
    found = build_bank(BankOptions(photos=photos, limit=3, views=2), tmp_path / "bank")
    wanted = iter(opened)
    for number in range(3):
        assert next(wanted) == number
        for view in range(2):
            assert found.shows[2 * number + view].tolist() == [number, next(wanted), next(wanted)]


def test_views_share_what_either_shows(photos: Path, tmp_path: Path) -> None:
    found = build_bank(BankOptions(photos=photos, views=2), tmp_path / "bank")
    everything = np.arange(len(found))
    share = found.share(everything, everything)
    for one in range(0, 60, 7):
        for two in range(60):
            assert share[one, two] == bool(set(found.shows[one]) & set(found.shows[two]))


def test_buildings_share_nothing_with_photographs_and_whole_seeds_can_be_held_out(photos: Path, tmp_path: Path) -> None:
    options = BankOptions(photos=photos, limit=2, views=2, generated=(5,), checked_on=(6,), landmarks=2, distractors=2)
    found = build_bank(options, tmp_path / "bank")
    buildings = found.shows[:, 0] < 0
    assert buildings.sum() > 20 and found.groups[~buildings].max() == 24  # a whole shard
    first = len(build_bank(replace(options, checked_on=()), tmp_path / "bank"))
    one, two = np.flatnonzero(buildings)[: first - 50], np.arange(first, len(found))
    assert found.held_out[two].all() and not found.held_out[one].all()
    assert not found.share(np.flatnonzero(~buildings), np.flatnonzero(buildings)).any()
    same = found.groups[one][:, None] == found.groups[np.flatnonzero(buildings)]
    assert (found.share(one, np.flatnonzero(buildings)) == same).all()
