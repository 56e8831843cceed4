"""HardNet's extractors with random weights of their layout, against kornia's own and on pictures of known keypoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia.feature as kornia_feature
import numpy as np
import pytest
import torch
from kornia.feature import HardNet, KeyNetDetector, LAFAffNetShapeEstimator, OriNet, laf_is_filled

from bench.conformance import check_extractor
from bench.errors import UserError
from bench.extractor import LocalFeatures, waits, weights_of
from bench.features.extractors.dog_affnet_hardnet import DogAffnetHardnet
from bench.features.extractors.keynet_hardnet import KeynetHardnet
from bench.features.sets import SetName
from third_party.released import OFFLINE

CPU = torch.device("cpu")
FILES = {"dog-affnet-hardnet": ("affnet", "hardnet"), "keynet-hardnet": ("keynet", "orinet", "hardnet")}
CLASSES: dict[str, Any] = {"dog-affnet-hardnet": DogAffnetHardnet, "keynet-hardnet": KeynetHardnet}
KORNIAS = {"dog-affnet-hardnet": "DoGAffNetHardNet", "keynet-hardnet": "KeyNetHardNet"}
NAMES = list(FILES)
BOTH = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights as their authors save them: under "state_dict", and with what a training keeps beside them."""
    folder = tmp_path_factory.mktemp("hardnet")
    torch.manual_seed(1)  # with which Key.Net responds to a picture
    networks = {
        "keynet": KeyNetDetector(False).model,
        "orinet": OriNet(False),
        "affnet": LAFAffNetShapeEstimator(False),
        "hardnet": HardNet(False),
    }
    paths = {name: folder / f"{name}.pth" for name in networks}
    for name, network in networks.items():
        torch.save({"epoch": 9, "state_dict": network.state_dict()}, paths[name])
    # AffNet's last layer gives the shape itself: with no weight in it every region is a circle
    state = networks["affnet"].state_dict()
    state |= {key: torch.zeros_like(state[key]) for key in ("features.19.weight", "features.19.bias")}
    paths["circles"] = folder / "circles.pth"
    torch.save({"state_dict": state}, paths["circles"])
    return paths


def make(name: str, saved: dict[str, Path], descriptors: int = 40, **other: str) -> Any:
    files = tuple(saved[other.get(file, file)] for file in FILES[name])
    cls = CLASSES[name]
    return cls(cls.Options(files, descriptors), CPU)


@BOTH
def test_kornias_own_finds_and_describes_the_same(
    name: str, saved: dict[str, Path], view: Callable[[int, int], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_disk(addresses: list[str], **_: Any) -> dict[str, Any]:
        known = {"AffNet": "affnet", "OriNet": "orinet", "keynet": "keynet", "liberty": "hardnet"}
        (file,) = (file for part, file in known.items() if part in addresses[0].rpartition("/")[2])
        return torch.load(saved[file])

    for module in ("hardnet", "affine_shape", "orientation", "keynet"):
        monkeypatch.setattr(f"kornia.feature.{module}.load_state_dict_from_url", from_disk)
    image = view(1, 0)
    own = getattr(kornia_feature, KORNIAS[name])(num_features=40)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    grey = pixels.mul(torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    with torch.inference_mode():
        frames, scores, descriptors = own(grey)
    filled = laf_is_filled(frames)[0]
    found = make(name, saved)(image)
    assert len(found.scores) == int(filled.sum()) > 10
    np.testing.assert_allclose(found.keypoints, frames[0, filled, :, 2], atol=1e-3)
    np.testing.assert_allclose(found.scores, scores[0, filled], rtol=1e-3)
    np.testing.assert_allclose(found.descriptors, descriptors[0, filled], atol=1e-3)
    shape = frames[0, filled, :, :2]
    np.testing.assert_allclose(found.scales, torch.linalg.det(shape).abs().sqrt(), rtol=1e-3)
    turned = torch.atan2(shape[:, 0, 1], shape[:, 0, 0]).numpy() - found.orientations
    np.testing.assert_allclose(np.cos(turned), 1, atol=1e-4)


@BOTH
def test_features_are_sorted_unit_vectors_with_scale_and_orientation(
    name: str, saved: dict[str, Path], view: Callable[[int, int], np.ndarray]
) -> None:
    extract, image = make(name, saved), view(2, 0)
    found = extract(image)
    height, width = image.shape[:2]
    assert len(found.scores) > 10 and (np.diff(found.scores) <= 0).all() and (found.scores > 0).all()
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-4)
    assert (found.keypoints >= 0).all() and (found.keypoints <= [width - 1, height - 1]).all()
    assert (found.scales > 1).all() and len(np.unique(found.scales.round(2))) > 1
    assert (found.orientations >= 0).all() and (found.orientations < 2 * math.pi + 1e-6).all()
    assert len(np.unique(found.orientations)) > 5


def blob(x: float, y: float, sigma: float, side: int = 200) -> np.ndarray:
    """A bright Gaussian on black."""
    columns, rows = np.meshgrid(np.arange(side) - x, np.arange(side) - y)
    bright = 255 * np.exp(-(columns**2 + rows**2) / (2 * sigma**2))
    return np.rint(bright).astype(np.uint8)[..., None].repeat(3, axis=2)


@pytest.mark.parametrize("sigma", [4.0, 8.0])
def test_a_blob_is_found_at_its_centre_with_twelve_times_its_sigma(saved: dict[str, Path], sigma: float) -> None:
    """The sigma of a difference is the lower of its two, a third of an octave apart; the blob's is between them."""
    found = make("dog-affnet-hardnet", saved)(blob(90, 110, sigma))
    np.testing.assert_allclose(found.keypoints[0], [90, 110], atol=0.2)
    np.testing.assert_allclose(found.scales[0], 12 * sigma * 2 ** (-1 / 6), rtol=0.03)


def test_a_picture_turned_by_a_quarter_has_its_keypoints_turned_by_a_quarter(
    saved: dict[str, Path], view: Callable[[int, int], np.ndarray]
) -> None:
    image = view(1, 0)[:150, :150]
    extract = make("dog-affnet-hardnet", saved, affnet="circles")
    one, other = extract(image), extract(np.ascontiguousarray(np.rot90(image)))
    places = np.stack([one.keypoints[:, 1], image.shape[1] - 1 - one.keypoints[:, 0]], axis=1)
    gaps = np.linalg.norm(places[:, None] - other.keypoints[None], axis=2)
    nearest = gaps.argmin(axis=1)
    near = (gaps.min(axis=1) < 0.5) & (np.abs(np.log(one.scales / other.scales[nearest])) < 0.1)
    assert near.sum() > 10
    turned = other.orientations[nearest] - one.orientations - math.pi / 2
    assert np.median(1 - np.cos(turned[near])) < 0.02  # counter-clockwise


def lengths(found: LocalFeatures) -> set[int]:
    return {len(array) for array in vars(found).values()}


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (300, 5), (15, 15), (21, 40), (22, 22)])
def test_images_smaller_than_a_region_have_no_keypoints(
    name: str, shape: tuple[int, int], saved: dict[str, Path]
) -> None:
    found = make(name, saved)(np.full((*shape, 3), 90, dtype=np.uint8))
    assert lengths(found) == {0} and found.descriptors.shape == (0, 128)


@pytest.mark.parametrize("grey", [0, 60, 200])
def test_rounding_makes_no_blob_of_a_plain_image(grey: int, saved: dict[str, Path]) -> None:
    found = make("dog-affnet-hardnet", saved)(np.full((301, 211, 3), grey, dtype=np.uint8))
    assert lengths(found) == {0} and found.descriptors.shape == (0, 128)


def test_the_faintest_blob_is_found(saved: dict[str, Path]) -> None:
    faint = 90 + (blob(60, 60, 6, side=120) > 127).astype(np.uint8)  # a disc, one level brighter
    np.testing.assert_allclose(make("dog-affnet-hardnet", saved)(faint).keypoints[0], [60, 60], atol=0.5)


@BOTH
def test_random_weights_conform(name: str, saved: dict[str, Path]) -> None:
    cls = CLASSES[name]
    check_extractor(cls, cls.Options(tuple(saved[file] for file in FILES[name])))


@BOTH
def test_files_in_another_order_are_refused(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    cls, files = CLASSES[name], [saved[file] for file in FILES[name]]
    with pytest.raises(UserError, match=r"\.pth: .*(missing|has shape)"):
        cls(cls.Options(tuple(files[::-1])), CPU)
    noise = tmp_path / "noise.pth"
    noise.write_bytes(b"noise")
    with pytest.raises(UserError, match=r"noise\.pth"):
        cls(cls.Options((*files[:-1], noise)), CPU)
    with pytest.raises(UserError, match=r"weights files, expected [A-Z,]+ or none"):
        SetName.parse(f"{name}:{files[0]}")


def test_a_file_without_counts_of_batches_is_read(saved: dict[str, Path], tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    content = torch.load(saved["hardnet"])
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if not k.endswith("num_batches_tracked")}
    torch.save(content, old)
    image = blob(60, 60, 5, side=120)
    given, kept = make("dog-affnet-hardnet", {**saved, "hardnet": old})(image), make("dog-affnet-hardnet", saved)(image)
    np.testing.assert_array_equal(given.descriptors, kept.descriptors)


@BOTH
def test_without_weights_every_way_to_them_is_said(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv(OFFLINE, "1")
    cls = CLASSES[name]
    assert "fetched on first use" in str(waits(cls, cls.Options()))
    with pytest.raises(UserError) as caught:
        weights_of(cls, cls.Options())
    assert f"{name}:weights={','.join(FILES[name]).upper()}" in str(caught.value)
