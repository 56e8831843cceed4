from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.errors import UserError
from methods._views.pairs import Sampler
from methods._views.shortlists import Shortlists
from methods.rrt.model import load_checkpoint
from methods.rrt.training import views
from methods.rrt.training.views import TrainOptions, loss_of, train_on, validate

OPTIONS = TrainOptions(
    pairs=160,
    batch=8,
    descriptors=12,
    fewest=8,
    most=12,
    depth=2,
    feedforward=32,
    hardest=4,
    threads=1,
    save_every=5,
    check_every=10,
    warmup=3,
)


def _weights(path):
    return load_checkpoint(path).state_dict()


def _same(one, two):
    return all(torch.equal(a, two[name]) for name, a in one.items())


def test_equal_seeds_give_equal_weights(views_bank, tmp_path):
    bank = views_bank()
    card = train_on(bank, OPTIONS, tmp_path / "a.safetensors")
    train_on(bank, OPTIONS, tmp_path / "b.safetensors")
    train_on(bank, replace(OPTIONS, seed=1), tmp_path / "c.safetensors")
    a, b, c = (_weights(tmp_path / f"{name}.safetensors") for name in "abc")
    assert _same(a, b) and not _same(a, c)
    assert card["pairs"] == 160 and 0 <= card["validation"]["best"]["mAP"] <= 1
    assert load_checkpoint(tmp_path / "a.safetensors").card == card


def test_interrupted_run_ends_at_the_same_weights(views_bank, tmp_path):
    bank = views_bank()
    train_on(bank, OPTIONS, tmp_path / "whole.safetensors")

    def stop(what: str, done: int, total: int) -> None:
        if done >= 13:
            raise KeyboardInterrupt

    out = tmp_path / "cut.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_on(bank, OPTIONS, out, stop)
    assert not out.exists()
    train_on(bank, OPTIONS, out)
    assert _same(_weights(out), _weights(tmp_path / "whole.safetensors"))


def test_state_of_other_views_is_refused(views_bank, tmp_path):
    def stop(what: str, done: int, total: int) -> None:
        if done >= 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on(views_bank(), OPTIONS, tmp_path / "w.safetensors", stop)
    with pytest.raises(UserError, match=r"other options \(bank\)"):
        train_on(views_bank(views=4), OPTIONS, tmp_path / "w.safetensors")


def test_starting_from_other_weights(views_bank, tmp_path):
    bank = views_bank()
    train_on(bank, OPTIONS, tmp_path / "a.safetensors")
    train_on(bank, replace(OPTIONS, start=tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="expected RRTConfig"):
        train_on(bank, replace(OPTIONS, depth=3, start=tmp_path / "a.safetensors"), tmp_path / "c.safetensors")


def test_figures_are_told_apart_by_kind_and_by_whether_globals_are_seen(views_bank):
    bank = views_bank(scenes=20)
    bank.shows[bank.groups >= 18] *= -1
    figures = validate(views._initial(OPTIONS, bank)[0], Shortlists(bank, OPTIONS), Sampler(bank, OPTIONS).blank)
    kinds = ("mAP photographs", "mAP buildings", "mAP photographs, no globals", "mAP buildings, no globals")
    assert figures["mAP"] == pytest.approx(np.mean([figures[kind] for kind in kinds])) and len(figures) == 5


def test_loss_reads_every_local_token(views_bank):
    bank = views_bank()
    model, head = views._initial(OPTIONS, bank)
    pairs = Sampler(bank, OPTIONS).draw(0)
    sides = [replace(side, local=side.local.clone().requires_grad_()) for side in (pairs.query, pairs.candidate)]
    loss, logits = loss_of(model, head, replace(pairs, query=sides[0], candidate=sides[1]), OPTIONS, 0)
    loss.backward()
    assert logits.shape == (8,) and torch.isfinite(loss)
    assert all((side.local.grad.norm(dim=-1) > 0).all() for side in sides)


@pytest.mark.parametrize(
    "bad",
    [
        {"depth": 0},
        {"feedforward": 0},
        {"auxiliary": -1.0},
        {"hide_global": 1.5},
        {"generated": (0,)},
    ],
)
def test_wrong_options_are_refused(bad):
    with pytest.raises(UserError):
        TrainOptions(**bad)
