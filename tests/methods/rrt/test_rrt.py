"""The registered method: which weights fit which features."""

from pathlib import Path

import pytest

from bench.conformance import batch_of
from bench.errors import UserError
from bench.features import Features
from bench.features.extractors import CARDS
from methods.rrt import RerankingTransformer
from methods.rrt.model import RRT, RRTConfig, save_checkpoint


def with_weights(path: Path) -> RerankingTransformer:
    return RerankingTransformer(RerankingTransformer.Options(weights=path))


def test_the_shipped_weights_run_on_xfeat_alone() -> None:
    assert RerankingTransformer().skip(CARDS["xfeat"]) is None
    assert "xfeat" in str(RerankingTransformer().skip(CARDS["sift"]))


def test_weights_for_other_descriptors_are_a_reported_skip(tmp_path: Path) -> None:
    save_checkpoint(RRT(RRTConfig(depth=1, feedforward=8)), tmp_path / "w.safetensors")
    reason = str(with_weights(tmp_path / "w.safetensors").skip(CARDS["xfeat"]))
    assert "2048-d" in reason and "1280-d" in reason


def test_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        with_weights(tmp_path / "w.safetensors").skip(CARDS["xfeat"])


def test_the_shipped_weights_prefer_the_same_scene(images: list[Features]) -> None:
    method = RerankingTransformer()
    method.load()
    same, part, other = method.score(images[0], batch_of(images)).tolist()
    assert same > other and part > other


def test_the_card_of_given_weights_does_not_speak_of_the_shipped_ones(tmp_path: Path) -> None:
    assert "generated buildings" in str(RerankingTransformer().card().trained_on)
    assert "w.safetensors" in str(with_weights(tmp_path / "w.safetensors").card().trained_on)
