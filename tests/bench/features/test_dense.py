"""From a backbone's map to descriptors: sizes, pooling, and where a cell lies in the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UserError
from bench.features.dense import POOLINGS, cells_as_local, fitted, gem, pooled, seen
from third_party.backbones import Tokens, as_maps, restricted

CPU = torch.device("cpu")


class Means:
    """A backbone whose map is the mean colour of each cell."""

    name, stride = "means", 16
    mean, std = torch.zeros(3, 1, 1), torch.full((3, 1, 1), 255.0)

    def __call__(self, pixels: Tensor) -> Tokens:
        return Tokens(F.avg_pool2d(pixels, self.stride), None, None)


def random_maps(seed: int, channels: int = 5, cells: tuple[int, int] = (3, 4)) -> Tensor:
    return torch.randn((2, channels, *cells), generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 8, 14, 32]), st.none() | st.integers(32, 500))
def test_sides_are_multiples_nearest_to_the_size(width: int, height: int, multiple: int, size: int | None) -> None:
    found = fitted(np.zeros((height, width, 3), np.uint8), size, multiple)
    ratio = 1 if size is None else size / max(width, height)
    for side, made in zip((height, width), found.shape, strict=False):
        assert made % multiple == 0 and made >= multiple
        assert abs(made - side * ratio) <= multiple / 2 + 1e-6 or made == multiple


def test_an_image_that_fits_is_left_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 42, 3), np.uint8)
    assert fitted(image, None, 14) is image and fitted(image, 42, 14) is image


@given(st.integers(0, 99), st.floats(-50, 50))
def test_gem_moves_with_what_is_added_to_a_map(seed: int, constant: float) -> None:
    maps = random_maps(seed)
    torch.testing.assert_close(gem(maps + constant), gem(maps) + constant, rtol=0, atol=1e-3)


@given(st.integers(0, 99))
def test_gem_lies_between_mean_and_maximum_and_sees_negative_values(seed: int) -> None:
    maps = random_maps(seed) - 10  # all of them negative
    found = gem(maps)
    assert (found >= maps.mean(dim=(2, 3)) - 1e-4).all() and (found <= maps.amax(dim=(2, 3)) + 1e-4).all()
    assert found.std() > 0


def test_gem_of_a_map_with_a_zero_in_each_channel_is_the_generalised_mean() -> None:
    maps = random_maps(0).abs()
    maps[:, :, 0, 0] = 0
    torch.testing.assert_close(gem(maps), maps.pow(3).mean(dim=(2, 3)).pow(1 / 3), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("how", POOLINGS)
def test_descriptors_have_unit_norm_and_do_not_depend_on_the_batch(how: str) -> None:
    maps, cls, own = random_maps(0), random_maps(1)[:, :, 0, 0], random_maps(2, 9)[:, :, 0, 0]
    both = pooled(Tokens(maps, cls, own), how)  # type: ignore[arg-type]
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    for i in range(2):
        one = pooled(Tokens(maps[i : i + 1], cls[i : i + 1], own[i : i + 1]), how)  # type: ignore[arg-type]
        torch.testing.assert_close(one[0], both[i])


@pytest.mark.parametrize("how", ["cls", "cls-gem", "pooler"])
def test_what_a_model_does_not_have_is_refused_with_what_there_is(how: str) -> None:
    with pytest.raises(UserError, match="pooling=") as error:
        pooled(Tokens(random_maps(0), None, None), how)  # type: ignore[arg-type]
    assert "mean" in str(error.value)


@given(st.integers(60, 400), st.integers(60, 400), st.integers(0, 10**6), st.sampled_from([None, 64, 250]))
def test_the_strongest_cell_lies_where_the_image_is_brightest(
    width: int, height: int, seed: int, size: int | None
) -> None:
    """Whatever the size, and whatever the two sides are scaled by."""
    rows, columns = (side // 16 for side in fitted(np.zeros((height, width, 3), np.uint8), size, 16).shape[:2])
    row, column = seed % rows, seed // rows % columns
    edges = [[round(i * side / cells) for i in range(cells + 1)] for side, cells in ((height, rows), (width, columns))]
    image = np.full((height, width, 3), 10, np.uint8)
    image[edges[0][row] : edges[0][row + 1], edges[1][column] : edges[1][column + 1]] = 250
    _, keypoints, scales, scores = cells_as_local(seen(Means(), image, size, CPU), (height, width), "norm", 5)
    middle = [(edges[1][column] + edges[1][column + 1]) / 2 - 0.5, (edges[0][row] + edges[0][row + 1]) / 2 - 0.5]
    np.testing.assert_allclose(keypoints[0], middle, atol=0.51)  # edges are whole pixels
    np.testing.assert_allclose(scales, np.sqrt(width / columns * height / rows), rtol=1e-5)
    assert len(keypoints) <= 5 and (np.diff(scores) <= 0).all()


def test_licences_that_keep_commercial_users_out() -> None:
    for licence in ("cc-by-nc-4.0", "fair-noncommercial", "apple-amlr", "CC-BY-NC-SA-4.0", "fair-research-license"):
        assert restricted(licence) == licence
    for licence in ("apache-2.0", "mit", "dinov3-license", "cc-by-4.0", "other", "ncsa", None):
        assert restricted(licence) is None


def test_the_last_tokens_are_the_cells_row_by_row_and_the_first_are_no_cells() -> None:
    tokens = torch.arange(2 * 8 * 3).reshape(2, 8, 3)
    maps, prefix = as_maps(tokens, (2, 3), "some")
    assert torch.equal(prefix, tokens[:, :2]) and maps.shape == (2, 3, 2, 3)
    assert torch.equal(maps[1, :, 1, 0], tokens[1, 2 + 3])


@pytest.mark.parametrize("count", [5, 106])
def test_tokens_that_are_no_map_with_a_prefix_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"the backbone some gives {count} tokens for 2x3 cells"):
        as_maps(torch.zeros(1, count, 3), (2, 3), "some")
