"""The bench at full size compares equal results, and fails where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from bench.search import Found
from tests.speed import full_size
from tests.speed.full_size import GRADES, bench_evaluation, bench_search, own_scores, plain_scores


def test_the_search_is_held_against_faiss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_search(600, 16, rounds=1)
    assert "70 of 70 lists are FAISS's" in capsys.readouterr().out
    wrong = Found(np.zeros((70, 100), int), np.zeros((70, 100)), ())
    monkeypatch.setattr(full_size, "search", lambda *_, **__: wrong)
    assert not bench_search(600, 16, rounds=1)


def test_the_measures_are_held_against_the_references_algorithm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_evaluation(400, rounds=1)
    assert "greatest difference of measures 0" in capsys.readouterr().out
    monkeypatch.setattr(full_size, "ranks_in", lambda ranking, images: np.arange(len(images)))
    assert not bench_evaluation(400, rounds=1)


def test_the_plain_algorithm_counts_by_hand() -> None:
    truth = {"easy": np.array([5]), "hard": np.array([1]), "junk": np.array([0])}
    ranking = np.array([0, 1, 2, 5, 3, 4])  # without junk: hard first, easy third
    easy, medium, hard = np.split(np.array(plain_scores(ranking, truth)), 3)
    assert easy.tolist() == [(0 / 1 + 1 / 2) / 2, 0.0, 0.5, 0.5]
    assert medium.tolist() == pytest.approx([(1 + 1 + 1 / 2 + 2 / 3) / 4, 1.0, 2 / 3, 2 / 3])
    assert hard.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert own_scores(ranking, truth) == plain_scores(ranking, truth)
    assert sum(GRADES.values()) < 400
