"""The bench of kept aggregates compares equal scores."""

from __future__ import annotations

import pytest
import torch

from bench.features import FeatureBatch, Features
from methods.asmk import Asmk
from tests.speed.aggregates import bench_asmk


def test_the_bench_says_its_ratio_and_fails_where_scores_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_asmk(20, 3, rounds=1)
    said = capsys.readouterr().out
    assert " aggregating   same " in said and any(f" 8 {word} " in said for word in ("met", "not"))
    right = Asmk.score

    def other(self: Asmk, query: Features, candidates: FeatureBatch) -> torch.Tensor:
        return right(self, query, candidates) + (0 if candidates.index is None else 1e-6)

    monkeypatch.setattr(Asmk, "score", other)
    assert not bench_asmk(20, 3, rounds=1)
    assert " OTHER " in capsys.readouterr().out
