"""Changed images: a change that changes nothing gives the very score of the run, and others do what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.blend import Blend
from bench.changes import Area, Change, Changes, redrawn, seen
from bench.errors import UserError
from bench.features import sets
from bench.features.extract import ExtractOptions
from bench.pair import pair
from bench.places import Places
from bench.results import Run
from bench.run import Outcome
from bench.what_if import WhatIf, what_if

Go = Callable[..., Outcome]
QUERY, CANDIDATE = "query0", "landmark0_2"
WHOLE = "0%,0%,100%,100%"


@pytest.fixture
def done(run: Go, buildings: Path) -> Run:
    return run(buildings, "mnn,ransac,rrt,identity,oracle,aqe", top_k=12).run


# --- what is typed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("hide", "quary:0,0,9,9", "expected query:VALUE or candidate:VALUE"),
        ("hide", "0,0,9,9", "expected query:VALUE or candidate:VALUE"),
        ("hide", "query:0,0,9", "expected x,y,width,height"),
        ("hide", "query:0,0,0,9", "expected x,y,width,height"),
        ("keep", "query:0,0,nan,9", "expected x,y,width,height"),
        ("keep", "query:0%,0,9%,9%", "expected x,y,width,height"),
        ("keep", "candidate:a,b,c,d", "expected x,y,width,height"),
        ("scale", "query:0", "expected factors from 0.0625 to 16"),
        ("scale", "query:1,x", "expected factors"),
        ("scale", "query:", "expected factors"),
        ("scale", "candidate:nan", "expected factors"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_was_expected(option: str, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        Changes.parse(**{option: [text]})
    assert said in error.value.message and text.rpartition(":")[2] in error.value.message and error.value.hint


@pytest.mark.parametrize("more", [{"keep": ["query:0,0,9,9"] * 2}, {"scale": ["query:2", "query:3"]}])
def test_an_image_is_kept_and_scaled_once(more: dict[str, list[str]]) -> None:
    with pytest.raises(UserError, match="given twice"):
        Changes.parse(**more)


def test_changes_are_of_the_image_that_they_name() -> None:
    found = Changes.parse(["query:1,2,3,4", "query:5,6,7,8"], ["candidate:0,0,9,9"], ["candidate:2,0.5"])
    assert found.query == Change((Area(1, 2, 3, 4), Area(5, 6, 7, 8)))
    assert found.candidate == Change((), Area(0, 0, 9, 9), (2.0, 0.5))
    assert found.query and not found.query.redraws and found.candidate.redraws
    assert not Changes.parse() and [each.candidate.scales for each in found.each] == [(2.0,), (0.5,)]
    assert found.said == "--hide query:1,2,3,4 --hide query:5,6,7,8 --keep candidate:0,0,9,9 --scale candidate:2,0.5"


@given(st.floats(0, 90), st.floats(0, 90), st.floats(1, 100), st.floats(1, 100))
def test_percent_are_of_the_part_that_is_read(x: float, y: float, width: float, height: float) -> None:
    at = Area(x, y, width, height, percent=True).on((100, 50, 300, 150))
    assert at == pytest.approx((100 + 2 * x, 50 + y, 100 + 2 * (x + width), 50 + y + height))


def test_what_is_kept_lies_in_the_query_box(tmp_path: Path) -> None:
    change = Change(keep=Area(0, 0, 60, 60))
    assert change.read((10, 20, 90, 80), (100, 100), tmp_path) == (10, 20, 60, 60)
    assert Change().read(None, (100, 50), tmp_path) == (0, 0, 100, 50)
    with pytest.raises(UserError, match="--keep leaves nothing"):
        change.read((70, 70, 90, 90), (100, 100), tmp_path)


def test_descriptors_in_any_hidden_box_are_not_seen() -> None:
    points = torch.tensor([[0.0, 0.0], [10.0, 10.0], [19.0, 19.0], [30.0, 30.0]])
    hidden = [(105.0, 205.0, 115.0, 215.0), (129.0, 229.0, 140.0, 240.0)]
    assert seen(points, hidden, (100, 200, 150, 250)).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("part", "scale", "size"),
    [((0, 0, 400, 200), 1.0, (200, 100)), ((0, 0, 400, 200), 3.0, (600, 300)), ((0, 0, 200, 200), 0.5, (50, 50))],
)
def test_a_scale_is_of_the_size_that_would_be_extracted(
    tmp_path: Path, part: tuple[int, ...], scale: float, size: tuple[int, int]
) -> None:
    """A part of an image keeps its resolution: half of an image that is halved has a quarter of its width."""
    Image.fromarray(np.zeros((200, 400, 3), np.uint8)).save(tmp_path / "image.png")
    written = redrawn(tmp_path / "image.png", part, scale, ExtractOptions(max_side=200), tmp_path / "to.png")  # type: ignore[arg-type]
    assert written == size == Image.open(tmp_path / "to.png").size


# --- what it makes of a pair -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["mnn", "ransac", "rrt"])
@pytest.mark.parametrize(
    "nothing",
    [
        {"keep": [f"query:{WHOLE}"]},
        {"keep": [f"candidate:{WHOLE}"]},
        {"hide": ["query:1000,1000,5,5", "candidate:1000,1000,5,5"]},
        {"keep": [f"query:{WHOLE}", f"candidate:{WHOLE}"], "scale": ["query:1,1"]},
    ],
)
def test_a_change_of_nothing_keeps_score_and_place(
    done: Run, places: Places, row: str, nothing: dict[str, list[str]]
) -> None:
    found = pair([done], QUERY, CANDIDATE, row, {}, places, changes=Changes.parse(**nothing))
    assert found.changed is not None and found.changed.after == found.after
    assert found.changed.score == pytest.approx(found.score, rel=1e-6)


def test_a_part_that_is_kept_is_what_a_query_box_is(
    run: Go, write_buildings: Callable[[Path], Path], done: Run, places: Places, tmp_path: Path
) -> None:
    root = write_buildings(tmp_path / "whole")
    truth = json.loads((root / "gnd.json").read_text())
    for query in truth["queries"]:
        del query["box"]
    (root / "gnd.json").write_text(json.dumps(truth))
    whole = run(root, "mnn", top_k=12).run
    boxed = pair([done], QUERY, CANDIDATE, "mnn", {}, places)
    kept = pair([whole], QUERY, CANDIDATE, "mnn", {}, places, changes=Changes.parse(keep=["query:10,5,140,110"]))
    assert kept.changed is not None and kept.score != boxed.score == kept.changed.score
    assert kept.query.box == boxed.query.box and kept.features is not None and boxed.features is not None
    assert torch.equal(kept.features[0].keypoints, boxed.features[0].keypoints)


def test_nothing_in_a_hidden_box_is_matched(done: Run, places: Places) -> None:
    hide = Changes.parse(hide=["query:0%,0%,50%,100%", "candidate:0,0,160,60"])
    found = pair([done], QUERY, CANDIDATE, "mnn", {}, places, changes=hide)
    assert found.features is not None and found.changed is not None and found.changed.score < (found.score or 0)
    one, other = (image.keypoints for image in found.features)
    assert len(one) and len(other) and bool((one[:, 0] >= 70).all()) and bool((other[:, 1] >= 60).all())
    assert found.hidden[0] == (pytest.approx((10, 5, 80, 115)),) and found.hidden[1] == ((0, 0, 160, 60),)


def test_the_next_best_descriptors_are_read_instead_of_hidden_ones(done: Run, places: Places) -> None:
    few = {"mnn": {"descriptors": "20"}}
    half = Changes.parse(hide=["query:0%,0%,50%,100%"])
    found = pair([done], QUERY, CANDIDATE, "mnn", few, places, changes=half)
    assert found.features is not None and len(found.features[0]) == 20
    nothing = pair(
        [done], QUERY, CANDIDATE, "rrt", {}, places, changes=Changes.parse(hide=["candidate:0%,0%,200%,200%"])
    )
    assert nothing.changed is not None and nothing.changed.after == nothing.of and nothing.explanation is None
    assert "The candidate has no local descriptors." in nothing.notes
    assert any("global descriptors too" in note for note in nothing.notes)


def test_keypoints_of_a_scaled_image_are_in_pixels_of_its_file(done: Run, places: Places) -> None:
    found = pair([done], QUERY, CANDIDATE, "ransac", {}, places, changes=Changes.parse(scale=["candidate:2"]))
    assert found.features is not None
    assert found.features[1].image_size.tolist() == [160, 120]
    assert float(found.features[1].keypoints[:, 0].max()) > 100 and bool(
        (found.features[1].keypoints < torch.tensor([160.0, 120.0])).all()
    )


@pytest.mark.parametrize("typed", [{"scale": ["query:0.7,1.5"]}, {"hide": ["query:0%,0%,100%,50%"]}])
def test_the_place_is_that_among_the_scores_of_all_candidates(
    done: Run, places: Places, typed: dict[str, list[str]]
) -> None:
    changes = Changes.parse(**typed)
    near = [done.shortlist.gallery[image] for image in done.shortlist.candidates("any", 0)]
    found = {name: pair([done], QUERY, name, "mnn", {}, places, changes=changes).changed for name in near}
    scores = {name: one.score for name, one in found.items() if one is not None}
    order = sorted(near, key=lambda name: -scores[name])
    assert [one.after for one in found.values() if one is not None] == [order.index(name) + 1 for name in near]
    assert len(set(scores.values())) > 3


def test_of_several_scales_the_highest_score_counts(done: Run, places: Places) -> None:
    def at(scales: str) -> float:
        changes = Changes.parse(scale=[f"candidate:{scales}"])
        changed = pair([done], QUERY, CANDIDATE, "mnn", {}, places, changes=changes).changed
        assert changed is not None
        return changed.score

    apart = [at("0.5"), at("1.5"), at("2")]
    assert len(set(apart)) > 1 and at("0.5,1.5,2") == max(apart)


@pytest.mark.parametrize(
    ("row", "typed", "said"),
    [
        ("oracle", {"scale": ["query:2"]}, "not of two images alone"),
        ("aqe", {"hide": ["query:0,0,9,9"]}, "not of two images alone"),
        ("mnn", {"keep": ["query:500,500,9,9"]}, "--keep leaves nothing"),
    ],
)
def test_changes_that_tell_nothing_are_refused(
    done: Run, places: Places, row: str, typed: dict[str, list[str]], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        pair([done], QUERY, CANDIDATE, row, {}, places, changes=Changes.parse(**typed))


def test_of_descriptors_that_say_no_place_none_is_hidden(
    done: Run, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all = sets.FeatureSet.read_all

    def without(*asked, **more):
        return [replace(image, keypoints=torch.zeros_like(image.keypoints)) for image in read_all(*asked, **more)]

    monkeypatch.setattr(sets.FeatureSet, "read_all", without)
    with pytest.raises(UserError, match="have no keypoints"):
        pair([done], QUERY, CANDIDATE, "mnn", {}, places, changes=Changes.parse(hide=["query:0,0,9,9"]))


# --- what it makes of a row ------------------------------------------------------------------------------------------


def test_a_change_of_nothing_keeps_every_value_of_a_row(done: Run, places: Places) -> None:
    for row in ("mnn", "rrt"):
        found = what_if([done], row, {}, places, Changes.parse(keep=[f"query:{WHOLE}", f"candidate:{WHOLE}"]))
        assert len(found.values) == 2 and found.values["after"].equals(found.values["before"])


def test_a_row_with_other_options_is_that_of_a_run_with_them(run: Go, buildings: Path, places: Places) -> None:
    done, few = (run(buildings, "mnn", top_k=12, options={"mnn": {"descriptors": count}}).run for count in ("150", "5"))
    found = what_if([few, done], "mnn", {"mnn": {"descriptors": "5"}}, places, Changes())
    there = what_if([few], "mnn", {"mnn": {"descriptors": "150"}}, places, Changes())
    assert found.values["after"].equals(there.values["before"]) and found.row == "mnn descriptors=5"
    assert not found.values["after"].equals(found.values["before"])
    with pytest.raises(UserError, match="nothing to change"):
        what_if([done], "mnn", {}, places, Changes())


def test_a_blend_alone_is_replayed_from_the_stored_scores(done: Run, places: Places) -> None:
    """With no weight on its scores a row is the first stage."""
    found = what_if([done], "oracle", {}, replace(places, cache=places.runs), Changes(), blend=Blend.parse("add:0"))
    assert found.values["after"].equals(found.values["first"]) and found.by == "--blend add:0"
    both = what_if([done], "mnn", {}, places, Changes.parse(scale=["query:0.5"]), blend=Blend.parse("add:0"))
    assert both.values["after"].equals(found.values["first"]) and both.by == "--scale query:0.5 --blend add:0"


def test_queries_are_told_by_whether_they_lose_to_the_first_stage(done: Run, places: Places) -> None:
    found = what_if([done], "mnn", {}, places, Changes.parse(scale=["query:0.5"]))
    index = ["a", "b", "c", "d"]
    values = (
        found.values.iloc[[0, 0, 0, 0]]
        .set_axis(index)
        .assign(first=[0.5, 0.5, 0.5, np.nan], before=[0.4, 0.5, 0.6, np.nan])
    )
    groups = WhatIf(done, "mnn", "", values).groups
    assert {name: list(group.index) for name, group in groups.items()} == {
        "losing to the first stage": ["a"],
        "not losing": ["b", "c"],
        "all queries": ["a", "b", "c"],
    }
