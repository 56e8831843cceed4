"""The generated data set: the same bytes for the same numbers, and ground truth that holds together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.datasets.demo.generate import DemoSpec, generate, grade_views, landmark_building
from bench.datasets.demo.render import GRID, render_view

SMALL = DemoSpec(seed=3, landmarks=2, views=3, distractors=2)


def made(folder: Path, spec: DemoSpec, **how: Any) -> Path:
    folder.mkdir()
    generate(folder, spec, **how)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("demo") / "small", SMALL)


def test_same_spec_gives_the_same_bytes_whatever_the_workers(small: Path, tmp_path: Path) -> None:
    assert digests(made(tmp_path / "again", SMALL, workers=2)) == digests(small)


def test_other_seed_gives_other_pictures(small: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other", dataclasses.replace(SMALL, seed=4, landmarks=1, distractors=0))
    assert not set(digests(other).values()) & set(digests(small).values())


def test_ground_truth_names_each_picture_once(tmp_path: Path) -> None:
    spec = dataclasses.replace(SMALL, views=6, queries_per_landmark=2, distractors=1)
    folder = made(tmp_path / "two", spec)
    truth = json.loads((folder / "gnd.json").read_text())
    assert set(truth["gallery"]) == {file.stem for file in (folder / "gallery").iterdir()}
    assert {q["query"] for q in truth["queries"]} == {file.stem for file in (folder / "queries").iterdir()}
    assert len(truth["gallery"]) == 2 * 6 + 1 and len(truth["queries"]) == 4
    for query in truth["queries"]:
        graded = query["easy"] + query["hard"] + query["junk"]
        assert query["easy"] and query["hard"]
        assert len(graded) == len(set(graded)) == spec.views and set(graded) <= set(truth["gallery"])
        with Image.open(folder / "queries" / f"{query['query']}.jpg") as image:
            x1, y1, x2, y2 = query["box"]
            assert 0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height
            assert max(image.size) == 480


def test_progress_ends_at_the_number_of_pictures(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made(
        tmp_path / "told",
        dataclasses.replace(SMALL, landmarks=1),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (1 * (3 + 1) + 2, 1 * (3 + 1) + 2)


def test_a_view_is_easy_to_itself_and_a_far_one_is_junk() -> None:
    building = landmark_building(seed=5, landmark=0)
    near = render_view(building, np.random.default_rng([5, 0]), "query")
    far = render_view(building, np.random.default_rng([5, 1]), "junk")
    assert near.seen.shape == (GRID * GRID,) and near.seen.mean() > 0.3
    assert grade_views(near, near) == "easy"
    assert grade_views(near, dataclasses.replace(near, seen=np.zeros_like(near.seen))) == "junk"
    assert grade_views(near, dataclasses.replace(near, direction=np.asarray((1.0, 0, 0)))) == "hard"
    assert far.area < near.area


def test_a_picture_does_not_depend_on_what_was_rendered_before() -> None:
    building = landmark_building(seed=6, landmark=1)
    first = render_view(building, np.random.default_rng(1), "hard", 10)
    render_view(building, np.random.default_rng(2), "easy")
    again = render_view(building, np.random.default_rng(1), "hard", 10)
    assert first.image.tobytes() == again.image.tobytes() and first.box == again.box


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"landmarks": 0},
        {"views": 1},
        {"distractors": -1},
        {"twins": 1.5},
        {"queries_per_landmark": 0},
        {"landmarks": 2.0},
        {"seed": True},
    ],
)
def test_bad_spec_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DemoSpec(**wrong)


def test_folder_must_be_empty_and_workers_positive(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not empty"):
        generate(small, SMALL)
    with pytest.raises(ValueError, match="workers"):
        generate(tmp_path, SMALL, workers=0)
