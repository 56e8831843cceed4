"""LighterGlue, with its real weights, matches an image with itself and not with another."""

import pytest
import torch

from bench.conformance import batch_of
from bench.features import Features
from bench.features.extractors import CARDS
from methods.lightglue import LightGlue


@pytest.fixture(scope="module")
def method() -> LightGlue:
    method = LightGlue()
    method.load()
    return method


def test_the_same_scene_has_more_matches_than_another(images: list[Features], method: LightGlue) -> None:
    same, shifted, other = method.score(images[0], batch_of(images)).tolist()
    assert same > 0.8 * len(images[0])
    assert same >= shifted > 3 * other


def test_the_order_and_number_of_candidates_change_nothing(images: list[Features], method: LightGlue) -> None:
    together = method.score(images[0], batch_of(images))
    assert torch.equal(together.flip(0), method.score(images[0], batch_of(images[::-1])))
    assert torch.equal(together[2:], method.score(images[0], batch_of(images[2:])))


def test_other_features_are_a_reported_skip() -> None:
    assert "XFeat" in str(LightGlue().skip(CARDS["sift"]))
