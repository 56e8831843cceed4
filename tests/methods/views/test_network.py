"""AMES and ELViS train by one recipe, on the pairs that RRT trains on."""

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

from bench import registry
from bench.errors import UserError
from bench.features.sets import card_of
from methods._pair_network import loss_of
from methods._views.bank import Bank
from methods._views.network import validate
from methods._views.pairs import Sampler
from methods._views.shortlists import Shortlists
from methods.ames.training import views as ames
from methods.elvis.training import views as elvis
from methods.rrt.training import views as rrt

SMALL: dict[str, Any] = {
    "pairs": 160,
    "batch": 8,
    "descriptors": 12,
    "fewest": 8,
    "most": 12,
    "hardest": 4,
    "threads": 1,
    "save_every": 5,
    "check_every": 10,
    "warmup": 3,
}
AMES, ELVIS = ames.TrainOptions(**SMALL, depth=2, feedforward=32), elvis.TrainOptions(**SMALL)
BOTH = pytest.mark.parametrize(("recipe", "options"), [(ames, AMES), (elvis, ELVIS)], ids=["ames", "elvis"])


def _initial(recipe: ModuleType, local_dim: int, weights: Path | None = None) -> Any:
    if recipe is elvis:
        return elvis.initial(ELVIS, local_dim, 80, weights)
    return ames.initial(AMES if weights else ames.TrainOptions(), local_dim, weights)


def _same(one: Path, two: Path) -> bool:
    first, second = load_file(one), load_file(two)
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def _stop(what: str, done: int, total: int) -> None:
    if done >= 13:
        raise KeyboardInterrupt


@BOTH
def test_equal_seeds_give_equal_weights_and_an_interrupted_training_ends_at_them(
    recipe: ModuleType, options: Any, views_bank: Callable[..., Bank], tmp_path: Path
) -> None:
    bank = views_bank()
    whole, cut, other = (tmp_path / f"{name}.safetensors" for name in ("whole", "cut", "other"))
    card = recipe.train_on(bank, options, whole)
    with pytest.raises(KeyboardInterrupt):
        recipe.train_on(bank, options, cut, _stop)
    assert not cut.exists()
    recipe.train_on(bank, options, cut)
    recipe.train_on(bank, replace(options, seed=1), other)
    assert _same(whole, cut) and not _same(whole, other)
    assert card["pairs"] == 160 and card["features"] == "xfeat" and 0 <= card["validation"]["best"]["mAP"] <= 1


@BOTH
def test_the_state_of_other_views_and_of_other_options_is_refused(
    recipe: ModuleType, options: Any, views_bank: Callable[..., Bank], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        recipe.train_on(views_bank(), options, tmp_path / "w.safetensors", _stop)
    with pytest.raises(UserError, match=r"other options \(bank\)"):
        recipe.train_on(views_bank(views=4), options, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"other options \(init\)"):
        recipe.train_on(views_bank(), replace(options, init="xavier"), tmp_path / "w.safetensors")


@BOTH
def test_trained_weights_are_read_by_the_method_that_says_what_they_are_for(
    recipe: ModuleType, options: Any, views_bank: Callable[..., Bank], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    recipe.train_on(views_bank(), options, path)
    name = recipe.__name__.split(".")[1]
    kind = registry.get(name)
    method = kind(kind.Options(weights=path), torch.device("cpu"))
    assert method.skip(card_of("xfeat")) is None and method.made_for() == "xfeat"
    assert method.descriptors_used(500) == options.descriptors
    assert "64-d" in str(method.skip(card_of("sift")))


@BOTH
def test_training_goes_on_from_weights_of_the_same_sizes_alone(
    recipe: ModuleType, options: Any, views_bank: Callable[..., Bank], tmp_path: Path
) -> None:
    first = tmp_path / "a.safetensors"
    recipe.train_on(views_bank(), options, first)
    assert torch.equal(
        _initial(recipe, 64, first).state_dict()["remap.0.weight" if recipe is elvis else "mtc_token"],
        load_file(first)["remap.0.weight" if recipe is elvis else "mtc_token"],
    )
    with pytest.raises(UserError, match=r"expected .*local_dim=128"):
        _initial(recipe, 128, first)


@BOTH
def test_the_loss_reads_every_descriptor(recipe: ModuleType, options: Any, views_bank: Callable[..., Bank]) -> None:
    bank = views_bank()
    made = recipe.recipe(bank, options)
    pairs = made.draw(0)
    sides = [replace(side, local=side.local.clone().requires_grad_()) for side in (pairs.query, pairs.candidate)]
    query, candidate = (side.local for side in sides)
    loss = loss_of(made.module, query, candidate, pairs.labels, 1.0, pairs.places)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert all((side.local.grad.norm(dim=-1) > 0).all() for side in sides)  # type: ignore[union-attr]


@BOTH
def test_logits_of_a_batch_are_those_of_its_pairs_one_by_one(
    recipe: ModuleType, options: Any, views_bank: Callable[..., Bank]
) -> None:
    made = recipe.recipe(views_bank(), options)
    pairs, model = made.draw(0), made.module["model"].eval()
    _, together = model.encode(pairs.query.local, pairs.candidate.local)
    alone = [model.encode(q[None], c[None])[1] for q, c in zip(pairs.query.local, pairs.candidate.local, strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def _longer(views_bank: Callable[..., Bank], options: Any) -> tuple[Bank, Any]:
    bank = views_bank(scenes=40)
    bank.global_[:] = np.random.default_rng(0).normal(size=bank.global_.shape)  # the first stage says nothing
    return bank, replace(options, pairs=1600, lr=2e-3, hard=0.0, check_every=50, save_every=500)


def test_training_elvis_on_scenes_ranks_held_out_scenes_better(views_bank: Callable[..., Bank], tmp_path: Path) -> None:
    bank, options = _longer(views_bank, ELVIS)
    before = elvis.recipe(bank, options).module["model"].eval()  # type: ignore[index]
    start = validate(before, Shortlists(bank, options), torch.device("cpu"))["mAP"]
    card = elvis.train_on(bank, options, tmp_path / "w.safetensors")
    assert card["validation"]["last"]["mAP"] > start + 0.1


@BOTH
def test_a_few_pairs_can_be_learned_by_heart(recipe: ModuleType, options: Any, views_bank: Callable[..., Bank]) -> None:
    made = recipe.recipe(views_bank(), replace(options, lr=3e-3, auxiliary=0.0))
    optimizer, pairs, losses = made.optimizer(), made.draw(0), []
    for step in range(150):
        losses.append(loss := made.loss(pairs, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 < losses[0]


@pytest.mark.parametrize("seed", range(5))
def test_votes_count_matches_before_any_training(seed: int) -> None:
    torch.manual_seed(seed)
    model = _initial(elvis, 64).eval()
    one, other = (torch.nn.functional.normalize(torch.randn(40, 64), dim=1) for _ in range(2))
    scores = [model(one, torch.cat([one[:same], other[same:]])).item() for same in (0, 10, 20, 40)]
    assert scores == sorted(scores) and scores[3] > scores[0] + 20
    few, many = torch.tensor([[5.0], [60.0]])
    assert model.logit(many) > model.logit(few)


def test_attention_across_images_prefers_the_like_before_any_training() -> None:
    torch.manual_seed(0)
    model = _initial(ames, 64)
    query, key, _ = model.decoder.layers[0].cross_attn.in_proj_weight.detach().chunk(3)  # type: ignore[union-attr]
    tokens = model.embed(torch.nn.functional.normalize(torch.randn(30, 64), dim=1))
    for head in range(2):
        rows = slice(64 * head, 64 * head + 64)
        attention = (tokens @ query[rows].T) @ (tokens @ key[rows].T).T
        assert attention.argmax(dim=1).tolist() == list(range(30))


def test_all_three_recipes_draw_the_same_pairs(views_bank: Callable[..., Bank]) -> None:
    bank = views_bank()
    drawn = [Sampler(bank, options).draw(7) for options in (AMES, ELVIS, rrt.TrainOptions(**SMALL))]
    assert all(torch.equal(drawn[0].query.local, other.query.local) for other in drawn)
    assert all(torch.equal(drawn[0].labels, other.labels) for other in drawn)


@BOTH
def test_views_of_one_instance_are_too_little(
    recipe: ModuleType, options: Any, views_bank: Callable[..., Bank], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="too little to train on"):
        recipe.train_on(views_bank(scenes=1, views=6), options, tmp_path / "w.safetensors")


@pytest.mark.parametrize("bad", [{"depth": 0}, {"feedforward": 0}, {"auxiliary": -1.0}, {"generated": (0,)}])
def test_wrong_options_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        ames.TrainOptions(**bad)
