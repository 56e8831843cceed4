"""k-reciprocal encoding, against the paper's equations written out set by set."""

import math
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
from methods.k_reciprocal import KReciprocal

XFEAT = card_of("xfeat")


def image(vector: torch.Tensor) -> Features:
    return replace(example(0, XFEAT, 1), global_descriptor=vector)


def literally(vectors: torch.Tensor, k1: int, k2: int, weight: float) -> list[float]:
    """Equations 1 to 12 of the paper, one image and one set at a time; vectors (1 + k, D), the query first."""
    n = len(vectors)
    squared = [[float((a - b).square().sum()) for b in vectors.double()] for a in vectors.double()]
    d = [[value / max(row) for value in row] for row in squared]

    def nearest(p: int, k: int) -> set[int]:  # N(p, k), and p
        return set(sorted(range(n), key=lambda i: squared[p][i] if i != p else -1)[: k + 1])

    def reciprocal(p: int, k: int) -> set[int]:  # R(p, k)
        return {g for g in nearest(p, k) if p in nearest(g, k)}

    def expanded(p: int) -> set[int]:  # R*(p, k)
        found = reciprocal(p, k1)
        for q in reciprocal(p, k1):
            half = reciprocal(q, k1 // 2)
            if len(reciprocal(p, k1) & half) >= 2 / 3 * len(half):
                found = found | half
        return found

    sets = [expanded(p) for p in range(n)]
    encoded = [[math.exp(-d[p][g]) if g in sets[p] else 0.0 for g in range(n)] for p in range(n)]
    near = [nearest(p, k2 - 1) for p in range(n)]
    encoded = [[sum(encoded[g][i] for g in near[p]) / len(near[p]) for i in range(n)] for p in range(n)]

    def jaccard(p: int, g: int) -> float:
        pairs = list(zip(encoded[p], encoded[g], strict=True))
        return 1 - sum(map(min, pairs)) / sum(map(max, pairs))

    return [-((1 - weight) * jaccard(0, g) + weight * d[0][g]) for g in range(1, n)]


@given(st.integers(2, 25), st.integers(1, 12), st.integers(1, 6), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 999))
def test_scores_are_those_of_the_equations(k: int, k1: int, k2: int, weight: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn((3, 5), generator=draw)
    moved = centres[torch.arange(k + 1) % 3] + 0.5 * torch.randn((k + 1, 5), generator=draw)
    vectors = torch.nn.functional.normalize(moved.double(), dim=1)
    method = KReciprocal(KReciprocal.Options(k1, k2, weight))
    found = method.score(image(vectors[0]), batch_of([image(v) for v in vectors[1:]]))
    assert found.tolist() == pytest.approx(literally(vectors, k1, k2, weight), abs=1e-9)


def test_a_case_by_hand() -> None:
    """At 0, 10, 21 and 90 degrees only the first two are each other's nearest, so that they alone share a set."""
    angle = torch.deg2rad(torch.tensor([0.0, 10.0, 21.0, 90.0]))
    query, *others = [image(v) for v in torch.stack([angle.cos(), angle.sin()], dim=1)]
    found = KReciprocal(KReciprocal.Options(k1=1, k2=1)).score(query, batch_of(others)).tolist()
    from_query = [1 - math.cos(math.radians(a)) for a in (10, 21, 90)]  # of the largest, 2, that the query has
    from_second = from_query[0] / (1 - math.cos(math.radians(80)))
    jaccard = 1 - (math.exp(-from_query[0]) + math.exp(-from_second)) / 2
    expected = [-(0.3 * d + 0.7 * j) for d, j in zip(from_query, (jaccard, 1, 1), strict=True)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_lambda_one_is_the_first_stage() -> None:
    vectors = torch.nn.functional.normalize(torch.randn((12, 4), generator=torch.Generator().manual_seed(0)), dim=1)
    method = KReciprocal(KReciprocal.Options(original=1))
    found = method.score(image(vectors[0]), batch_of([image(v) for v in vectors[1:]]))
    assert found.argsort().tolist() == (vectors[1:] @ vectors[0]).argsort().tolist()


@pytest.mark.parametrize("given", [{"k1": "0"}, {"k2": "0"}, {"original": "1.1"}])
def test_a_wrong_option_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        parse_options(KReciprocal, given)
