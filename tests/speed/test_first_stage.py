"""The bench of first stages holds lists against the kernel itself, and fails where they are not its."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.search import Found
from methods.asmk import Asmk
from methods.asmk.codebook import Codebook
from tests.speed import first_stage
from tests.speed.first_stage import Drawn, bench_first_stage, kernel_lists


def test_lists_are_held_against_the_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_first_stage(30, rounds=1)
    said = capsys.readouterr().out
    assert said.count("20 of 20 lists of a sample are the kernel's own") == 2
    assert said.count("70 of 70 queries find their own image first") == 2
    wrong = Found(np.zeros((20, 20), int), np.zeros((20, 20)), ())
    right = first_stage.search_by
    monkeypatch.setattr(first_stage, "search_by", lambda s, d, **k: wrong if s.queries == 20 else right(s, d, **k))
    assert not bench_first_stage(30, rounds=1)
    assert capsys.readouterr().out.count("0 of 20 lists") == 2


def test_an_image_is_drawn_alike_each_time_and_its_query_is_near_it() -> None:
    store = Drawn(Codebook.load(Asmk.Options().codebook).centroids)
    one, again, query, other = (image.descriptors for image in store.read_all(["3", "3", "3/", "4"], frozenset(), None))
    assert torch.equal(one, again) and not torch.equal(one, query)
    assert (one * query).sum(dim=1).min() > 0.9 > 0.5 > (one * other).sum(dim=1).mean()
    assert kernel_lists(store, [str(i) for i in range(30)], ["3/"], Asmk.Options())[0, 0] == 3
