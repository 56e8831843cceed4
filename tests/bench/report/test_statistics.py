"""Differences are paired by query, and their interval says when there is none."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report import statistics
from bench.report.statistics import difference

VALUES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


def series(values: list[float]) -> pd.Series:
    return pd.Series(values, index=[f"q{i}" for i in range(len(values))])


def test_a_method_does_not_differ_from_itself() -> None:
    values = series([0.1, 0.9, 0.4])
    assert difference(values, values) == statistics.Difference(0, 0, 0, 0, 3, 0)


def test_pairs_are_by_query_and_not_by_position() -> None:
    values = series([0.1, 0.9, 0.4])
    assert difference(values, values[::-1]).mean == 0


def test_queries_without_positives_are_left_out_of_both() -> None:
    found = difference(series([0.5, float("nan"), 0.7]), series([0.4, 0.2, float("nan")]))
    assert found.mean == pytest.approx(0.1) and (found.wins, found.ties, found.losses) == (1, 0, 0)
    assert math.isnan(difference(series([float("nan")]), series([1.0])).mean)


def test_a_clear_difference_excludes_zero_and_noise_does_not() -> None:
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 0.1, 60)
    clear = difference(series(list(0.3 + noise)), series([0.0] * 60))
    none = difference(series(list(noise - noise.mean())), series([0.0] * 60))
    assert clear.low > 0.2 and none.low < 0 < none.high


@given(VALUES)
@settings(max_examples=20, deadline=None)
def test_the_other_way_round_is_the_negative(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (series([p[i] for p in pairs]) for i in (0, 1))
    one, other = difference(ours, theirs), difference(theirs, ours)
    assert one.mean == pytest.approx(-other.mean) and (one.wins, one.losses) == (other.losses, other.wins)
    assert one.low == pytest.approx(-other.high)
