"""Spatial verification counts what agrees with one geometric model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.conformance import batch_of, example
from bench.errors import UserError
from bench.features import Features
from bench.features.extractors import CARDS
from bench.reranker import parse_options
from methods.ransac import Ransac, mutual_nearest_neighbours

XFEAT = CARDS["xfeat"]


def moved(image: Features, matrix: np.ndarray, noise: float = 0.0, seed: int = 0) -> Features:
    """The same descriptors at affinely moved keypoints."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.cat([image.keypoints, torch.ones(len(image), 1)], dim=1) @ torch.from_numpy(matrix).float().T
    jitter = noise * torch.randn(points.shape, generator=draw)
    return Features(**{**vars(image), "keypoints": points + jitter})


AFFINE = np.array([[0.9, -0.2, 30.0], [0.25, 1.1, -12.0]])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_mutual_neighbours_are_each_others_best_and_one_to_one(n: int, m: int, seed: int) -> None:
    a, b = example(n, XFEAT, seed).descriptors, example(m, XFEAT, seed + 1).descriptors
    pairs = mutual_nearest_neighbours(a, b)
    similarity = a @ b.T
    assert len(set(pairs[:, 0].tolist())) == len(set(pairs[:, 1].tolist())) == len(pairs)
    for i, j in pairs.tolist():
        assert similarity[i, j] == similarity[i].max() == similarity[:, j].max()
    assert len(pairs) >= 1  # the best pair of all is always mutual


@pytest.mark.parametrize("model", ["affine", "homography"])
def test_every_match_of_an_affinely_moved_image_is_an_inlier(model: str) -> None:
    query = example(80, XFEAT, 1)
    scores = Ransac(Ransac.Options(model=model)).score(query, batch_of([moved(query, AFFINE), example(80, XFEAT, 2)]))
    assert scores[0] == 80
    assert scores[1] < 20


def test_matches_that_agree_on_nothing_are_not_inliers() -> None:
    query = example(80, XFEAT, 1)
    scattered = Features(**{**vars(query), "keypoints": example(80, XFEAT, 3).keypoints})
    good, bad = Ransac().score(query, batch_of([moved(query, AFFINE, noise=2.0), scattered]))
    assert good > 70 and bad < 15


def test_equal_seeds_give_equal_scores() -> None:
    query, images = example(60, XFEAT, 1), [example(60, XFEAT, i) for i in range(2, 6)]
    first, second = (Ransac(Ransac.Options(seed=7)).score(query, batch_of(images)) for _ in range(2))
    assert torch.equal(first, second)


def test_no_more_matches_than_the_model_needs_scores_zero() -> None:
    query = example(3, XFEAT, 1)
    assert Ransac().score(query, batch_of([moved(query, AFFINE)])).tolist() == [0.0]


def test_points_on_one_line_and_repeated_points_do_not_crash() -> None:
    query = example(40, XFEAT, 1)
    line = Features(**{**vars(query), "keypoints": torch.stack([torch.arange(40.0), torch.arange(40.0)], dim=1)})
    point = Features(**{**vars(query), "keypoints": torch.full((40, 2), 5.0)})
    for model in ("affine", "homography", "fundamental"):
        assert torch.isfinite(Ransac(Ransac.Options(model=model)).score(line, batch_of([line, point]))).all()


def test_only_the_best_descriptors_are_used() -> None:
    query = example(80, XFEAT, 1)
    assert Ransac(Ransac.Options(descriptors=30)).score(query, batch_of([moved(query, AFFINE)])) == 30


@pytest.mark.parametrize("given", [{"model": "affin"}, {"threshold": "0"}, {"trials": "many"}, {"trails": "10"}])
def test_a_wrong_option_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        parse_options(Ransac, given)
