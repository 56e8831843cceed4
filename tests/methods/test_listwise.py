"""What every reranker of a whole list by global descriptors must bear: short lists, equal, opposite and absent ones."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.conformance import example
from bench.features import FeatureBatch, Features
from bench.features.sets import card_of
from bench.reranker import Reranker
from methods.aqe import AverageQueryExpansion
from methods.diffusion import Diffusion
from methods.k_reciprocal import KReciprocal
from methods.superglobal import SuperGlobal

ALL = [AverageQueryExpansion, Diffusion, KReciprocal, SuperGlobal]
ORDER_FREE = [Diffusion, KReciprocal, SuperGlobal]
# the axes' directions, two between them, one almost the first, and what an unreadable image has
POOL = torch.tensor(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0.6, 0.8, 0], [0, 0.6, -0.8], [0.99995, 0.01, 0], [0, 0, 0]]
)
rows = st.integers(0, len(POOL) - 1)


def listed(query: torch.Tensor, descriptors: torch.Tensor) -> tuple[Features, FeatureBatch]:
    empty = example(0, card_of("xfeat"), 1)
    images = tuple(replace(empty, global_descriptor=row) for row in descriptors)
    return replace(empty, global_descriptor=query), FeatureBatch(images, descriptors @ query)


def scores(cls: type[Reranker], query: torch.Tensor, descriptors: torch.Tensor) -> torch.Tensor:
    found = cls().score(*listed(query, descriptors))
    assert isinstance(found, torch.Tensor)
    return found.double()


@pytest.mark.parametrize("cls", ALL)
@given(query=rows, chosen=st.lists(rows, min_size=1, max_size=40))
def test_scores_are_finite_whatever_the_list(cls: type[Reranker], query: int, chosen: list[int]) -> None:
    found = scores(cls, POOL[query], POOL[chosen])
    assert found.shape == (len(chosen),) and bool(torch.isfinite(found).all())


@pytest.mark.parametrize("cls", ALL)
@given(query=rows, chosen=st.lists(rows, min_size=2, max_size=40))
def test_equal_descriptors_score_equally(cls: type[Reranker], query: int, chosen: list[int]) -> None:
    found = scores(cls, POOL[query], POOL[chosen])
    for row in set(chosen):
        same = found[torch.tensor(chosen) == row]
        assert torch.allclose(same, same[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("cls", ORDER_FREE)
@given(query=rows, chosen=st.lists(rows, min_size=2, max_size=40), seed=st.integers(0, 1000))
def test_the_order_of_a_list_with_ties_makes_no_difference(
    cls: type[Reranker], query: int, chosen: list[int], seed: int
) -> None:
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
    whole, moved = scores(cls, POOL[query], POOL[chosen]), scores(cls, POOL[query], POOL[chosen][order])
    assert torch.allclose(whole[order], moved, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("cls", ORDER_FREE)
@given(seed=st.integers(0, 1000))
def test_the_order_of_any_other_list_makes_none_either(cls: type[Reranker], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    descriptors = torch.nn.functional.normalize(torch.rand((31, 16), generator=draw), dim=1)
    order = torch.randperm(30, generator=draw)
    whole = scores(cls, descriptors[30], descriptors[:30])
    assert torch.allclose(whole[order], scores(cls, descriptors[30], descriptors[:30][order]), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("cls", ALL)
def test_an_unreadable_image_is_last_and_a_copy_of_the_query_is_not(cls: type[Reranker]) -> None:
    draw = torch.Generator().manual_seed(3)
    descriptors = torch.nn.functional.normalize(torch.rand((20, 16), generator=draw), dim=1)
    descriptors[12], descriptors[5] = descriptors[0], 0
    found = scores(cls, descriptors[0], descriptors[1:])
    assert found[4] == found.min() < found[11]
