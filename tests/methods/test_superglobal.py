"""Refined descriptors, by hand and against a loop."""

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
from methods.superglobal import SuperGlobal

XFEAT = card_of("xfeat")


def image(vector: torch.Tensor) -> Features:
    return replace(example(0, XFEAT, 1), global_descriptor=vector)


def scores(query: torch.Tensor, candidates: torch.Tensor, **options: float) -> list[float]:
    method = SuperGlobal(SuperGlobal.Options(**options))
    return method.score(image(query), batch_of([image(row) for row in candidates])).tolist()


def test_a_case_by_hand() -> None:
    """The first two are each other's nearest (0.8, weight 0.4); the third's is the second (0.6, weight 0.3)."""
    found = scores(torch.tensor([1.0, 0]), torch.tensor([[1, 0], [0.8, 0.6], [0, 1]]), neighbours=1, beta=0.5)
    one, two, three = (1.32 / 1.4, 0.24 / 1.4), (1.2 / 1.4, 0.6 / 1.4), (0.24 / 1.3, 1.18 / 1.3)
    pooled = (one[0], two[1])  # of the two best, the first two
    expected = [(x + pooled[0] * x + pooled[1] * y) / 2 for x, y in (one, two, three)]
    assert found == pytest.approx(expected, abs=1e-6)


def looped(query: torch.Tensor, candidates: torch.Tensor, neighbours: int, beta: float) -> list[float]:
    """One candidate and one neighbour at a time."""
    refined = []
    for i, x in enumerate(candidates):
        others = sorted((j for j in range(len(candidates)) if j != i), key=lambda j: -float(x @ candidates[j]))
        total, weight = x.clone(), 1.0
        for j in others[:neighbours]:
            w = beta * max(float(x @ candidates[j]), 0)
            total, weight = total + w * candidates[j], weight + w
        refined.append(total / weight)
    best = sorted(refined, key=lambda x: -float(query @ x))[: neighbours + 1]
    pooled = torch.stack(best).max(dim=0).values
    return [(float(query @ x) + float(pooled @ x)) / 2 for x in refined]


@given(st.integers(1, 30), st.integers(0, 12), st.sampled_from([0.0, 0.15, 1.0]), st.integers(0, 1000))
def test_scores_are_those_of_a_loop(k: int, neighbours: int, beta: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn((k + 1, 6), generator=draw, dtype=torch.float64), dim=1)
    found = scores(vectors[0], vectors[1:], neighbours=neighbours, beta=beta)
    assert found == pytest.approx(looped(vectors[0], vectors[1:], neighbours, beta), abs=1e-9)


def test_without_neighbours_the_best_candidate_is_the_expanded_query() -> None:
    found = scores(torch.tensor([1.0, 0]), torch.tensor([[0.8, 0.6], [0, 1]]), neighbours=0)
    assert found == pytest.approx([(0.8 + 1) / 2, 0.6 / 2], abs=1e-6)


@pytest.mark.parametrize("given", [{"neighbours": "-1"}, {"beta": "-0.1"}])
def test_a_wrong_option_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        parse_options(SuperGlobal, given)
