"""The bench of whole runs: what it lays out is a data set, and its stages add up to the run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.datasets.catalogue import load
from bench.places import Places
from tests.speed.scale import DATASET, GRADES, QUERIES, Whole, bench_scale, lay_out


def test_what_is_laid_out_is_revisited_oxford_with_distractors(tmp_path: Path) -> None:
    lay_out(tmp_path, 1150)
    dataset = load(DATASET, Places.of(tmp_path, tmp_path, tmp_path))
    assert len(dataset.queries) == QUERIES and len(dataset.gallery) == 1150
    assert sum(image.startswith("1m/") for image in dataset.gallery) == 150
    for query in dataset.queries:
        counts = {grade: list(dataset.grades[query.id].values()).count(grade) for grade in GRADES}
        assert counts == GRADES


def test_stages_are_parted_where_the_program_says_what_it_does() -> None:
    seen = {"search": (14.0, 15.0), "rerank": (17.0, 27.0)}
    said = {"began": 10.0, "imported": 12.0, "seen": seen, "ended": 28.0, "seal": "ab", "MiB": 300.0}
    whole = Whole.of(5, said, 200.0, 310.0)
    assert (whole.mib, whole.anonymous) == (310.0, 200.0) and Whole.of(5, said, 200.0, float("nan")).mib == 300.0
    assert whole.seconds == {"start": 2.0, "open": 2.0, "search": 3.0, "rerank": 10.0, "write": 1.0}
    assert sum(whole.seconds.values()) == 28.0 - 10.0


def test_galleries_of_several_sizes_are_run_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench_scale([150, 300], tmp_path, "gem-lite0", "identity")
    assert [whole.images for whole in found] == [150, 300]
    assert found[0].seal != found[1].seal and all(whole.mib > 0 for whole in found)
    if sys.platform == "linux":
        assert all(0 < whole.anonymous < whole.mib for whole in found)
    assert not list(tmp_path.iterdir())
    assert "memory at the most" in capsys.readouterr().out
