from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.errors import UserError
from methods.rrt.bank import KEPT, Bank
from methods.rrt.model import load_checkpoint
from methods.rrt.recipes import views
from methods.rrt.recipes.views import Sampler, TrainOptions, has_match, loss_of, train_on
from methods.rrt.views import GRID

OPTIONS = TrainOptions(
    pairs=160,
    batch=8,
    descriptors=12,
    pool=16,
    depth=2,
    feedforward=32,
    hardest=4,
    threads=1,
    save_every=5,
    check_every=10,
    warmup=3,
)


def _bank(scenes: int = 12, views: int = 3) -> Bank:
    """Scenes of 20 descriptors each, seen with noise and in another order; the last quarter is held out."""
    rng = np.random.default_rng(0)
    n = scenes * views
    groups = np.repeat(np.arange(scenes), views)
    parts, wholes = rng.normal(size=(scenes, KEPT, 64)), rng.normal(size=(scenes, 8))
    local = np.stack([rng.permutation(parts[g] + 0.1 * rng.normal(size=(KEPT, 64))) for g in groups])
    local /= np.linalg.norm(local, axis=-1, keepdims=True)
    return Bank(
        global_=wholes[groups].astype(np.float16),
        local=local.astype(np.float16),
        xy=np.full((n, KEPT, 2), np.nan, np.float32),
        counts=np.full(n, 20, np.int32),
        coverage=np.ones((n, GRID * GRID), bool),
        groups=groups,
        held_out=groups >= scenes * 3 // 4,
    )


def _weights(path):
    return load_checkpoint(path).state_dict()


def _same(one, two):
    return all(torch.equal(a, two[name]) for name, a in one.items())


def test_equal_seeds_give_equal_weights(tmp_path):
    bank = _bank()
    card = train_on(bank, OPTIONS, tmp_path / "a.safetensors")
    train_on(bank, OPTIONS, tmp_path / "b.safetensors")
    train_on(bank, replace(OPTIONS, seed=1), tmp_path / "c.safetensors")
    a, b, c = (_weights(tmp_path / f"{name}.safetensors") for name in "abc")
    assert _same(a, b) and not _same(a, c)
    assert card["pairs"] == 160 and 0 <= card["validation"]["best"]["auc"] <= 1
    assert load_checkpoint(tmp_path / "a.safetensors").card == card


def test_interrupted_run_ends_at_the_same_weights(tmp_path):
    bank = _bank()
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


def test_state_of_other_views_is_refused(tmp_path):
    def stop(what: str, done: int, total: int) -> None:
        if done >= 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on(_bank(), OPTIONS, tmp_path / "w.safetensors", stop)
    with pytest.raises(UserError, match=r"other options \(bank\)"):
        train_on(_bank(views=4), OPTIONS, tmp_path / "w.safetensors")


def test_starting_from_other_weights(tmp_path):
    bank = _bank()
    train_on(bank, OPTIONS, tmp_path / "a.safetensors")
    train_on(bank, replace(OPTIONS, start=tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="expected RRTConfig"):
        train_on(bank, replace(OPTIONS, depth=3, start=tmp_path / "a.safetensors"), tmp_path / "c.safetensors")


def test_validation_scenes_are_never_trained_on():
    bank = _bank()
    sampler, checker = Sampler(bank, OPTIONS), Sampler(bank, OPTIONS, held_out=True)
    assert not set(sampler.usable) & set(checker.usable)
    pairs = sampler.draw(3)
    assert pairs.labels.sum() == 4 and pairs.query.local.shape == (8, 12, 64)
    again = sampler.draw(3)
    assert torch.equal(pairs.query.local, again.query.local)


def test_loss_reads_every_local_token():
    bank = _bank()
    model, head = views._initial(OPTIONS, bank)
    pairs = Sampler(bank, OPTIONS).draw(0)
    loss, logits = loss_of(model, head, pairs, OPTIONS, 0)
    assert logits.shape == (8,) and torch.isfinite(loss)


def test_match_targets():
    eye = torch.eye(4)
    first, second = eye[None, :3], eye[None, [1, 3, 0]]
    unknown = (torch.full((1, 3, 2), float("nan")),) * 2
    got = has_match(first, second, unknown, torch.ones(1))[0]
    assert got[:, 0].tolist() == [1, 1, 0, 1, 0, 1]
    assert torch.equal(got[:, 0], got[:, 1])
    assert has_match(first, second, unknown, torch.zeros(1))[0, :, 1].sum() == 0
    places = torch.tensor([[[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]]), torch.tensor([[[0.5, 0.51], [0, 0], [0.7, 0.1]]])
    assert has_match(first, second, places, torch.ones(1))[0, :, 1].tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    "bad",
    [
        {"generated": (0,)},
        {"generated": ()},
        {"pairs": 0},
        {"descriptors": 101},
        {"pool": KEPT + 1},
        {"views": 1},
        {"batch": 7},
        {"lr": 0.0},
        {"hard": 1.5},
        {"depth": 0},
    ],
)
def test_wrong_options_are_refused(bad):
    with pytest.raises(UserError):
        TrainOptions(**bad)


def test_too_little_material_is_refused():
    with pytest.raises(UserError, match="too little"):
        Sampler(_bank(), replace(OPTIONS, pool=100))
