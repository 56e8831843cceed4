"""The bench of extraction compares equal features, and ends the programs that it started."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.features.extract import Part
from bench.features.items import Item
from bench.places import Places
from tests.speed import extraction
from tests.speed.extraction import bench_extraction, busy, demo_images, torch_threads


@pytest.fixture
def images(tmp_path: Path, view: Callable[[int, int], np.ndarray]) -> list[Item]:
    found = []
    for number in range(3):
        Image.fromarray(view(number, 0)).save(tmp_path / f"{number}.png")
        found.append(Item(str(number), (tmp_path / f"{number}.png",)))
    return found


@pytest.mark.parametrize("name", ["gem-lite0", "xfeat"])
def test_the_bench_says_its_ratios_and_fails_where_features_differ(
    name: str, images: list[Item], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_extraction(name, images, rounds=1, threads=2)
    said = capsys.readouterr().out
    assert f"extraction {name}" in said and " 1.8 " in said and "same" in said and "at most 3: " in said
    right = extraction.into_a_store

    def other(part: Part, images: Sequence[Item], threads: int) -> list[np.ndarray]:
        return [array + (threads == 2) for array in right(part, images, threads)]

    monkeypatch.setattr(extraction, "into_a_store", other)
    assert not bench_extraction(name, images, rounds=1, threads=2)
    assert "OTHER" in capsys.readouterr().out


def test_busy_programs_run_until_the_body_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []
    plain = subprocess.Popen

    def noted(command: list[str]) -> subprocess.Popen:
        started.append(plain(command))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    with pytest.raises(KeyError), busy(2):
        assert [program.poll() for program in started] == [None, None]
        raise KeyError
    assert len(started) == 2 and all(program.poll() is not None for program in started)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_without_the_demos_images_the_bench_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_extraction("xfeat", demo_images(Places.of(tmp_path), 8))
    assert "make demo" in capsys.readouterr().out
