"""The bench of learned matching compares equal work."""

from __future__ import annotations

import pytest
import torch

from methods.lightglue.model import LightGlueNetwork
from methods.superglue.model import SuperGlueConfig
from tests.speed import learned
from tests.speed.learned import bench_lightglue, bench_superglue

SMALL = SuperGlueConfig(dim=32, layers=3, encoder=(8, 16))


def test_the_bench_says_its_ratio_and_fails_where_matches_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_superglue(30, rounds=1, config=SMALL)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("superglue 30 ") and " plain network same " in said[0]
    assert said[1].startswith("  20 Sinkhorn of it ") and "of it" not in said[0]
    right = learned.SuperGlue.score

    def shifted(self: learned.SuperGlue, *given: object) -> list:
        return [(places.roll(1), confidence) for places, confidence in right(self, *given)]  # type: ignore[arg-type]

    monkeypatch.setattr(learned.SuperGlue, "score", shifted)
    assert not bench_superglue(30, rounds=1, config=SMALL)


def test_the_bench_of_lightglue_says_its_ratio_and_fails_where_counts_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_lightglue(20, rounds=1)
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if not line.strip()[:1].isdigit()]
    assert [row[:22].strip() for row in rows] == ["lightglue 20", "kornia, 4 at once", "adaptive"]
    assert "kornia" in rows[0][22:] and "same" in rows[0] and "GFLOP/s" in rows[0]
    right = LightGlueNetwork.match

    def one_fewer(self: LightGlueNetwork, *given: object, threshold: float) -> list[torch.Tensor]:
        return [pairs[1:] for pairs in right(self, *given, threshold=0.0)]  # type: ignore[arg-type]

    monkeypatch.setattr(LightGlueNetwork, "match", one_fewer)
    assert not bench_lightglue(20, rounds=1)
    assert "OTHER" in capsys.readouterr().out
