"""Mutual neighbours are counted when they are similar enough."""

from dataclasses import replace

import pytest
import torch

from bench.conformance import batch_of, example
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from bench.reranker import parse_options
from methods.mnn import MutualNearestNeighbours

XFEAT = card_of("xfeat")


def at(degrees: list[float]) -> Features:
    """An image with descriptors in the plane of the first two dimensions, at these angles."""
    angle = torch.deg2rad(torch.tensor(degrees))
    descriptors = torch.zeros(len(degrees), XFEAT.local_dim)
    descriptors[:, 0], descriptors[:, 1] = angle.cos(), angle.sin()
    return Features(**{**vars(example(len(degrees), XFEAT, 1)), "descriptors": descriptors})


def score(query: Features, candidate: Features, **options: float) -> float:
    return float(
        MutualNearestNeighbours(MutualNearestNeighbours.Options(**options)).score(query, batch_of([candidate]))
    )


def test_pairs_below_the_least_cosine_do_not_count() -> None:
    # pairs: 0 and 10 degrees, cosine .985; 90 and 130, cosine .766; 5 has its nearest at 10, which is nearer to it
    query, candidate = at([0, 90]), at([10, 130, 180])
    assert score(query, candidate) == 1
    assert score(query, candidate, similarity=0.76) == 2
    assert score(query, candidate, similarity=0.99) == 0


def test_a_pair_must_be_nearest_in_both_directions() -> None:
    assert score(at([0, 5]), at([6])) == score(at([6]), at([0, 5])) == 1


@pytest.mark.parametrize(
    ("features", "expected"), [("xfeat", 1), ("sift", 1), ("aliked", 2), ("disk", 2), ("superpoint", 1)]
)
def test_without_an_option_the_least_cosine_is_that_of_the_feature_set(features: str, expected: int) -> None:
    method = MutualNearestNeighbours()
    method.bind(replace(XFEAT, local=features))
    assert float(method.score(at([0, 90]), batch_of([at([10, 130, 180])]))) == expected
    given = MutualNearestNeighbours(MutualNearestNeighbours.Options(similarity=0.99))
    given.bind(replace(XFEAT, local=features))
    assert float(given.score(at([0, 90]), batch_of([at([10, 130, 180])]))) == 0


def test_the_least_cosine_itself_counts() -> None:
    image = at([0])
    assert score(image, image, similarity=1.0) == 1


def test_an_image_shares_all_its_descriptors_with_itself_and_fewer_with_others(images: list[Features]) -> None:
    whole, part, other = images
    same, similar, different = MutualNearestNeighbours().score(whole, batch_of([whole, part, other])).tolist()
    assert same == len(whole) > similar > different


def test_only_the_best_descriptors_are_used() -> None:
    assert score(at([0, 90]), at([90, 0]), descriptors=2) == 2
    assert score(at([0, 90]), at([90]), descriptors=1) == score(at([90]), at([0, 90]), descriptors=1) == 0


def test_an_image_without_descriptors_has_no_matches() -> None:
    assert score(at([]), at([1])) == score(at([1]), at([])) == score(at([]), at([])) == 0


@pytest.mark.parametrize("given", [{"descriptors": "0"}, {"similarity": "1.5"}, {"similarity": "-2"}])
def test_a_wrong_option_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        parse_options(MutualNearestNeighbours, given)
