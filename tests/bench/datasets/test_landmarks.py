"""The generator of the embedded data set: the same bytes every time, labels that hold, bad values refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.datasets import landmarks
from bench.datasets.landmarks import DemoSpec, View, generate, label, render

SMALL = DemoSpec(seed=3, landmarks=2, views=6, distractors=2)


def digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    generate(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def truth(made: Path) -> dict[str, Any]:
    return json.loads((made / "gnd.json").read_text())


def test_same_bytes_for_any_number_of_workers(made: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate(tmp_path, SMALL, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert digest(tmp_path) == digest(made)
    assert seen[-1] == (16, 16)


def test_other_seed_other_bytes(made: Path, tmp_path: Path) -> None:
    generate(tmp_path, replace(SMALL, seed=4, landmarks=1, views=5, distractors=1))
    assert not set(digest(tmp_path).values()) & set(digest(made).values())


def test_labels_are_disjoint_and_name_files(made: Path, truth: dict[str, Any]) -> None:
    assert len(truth["gallery"]) == len(set(truth["gallery"])) == 2 * 6 + 2
    assert {p.stem for p in (made / "gallery").iterdir()} == set(truth["gallery"])
    assert {p.stem for p in (made / "queries").iterdir()} == {q["query"] for q in truth["queries"]}
    assert not {q["query"] for q in truth["queries"]} & set(truth["gallery"])
    graded = [i for q in truth["queries"] for grade in ("easy", "hard", "junk") for i in q[grade]]
    assert len(graded) == len(set(graded)) == 2 * 6
    assert set(graded) <= set(truth["gallery"])


def test_every_query_has_easy_and_hard(truth: dict[str, Any]) -> None:
    for query in truth["queries"]:
        assert len(query["easy"]) >= 2 and len(query["hard"]) >= 3


def test_boxes_lie_inside_the_image(made: Path, truth: dict[str, Any]) -> None:
    for query in truth["queries"]:
        with Image.open(made / "queries" / f"{query['query']}.jpg") as image:
            width, height = image.size
        assert sorted((width, height)) == [360, 480]
        x1, y1, x2, y2 = query["box"]
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


@pytest.mark.parametrize("bad", [{"seed": -1}, {"landmarks": 0}, {"views": 4}, {"distractors": -1}, {"views": 9.0},
                                 {"landmarks": True}])
def test_bad_spec_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        DemoSpec(**bad)


def test_no_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers"):
        generate(tmp_path, SMALL, workers=0)


def test_label_by_angle_scale_and_visible_share() -> None:
    query = View((0, 0, 1), 10.0, 0.9, (0, 0, 10, 10))
    assert label(query, query) == "easy"
    assert label(query, replace(query, scale=20.0)) == label(query, replace(query, scale=5.0)) == "hard"
    assert label(query, replace(query, direction=(float(np.sin(0.8)), 0, float(np.cos(0.8))))) == "hard"
    assert label(query, replace(query, visible=0.5)) == "hard"
    assert label(query, replace(query, visible=0.05)) == "junk"
    assert label(query, replace(query, dim=True)) == "hard"


def test_render_repeats_with_its_generator() -> None:
    place = landmarks.landmark(5, 0)
    first, view = render(place, np.random.default_rng(1))
    again, _ = render(place, np.random.default_rng(1))
    other, _ = render(place, np.random.default_rng(2))
    assert first.dtype == np.uint8 and max(first.shape) == 480 and 0 <= view.visible <= 1
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
