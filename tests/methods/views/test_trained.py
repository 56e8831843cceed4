"""Real weights, trained for a few steps with several seeds: one row of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bench import registry
from bench.report.row_names import newest_rows
from bench.report.seeds import Seeds
from bench.report.tables import compare
from bench.reranker import Reranker
from bench.results import Run
from bench.trained import Training
from methods._views.bank import Bank
from methods.ames.training import views as ames
from methods.elvis.training import views as elvis
from methods.rrt import SHIPPED
from methods.rrt.model import RRT, RRTConfig
from methods.rrt.training import views as rrt
from tests.methods.views.test_network import AMES, ELVIS, SMALL

ALL = pytest.mark.parametrize(
    ("recipe", "options"),
    [(ames, AMES), (elvis, ELVIS), (rrt, rrt.TrainOptions(**SMALL, depth=1, feedforward=16))],
    ids=["ames", "elvis", "rrt"],
)


def method_of(recipe: ModuleType, path: Path) -> Reranker:
    kind = registry.get(recipe.__name__.split(".")[1])
    return kind(kind.Options(weights=path), torch.device("cpu"))


def wide(bank: Bank) -> Bank:
    """The bank with globals as large as gem-lite0's."""
    draw = np.random.default_rng(1).normal(size=(bank.global_.shape[1], 1280))
    return replace(bank, global_=(bank.global_ @ draw).astype(np.float16))


@ALL
def test_weights_of_several_seeds_are_one_row_and_those_of_another_recipe_another(
    recipe: ModuleType,
    options: Any,
    views_bank: Callable[..., Bank],
    run: Callable,
    instances: Path,
    tmp_path: Path,
) -> None:
    name, bank = recipe.__name__.split(".")[1], wide(views_bank())
    runs = []
    for file, given in (("a", options), ("b", replace(options, seed=7)), ("other", replace(options, lr=2e-3, seed=1))):
        path = tmp_path / f"{file}.safetensors"
        recipe.train_on(bank, given, path)
        runs.append(run(instances, name, top_k=4, options={name: {"weights": str(path)}}).run)
    rows = newest_rows(runs)
    assert set(rows) == {
        f"{name} weights={tmp_path}/*.safetensors 2 seeds",
        f"{name} weights={tmp_path}/other.safetensors",
    }
    pooled = rows[f"{name} weights={tmp_path}/*.safetensors 2 seeds"][0]
    assert isinstance(pooled, Seeds) and pooled.runs == (runs[0], runs[1]) and pooled.said == "0, 7"
    row = compare(runs).rows.loc[f"{name} weights={tmp_path}/*.safetensors 2 seeds"]
    assert row["mAP All"] == pytest.approx(np.mean([_alone(one) for one in runs[:2]]))


def _alone(run: Run) -> float:
    return float(compare([run]).rows["mAP All"].iloc[0])


@ALL
def test_where_and_how_fast_a_training_ran_makes_no_other_training(
    recipe: ModuleType, options: Any, views_bank: Callable[..., Bank], tmp_path: Path
) -> None:
    here, there = tmp_path / "here.safetensors", tmp_path / "there" / "w.safetensors"
    there.parent.mkdir()
    recipe.train_on(views_bank(), options, here)
    recipe.train_on(views_bank(), replace(options, device="cpu", workers=1, save_every=9, seed=1), there)
    one, two = (method_of(recipe, path).trained() for path in (here, there))
    assert one is not None and two is not None
    assert (one.seed, two.seed) == (0, 1) and one.but_seed == two.but_seed


@ALL
def test_other_views_and_a_longer_training_make_another(
    recipe: ModuleType, options: Any, views_bank: Callable[..., Bank], tmp_path: Path
) -> None:
    path, found = tmp_path / "w.safetensors", []
    for bank, given in (
        (views_bank(), options),
        (views_bank(views=4), options),
        (views_bank(), replace(options, pairs=240)),
    ):
        recipe.train_on(bank, given, path)
        how = method_of(recipe, path).trained()
        assert isinstance(how, Training)
        found.append(how)
    assert len({how.but_seed for how in found}) == 3 and {how.seed for how in found} == {0}


def test_the_shipped_weights_say_how_they_were_trained() -> None:
    how = method_of(rrt, SHIPPED).trained()
    assert how is not None and how.seed == 2  # as its card says


def test_released_weights_do_not_say_how_they_were_trained(tmp_path: Path) -> None:
    torch.save({"state": RRT(RRTConfig(depth=1, feedforward=8)).state_dict()}, tmp_path / "released.pt")
    assert method_of(rrt, tmp_path / "released.pt").trained() is None


def test_a_method_without_weights_says_of_no_training() -> None:
    for name in ("mnn", "r2former"):
        assert registry.get(name)().trained() is None
