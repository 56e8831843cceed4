"""The mean best cosine, in one direction or both."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.conformance import batch_of, example
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from bench.reranker import parse_options
from methods.maxsim import MaxSim

XFEAT = card_of("xfeat")
BOTH = MaxSim.Options(direction="both")


def image_of(rows: list[list[float]]) -> Features:
    descriptors = torch.zeros(len(rows), XFEAT.local_dim)
    for i, row in enumerate(rows):
        descriptors[i, : len(row)] = torch.tensor(row)
    return Features(**{**vars(example(len(rows), XFEAT, 1)), "descriptors": descriptors})


def test_a_case_by_hand() -> None:
    query, candidate = image_of([[1, 0], [0, 1]]), image_of([[0.8, 0.6], [-1, 0], [0, -1]])
    # cosines: .8 -1 0 and .6 0 -1: best of the query's .8 and .6, of the candidate's .8, 0 and 0
    assert float(MaxSim().score(query, batch_of([candidate]))) == pytest.approx(0.7)
    assert float(MaxSim().score(candidate, batch_of([query]))) == pytest.approx(0.8 / 3)
    assert float(MaxSim(BOTH).score(query, batch_of([candidate]))) == pytest.approx((0.7 + 0.8 / 3) / 2)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_both_directions_are_symmetric_and_the_mean_of_each(n: int, m: int, seed: int) -> None:
    one, two = example(n, XFEAT, seed), example(m, XFEAT, seed + 1)
    forward, backward = MaxSim().score(one, batch_of([two])), MaxSim().score(two, batch_of([one]))
    assert torch.allclose(MaxSim(BOTH).score(one, batch_of([two])), (forward + backward) / 2, atol=1e-6)
    assert torch.allclose(MaxSim(BOTH).score(one, batch_of([two])), MaxSim(BOTH).score(two, batch_of([one])), atol=1e-6)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_more_candidate_descriptors_never_lower_the_score(n: int, m: int, seed: int) -> None:
    query, candidate = example(n, XFEAT, seed), example(m, XFEAT, seed + 1)
    fewer, more = MaxSim().score(query, batch_of([candidate.top((m + 1) // 2), candidate]))
    assert fewer <= more + 1e-6


def test_an_image_is_most_similar_to_itself(images: list[Features]) -> None:
    whole, part, other = images
    for options in (MaxSim.Options(), BOTH):
        same, similar, different = MaxSim(options).score(whole, batch_of([whole, part, other])).tolist()
        assert same == pytest.approx(1, abs=1e-5) and same > similar > different


def test_an_image_without_descriptors_scores_least() -> None:
    none, opposite = example(0, XFEAT, 1), image_of([[-1, 0]])
    assert MaxSim().score(image_of([[1, 0]]), batch_of([none, opposite])).tolist() == [-1, -1]
    assert MaxSim().score(none, batch_of([none, opposite])).tolist() == [-1, -1]


def test_only_the_best_descriptors_are_used() -> None:
    query, candidate = image_of([[1, 0], [0, 1]]), image_of([[0, 1], [1, 0]])
    assert MaxSim(MaxSim.Options(descriptors=1)).score(query, batch_of([candidate])).tolist() == [0]


@pytest.mark.parametrize("given", [{"descriptors": "0"}, {"direction": "candidate"}])
def test_a_wrong_option_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        parse_options(MaxSim, given)
