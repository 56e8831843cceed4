"""Matches by appearance: three matchers, the same ties and limits everywhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from methods._matching import Matcher, Matches, match


def unit(*degrees: float) -> Tensor:
    """(n, 2) unit descriptors at these angles."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def drawn(n: int, seed: int, size: int = 16) -> Tensor:
    return F.normalize(torch.randn(n, size, generator=torch.Generator().manual_seed(seed)), dim=1)


def pairs(matches: Matches) -> list[tuple[int, int]]:
    return list(zip(matches.query.tolist(), matches.candidate.tolist(), strict=True))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_mutual_neighbours_are_exactly_the_pairs_that_are_each_others_best(n: int, m: int, seed: int) -> None:
    a, b = drawn(n, seed), drawn(m, seed + 1)
    similarity = a @ b.T
    forward, backward = similarity.argmax(dim=1).tolist(), similarity.argmax(dim=0).tolist()
    found = match(a, b, "mutual")
    assert pairs(found) == [(i, j) for i, j in enumerate(forward) if backward[j] == i]
    assert torch.equal(found.similarity, similarity[found.query, found.candidate])


@given(st.integers(1, 30), st.integers(2, 30), st.integers(0, 1000), st.floats(0.5, 1))
def test_ratio_and_mutual_matches_are_one_way_matches(n: int, m: int, seed: int, ratio: float) -> None:
    a, b = drawn(n, seed), drawn(m, seed + 1)
    one_way = pairs(match(a, b, "one-way"))
    assert one_way == list(enumerate((a @ b.T).argmax(dim=1).tolist()))
    near = torch.cdist(a.double(), b.double()).topk(2, largest=False).values
    sure = ((near[:, 0] - ratio * near[:, 1]).abs() > 1e-4).tolist()
    kept = set(pairs(match(a, b, "ratio", ratio)))
    for i, pair in enumerate(one_way):
        assert not sure[i] or (pair in kept) == bool(near[i, 0] < ratio * near[i, 1])
    assert kept | set(pairs(match(a, b, "mutual"))) <= set(one_way)


@pytest.mark.parametrize(
    ("matcher", "expected"),
    [("one-way", [(0, 0), (1, 0), (2, 1)]), ("mutual", [(0, 0), (2, 1)]), ("ratio", [(0, 0), (1, 0), (2, 1)])],
)
def test_three_descriptors_by_hand(matcher: Matcher, expected: list[tuple[int, int]]) -> None:
    assert pairs(match(unit(0, 20, 80), unit(5, 90), matcher)) == expected


def test_the_ratio_is_of_distances() -> None:
    # chords of 10 and 20 degrees: 0.1743 / 0.3473 = 0.5019
    query, candidate = unit(0), unit(10, -20)
    assert pairs(match(query, candidate, "ratio", 0.51)) == [(0, 0)]
    assert pairs(match(query, candidate, "ratio", 0.49)) == []


def test_a_ratio_without_a_second_descriptor_keeps_the_match_and_one_of_twins_does_not() -> None:
    assert pairs(match(unit(0), unit(40), "ratio", 0.1)) == [(0, 0)]
    assert pairs(match(unit(0), unit(40, 40), "ratio", 1.0)) == []


@pytest.mark.parametrize("matcher", ["one-way", "mutual", "ratio"])
def test_a_match_is_at_most_the_distance_away(matcher: Matcher) -> None:
    query, candidate = unit(0, 120), unit(59, 181)  # chords of 59 and 61 degrees; that of 60 is 1
    assert pairs(match(query, candidate, matcher, 1.0)) == [(0, 0), (1, 1)] or matcher == "mutual"
    assert pairs(match(unit(0), unit(59), matcher, distance=1.0)) == [(0, 0)]
    assert pairs(match(unit(0), unit(61), matcher, distance=1.0)) == []


def test_of_equal_descriptors_the_first_match() -> None:
    query, candidate = unit(90, 0, 0), unit(0, 90, 0, 90)
    assert pairs(match(query, candidate, "one-way")) == [(0, 1), (1, 0), (2, 0)]
    assert pairs(match(query, candidate, "mutual")) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("matcher", ["one-way", "mutual", "ratio"])
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_no_descriptors_no_matches(matcher: Matcher, n: int, m: int) -> None:
    found = match(drawn(n, 0), drawn(m, 1), matcher)
    assert len(found) == 0
    assert (found.query.dtype, found.candidate.dtype, found.similarity.dtype) == (torch.long, torch.long, torch.float32)


def test_half_precision_descriptors_give_single_precision_similarities_and_stay_unchanged() -> None:
    query, candidate = drawn(5, 0).half(), drawn(6, 1).half()
    before = query.clone(), candidate.clone()
    assert match(query, candidate, "ratio").similarity.dtype == torch.float32
    assert torch.equal(query, before[0]) and torch.equal(candidate, before[1])


def test_descriptors_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 64\) and \(4, 128\)"):
        match(drawn(3, 0, 64), drawn(4, 1, 128))


@pytest.mark.parametrize(
    "wrong", [{"matcher": "best"}, {"ratio": 0.0}, {"ratio": 1.1}, {"distance": -0.1}, {"distance": 2.1}]
)
def test_a_wrong_setting_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        match(drawn(3, 0), drawn(3, 1), **wrong)
