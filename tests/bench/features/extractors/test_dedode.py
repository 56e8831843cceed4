"""DeDoDe with random weights of its layout: where its keypoints are, what its descriptors are of, what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.feature import DeDoDe as Network
from torch import Tensor

from bench.conformance import check_extractor
from bench.errors import UserError
from bench.extractor import waits, weights_of
from bench.features.extractors.dedode import DIM, SMALLEST, DeDoDe
from bench.features.sets import SetName
from third_party.kornia_weights import dedode_files, load_dedode
from third_party.released import OFFLINE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Random weights of a detector and of a descriptor, as their authors save them."""
    folder = tmp_path_factory.mktemp("dedode")
    torch.manual_seed(0)
    network = Network(detector_model="L", descriptor_model="B")
    paths = (folder / "detector.pth", folder / "descriptor.pth")
    for part, path in zip((network.detector, network.descriptor), paths, strict=True):
        torch.save(part.state_dict(), path)
    return paths


@pytest.fixture(scope="module", autouse=True)
def undrawn(weights: tuple[Path, Path]) -> Iterator[None]:
    """Networks that are made here have their weights loaded: the millions of numbers they begin with are not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_"):
            patch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
        yield


@pytest.fixture(scope="module")
def extractor(weights: tuple[Path, Path]) -> DeDoDe:
    return DeDoDe(DeDoDe.Options(weights, descriptors=30), CPU)


def brightness(images: Tensor) -> Tensor:
    """In place of the detector: the brightest pixel is the best."""
    return 4 * images.mean(dim=1, keepdim=True)


def places(images: Tensor) -> Tensor:
    """In place of the descriptor: 1, and the column and the row of a pixel."""
    (n, _, height, width), maps = images.shape, torch.zeros(len(images), DIM, *images.shape[-2:])
    maps[:, 0] = 1
    maps[:, 1] = torch.arange(width).expand(n, height, width)
    maps[:, 2] = torch.arange(height)[:, None].expand(n, height, width)
    return maps


@pytest.mark.parametrize("place", [(0, 0), (59, 44), (37, 22), (0, 44)])
def test_a_keypoint_is_the_pixel_that_is_detected_and_described(
    place: tuple[int, int], extractor: DeDoDe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractor, "_descriptors", 1)
    monkeypatch.setattr(extractor._model.detector, "forward", brightness)
    monkeypatch.setattr(extractor._model.descriptor, "forward", places)
    (column, row), image = place, np.zeros((45, 60, 3), dtype=np.uint8)
    image[row, column] = 255
    found = extractor(image)
    np.testing.assert_array_equal(found.keypoints, [[column, row]])
    np.testing.assert_allclose(found.descriptors[0, 1:3] / found.descriptors[0, 0], [column, row], atol=1e-2)


def test_features_are_unit_vectors_at_whole_pixels_the_best_first(
    view: Callable[[int, int], np.ndarray], extractor: DeDoDe, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = view(1, 0)[:70, :84]
    found = extractor(image)
    assert len(found.scores) == 30 and (np.diff(found.scores) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.keypoints, found.keypoints.round())
    assert found.keypoints.min() >= 0 and (found.keypoints < [84, 70]).all()
    assert len(np.unique(found.keypoints, axis=0)) == 30
    monkeypatch.setattr(extractor, "_descriptors", 7)
    few = extractor(image)
    np.testing.assert_array_equal(few.keypoints, found.keypoints[:7])


def test_the_weights_of_the_files_are_those_that_are_used(weights: tuple[Path, Path], extractor: DeDoDe) -> None:
    network = extractor._model
    for part, path in zip((network.detector, network.descriptor), weights, strict=True):
        assert all(torch.equal(part.state_dict()[name], tensor) for name, tensor in torch.load(path).items())
        assert not part.training


@pytest.mark.parametrize("shape", [(1, 1), (SMALLEST - 1, 40), (40, SMALLEST - 1)])
def test_images_too_small_to_be_pooled_have_no_keypoints(shape: tuple[int, int], extractor: DeDoDe) -> None:
    assert extractor(np.full((*shape, 3), 90, dtype=np.uint8)).descriptors.shape == (0, DIM)


def test_the_smallest_image_that_is_read_has_keypoints(extractor: DeDoDe) -> None:
    assert extractor(np.full((SMALLEST, SMALLEST, 3), 90, dtype=np.uint8)).descriptors.shape == (30, DIM)


def test_random_weights_conform(weights: tuple[Path, Path]) -> None:
    check_extractor(DeDoDe, DeDoDe.Options(weights))


def test_files_that_are_not_its_own_are_refused(weights: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"descriptor\.pth: .*(missing|has shape)"):
        load_dedode(weights[::-1], CPU)
    with pytest.raises(UserError, match=r"1 weights files, expected DETECTOR,DESCRIPTOR"):
        SetName.parse(f"dedode:{weights[0]}")


def test_the_files_decide_the_name(weights: tuple[Path, Path]) -> None:
    given = SetName.parse(f"dedode:{weights[0]},{weights[1]}").parts[0].key
    assert given.startswith("dedode-") and given != SetName.parse("dedode").parts[0].key


def test_without_weights_every_way_to_them_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv(OFFLINE, "1")
    assert "fetched on first use" in str(waits(DeDoDe, DeDoDe.Options()))
    with pytest.raises(UserError) as caught:
        weights_of(DeDoDe, DeDoDe.Options())
    assert "dedode:weights=DETECTOR,DESCRIPTOR" in str(caught.value) and OFFLINE in str(caught.value)
    for file in dedode_files():
        place = file._fetched()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"put there by hand")
    assert waits(DeDoDe, DeDoDe.Options()) is None
    assert weights_of(DeDoDe, DeDoDe.Options()) == tuple(file._fetched() for file in dedode_files())
