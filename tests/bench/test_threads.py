"""Threads that work side by side give what one would, in its order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.threads import in_turn, threads


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(0, 6))
def test_results_are_those_of_one_after_the_other(items: list[int], count: int, ahead: int) -> None:
    with threads(count) as pool:
        assert list(in_turn(pool, lambda item: item * item, items, ahead)) == [item * item for item in items]


@given(st.integers(0, 6), st.integers(0, 10))
def test_few_are_drawn_ahead(ahead: int, taken: int) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(1, 31):
            drawn = number
            yield number

    with threads(2) as pool:
        found = in_turn(pool, abs, items(), ahead)
        assert [next(found) for _ in range(taken)] == list(range(1, taken + 1))
        assert drawn == (taken + ahead if taken else 0)


def test_torch_has_its_threads_again_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads(2) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
