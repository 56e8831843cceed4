"""The picture of a pair: its lines are where the descriptors are, and no more than can be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from bench.conformance import example
from bench.datasets import Query
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from bench.pair import Pair
from bench.report.matches import (
    COUNTS,
    FOOT,
    GAP,
    HEAD,
    MARGIN,
    OTHERS,
    WIDTH,
    chosen,
    draw,
    file_name,
    places_of,
    said,
)
from bench.reranker import Explanation


def placed(points: list[tuple[float, float]]) -> Features:
    made = example(len(points), card_of("xfeat"), 0)
    return replace(made, keypoints=torch.tensor(points).view(-1, 2))


@pytest.fixture
def two(tmp_path: Path) -> Pair:
    """A query of 400x300 pixels whose box is 200x150, and a candidate of 200x150; three pairs, of which two count."""
    for name, size in (("query", (400, 300)), ("candidate", (200, 150))):
        Image.new("RGB", size, "white").save(tmp_path / f"{name}.png")
    return Pair(
        "ransac",
        Query("a/query", tmp_path / "query.png", (100, 100, 300, 250)),
        "b/candidate",
        tmp_path / "candidate.png",
        "easy",
        2.0,
        4,
        1,
        10,
        Explanation.counted(torch.tensor([[0, 1], [1, 0], [2, 2]]), torch.tensor([True, True, False])),
        (placed([(20, 30), (150, 75), (100, 120)]), placed([(60, 40), (10, 140), (190, 10)])),
    )


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(np.float64) / 255


def near(picture: np.ndarray, x: float, y: float, colour: str) -> bool:
    """Whether a point of about this colour is drawn there."""
    part = picture[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
    return bool(np.abs(part - to_rgb(colour)).max(axis=2).min() < 0.05)


def test_lines_end_where_the_descriptors_are(two: Pair, tmp_path: Path) -> None:
    """Both images are drawn at one height; a query's keypoints are in pixels of its box."""
    picture = pixels(draw(two, tmp_path / "p.png"))
    width = (WIDTH - 2 * MARGIN - GAP) / 2
    zoom = width / 200
    assert picture.shape == (HEAD + round(150 * zoom) + FOOT, WIDTH, 3)
    left, right = MARGIN, MARGIN + width + GAP
    for (x, y), start, colour in (
        ((20, 30), left, COUNTS),
        ((10, 140), right, COUNTS),
        ((150, 75), left, COUNTS),
        ((60, 40), right, COUNTS),
        ((100, 120), left, OTHERS),
        ((190, 10), right, OTHERS),
    ):
        assert near(picture, start + x * zoom, HEAD + y * zoom, colour), (x, y)
    assert not near(picture, left + 20 * zoom, HEAD + 60 * zoom, COUNTS)


def test_without_an_explanation_the_images_are_drawn_alone(two: Pair, tmp_path: Path) -> None:
    plain = pixels(draw(replace(two, explanation=None, notes=("No matches.",)), tmp_path / "p.png"))
    inside = plain[HEAD + 5 : -FOOT - 5, MARGIN + 5 : WIDTH - MARGIN - 5]
    assert (inside == 1).all()  # white images on white
    assert (pixels(draw(two, tmp_path / "q.png")) != plain).any()


def test_descriptors_that_say_no_place_are_not_drawn(two: Pair, tmp_path: Path) -> None:
    nowhere = (placed([(0, 0)] * 3), placed([(0, 0)] * 3))
    picture = pixels(draw(replace(two, features=nowhere), tmp_path / "p.png"))
    assert (picture[HEAD + 5 : -FOOT - 5, MARGIN + 5 : WIDTH - MARGIN - 5] == 1).all()


@pytest.mark.parametrize("size", [(2000, 20), (20, 2000), (8, 8)])
def test_images_of_any_shape_are_drawn_within_the_picture(two: Pair, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "white").save(two.image)
    picture = pixels(draw(two, tmp_path / "p.png"))
    assert picture.shape[1] == WIDTH and picture.shape[0] < 1000


@given(st.lists(st.floats(-1, 1), max_size=40), st.integers(1, 20))
def test_the_pairs_that_add_most_are_drawn_and_no_more_than_there_is_room_for(adds: list[float], most: int) -> None:
    kept = chosen(np.array(adds), most)
    assert len(kept) == min(most, len(adds)) == len(set(kept.tolist())) and (np.diff(kept) > 0).all()
    left_out = np.delete(np.abs(np.array(adds)), kept)
    assert not len(left_out) or left_out.max() <= np.abs(np.array(adds))[kept].min()


def test_what_is_said_of_a_pair(two: Pair) -> None:
    assert said(two) == "score 2, 3 matches, 2 inliers"
    assert said(replace(two, explanation=None, score=None)) == "not scored"
    assert places_of(two) == "place 4 of 10 in the first stage, 1 after reranking"
    assert places_of(replace(two, after=None)) == "place 4 of 10 in the first stage"
    assert places_of(replace(two, before=None, after=None)) == "not among the query's 10 candidates"


@pytest.mark.parametrize(
    ("query", "candidate", "method", "name"),
    [
        ("a/b c.jpg", "../d", "mnn@sift", "show-a-b-c.jpg-..-d-mnn-sift.png"),
        ("日本", "x", "rrt", "show-x-rrt.png"),
        ("q", "c", "mnn@superpoint:/weights/sp.pth", "show-q-c-mnn-superpoint-weights-sp.pth.png"),
    ],
)
def test_the_name_of_a_picture_is_safe(two: Pair, query: str, candidate: str, method: str, name: str) -> None:
    asked = replace(two, query=replace(two.query, id=query), candidate=candidate)
    assert file_name(asked, method) == name


def test_a_picture_of_another_kind_is_refused(two: Pair, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        draw(two, tmp_path / "p.jpg")
    assert "p.jpg" in error.value.message and str(error.value.hint).endswith("p.png")


def test_names_are_no_markup(two: Pair, tmp_path: Path) -> None:
    odd = replace(two, candidate="a_$b$^{x}\\frac", notes=("of $a$ and $b",), row="mnn codebook=$x")
    assert draw(odd, tmp_path / "p.png").is_file()


def test_the_command_draws_the_pair_of_the_newest_run(
    cli: Callable[..., Result], buildings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["-d", f"folder:{buildings}", "-k", "12", "--max-side", "160", "--keep-descriptors", "150"]
    assert cli("run", "-m", "mnn,rrt", "--first-stage", "gem-lite0", *common).exit_code == 0
    done = cli("show", "query0", "landmark0_0", "--method", "mnn")
    assert done.exit_code == 0, done.output
    assert "matches; place " in done.output and "written: show-query0-landmark0_0-mnn.png" in done.output
    assert pixels(tmp_path / "show-query0-landmark0_0-mnn.png").shape[1] == WIDTH
    (folder,) = (tmp_path / "runs").iterdir()
    done = cli("show", "query0", "landmark0_0", "-m", "rrt", "--run", str(folder), "--out", "deep/er.png")
    assert done.exit_code == 0 and "no matches to show" in done.output and (tmp_path / "deep" / "er.png").is_file()
    done = cli("show", "query9", "landmark0_0", "-m", "mnn")
    assert done.exit_code == 1 and "unknown query 'query9'" in done.output and "query0" in done.output
