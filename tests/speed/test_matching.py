"""The bench of matching and verification compares equal work, and says what it lacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.places import Places
from methods._matching import Matches
from tests.speed import matching
from tests.speed.matching import (
    bench_counting,
    bench_matching,
    bench_threads,
    bench_verification,
    overlapping,
    plain_match,
)


def test_the_plain_matches_are_the_rows_that_choose_each_other() -> None:
    query, candidate = torch.eye(3), torch.tensor([[0.0, 0.6, 0.8], [0.0, 1.0, 0.0], [0.0, 0.8, 0.6]])
    assert plain_match(query, candidate).tolist() == [[1, 1], [2, 0]]


def test_half_of_every_candidate_shows_the_query_again() -> None:
    query, *images = overlapping(40, 64, 3)
    for image in images:
        assert (plain_match(query, image)[:, 0] < 20).sum() == 20
        assert torch.allclose(image.norm(dim=1), torch.ones(40))


def test_the_bench_of_counts_fails_where_they_are_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_counting(30, 16, rounds=1, candidates=4)
    counts, *products = (line for line in capsys.readouterr().out.splitlines() if "listing them" in line)
    assert counts.startswith("mnn 30x16 ") and " 1.15 " in counts and " same " in counts
    assert [line[:22].strip() for line in products] == ["products of it alone", "all in one product"]
    monkeypatch.setattr(matching, "mutual_counts", lambda query, images, least: [1] * len(images))
    assert not bench_counting(30, 16, rounds=1, candidates=4)
    assert " OTHER " in capsys.readouterr().out


def test_the_bench_says_its_ratio_and_fails_where_matches_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_matching(30, 16, rounds=1, candidates=4)
    said = capsys.readouterr().out
    assert " 1.8 " in said and " cdist, topk   same " in said
    none = torch.zeros(0, dtype=torch.long)
    monkeypatch.setattr(matching, "match", lambda query, candidate: Matches(none, none, torch.zeros(0)))
    assert not bench_matching(30, 16, rounds=1, candidates=4)
    assert " OTHER " in capsys.readouterr().out


def test_scikit_image_counts_what_an_affine_model_explains() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    draw = np.random.default_rng(0)
    candidate = draw.uniform(0, 400, (40, 2))
    query = candidate @ np.array([[1.1, 0.2], [-0.1, 0.9]]) + [30, -20]
    query[:10] = draw.uniform(0, 400, (10, 2))
    assert 30 <= matching.skimage_inliers(query, candidate) <= 33
    line = np.stack([np.arange(9.0)] * 2, axis=1)
    assert matching.skimage_inliers(line, line) in range(10)


def test_without_the_demos_features_the_bench_says_what_to_do(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_verification(places)
    bench_threads(places)
    assert "make demo" in capsys.readouterr().out


def test_maxsim_is_held_against_a_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert matching.bench_maxsim(30, 16, rounds=1, candidates=4)
    assert " a loop        same " in capsys.readouterr().out
    right = matching.MaxSim.score
    monkeypatch.setattr(matching.MaxSim, "score", lambda self, query, images: right(self, query, images) + 1e-5)
    assert not matching.bench_maxsim(30, 16, rounds=1, candidates=4)


def test_compiled_trials_are_held_against_numpys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    pytest.importorskip("numba", reason="the extra jit is not installed")
    assert matching.bench_trials(30, rounds=1, number=50)
    said = capsys.readouterr().out
    assert " 300 " in said and " 10 " in said and said.count(" same ") == 2 and said.count("GFLOP/s") == 2
    monkeypatch.setattr(matching.compiled, "search", lambda: None)
    assert matching.bench_trials(30, rounds=1, number=50)
    assert "numba" in capsys.readouterr().out
    monkeypatch.undo()
    other = matching.Verification("affine", "trials", 1, 0.001)
    right = matching.verify
    monkeypatch.setattr(matching, "verify", lambda query, candidate, settings: right(query, candidate, other))
    assert not matching.bench_trials(30, rounds=1, number=50)
