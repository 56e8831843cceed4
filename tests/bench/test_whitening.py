"""Whitening makes the set it was learned on white, keeps unit norms, and refuses too little to learn from."""

from __future__ import annotations

import numpy as np
import pytest

from bench.errors import UserError
from bench.whitening import learn


def unit(n: int, d: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(n, d)) @ draw.normal(size=(d, d)) + 2
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_results_are_unit_vectors_and_zeros_stay_zero() -> None:
    white = learn(unit(60, 16, 0), "other", dim=8)
    found = white(np.vstack([unit(20, 16, 1), np.zeros((2, 16), np.float32)]))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1] * 20 + [0] * 2, atol=1e-6)
    assert found.shape == (22, 8) and white.name == "pca8[other]"


def test_the_set_it_was_learned_on_has_no_correlations_left() -> None:
    learned = unit(300, 12, 3)
    white = learn(learned, "other", dim=6)
    raw = (learned - white.mean) @ white.projection
    np.testing.assert_allclose(np.cov(raw.T), np.eye(6), atol=1e-3)


def test_images_without_features_are_not_learned_from_and_few_images_give_few_components() -> None:
    learned = unit(5, 12, 4)
    with_nothing = np.vstack([learned, np.zeros((3, 12), np.float32)])
    assert learn(learned, "x").name == learn(with_nothing, "x").name == "pca4[x]"
    np.testing.assert_allclose(learn(learned, "x").mean, learn(with_nothing, "x").mean)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="2 images with features, at least 3 are needed"):
        learn(unit(2, 12, 5), "tiny")
