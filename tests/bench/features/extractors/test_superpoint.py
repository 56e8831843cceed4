"""SuperPoint features from a file of weights; random ones here, in both layouts that there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.errors import UserError
from bench.features.extractors.superpoint_320 import SuperPoint320
from bench.features.sets import ExtractOptions, FeatureExtractor, SetName, part_folder
from bench.first_stage_table import first_stages
from bench.places import Places
from bench.report.tables import compare
from bench.setup import Setup
from methods.superglue.model import SuperGlueConfig
from tests.speed.learned import random_state
from third_party.superpoint_weights import NAMES

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
SMALL = ExtractOptions(max_side=160, descriptors=60)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = transformers.SuperPointForKeypointDetection(transformers.SuperPointConfig())
    return {name: 3 * tensor for name, tensor in model.state_dict().items()}  # so that scores differ


@pytest.fixture
def weights(state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def extract(path: Path, image: np.ndarray, kind: str = "superpoint", options: ExtractOptions = SMALL) -> dict:
    return FeatureExtractor(f"{kind}:{path}", options)(image)


@pytest.fixture
def picture(view: Callable[[int, int], np.ndarray]) -> np.ndarray:
    return view(1, 0)


def test_features_are_sorted_unit_vectors_inside_the_image(weights: Path, picture: np.ndarray) -> None:
    found = extract(weights, picture)
    n, (height, width) = len(found["scores"]), picture.shape[:2]
    assert 10 < n <= 60 and found["descriptors"].shape == (n, 256)
    np.testing.assert_allclose(np.linalg.norm(found["descriptors"], axis=1), 1, atol=1e-4)
    assert (np.diff(found["scores"]) <= 0).all() and found["scores"].min() > 0.005
    assert found["keypoints"].min() >= 4 and (found["keypoints"] < [width - 3, height - 3]).all()  # no border
    close = np.linalg.norm(found["keypoints"][:, None] - found["keypoints"], axis=2) + 99 * np.eye(n)
    assert close.min() > 4  # non-maximum suppression


def test_the_best_n_are_the_first_n(weights: Path, picture: np.ndarray) -> None:
    many, few = (extract(weights, picture, options=ExtractOptions(160, n)) for n in (60, 7))
    np.testing.assert_allclose(few["descriptors"], many["descriptors"][:7], atol=1e-6)
    np.testing.assert_array_equal(few["keypoints"], many["keypoints"][:7])


@pytest.mark.parametrize("shape", [(5, 300), (300, 5), (1, 1)])
def test_an_image_smaller_than_a_cell_has_no_keypoints(weights: Path, shape: tuple[int, int]) -> None:
    found = extract(weights, np.full((*shape, 3), 90, dtype=np.uint8))
    assert found["descriptors"].shape == (0, 256) and found["keypoints"].shape == (0, 2)


def test_magic_leaps_names_of_the_convolutions() -> None:
    encoder = {f"conv{i}{ab}" for i in (1, 2, 3, 4) for ab in "ab"}
    assert set(NAMES) == encoder | {"convPa", "convPb", "convDa", "convDb"}


def test_both_layouts_of_weights_give_the_same_features(
    weights: Path, state: dict[str, torch.Tensor], picture: np.ndarray, tmp_path: Path
) -> None:
    official = {new: old for old, new in NAMES.items()}
    renamed = {f"{official[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": t for name, t in state.items()}
    assert "convPb.bias" in renamed and len(renamed) == len(state)
    torch.save(renamed, tmp_path / "superpoint_v1.pth")
    one, other = extract(weights, picture), extract(tmp_path / "superpoint_v1.pth", picture)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_colours_of_one_grey_are_one_image(weights: Path, picture: np.ndarray) -> None:
    grey = np.repeat(np.round(picture @ [0.299, 0.587, 0.114])[..., None], 3, axis=2).astype(np.uint8)
    one, other = extract(weights, picture), extract(weights, grey)
    common = {tuple(p) for p in one["keypoints"]} & {tuple(p) for p in other["keypoints"]}
    assert len(common) > 0.8 * len(one["keypoints"])


def test_a_320_square_keeps_places_in_the_image(weights: Path, picture: np.ndarray) -> None:
    square = np.ascontiguousarray(picture[:100, :100])
    places = SuperPoint320(SuperPoint320.Options(weights, 200), torch.device("cpu"))(square).keypoints
    assert 50 < places.max() < 100
    wide = np.repeat(square, 2, axis=1)  # twice as wide: the same once made square
    one, other = (extract(weights, image, "superpoint-320", ExtractOptions(640, 200)) for image in (square, wide))
    assert wide.shape[1] == 200 and other["keypoints"][:, 0].max() > 110
    near = np.linalg.norm(other["keypoints"][:, None] / [2, 1] - one["keypoints"], axis=2).min(axis=1)
    assert np.median(near) < 1.5


def test_files_that_are_not_its_weights_are_refused(weights: Path, state: dict, tmp_path: Path) -> None:
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    save_file({k: v for k, v in state.items() if "score_b" not in k}, tmp_path / "cut.safetensors")
    torch.save({"conv1a.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name, said in (
        ("noise.safetensors", "not a readable"),
        ("cut.safetensors", "missing"),
        ("other.pth", "missing"),
    ):
        with pytest.raises(UserError, match=said) as error:
            FeatureExtractor(f"superpoint:{tmp_path / name}", SMALL)
        assert name in str(error.value)
    with pytest.raises(UserError, match="needs weights"):
        SetName.parse("superpoint")


def test_a_run_needs_consent_and_its_table_says_so(
    weights: Path, run: Callable, instances: Path, places: object
) -> None:
    features = f"superpoint:{weights}"
    small = {"top_k": 5, "features": features, "extract": SMALL}
    with pytest.raises(UserError, match="may not be used commercially") as error:
        run(instances, "mnn", **small)
    assert "--accept-licence magic-leap" in str(error.value)
    part = SetName.parse(features).parts[0]
    assert not part_folder(f"folder:{instances}", part, SMALL, places).exists()  # type: ignore[arg-type]
    matcher = weights.with_name("superglue.pth")
    torch.save(random_state(SuperGlueConfig(layers=2)), matcher)
    given = {"superglue": {"weights": str(matcher), "preset": "oxford"}}
    done = run(instances, "mnn,superglue", accept_licence=frozenset({"magic-leap"}), options=given, **small).run
    key = SetName.parse(features).local.key  # type: ignore[union-attr]
    of_superglue = done.details[done.details.method == f"superglue@{key}"]
    assert not done.record.failed and set(of_superglue.name) == {"confidence"}
    assert any(row.startswith("superglue") and "preset=oxford" in row for row in compare([done]).rows.index)
    assert not any("descriptors=" in row for row in compare([done]).rows.index)  # the preset says it
    assert any("NOT FOR COMMERCIAL USE (magic-leap)" in note for note in compare([done]).notes)
    assert key.startswith("superpoint-") and done.shortlist.header.first_stage == "gem-lite0"
    assert {row: reads.features for row, reads in done.record.identity.methods.items()} == {
        f"mnn@{key}": (key,),
        f"superglue@{key}": (key,),
    }


def test_a_first_stage_on_restricted_weights_needs_consent_too(weights: Path, instances: Path, tmp_path: Path) -> None:
    name, part = f"asmk@superpoint:{weights}", SetName.parse(f"superpoint:{weights}").parts[0]
    places = Places.of(tmp_path / "own")
    setup = Setup(f"folder:{instances}", extract=SMALL, top_k=5)
    with pytest.raises(UserError, match="may not be used commercially"):
        first_stages(setup, [name], places)
    table = first_stages(setup, [name, "gem-lite0"], places).table
    assert list(table.rows.index) == ["gem-lite0"]
    assert any("cannot be compared" in note and "--accept-licence magic-leap" in note for note in table.notes)
    assert not part_folder(setup.dataset, part, SMALL, places).exists()
