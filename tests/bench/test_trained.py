"""What a card of weights says of their training: the seed, and one digest of all else that decides them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.trained import Training
from bench.training import LoopOptions

CARD: dict[str, Any] = {
    "features": "xfeat",
    "bank": "60ca",
    "list": {"name": "train.txt", "sha256": "11"},
    "recipe": {"lr": 0.1, "milestones": [1, 2], "seed": 3, "start": None},
    "steps": 9,
    "validation": {"best": {"mAP": 0.5}},
}


def of(**changed: Any) -> Training:
    found = Training.of({**CARD, **changed})
    assert found is not None
    return found


def with_recipe(**changed: Any) -> Training:
    return of(recipe={**CARD["recipe"], **changed})


@given(st.integers(0, 2**32))
def test_seeds_of_one_training_differ_in_the_seed_alone(seed: int) -> None:
    found = with_recipe(seed=seed)
    assert found.seed == seed and found.but_seed == of().but_seed


@pytest.mark.parametrize(
    "other",
    [
        with_recipe(lr=0.2),
        with_recipe(milestones=[1]),
        with_recipe(start="ab12"),
        with_recipe(more=1),
        of(bank="60cb"),
        of(features="sift"),
        of(steps=10),
        of(list={"name": "train.txt", "sha256": "12"}),
    ],
)
def test_whatever_else_decides_the_weights_makes_another_training(other: Training) -> None:
    assert other.but_seed != of().but_seed


@pytest.mark.parametrize(
    "same",
    [
        of(validation={"best": {"mAP": 0.9}}),
        of(list={"name": "elsewhere/list.csv", "sha256": "11"}),
        with_recipe(device="cuda", threads=8, workers=4, save_every=7),
        of(recipe=dict(reversed(CARD["recipe"].items()))),
    ],
)
def test_what_decides_no_weights_makes_no_other_training(same: Training) -> None:
    assert same == of()


def test_what_every_recipe_may_be_resumed_with_makes_no_other_training() -> None:
    for name in LoopOptions.spared:
        assert with_recipe(**{name: "another"}) == of(), name


@pytest.mark.parametrize(
    "card",
    [{}, {"recipe": "views"}, {"recipe": {"lr": 0.1}}, *({"recipe": {"seed": seed}} for seed in (-1, True, "0", None))],
)
def test_a_card_without_a_recipe_and_its_seed_says_nothing(card: dict[str, Any]) -> None:
    assert Training.of(card) is None


@pytest.mark.parametrize("bad", [{"seed": -1}, {"but_seed": ""}, {"option": ""}])
def test_a_training_without_a_seed_or_a_digest_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Training(**{"seed": 0, "but_seed": "aa", **bad})
