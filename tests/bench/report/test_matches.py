"""The picture of a pair: its lines and discs are where the descriptors are, and no more than can be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import assume, given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from bench.conformance import example
from bench.datasets import Query
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from bench.pair import Pair
from bench.report import matches
from bench.report.matches import (
    BIGGEST,
    COUNTS,
    COVERED,
    FOOT,
    GAP,
    HEAD,
    MARGIN,
    OTHERS,
    WIDTH,
    areas,
    chosen,
    draw,
    file_name,
    places_of,
    said,
)
from bench.reranker import Explanation, Saliency


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


# --- discs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def leaning(two: Pair) -> Pair:
    """The pair with weights of its descriptors, of which the query's first one is the strongest tenth."""
    weights = torch.tensor([1.0, 0.25, 0.0]), torch.tensor([0.5, 0.0, 0.125])
    return replace(two, row="rrt", explanation=Saliency(*weights, "attention", adds_up=False, elsewhere={"CLS": 0.5}))


def around(picture: np.ndarray, point: tuple[float, float], left: float, reach: int = 20) -> np.ndarray:
    """The pixels near a keypoint of an image that begins at `left`."""
    zoom = (WIDTH - 2 * MARGIN - GAP) / 400
    x, y = round(left + point[0] * zoom), round(HEAD + point[1] * zoom)
    return picture[max(HEAD, y - reach) : y + reach + 1, x - reach : x + reach + 1]


QUERY, CANDIDATE = MARGIN, MARGIN + (WIDTH - 2 * MARGIN - GAP) / 2 + GAP  # where the images begin


def test_discs_lie_where_the_descriptors_are_with_areas_as_their_weights(leaning: Pair, tmp_path: Path) -> None:
    picture = pixels(draw(leaning, tmp_path / "p.png"))
    for point, left, weight in (
        ((150, 75), QUERY, 0.25),
        ((100, 120), QUERY, 0.0),
        ((60, 40), CANDIDATE, 0.5),
        ((10, 140), CANDIDATE, 0.0),
        ((190, 10), CANDIDATE, 0.125),
    ):
        darker = 1 - around(picture, point, left).min(axis=2)
        covered = darker.sum() / darker.max() if darker.any() else 0.0
        assert covered == pytest.approx(weight * BIGGEST, rel=0.1), point


def test_what_weighs_more_is_lighter_and_the_strongest_tenth_is_outlined(leaning: Pair, tmp_path: Path) -> None:
    picture = pixels(draw(leaning, tmp_path / "p.png"))
    points = [((190, 10), CANDIDATE), ((150, 75), QUERY), ((60, 40), CANDIDATE), ((20, 30), QUERY)]  # rising weight
    lightness = [float(around(picture, *place, 1).mean(axis=(0, 1)) @ (0.2126, 0.7152, 0.0722)) for place in points]
    assert lightness == sorted(lightness) and lightness[-1] - lightness[0] > 0.3
    black = [int((around(picture, *place).max(axis=2) < 0.1).sum()) for place in points]
    assert black[:-1] == [0, 0, 0] and black[-1] > 10


@given(st.lists(st.lists(st.floats(0, 1), max_size=30), min_size=2, max_size=2), st.tuples(*[st.floats(1e3, 1e6)] * 2))
def test_discs_leave_the_images_to_be_seen(weights: list[list[float]], rooms: tuple[float, float]) -> None:
    given_weights = [np.array(of, dtype=np.float64) for of in weights]
    every = np.concatenate(given_weights)
    assume(every.max(initial=0) > 1e-6)
    drawn = areas(given_weights, rooms)
    for of, size, room in zip(given_weights, drawn, rooms, strict=True):
        assert size.max(initial=0) <= BIGGEST * (1 + 1e-9) and size.sum() <= COVERED * room * (1 + 1e-9)
        np.testing.assert_allclose(size / np.concatenate(drawn).max(), of / every.max(), atol=1e-12)
    full = [size.sum() / room / COVERED for size, room in zip(drawn, rooms, strict=True)]
    assert max(*full, np.concatenate(drawn).max() / BIGGEST) == pytest.approx(1)


def texts(pair: Pair, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the legend and the rest of a picture say."""
    figures: list[Any] = []
    with monkeypatch.context() as patch:
        saved = matches.saved
        patch.setattr(matches, "saved", lambda figure, *where: figures.append(figure) or saved(figure, *where))
        draw(pair, path)
    (figure,) = figures
    return [text.get_text() for text in [*(t for legend in figure.legends for t in legend.get_texts()), *figure.texts]]


def test_the_legend_says_what_discs_weigh(leaning: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = replace(leaning, notes=("Attention, not a share of the score; elsewhere: CLS 0.5.",))
    found = texts(noted, tmp_path / "p.png", monkeypatch)
    assert found[:3] == ["attention 1", "0.25", "the strongest 1 of 6: 1 of 1.88"]
    assert found[3] == "rrt: score 2, attention: query 1.25, candidate 0.625, elsewhere 0.5"
    assert found[-1] == noted.notes[0]


@pytest.mark.parametrize(
    ("first", "second", "drawn"),
    [([1.0], [], [True, False]), ([], [1.0], [False, True]), ([0.5], [1.0], [True, True]), ([], [], [False, False])],
)
def test_images_of_one_descriptor_or_none_have_as_many_discs(
    leaning: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: list[float],
    second: list[float],
    drawn: list[bool],
) -> None:
    points, weights = [(100.0, 75.0)], (torch.tensor(first), torch.tensor(second))
    few = replace(
        leaning,
        explanation=Saliency(*weights, "votes", adds_up=True),
        features=(placed(points[: len(first)]), placed(points[: len(second)])),
    )
    picture = pixels(draw(few, tmp_path / "p.png"))
    assert [bool((around(picture, points[0], left) < 1).any()) for left in (QUERY, CANDIDATE)] == drawn
    nothing = "No descriptor has any votes." in texts(few, tmp_path / "q.png", monkeypatch)
    assert nothing == (not any(drawn))


def test_discs_of_a_few_rows_are_of_the_best_ones(leaning: Pair, tmp_path: Path) -> None:
    """Features may hold more than a method reads."""
    few = replace(leaning, explanation=Saliency(torch.ones(1), torch.ones(2), "votes", adds_up=True))
    picture = pixels(draw(few, tmp_path / "p.png"))
    for point, left, seen in (((20, 30), QUERY, True), ((150, 75), QUERY, False), ((190, 10), CANDIDATE, False)):
        assert bool((around(picture, point, left) < 1).any()) == seen


def test_weights_of_descriptors_that_say_no_place_are_not_drawn(leaning: Pair, tmp_path: Path) -> None:
    nowhere = replace(leaning, features=(placed([(0, 0)] * 3), placed([(0, 0)] * 3)))
    picture = pixels(draw(nowhere, tmp_path / "p.png"))
    assert (picture[HEAD + 5 : -FOOT - 5, MARGIN + 5 : WIDTH - MARGIN - 5] == 1).all()


# --- the whole picture -----------------------------------------------------------------------------------------------


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
    weights = torch.tensor([0.5, 0.25]), torch.tensor([1.0])
    votes, attention = (Saliency(*weights, what, adds_up=what == "votes") for what in ("votes", "attention"))
    assert said(replace(two, explanation=votes)) == "score 2, the sum of votes: query 0.75, candidate 1"
    assert said(replace(two, explanation=attention)) == "score 2, attention: query 0.75, candidate 1"
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
    assert cli("run", "-m", "mnn,rrt,aqe", "--first-stage", "gem-lite0", *common).exit_code == 0
    done = cli("show", "query0", "landmark0_0", "--method", "mnn")
    assert done.exit_code == 0, done.output
    assert "matches; place " in done.output and "written: show-query0-landmark0_0-mnn.png" in done.output
    assert pixels(tmp_path / "show-query0-landmark0_0-mnn.png").shape[1] == WIDTH
    (folder,) = (tmp_path / "runs").iterdir()
    done = cli("show", "query0", "landmark0_0", "-m", "aqe", "--run", str(folder), "--out", "deep/er.png")
    assert done.exit_code == 0 and "no matches to show" in done.output and (tmp_path / "deep" / "er.png").is_file()
    done = cli("show", "query0", "landmark0_0", "-m", "rrt")
    assert done.exit_code == 0 and ", attention: query 0." in done.output
    assert "note: Attention, not a share of the score; elsewhere: CLS 0." in done.output
    done = cli("show", "query9", "landmark0_0", "-m", "mnn")
    assert done.exit_code == 1 and "unknown query 'query9'" in done.output and "query0" in done.output
