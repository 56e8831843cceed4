"""Calls are timed in turns, and what other programs disturbed is left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import speed
from tests.speed import interleaved, rank_changes


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Processor seconds that other programs have used: the test's to say."""
    used = [0.0]
    monkeypatch.setattr(speed, "_busy_seconds", lambda: used[0] + time.process_time())
    return used


def test_calls_take_turns_after_one_each_to_warm_up(others: list[float]) -> None:
    order: list[str] = []
    calls: dict[str, Callable[[], object]] = {name: partial(order.append, name) for name in "ab"}
    assert interleaved(calls, rounds=3).samples == 6
    assert "".join(order) == "ab" * 4
    interleaved(calls, rounds=1, warm_up=False)
    assert "".join(order) == "ab" * 5


def test_samples_that_other_load_disturbed_are_left_out_and_counted(others: list[float]) -> None:
    seconds = iter([0.0, 0.2, 0.2, 0.01, 0.01])

    def disturbed_when_long() -> None:
        pause = next(seconds)
        time.sleep(pause)
        others[0] += 100 if pause > 0.1 else 0

    found = interleaved({"a": disturbed_when_long}, rounds=4)
    assert 0.01 <= found.seconds["a"] < 0.1 and (found.disturbed, found.samples) == (2, 4)
    assert str(found) == "2 of 4 samples undisturbed by other load"


def test_where_every_sample_was_disturbed_all_count(others: list[float]) -> None:
    seconds = iter([0.0, 0.01, 0.03, 0.2])

    def always_disturbed() -> None:
        time.sleep(next(seconds))
        others[0] += 100

    found = interleaved({"a": always_disturbed}, rounds=3)
    assert 0.03 <= found.seconds["a"] < 0.1 and found.disturbed == 3


@pytest.mark.parametrize(
    ("scores", "reference", "changes"),
    [
        ([3, 2, 1], [9, 8, 7], 0),
        ([3, 1, 2], [3, 2, 1], 2),
        ([1, 2, 3], [3, 2, 1], 2),
        ([2, 1, 3], [3, 2, 1], 3),
        ([1, 1, 1], [3, 2, 1], 0),  # ties keep the order
        ([1, 1, 2], [1, 1, 1], 3),
        ([], [], 0),
    ],
)
def test_rank_changes_count_the_candidates_that_moved(scores: list, reference: list, changes: int) -> None:
    assert rank_changes(scores, reference) == changes


@given(st.lists(st.floats(-10, 10), max_size=20), st.floats(0.1, 5), st.floats(-3, 3))
def test_no_rank_changes_where_the_order_is_the_same(scores: list[float], factor: float, shift: float) -> None:
    order = np.argsort(-np.array(scores), kind="stable")
    falling = np.empty(len(scores))
    falling[order] = -np.arange(len(scores)) * factor + shift
    assert rank_changes(list(falling), scores) == 0
