"""The registered method: which weights fit which features, and what it promises the harness."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import Result

from bench.conformance import batch_of, check_reranker, example
from bench.errors import UserError
from bench.features import FeatureCard
from bench.features.sets import card_of
from methods.rrt_sop import RerankingTransformerSOP
from methods.rrt_sop.model import OPTIONAL, SOPModel, load_model, save_model

Small = Callable[[int], SOPModel]


def _with(path: Path | None) -> RerankingTransformerSOP:
    return RerankingTransformerSOP(RerankingTransformerSOP.Options(weights=path))


def _on(path: Path) -> FeatureCard:
    return card_of(f"sop:{path}")


def test_conformance(weights: Path) -> None:
    check_reranker(RerankingTransformerSOP, RerankingTransformerSOP.Options(weights=weights), _on(weights))


def test_scores_are_the_matchers(weights: Path) -> None:
    method, made = _with(weights), _on(weights)
    method.load()
    query, others = example(49, made, 0), [example(n, made, i + 1) for i, n in enumerate([49] * 17 + [0, 5])]
    others[3] = query
    scores = method.score(query, batch_of(others))
    matcher = load_model(weights).matcher
    with torch.inference_mode():
        expected = [
            matcher(query.descriptors[None], image.descriptors[None]).item() if len(image) else float("-inf")
            for image in others
        ]
    assert scores.argmin() == 17 and torch.isfinite(scores).all()
    kept = [i for i in range(len(others)) if i != 17]
    torch.testing.assert_close(scores[kept], torch.tensor(expected)[kept], atol=1e-5, rtol=0)


def test_descriptors_are_read_as_they_are(weights: Path) -> None:
    """Neither normalised nor sorted."""
    method, made = _with(weights), _on(weights)
    method.load()
    query, image = example(49, made, 0), example(49, made, 1)
    longer = replace(image, descriptors=image.descriptors * 5)
    turned = replace(image, descriptors=image.descriptors.flip(0))
    assert len({round(s, 6) for s in method.score(query, batch_of([image, longer, turned])).tolist()}) == 3


def test_it_reads_at_most_a_grid_of_descriptors(weights: Path) -> None:
    method, made = _with(weights), _on(weights)
    method.load()
    query, image = example(49, made, 0), example(60, made, 1)
    assert method.descriptors_used(60) == 49 and method.descriptors_used(20) == 20
    scores = method.score(query, batch_of([image, image.top(49)]))
    torch.testing.assert_close(scores[:1], scores[1:], atol=1e-6, rtol=0)


# --- what does not fit is a reported skip ---------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["xfeat", "sift", "delg"])
def test_other_features_are_a_skip(features: str, weights: Path) -> None:
    assert "--features sop:WEIGHTS" in str(_with(weights).skip(card_of(features)))


def test_no_weights_are_a_skip(weights: Path) -> None:
    assert "no weights are shipped" in str(_with(None).skip(_on(weights)))


def test_weights_that_are_not_there_are_an_error(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        _with(tmp_path / "w.safetensors").skip(_on(weights))


def test_weights_of_the_first_stage_are_a_skip(small: Small, tmp_path: Path) -> None:
    save_model(small(0), tmp_path / "global.safetensors", {"stage": "global"}, without=OPTIONAL)
    path = tmp_path / "global.safetensors"
    assert "matcher is not trained" in str(_with(path).skip(_on(path)))


def test_only_features_of_the_same_trunk_and_local_map_fit(small: Small, weights: Path, tmp_path: Path) -> None:
    longer, other = tmp_path / "longer.safetensors", tmp_path / "other.safetensors"
    same_descriptors = small(0)
    with torch.no_grad():
        same_descriptors.matcher.classifier.bias.add_(1)
    save_model(same_descriptors, longer, {})
    save_model(small(1), other, {})
    assert _with(weights).skip(_on(weights)) is None
    assert _with(longer).skip(_on(weights)) is None  # a matcher trained on, over the same descriptors
    reason = str(_with(weights).skip(_on(other)))
    assert str(other) in reason and f"--features sop:{weights}" in reason
    assert "none" in str(_with(weights).skip(replace(_on(weights), weights=())))


def test_the_card_says_whose_weights_they_are(weights: Path) -> None:
    assert "joint.safetensors" in str(_with(weights).card().trained_on)
    assert _with(None).card() == RerankingTransformerSOP.spec.card


def test_a_run_from_the_command_line(
    weights: Path, instances: Path, small: Small, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    save_model(small(1), tmp_path / "first.safetensors", {"stage": "global"}, without=OPTIONAL)
    result = cli(
        "run", "--dataset", f"folder:{instances}", "--features", f"sop:{weights},{tmp_path / 'first.safetensors'}",
        "--method", "identity,rrt-sop", "-o", f"rrt-sop.weights={weights}", "--threads", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "rrt-sop" in result.output and "skip" not in result.output.lower()
