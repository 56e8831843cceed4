"""Scoring pair by pair is the plain network, whatever the lengths, the threads and the precision asked before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bench.timing import torch_flags
from methods.rrt import engine
from methods.rrt.engine import PAIRS, Precision, _fastest_linear, _onednn_linear, pair_logits
from methods.rrt.model import RRT, RRTConfig, TokenBatch, Tokens

SMALL = RRTConfig(depth=3, feedforward=48, heads=4, dim=32, global_dim=40, local_dim=16)


@pytest.fixture(scope="module")
def model(spread_rrt: Callable[[RRTConfig], RRT]) -> RRT:
    """Random weights, biases included, whose logits spread."""
    return spread_rrt(SMALL)


@pytest.fixture
def threads() -> Iterator[None]:
    """The test may change torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def image(n: int, seed: int = 0) -> Tokens:
    draw = torch.Generator().manual_seed(1000 * n + seed)
    return Tokens(
        torch.randn(n, SMALL.local_dim, generator=draw),
        torch.randint(0, 7, (n,), generator=draw),
        torch.randn(SMALL.global_dim, generator=draw),
    )


def plain(model: RRT, query: Tokens, candidate: Tokens) -> float:
    """The logit of one pair by `RRT.forward`, every token in every layer."""
    with torch.inference_mode():
        sides = (TokenBatch(t.local[None], t.scale_ids[None], t.global_[None]) for t in (query, candidate))
        return model(*sides).item()


LENGTHS = (0, 1, 2, 12, 26, 27, 28, 29, 60, 0, 1)  # of candidates; with 1 of the query, 32 tokens are at 27


@pytest.mark.parametrize("n", [0, 1, 12, 33])
def test_scores_are_those_of_the_plain_network(model: RRT, n: int) -> None:
    query, images = image(n, 1), [image(length, seed) for seed, length in enumerate(LENGTHS)]
    expected = torch.tensor([plain(model, query, candidate) for candidate in images])
    assert expected.std() > 0.01
    assert (model.score(query, images) - expected).abs().max() <= 1e-5
    assert (model.score(query, images, batch=4) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("count", [0, 1, PAIRS, PAIRS + 1, 2 * PAIRS + 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_score_does_not_depend_on_the_other_candidates(model: RRT, threads: None, count: int, workers: int) -> None:
    torch.set_num_threads(workers)
    query, images = image(9, 1), [image(seed % 13, seed) for seed in range(count)]
    alone = [model.score(query, [candidate])[0] for candidate in images]
    found = model.score(query, images)
    assert found.shape == (count,) and found.tolist() == alone
    assert len(set(alone)) == count


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_ways_to_a_product_give_one_score(
    model: RRT, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """oneDNN's has rows of no token, torch's own has none, and each is the faster one on some processors."""
    query, images, found = image(40, 1), [image(length, seed) for seed, length in enumerate(LENGTHS)], []
    for way in (F.linear, _onednn_linear):
        monkeypatch.setattr(engine, "_fastest_linear", lambda *shape, way=way: way)
        found.append(model.score(query, images, precision=precision))
    assert (found[0] - found[1]).abs().max() <= (1e-5 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("depth", [1, 2])
def test_few_layers_are_no_special_case(depth: int) -> None:
    torch.manual_seed(1)
    model = RRT(RRTConfig(depth=depth, feedforward=20, heads=1, dim=16, global_dim=40, local_dim=16)).eval()
    found = model.score(image(5), [image(7), image(0)])
    assert found.tolist() == pytest.approx([plain(model, image(5), image(n)) for n in (7, 0)], abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_number_of_threads_changes_no_bit_and_is_kept(model: RRT, threads: None, precision: str) -> None:
    query, images = image(9, 1), [image(length, seed) for seed, length in enumerate(LENGTHS)]
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(model.score(query, images, precision=precision))
        assert torch.get_num_threads() == count
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_half_precision_is_near_declared_and_leaves_nothing_behind(model: RRT) -> None:
    query, images = image(9, 1), [image(length, seed) for seed, length in enumerate(LENGTHS)]
    flags, before = torch_flags(), model.score(query, images)
    half = model.score(query, images, precision="bf16")
    assert half.dtype == torch.float32
    assert 1e-5 < (half - before).abs().max() < 0.2
    assert torch.equal(model.score(query, images), before)
    assert torch_flags() == flags and not torch.is_autocast_enabled("cpu")


def test_every_pair_has_a_thread_of_its_own_and_later_threads_have_all(model: RRT, threads: None) -> None:
    torch.set_num_threads(3)
    seen = []

    def embed(number: int) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.zeros(4, SMALL.dim)

    pair_logits(list(model.encoder.layers), model.classifier, lambda: torch.zeros(3, SMALL.dim), range(9), embed)
    assert seen == [1] * 9
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen[9:] == [3]


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_raised_in_a_thread_reaches_the_caller(model: RRT, threads: None, count: int) -> None:
    torch.set_num_threads(count)
    asked = []

    def embed(number: int) -> torch.Tensor:
        asked.append(number)
        if number == 2:
            raise ValueError("candidate 2 is odd")
        return torch.zeros(4, SMALL.dim)

    flags = torch_flags()
    with pytest.raises(ValueError, match="candidate 2 is odd"):
        pair_logits(list(model.encoder.layers), model.classifier, lambda: torch.zeros(3, SMALL.dim), range(1000), embed)
    assert torch_flags() == flags and torch.get_num_threads() == count
    assert len(asked) < 1000  # the others are given up


def test_a_way_of_computing_is_chosen_once_for_each_shape_and_precision(model: RRT, threads: None) -> None:
    torch.set_num_threads(3)
    images = [image(length) for length in LENGTHS]
    _fastest_linear.cache_clear()
    for precision, chosen in (("fp32", 4), ("fp32", 4), ("bf16", 8), ("fp32", 8)):
        model.score(image(9), images, precision=precision)
        assert _fastest_linear.cache_info().misses == chosen


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_a_convolution_of_one_pixel_is_the_linear_layer(rows: int, inputs: int, outputs: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, inputs, generator=draw), torch.randn(outputs, inputs, generator=draw)
    bias = torch.randn(outputs, generator=draw)
    assert torch.allclose(_onednn_linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
