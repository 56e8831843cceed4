"""The reranker: skipped without weights and consent, counts matches with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.conformance import batch_of, check_reranker, example
from bench.errors import UserError
from bench.features.sets import card_of
from methods.superglue import SuperGlueMatches
from methods.superglue.model import SuperGlueConfig
from tests.speed.learned import random_state

OF_32 = replace(card_of("xfeat"), name="of-32", local_dim=32)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(random_state(SuperGlueConfig(dim=32, layers=3, encoder=(8,))), tmp_path / "superglue.pth")
    return tmp_path / "superglue.pth"


def test_without_weights_it_says_where_they_are() -> None:
    reason = str(SuperGlueMatches().skip(card_of("xfeat")))
    assert "superglue_outdoor.pth" in reason and "-o superglue.weights=FILE" in reason
    assert SuperGlueMatches().card().noncommercial == "magic-leap"


def test_descriptors_of_another_size_are_a_reason_to_skip(weights: Path) -> None:
    method = SuperGlueMatches(SuperGlueMatches.Options(weights=weights))
    assert method.skip(card_of("xfeat")) == f"{weights} reads 32-d descriptors, xfeat+gem-lite0 has 64-d"
    assert method.skip(OF_32) is None


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        SuperGlueMatches(SuperGlueMatches.Options(weights=tmp_path / "x.pth")).skip(OF_32)


def test_it_keeps_the_promises_of_a_reranker(weights: Path) -> None:
    check_reranker(SuperGlueMatches, SuperGlueMatches.Options(weights=weights), OF_32)


def test_it_counts_the_matches_of_the_best_descriptors(weights: Path) -> None:
    query = example(30, OF_32, 0)
    scores = []
    for most in (30, 10):
        method = SuperGlueMatches(SuperGlueMatches.Options(weights=weights, descriptors=most))
        method.load()
        found = method.score(query, batch_of([query, example(30, OF_32, 1)]))
        same, other = found.scores.tolist()
        assert other < same <= most and (found.details["confidence"] <= found.scores).all()
        scores.append(same)
    assert scores[1] < scores[0]


def test_presets_are_the_settings_of_the_papers_runs() -> None:
    options = SuperGlueMatches.Options(preset="oxford")
    assert (options.descriptors, options.iterations, options.match_threshold) == (1024, 20, 0.2)
    with pytest.raises(ValueError, match="preset=sop sets descriptors=1024, which 7 contradicts"):
        SuperGlueMatches.Options(preset="sop", descriptors=7)
