"""AMES and ELViS train on stored features of landmarks, by the triplets that RRT trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.errors import UserError
from bench.features.fill import fill
from bench.features.items import Item
from bench.features.shards import Entry
from bench.features.store import FeatureStore
from methods._landmarks.network import read
from methods.ames.training import gld as ames
from methods.elvis.training import gld as elvis

SMALL: dict[str, Any] = {
    "descriptors": 12,
    "fewest": 6,
    "most": 12,
    "neighbours": 60,
    "least_positives": 2,
    "held_out": 0.25,
    "checked": 120,
    "check_every": 60,
    "triplets": 12,
    "warmup": 5,
    "epochs": 2.0,
    "threads": 1,
    "device": "cpu",
}
SIZES: dict[str, Any] = {"depth": 1, "feedforward": 32}
BOTH = pytest.mark.parametrize(("recipe", "sizes"), [(ames, SIZES), (elvis, {})], ids=["ames", "elvis"])


@pytest.fixture(scope="module")
def made(write_landmarks: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_landmarks(tmp_path_factory.mktemp("landmarks"), 40, 8)


def _options(recipe: ModuleType, made: Path, cache: Path, **more: Any) -> Any:
    return recipe.TrainOptions(**{**SMALL, "store": made / "store", "list": made / "list.txt", "cache": cache, **more})


@BOTH
def test_an_interrupted_training_ends_at_the_same_weights(
    recipe: ModuleType, sizes: dict[str, Any], made: Path, tmp_path: Path
) -> None:
    options = _options(recipe, made, tmp_path / "near", save_every=5, **sizes)

    def stop(what: str, done: int, total: int) -> None:
        if what == "training" and done >= 10:
            raise KeyboardInterrupt

    card = recipe.train(options, tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        recipe.train(options, tmp_path / "cut.safetensors", stop)
    recipe.train(options, tmp_path / "cut.safetensors")
    whole, cut = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert card["labels"] == {"trained on": 30, "held out": 10} and card["features"] == "made"


def test_votes_beat_the_first_stage_on_landmarks_that_were_not_seen(made: Path, tmp_path: Path) -> None:
    options = _options(elvis, made, tmp_path / "near", lr=2e-3, epochs=4.0)
    best = elvis.train(options, tmp_path / "w.safetensors")["validation"]["best"]
    assert best["triplets"] > best["triplets_first_stage"] + 0.15 and best["auc"] > 0.8, best


def test_a_step_reads_the_best_descriptors_as_many_as_its_number_draws(made: Path) -> None:
    options, store = _options(elvis, made, Path("unused")), FeatureStore(made / "store")
    keys = list(store)[:6]
    shortest = min(len(store.read(key)) for key in keys)
    lengths = []
    for step in range(120):
        batch = read(store, options, False, keys, step)
        n = batch.local.shape[1]
        lengths.append(n)
        stored = store.read(keys[2]).descriptors[:n].float()
        assert torch.allclose(batch.local[2], torch.nn.functional.normalize(stored, dim=1), atol=1e-6)
        assert torch.equal(batch.local, read(store, options, False, keys, step).local)
    assert set(lengths) == set(range(6, shortest + 1))
    fixed = replace(options, descriptors=8)
    assert {read(store, fixed, True, keys, step).local.shape[1] for step in range(40)} == {8}


def test_an_image_without_descriptors_is_named(tmp_path: Path) -> None:
    arrays = {
        "global_descriptor": np.ones(4),
        "descriptors": np.zeros((0, 8)),
        "keypoints": np.zeros((0, 2)),
        "scales": np.zeros(0),
        "orientations": np.zeros(0),
        "scores": np.zeros(0),
        "image_size": np.array([8, 8]),
    }
    fill(
        [Item("empty", ())], tmp_path / "store", lambda: lambda item: Entry("1", arrays), {"features": "x"}, exact=True
    )
    options = elvis.TrainOptions(store=tmp_path / "store", list=tmp_path / "list.txt")
    with pytest.raises(UserError, match="'empty': no local descriptors"):
        read(FeatureStore(tmp_path / "store"), options, False, ["empty"], 0)


@pytest.mark.parametrize("bad", [{"fewest": 0}, {"fewest": 13}, {"auxiliary": -1.0}, {"store": None}, {"list": None}])
@BOTH
def test_wrong_options_are_refused(recipe: ModuleType, sizes: dict[str, Any], bad: dict[str, Any], made: Path) -> None:
    with pytest.raises(UserError):
        replace(_options(recipe, made, Path("unused"), **sizes), **bad)


def test_sizes_that_are_none_are_refused(made: Path) -> None:
    with pytest.raises(UserError, match="depth 0"):
        _options(ames, made, Path("unused"), depth=0)
