"""The registered method: which weights fit which features."""

import bisect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.conformance import batch_of, check_reranker, example
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from bench.reranker import parse_options
from methods.rrt import RerankingTransformer, scale_ids
from methods.rrt.model import RRT, RRTConfig, load_checkpoint, save_checkpoint


def with_weights(path: Path) -> RerankingTransformer:
    return RerankingTransformer(RerankingTransformer.Options(weights=path))


def test_the_shipped_weights_run_on_xfeat_alone() -> None:
    assert RerankingTransformer().skip(card_of("xfeat")) is None
    assert "xfeat" in str(RerankingTransformer().skip(card_of("sift")))


def test_weights_for_other_descriptors_are_a_reported_skip(tmp_path: Path) -> None:
    save_checkpoint(RRT(RRTConfig(depth=1, feedforward=8)), tmp_path / "w.safetensors")
    reason = str(with_weights(tmp_path / "w.safetensors").skip(card_of("xfeat")))
    assert "2048-d" in reason and "1280-d" in reason


def test_weights_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        with_weights(tmp_path / "w.safetensors").skip(card_of("xfeat"))


def test_the_shipped_weights_prefer_the_same_scene(images: list[Features]) -> None:
    method = RerankingTransformer()
    method.load()
    same, part, other = method.score(images[0], batch_of(images)).tolist()
    assert same > other and part > other


def test_the_card_of_given_weights_does_not_speak_of_the_shipped_ones(tmp_path: Path) -> None:
    assert "generated buildings" in str(RerankingTransformer().card().trained_on)
    save_checkpoint(RRT(RRTConfig(depth=1, feedforward=8)), tmp_path / "w.safetensors", {"descriptors": 70})
    given = str(with_weights(tmp_path / "w.safetensors").card().trained_on)
    assert "w.safetensors" in given and given.endswith("for 70 descriptors an image")


# --- what released checkpoints were made for ------------------------------------------------------------------------

PYRAMID = [0.25, 0.35355338, 0.5, 0.70710677, 1.0, 1.4142135, 2.0]  # DELG's image scales; a feature's is 1 / that


def as_written(how: str) -> np.ndarray:
    """DELG's seven scales, rising, as float32: by three ways of computing them that differ in the last bits."""
    return {
        "in float32": lambda: np.float32(1) / np.array(PYRAMID[::-1], np.float32),
        "in float64": lambda: (1 / np.array(PYRAMID[::-1])).astype(np.float32),
        "of rounded image scales": lambda: (1 / np.array([2, 1.4142, 1, 0.7071, 0.5, 0.3535, 0.25])).astype(np.float32),
    }[how]()


def by_bisection(scales: np.ndarray) -> list[int]:
    """How the released checkpoints' training got its ids: float64 limits, values that had passed through float32."""
    limits = [0.5, 0.70710677, 1.0, 1.41421354, 2.0, 2.82842708, 4.0]
    return [bisect.bisect_right(limits, float(scale)) - 1 for scale in scales]


@pytest.mark.parametrize("how", ["in float32", "in float64", "of rounded image scales"])
def test_scale_ids_are_those_of_the_nearest_nominal_scale_whatever_the_last_bit(how: str) -> None:
    scales = torch.from_numpy(as_written(how))
    assert scale_ids(scales, "released").tolist() == [0, 0, 2, 2, 4, 4, 6]
    assert scale_ids(scales, "fixed").tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert scale_ids(scales, "fixed").dtype == torch.int64


def test_released_ids_are_what_the_released_checkpoints_were_trained_on_and_bisection_is_a_trap() -> None:
    """The bisection gives them for DELG's own float32 scales only: neither when compared in float32 nor a bit off."""
    scales = as_written("in float32")
    assert scale_ids(torch.from_numpy(scales), "released").tolist() == by_bisection(scales)
    limits = np.array([0.5, 0.70710677, 1, 1.41421354, 2, 2.82842708, 4], np.float32)
    assert (np.searchsorted(limits, scales, side="right") - 1).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert by_bisection(as_written("in float64")) == [0, 1, 2, 2, 4, 5, 6]
    assert by_bisection(np.array([2.828427314758301, 0.7071068286895752])) == [5, 1]
    assert scale_ids(torch.tensor([2.828427314758301, 0.7071068286895752]), "released").tolist() == [4, 0]


@given(st.lists(st.floats(2**-10, 2**10, width=32), max_size=20))
def test_any_scale_has_the_id_nearest_in_log_scale(scales: list[float]) -> None:
    nominal = np.arange(-2, 5) / 2
    for scale, found in zip(scales, scale_ids(torch.tensor(scales), "fixed").tolist(), strict=True):
        distance = np.abs(np.log2(scale) - nominal)
        assert distance[found] <= distance.min() + 1e-5


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A checkpoint of the layout of the released ones, of one small layer."""
    torch.manual_seed(0)
    state = RRT(RRTConfig(depth=1, feedforward=8)).state_dict()
    torch.save({"state": {f"module.{k}": v for k, v in state.items()}, "optim": {}}, tmp_path / "r50.pt")
    return tmp_path / "r50.pt"


def scaled(seed: int) -> Features:
    """Features of six rows with DELG's scales, in some order."""
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:6]
    return replace(example(6, card_of("delg"), seed), scales=torch.from_numpy(as_written("in float32"))[order])


def loaded(weights: Path, **options: object) -> RerankingTransformer:
    method = RerankingTransformer(RerankingTransformer.Options(weights=weights, **options))  # type: ignore[arg-type]
    assert method.skip(card_of("delg")) is None
    method.load()
    return method


def test_a_released_checkpoint_reads_its_own_scale_rows_and_no_others(released: Path) -> None:
    """Rows 1, 3 and 5 never trained: with `released`, the default, they change nothing; with `fixed` they do."""
    content = torch.load(released, weights_only=True)
    content["state"]["module.scale_encoder.weight"][[1, 3, 5]] += 3
    torch.save(content, released.with_name("other.pt"))
    query, batch = scaled(1), batch_of([scaled(2), scaled(3)])

    def change(**options: object) -> float:
        one, other = (
            loaded(path, **options).score(query, batch) for path in (released, released.with_name("other.pt"))
        )
        return float((one - other).abs().max())

    assert change() == change(scale_ids="released") == 0 and change(scale_ids="fixed") > 1e-3
    default, fixed = (loaded(released, **o).score(query, batch) for o in ({}, {"scale_ids": "fixed"}))
    assert (default - fixed).abs().max() > 1e-4


def test_the_number_of_descriptors_is_what_the_weights_were_made_for_unless_it_is_given(released: Path) -> None:
    """500 for released checkpoints, as the paper; what their card says for our own."""
    assert loaded(released).descriptors_used(1000) == 500 and loaded(released).descriptors_used(7) == 7
    assert loaded(released, descriptors=20).descriptors_used(1000) == 20
    assert RerankingTransformer().descriptors_used(1000) == 100
    query, candidate, three = scaled(1), scaled(2), loaded(released, descriptors=3)
    cut = three.score(query.top(3), batch_of([candidate.top(3)]))
    assert torch.equal(three.score(query, batch_of([candidate])), cut)
    assert not torch.equal(loaded(released).score(query, batch_of([candidate])), cut)


def test_weights_without_a_scale_read_one_row_and_take_no_scale_ids(tmp_path: Path, released: Path) -> None:
    """Our own weights say in their card how they read scales; the shipped ones saw descriptors without."""
    path = tmp_path / "own.safetensors"
    save_checkpoint(load_checkpoint(released), path, {"descriptors": 50})
    method = loaded(path)
    query, batch = scaled(1), batch_of([scaled(2), scaled(3)])
    without = batch_of([replace(image, scales=torch.ones(len(image))) for image in batch])
    assert torch.equal(method.score(query, batch), method.score(query, without))
    assert method.descriptors_used(1000) == 50
    options = RerankingTransformer.Options(weights=path, scale_ids="fixed")
    assert "without scales" in str(RerankingTransformer(options).skip(card_of("delg")))
    save_checkpoint(load_checkpoint(released), path, {"scale_ids": "fixed"})
    with_fixed = loaded(released, scale_ids="fixed").score(query, batch)
    assert torch.equal(loaded(path).score(query, batch), with_fixed)


@pytest.mark.parametrize(("text", "value"), [("none", None), ("released", "released"), ("fixed", "fixed")])
def test_scale_ids_are_an_option_of_the_command_line(text: str, value: str | None) -> None:
    assert parse_options(RerankingTransformer, {"scale_ids": text}).scale_ids == value


def test_other_scale_ids_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"unknown value of -o rrt.scale_ids: 'fixt'"):
        parse_options(RerankingTransformer, {"scale_ids": "fixt"})


def test_the_card_of_a_released_checkpoint_says_how_its_epoch_was_chosen(released: Path) -> None:
    assert "ROxford itself" in str(with_weights(released).card().trained_on)


def test_a_released_checkpoint_keeps_what_every_reranker_must(released: Path) -> None:
    check_reranker(RerankingTransformer, RerankingTransformer.Options(weights=released), "delg")
