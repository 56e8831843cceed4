"""The bench compares like with like: its naive network is the same network, its counts are those of the work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.places import Places
from methods.rrt.engine import _first_token
from methods.rrt.model import RRT, RRTConfig
from tests.speed import rank_changes
from tests.speed.rrt import CANDIDATES, Naive, bench_precision, bench_rrt, example_tokens, pair_flops, ragged

SMALL = RRTConfig(depth=3, feedforward=48, heads=4, dim=32, global_dim=40, local_dim=16)


@pytest.fixture
def model(spread_rrt: Callable[[RRTConfig], RRT]) -> RRT:
    """Random weights whose logits spread."""
    return spread_rrt(SMALL)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_naive_network_gives_the_scores_and_the_ranking_of_the_method(model: RRT, fused: bool, batch: int) -> None:
    query, *images = example_tokens([20, *ragged(24, 12), 0, 1, 40], SMALL)
    expected, naive = model.score(query, images), Naive(model, fused).score(query, images, batch)
    assert expected.std() > 0.01
    assert (naive - expected).abs().max() <= 1e-5
    assert rank_changes(naive.tolist(), expected.tolist()) == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_the_naive_network_leaves_torchs_fast_path_as_it_was(model: RRT, enabled: bool) -> None:
    query, *images = example_tokens([3, 4], SMALL)
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        for fused in (True, False):
            Naive(model, fused).score(query, images, 1)
            with pytest.raises(RuntimeError):
                Naive(model, fused).score(query, example_tokens([4], RRTConfig(local_dim=7)), 1)
            assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("tokens", [1, 5, 104])
@pytest.mark.parametrize("config", [SMALL, RRTConfig(depth=1, feedforward=7, heads=1, dim=8)])
def test_operations_are_those_that_torch_counts(config: RRTConfig, tokens: int) -> None:
    model, x = RRT(config).eval(), torch.randn(1, tokens, config.dim)
    counts = []
    for first_token_last in (False, True):
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            y = x
            for layer in model.encoder.layers[:-1]:
                y = layer(y, None)
            if first_token_last:
                _first_token(model.encoder.layers[-1], y[0])
            else:
                model.encoder.layers[-1](y, None)
        counts.append(counter.get_total_flops())
    assert counts == [pair_flops(config, tokens, False), pair_flops(config, tokens, True)]


def test_operations_of_one_layer_by_hand() -> None:
    """3 tokens of 2 numbers, 5 wide: 3 x (q, k, v, out: 4 x 2 x 2; up, down: 2 x 2 x 5), and 3 x 3 x 2 twice."""
    config = RRTConfig(depth=1, feedforward=5, heads=1, dim=2)
    assert pair_flops(config, 3, False) == 2 * (3 * (16 + 20) + 2 * 18)
    assert pair_flops(config, 3, True) == 2 * (16 + 20 + 2 * 3 * 2)
    assert pair_flops(config, 3, True, projected=1) == pair_flops(config, 3, True)  # there is no layer before the last
    two = RRTConfig(depth=2, feedforward=5, heads=1, dim=2)
    assert pair_flops(two, 3, True) - pair_flops(two, 3, True, projected=1) == 2 * (3 * 2 * 2)


def test_ragged_candidates_are_full_in_three_of_five_and_as_long_on_average_however_many_rounds() -> None:
    twenty = ragged(500, CANDIDATES)
    assert twenty.count(500) == 12 + 1 and min(twenty) == 255 and max(twenty) == 500
    assert ragged(500, 100) == twenty * 5 and len(ragged(500, 7)) == 7


@settings(max_examples=20)
@given(st.integers(2, 1000), st.integers(1, 250))
def test_ragged_lengths_are_within_half_and_all(descriptors: int, count: int) -> None:
    lengths = ragged(descriptors, count)
    assert len(lengths) == count and descriptors / 2 <= min(lengths) + 0.5 and max(lengths) == descriptors


def test_the_bench_of_rrt_says_ratios_operations_peak_and_rank_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_rrt(SMALL, 8, rounds=1)
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("rrt 3x48, 8 ")]
    baselines = ("batch 100", "batch 10", "batch 1", "unfused, 10", "unfused, 1")
    assert all(f" {name:13s} same " in row for name, row in zip(baselines, rows, strict=True))
    assert len(rows) == 5 and all(" same " in row and "GFLOP/s" in row for row in rows)
    assert sum(" 5 met" in row or " 5 not" in row for row in rows) == 1
    assert "GFLOP a pair; 0 of 100 ranks differ" in said


@pytest.mark.parametrize("wrong", ["logits", "ranks"])
def test_the_bench_fails_where_scores_are_not_the_naive_ones(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    right = RRT.score

    def score(self: RRT, *given: object) -> torch.Tensor:
        found = right(self, *given)  # type: ignore[arg-type]
        return found + 2e-5 if wrong == "logits" else found.flip(0)

    monkeypatch.setattr(RRT, "score", score)
    assert not bench_rrt(SMALL, 8, rounds=1)


def test_without_the_demos_features_the_bench_says_what_to_do(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_precision(places)
    assert "make demo" in capsys.readouterr().out
