"""Mutual neighbours are counted when they are similar enough."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.conformance import batch_of, example
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from bench.reranker import parse_options
from bench.timing import kept_torch_flags
from methods._matching import match
from methods.mnn import TOGETHER, MutualNearestNeighbours

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


def drawn(n: int, seed: int, coarse: bool, size: int = 8) -> Features:
    """An image of random descriptors; coarse ones are of few values, so that many are equally similar or equal."""
    values = torch.randn(n, size, generator=torch.Generator().manual_seed(seed))
    values = values.sign() if coarse else values
    descriptors = torch.zeros(n, XFEAT.local_dim)
    descriptors[:, :size] = torch.nn.functional.normalize(values, dim=1)
    return Features(**{**vars(example(n, XFEAT, seed)), "descriptors": descriptors})


@given(
    st.integers(0, 50),
    st.lists(st.integers(0, 50), min_size=1, max_size=2 * TOGETHER + 1),
    st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0]),
    st.booleans(),
    st.integers(1, 60),
    st.integers(0, 999),
)
def test_counts_are_those_of_all_matches_one_pair_at_a_time(
    n: int, sizes: list[int], least: float, coarse: bool, most: int, seed: int
) -> None:
    query, images = drawn(n, seed, coarse), [drawn(m, seed + i + 1, coarse) for i, m in enumerate(sizes)]
    method = MutualNearestNeighbours(MutualNearestNeighbours.Options(descriptors=most, similarity=least))
    plain = [match(query.top(most).descriptors, image.top(most).descriptors) for image in images]
    expected = [float((found.similarity >= least).sum()) for found in plain]
    assert method.score(query, batch_of(images)).tolist() == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_counts_do_not_depend_on_threads_or_on_which_candidates_share_memory(threads: int) -> None:
    query, images = drawn(40, 0, False), [drawn(5 * i, i, False) for i in range(2 * TOGETHER + 1)]
    method = MutualNearestNeighbours(MutualNearestNeighbours.Options(similarity=0.5))
    alone = [float(method.score(query, batch_of([image]))) for image in images]
    with kept_torch_flags():
        torch.set_num_threads(threads)
        assert method.score(query, batch_of(images)).tolist() == alone
    assert sum(alone) > 50
