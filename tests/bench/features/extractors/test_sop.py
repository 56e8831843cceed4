"""The feature set `sop`: 49 rows in grid order, from weights the user gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.errors import UserError
from bench.features.extractors.sop import cell_centres, prepare
from bench.features.sets import ExtractOptions, FeatureExtractor, SetName
from methods.rrt_sop.model import OPTIONAL, SOPConfig, SOPModel, save_model

View = Callable[[int, int], np.ndarray]


def _model(seed: int) -> SOPModel:
    torch.manual_seed(seed)
    return SOPModel(SOPConfig("efficientnet-lite0", depth=1, feedforward=16))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights of a later stage, and of a first stage alone."""
    folder = tmp_path_factory.mktemp("sop")
    save_model(_model(0), folder / "joint.safetensors", {"stage": "joint"})
    save_model(_model(1), folder / "global.safetensors", {"stage": "global"}, without=OPTIONAL)
    return folder / "joint.safetensors", folder / "global.safetensors"


def _maps(seed: int, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Global descriptor and local map, from the definition: both sides to 256 pixels, the central 224."""
    small = np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR))[16:240, 16:240]
    with torch.inference_mode():
        whole, local = _model(seed)(torch.tensor(small).permute(2, 0, 1)[None] / 255)
    return whole[0], local[0]


def test_rows_are_the_cells_of_the_map_in_grid_order(files: tuple[Path, Path], view: View) -> None:
    made = FeatureExtractor(f"sop:{files[0]}")(view(0, 0))
    whole, local = _maps(0, view(0, 0))
    assert made["descriptors"].shape == (49, 128) and made["global_descriptor"].shape == (128,)
    for row, column in ((0, 0), (2, 5), (6, 1)):
        np.testing.assert_allclose(made["descriptors"][7 * row + column], local[:, row, column], atol=1e-5)
    np.testing.assert_allclose(made["global_descriptor"], whole, atol=1e-6)
    assert made["image_size"].tolist() == [160, 120] and np.ptp(made["scores"]) == 0  # the order says no preference


def test_a_second_file_gives_the_global_descriptor_alone(files: tuple[Path, Path], view: View) -> None:
    one, two = (FeatureExtractor(f"sop:{names}")(view(0, 0)) for names in (files[0], f"{files[0]},{files[1]}"))
    assert np.array_equal(one["descriptors"], two["descriptors"])
    np.testing.assert_allclose(two["global_descriptor"], _maps(1, view(0, 0))[0], atol=1e-6)
    assert not np.allclose(one["global_descriptor"], two["global_descriptor"], atol=1e-2)


def test_cell_centres_by_hand() -> None:
    """Of 256 pixels the central 224 are seen, in cells of 32: the first centre is at 16 + 16 = 32 of 256."""
    at = cell_centres(512, 256).reshape(7, 7, 2)
    assert at[0, 0].tolist() == [63.5, 31.5]  # x at twice the size; pixel centres lie at whole numbers
    assert at[3, 3].tolist() == [255.5, 127.5]
    assert at[1, 2].tolist() == [2 * 96 - 0.5, 64 - 0.5]
    small = cell_centres(2, 1)
    assert small.min() >= 0 and (small <= [1, 0]).all()


def test_preparation_is_the_centre_of_the_image_made_square() -> None:
    pixels = np.zeros((300, 512, 3), np.uint8)
    pixels[:, 256:] = (10, 20, 30)
    seen = prepare(Image.fromarray(pixels))
    assert seen.shape == (3, 224, 224) and seen.dtype == np.uint8
    assert seen[:, 100, 0].tolist() == [0, 0, 0] and seen[:, 100, -1].tolist() == [10, 20, 30]
    assert (seen[0] == 10).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sop", "sop needs weights"),
        ("sop:nowhere.pt", "no such weights file: nowhere.pt"),
        ("sop:", "no such weights file"),
        ("sop:{0},nowhere.pt", "no such weights file: nowhere.pt"),
        ("sop:{0},{1},{1}", "3 weights files"),
        ("xfeat:{0}", "xfeat takes no weights file"),
    ],
)
def test_wrong_names_are_refused(name: str, said: str, files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=said) as caught:
        SetName.parse(name.format(*files))
    assert caught.value.hint


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("nothing")
    with pytest.raises(UserError, match=r"w\.pt"):
        FeatureExtractor(f"sop:{tmp_path / 'w.pt'}")


def test_weights_of_the_first_stage_alone_make_no_local_descriptors(files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="weights of the first stage alone") as caught:
        FeatureExtractor(f"sop:{files[1]}")
    assert str(files[1]) in caught.value.message and "after a comma" in str(caught.value.hint)


def test_a_part_of_the_grid_is_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="48 descriptors"):
        FeatureExtractor(f"sop:{files[0]}", ExtractOptions(descriptors=48))


def test_the_weights_are_part_of_the_identity(files: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(files[0].read_bytes())
    names = (f"sop:{files[0]}", f"sop:{copy}", f"sop:{files[0]},{files[1]}", f"sop:{files[1]}")
    one, same, two, other = (SetName.parse(name).parts[0].identity(ExtractOptions()) for name in names)
    assert one == same and one != two and one != other
    assert SetName.parse(names[0]).name == SetName.parse(names[1]).name != SetName.parse(names[2]).name
