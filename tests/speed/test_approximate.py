"""The bench of approximate searches names what each finds, and fails where similarities are not the exact ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.approximate import Hnsw, Index, IvfPq
from bench.search import Found
from tests.speed import approximate
from tests.speed.approximate import bench_approximate, extracted, views

KINDS = (IvfPq(lists=4, probes=4, codes=4, bits=2, refine=200), Hnsw(links=4, breadth=8))


def unit(rows: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, 16))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_recall_and_cost_of_each_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_approximate(unit(200, 0), unit(5, 1), KINDS, k=10)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("200 x 16, 5 queries, top 10") and len(lines) == 5
    assert lines[3].split()[0] == KINDS[0].name and lines[3].endswith("100.0%")  # it proposes everything


def test_similarities_that_are_not_exact_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Index.search

    def wrong(*given: object, **more: object) -> Found:
        found = right(*given, **more)  # type: ignore[arg-type]
        return Found(found.order, found.similarities + 0.01, found.ranks)

    monkeypatch.setattr(Index, "search", wrong)
    assert not bench_approximate(unit(200, 0), unit(5, 1), KINDS, k=10)


def test_views_are_parts_of_an_image_and_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    one, other = (list(views(image, 3, np.random.default_rng(5))) for _ in range(2))
    assert all(np.array_equal(a, b) and max(a.shape) <= approximate.SIDE for a, b in zip(one, other, strict=True))
    for number in range(3):
        Image.fromarray(image[:, number * 50 :]).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(approximate, "QUERIES", 2)
    gallery, queries = extracted(sorted(tmp_path.iterdir()), 2)
    assert gallery.shape == (6, 1280) and gallery.dtype == np.float16 and queries.shape == (2, 1280)
