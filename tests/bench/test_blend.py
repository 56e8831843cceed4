"""Blends are parsed or refused, and their limits are the first stage and the reranker."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.blend import Blend
from bench.errors import UserError

SCORES = st.lists(st.floats(-50, 50), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("text", "blend"),
    [
        ("replace", Blend()),
        ("add:0.5", Blend("add", (0.5,))),
        ("add:-2", Blend("add", (-2.0,))),
        ("sigmoid:0.55,0.3", Blend("sigmoid", (0.55, 0.3))),
    ],
)
def test_a_blend_is_parsed_and_prints_as_it_was_written(text: str, blend: Blend) -> None:
    assert Blend.parse(text) == blend and str(blend) == text and Blend.parse(str(blend)) == blend


@pytest.mark.parametrize(
    "text",
    [
        "",
        "repalce",
        "add",
        "add:",
        "add:x",
        "add:1,2",
        "add:nan",
        "add:inf",
        "sigmoid:1",
        "sigmoid:1,2,3",
        "sigmoid:1,",
        "replace:1",
        "tie",
        "add:0x1",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError) as refusal:
        Blend.parse(text)
    assert refusal.value.hint or "must be numbers" in refusal.value.message


def test_a_near_miss_is_given_the_right_name() -> None:
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        Blend.parse("sigmiod:1,2")


@given(SCORES)
def test_limits(values: list[float]) -> None:
    scores, similarities = np.array(values), np.linspace(1, 0, len(values))
    assert np.array_equal(Blend()(scores, similarities), scores)
    assert np.array_equal(Blend.parse("add:0")(scores, similarities), similarities)
    assert np.array_equal(Blend.parse("sigmoid:1,1")(scores, similarities), similarities)
    alone = Blend.parse("sigmoid:0,1")(scores, similarities)
    np.testing.assert_allclose(alone, 1 / (1 + np.exp(-scores)), atol=1e-12)


def test_the_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        assert Blend.parse("sigmoid:0,1")(np.array([-1e6, 1e6]), np.zeros(2)).tolist() == [0.0, 1.0]
