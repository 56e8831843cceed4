"""The held-out shortlists by which weights are chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.errors import UserError
from methods._views.pairs import PairOptions, Sampler
from methods._views.shortlists import Shortlists

OPTIONS = PairOptions(descriptors=12, fewest=8, most=12, batch=8, hardest=4)


def test_validation_scenes_are_never_trained_on(views_bank):
    bank = views_bank()
    sampler, checker = Sampler(bank, OPTIONS), Shortlists(bank, OPTIONS)
    seen = {*checker.positives, *np.concatenate(list(checker.candidates.values())).tolist()}
    assert seen and bank.held_out[list(seen)].all() and not bank.held_out[sampler.usable].any()


def test_shortlists_are_by_global_similarity_and_leave_out_what_is_neither_right_nor_wrong(views_bank):
    bank = views_bank(scenes=20)
    one, two, other = np.flatnonzero(bank.groups == 16)  # the third view sees another part of the scene
    bank.coverage[[one, two, other]] = False
    bank.coverage[[one, two], 0] = True
    bank.coverage[other, 1] = True
    lists = Shortlists(bank, OPTIONS)
    assert other not in lists.positives and two in lists.candidates[one] and other not in lists.candidates[one]
    for query, candidates in lists.candidates.items():
        similar = bank.global_[candidates].astype(np.float32) @ bank.global_[query].astype(np.float32)
        assert (np.diff(similar) <= 0).all() and query not in candidates


def test_a_perfect_and_a_reversed_scorer_bound_the_validation(views_bank):
    bank = views_bank(scenes=20)
    lists = Shortlists(bank, OPTIONS)

    def distance(query, candidates):  # the views of a scene have one global
        return torch.stack([(query.global_ - c.global_).norm() for c in candidates])

    best = lists.mean_ap(lambda q, c: -distance(q, c), None)["photographs"]
    assert best == 1.0 > lists.mean_ap(distance, None)["photographs"] + 0.5
    nothing = torch.zeros(8)  # with globals hidden it cannot see any more: the order of the shortlist stays
    assert lists.mean_ap(distance, nothing) == lists.mean_ap(lambda q, c: torch.zeros(len(c)), None)


def test_too_little_material_is_refused(views_bank):
    with pytest.raises(UserError, match="too little"):
        Sampler(views_bank(), replace(OPTIONS, most=100))
    with pytest.raises(UserError, match="too little to validate"):
        Shortlists(views_bank(), replace(OPTIONS, descriptors=100))
