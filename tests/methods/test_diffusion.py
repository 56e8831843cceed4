"""A walk on the graph of the candidates that starts from the query's nearest."""

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
from methods.diffusion import Diffusion, transitions

XFEAT = card_of("xfeat")


def image(vector: torch.Tensor) -> Features:
    return replace(example(0, XFEAT, 1), global_descriptor=vector)


def scores(query: torch.Tensor, candidates: torch.Tensor, **options: float) -> torch.Tensor:
    method = Diffusion(Diffusion.Options(**options))
    return method.score(image(query), batch_of([image(row) for row in candidates]))


def test_a_case_by_hand() -> None:
    """Two candidates joined to each other alone: S swaps them, so f = (y1 + a y2, a y1 + y2) / (1 - a^2)."""
    candidates = torch.tensor([[0.8, 0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    both = scores(torch.tensor([1.0, 0, 0]), candidates, neighbours=1, seeds=2, alpha=0.5)
    y1, y2 = 0.8**3, 0.6**3
    assert both.tolist() == pytest.approx([(y1 + y2 / 2) / 0.75, (y1 / 2 + y2) / 0.75, 0], abs=1e-6)
    first = scores(torch.tensor([1.0, 0, 0]), candidates, neighbours=1, seeds=1, alpha=0.5)
    assert first.tolist() == pytest.approx([y1 / 0.75, y1 / 1.5, 0], abs=1e-6)


def test_transitions_by_hand() -> None:
    """Cosines 0.5 and 1 in a row of three: degrees are 1/8, 9/8 and 1; with one neighbour, the first is left out."""
    similarity = torch.tensor([[1, 0.5, 0], [0.5, 1, 1], [0, 1, 1]], dtype=torch.float64)
    expected = torch.tensor([[0, 1 / 3, 0], [1 / 3, 0, (8 / 9) ** 0.5], [0, (8 / 9) ** 0.5, 0]], dtype=torch.float64)
    assert torch.allclose(transitions(similarity, 2, 3.0), expected)
    assert torch.allclose(transitions(similarity, 9, 3.0), expected)  # never joined to itself
    mutual = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    assert torch.equal(transitions(similarity, 1, 3.0), mutual)


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
def test_scores_are_the_sum_of_all_steps_of_the_walk(k: int, neighbours: int, seeds: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.rand((k + 1, 6), generator=draw, dtype=torch.float64), dim=1)
    walk = transitions(vectors[1:] @ vectors[1:].T, neighbours, 3.0)
    start = (vectors[1:] @ vectors[0]) ** 3
    start[start.argsort(descending=True)[seeds:]] = 0
    step, total = start, torch.zeros(k, dtype=torch.float64)
    for _ in range(200):
        total, step = total + step, 0.8 * walk @ step
    found = scores(vectors[0], vectors[1:], neighbours=neighbours, seeds=seeds, alpha=0.8)
    assert torch.allclose(found, total, atol=1e-9)


def test_what_a_chain_of_candidates_reaches_passes_what_is_nearer_and_alone() -> None:
    angle = torch.deg2rad(torch.arange(0.0, 90, 15))
    chain = torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=1)
    alone = torch.tensor([[0.5, 0, 0.75**0.5]])
    found = scores(chain[0], torch.cat([alone, chain[1:]]), neighbours=2, seeds=2)
    assert alone[0] @ chain[0] > chain[-1] @ chain[0]
    assert found[0] < found[-1]
    assert (found[1:] > 0).all()


@pytest.mark.parametrize("given", [{"neighbours": "0"}, {"seeds": "0"}, {"alpha": "1"}, {"gamma": "0"}])
def test_a_wrong_option_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        parse_options(Diffusion, given)
