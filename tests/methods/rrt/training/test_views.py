from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.datasets.views.render import GRID
from bench.errors import UserError
from methods.rrt.model import load_checkpoint
from methods.rrt.training import views
from methods.rrt.training.bank import KEPT, Bank
from methods.rrt.training.views import Sampler, Shortlists, TrainOptions, has_match, loss_of, train_on, validate

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
        shows=np.repeat(groups[:, None], 3, axis=1),
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
    assert card["pairs"] == 160 and 0 <= card["validation"]["best"]["mAP"] <= 1
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
    sampler, checker = Sampler(bank, OPTIONS), Shortlists(bank, OPTIONS)
    seen = {*checker.positives, *np.concatenate(list(checker.candidates.values())).tolist()}
    assert seen and bank.held_out[list(seen)].all() and not bank.held_out[sampler.usable].any()


def test_a_step_is_drawn_from_its_number_alone():
    sampler = Sampler(_bank(), OPTIONS)
    pairs, again = sampler.draw(3), sampler.draw(3)
    assert pairs.labels.sum() == 4 and len(pairs.labels) == 8
    assert torch.equal(pairs.query.local, again.query.local)
    assert not torch.equal(pairs.query.local, sampler.draw(4).query.local)


def test_steps_read_from_the_fewest_to_the_most_descriptors():
    sampler = Sampler(_bank(), OPTIONS)
    assert {sampler.draw(step).query.local.shape[1] for step in range(60)} == set(range(8, 13))
    assert {sampler.draw(step).candidate.local.shape[1] for step in range(60)} == set(range(8, 13))


def test_only_the_best_descriptors_are_read():
    bank = _bank()
    bank.local[:, 15:] = 0  # with spread 1.25, steps of 12 draw from the best 15
    sampler = Sampler(bank, replace(OPTIONS, fewest=12, spread=1.25))
    assert all(sampler.draw(step).query.local.abs().sum(dim=-1).min() > 0 for step in range(20))


def test_a_negative_shows_nothing_of_the_anchor_not_even_as_a_filler():
    bank = _bank()
    bank.shows[bank.groups == 1, 2] = 0  # scene 0 fills the gaps of scene 1
    sampler = Sampler(bank, replace(OPTIONS, hard=1.0, hardest=36))
    for anchor in np.flatnonzero(bank.groups == 0):
        near = set(bank.groups[sampler.neighbours[int(anchor)]].tolist())
        assert near and not near & {0, 1}
    few = Sampler(bank, replace(OPTIONS, hardest=3))
    assert all(len(near) == 3 for near in few.neighbours.values())


def test_shortlists_are_by_global_similarity_and_leave_out_what_is_neither_right_nor_wrong():
    bank = _bank(scenes=20)
    one, two, other = np.flatnonzero(bank.groups == 16)  # the third view sees another part of the scene
    bank.coverage[[one, two, other]] = False
    bank.coverage[[one, two], 0] = True
    bank.coverage[other, 1] = True
    lists = Shortlists(bank, OPTIONS)
    assert other not in lists.positives and two in lists.candidates[one] and other not in lists.candidates[one]
    for query, candidates in lists.candidates.items():
        similar = bank.global_[candidates].astype(np.float32) @ bank.global_[query].astype(np.float32)
        assert (np.diff(similar) <= 0).all() and query not in candidates


def test_a_perfect_and_a_reversed_scorer_bound_the_validation():
    bank = _bank(scenes=20)
    lists = Shortlists(bank, OPTIONS)

    def distance(query, candidates):  # the views of a scene have one global
        return torch.stack([(query.global_ - c.global_).norm() for c in candidates])

    best = lists.mean_ap(lambda q, c: -distance(q, c), None)["photographs"]
    assert best == 1.0 > lists.mean_ap(distance, None)["photographs"] + 0.5
    nothing = torch.zeros(8)  # with globals hidden it cannot see any more: the order of the shortlist stays
    assert lists.mean_ap(distance, nothing) == lists.mean_ap(lambda q, c: torch.zeros(len(c)), None)


def test_figures_are_told_apart_by_kind_and_by_whether_globals_are_seen():
    bank = _bank(scenes=20)
    bank.shows[bank.groups >= 18] *= -1
    figures = validate(views._initial(OPTIONS, bank)[0], Shortlists(bank, OPTIONS), Sampler(bank, OPTIONS).blank)
    kinds = ("mAP photographs", "mAP buildings", "mAP photographs, no globals", "mAP buildings, no globals")
    assert figures["mAP"] == pytest.approx(np.mean([figures[kind] for kind in kinds])) and len(figures) == 5


def test_loss_reads_every_local_token():
    bank = _bank()
    model, head = views._initial(OPTIONS, bank)
    pairs = Sampler(bank, OPTIONS).draw(0)
    sides = [replace(side, local=side.local.clone().requires_grad_()) for side in (pairs.query, pairs.candidate)]
    loss, logits = loss_of(model, head, replace(pairs, query=sides[0], candidate=sides[1]), OPTIONS, 0)
    loss.backward()
    assert logits.shape == (8,) and torch.isfinite(loss)
    assert all((side.local.grad.norm(dim=-1) > 0).all() for side in sides)


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
        {"descriptors": KEPT + 1},
        {"most": KEPT + 1},
        {"fewest": 90, "most": 80},
        {"spread": 0.9},
        {"checked_on": (0,)},
        {"checked_on": (1,)},
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
        Sampler(_bank(), replace(OPTIONS, most=100))
    with pytest.raises(UserError, match="too little to validate"):
        Shortlists(_bank(), replace(OPTIONS, descriptors=100))
