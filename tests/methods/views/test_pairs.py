"""How pairs of views are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.errors import UserError
from methods._views.bank import KEPT
from methods._views.pairs import PairOptions, Sampler

OPTIONS = PairOptions(descriptors=12, fewest=8, most=12, batch=8, hardest=4)


def test_a_step_is_drawn_from_its_number_alone(views_bank):
    sampler = Sampler(views_bank(), OPTIONS)
    pairs, again = sampler.draw(3), sampler.draw(3)
    assert pairs.labels.sum() == 4 and len(pairs.labels) == 8
    assert torch.equal(pairs.query.local, again.query.local)
    assert not torch.equal(pairs.query.local, sampler.draw(4).query.local)


def test_steps_read_from_the_fewest_to_the_most_descriptors(views_bank):
    sampler = Sampler(views_bank(), OPTIONS)
    assert {sampler.draw(step).query.local.shape[1] for step in range(60)} == set(range(8, 13))
    assert {sampler.draw(step).candidate.local.shape[1] for step in range(60)} == set(range(8, 13))


def test_only_the_best_descriptors_are_read(views_bank):
    bank = views_bank()
    bank.local[:, 15:] = 0  # with spread 1.25, steps of 12 draw from the best 15
    sampler = Sampler(bank, replace(OPTIONS, fewest=12, spread=1.25))
    assert all(sampler.draw(step).query.local.abs().sum(dim=-1).min() > 0 for step in range(20))


def test_a_negative_shows_nothing_of_the_anchor_not_even_as_a_filler(views_bank):
    bank = views_bank()
    bank.shows[bank.groups == 1, 2] = 0  # scene 0 fills the gaps of scene 1
    sampler = Sampler(bank, replace(OPTIONS, hard=1.0, hardest=36))
    for anchor in np.flatnonzero(bank.groups == 0):
        near = set(bank.groups[sampler.neighbours[int(anchor)]].tolist())
        assert near and not near & {0, 1}
    few = Sampler(bank, replace(OPTIONS, hardest=3))
    assert all(len(near) == 3 for near in few.neighbours.values())


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
    ],
)
def test_wrong_options_are_refused(bad):
    with pytest.raises(UserError):
        PairOptions(**bad)
