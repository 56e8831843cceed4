"""The sheet of failures: the queries that lose most, with the candidates that the stored scores name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from click.testing import Result

import bench.pair
from bench import registry
from bench.changes import Changes
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE
from bench.named_row import named_row
from bench.pair import pair, pairs
from bench.places import Places
from bench.report.failures import ABOVE, BELOW, BETWEEN, HIGHEST, Failure, failures, show_worst, told
from bench.report.matches import WIDTH
from bench.report.pictures import worst
from bench.results import Run
from bench.what_if import WhatIf

Go = Callable[..., object]


@pytest.fixture
def done(run: Callable, write_buildings: Callable[[Path], Path], tmp_path: Path) -> Run:
    return run(write_buildings(tmp_path / "set"), "mnn,rrt,reverse,oracle,identity", top_k=12).run


def test_the_queries_are_those_that_lose_most(done: Run) -> None:
    found, lost = failures(done, "reverse", 10)
    losing = worst(done, "reverse", FIRST_STAGE)
    assert lost == len(losing) == 2
    assert [(one.query, one.value, one.first) for one in found] == [
        (done.shortlist.queries[number], ours, theirs) for number, ours, theirs in losing
    ]
    assert failures(done, "reverse", 1) == (found[:1], 2)


def test_the_candidates_are_the_first_wrong_one_and_the_right_one_that_fell_furthest(done: Run) -> None:
    """Of a reversed list: the last of the first stage's that is wrong, and the best of its right ones."""
    found, _ = failures(done, "reverse", 10)
    for one in found:
        number = done.shortlist.queries.index(one.query)
        names = [done.shortlist.gallery[image] for image in done.shortlist.candidates("any", number)]
        grades = done.dataset.grades[one.query]
        assert one.wrong == next(name for name in reversed(names) if name not in grades)
        assert one.right == next(name for name in names if grades.get(name) in ("easy", "hard"))


def test_what_is_wrong_is_not_right() -> None:
    with pytest.raises(ValueError, match="wrong and right"):
        Failure("q", 1.0, 0.5, "a", "a")


def test_a_sheet_has_a_row_for_each_failure_with_images_in_it(done: Run, places: Places, tmp_path: Path) -> None:
    lines = show_worst([done], "reverse", 5, {}, places, out=tmp_path / "deep" / "sheet.png")
    assert lines[-1] == f"written: {tmp_path / 'deep' / 'sheet.png'}"
    pixels = matplotlib.image.imread(tmp_path / "deep" / "sheet.png")[..., :3]
    height = BETWEEN + HIGHEST + BELOW
    assert pixels.shape[:2] == (ABOVE + 2 * height, WIDTH)
    for row in range(2):
        part = pixels[ABOVE + row * height + BETWEEN :][: HIGHEST // 2]
        for side in np.split(part, 2, axis=1):
            assert (side < 0.95).any(axis=2).mean() > 0.5  # photographs, not paper
    assert [line.split(";")[0] for line in lines[:2]] == [
        f"query {one.query}: AP {100 * one.first:.1f} -> {100 * one.value:.1f}"
        for one in failures(done, "reverse", 5)[0]
    ]


def test_a_row_that_loses_nowhere_has_no_sheet(done: Run, places: Places, tmp_path: Path) -> None:
    (line,) = show_worst([done], "oracle", 5, {}, places, out=tmp_path / "none.png")
    assert line == "oracle loses on no query that can be shown, of 2" and not (tmp_path / "none.png").exists()


def test_with_a_change_all_queries_are_told_before_and_after_it(done: Run, places: Places, tmp_path: Path) -> None:
    whole = Changes.parse(keep=["query:0%,0%,100%,100%"])
    lines = show_worst([done], "rrt", 1, {}, places, whole, out=tmp_path / "sheet.png")
    assert lines[0] == "rrt with --keep query:0%,0%,100%,100%: mean AP, Medium"
    counts = [int(line.partition("(")[2].partition(")")[0]) for line in lines[1:4]]
    assert counts[0] + counts[1] == counts[2] == 2
    assert "gain +0.0 [+0.0, +0.0], p 1.000" in lines[3]


@pytest.mark.parametrize(
    ("hidden", "scales", "opened"), [([], [], 1), (["query:0%,0%,50%,50%"], [], 2), ([], ["candidate:0.7,1"], 3)]
)
def test_of_all_pairs_the_method_is_loaded_and_features_are_opened_once(
    done: Run,
    places: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hidden: list[str],
    scales: list[str],
    opened: int,
) -> None:
    """Once for the images as they are, and for changed ones once a scale; what all queries make of them is apart."""
    calls = Counter[str]()

    def counted(name: str, function: Callable) -> Callable:
        def call(*given: object, **more: object) -> object:
            calls[name] += 1
            return function(*given, **more)

        return call

    cls = registry.get("rrt")
    found, _ = failures(done, "rrt", 10)
    names = [(one.query, name) for one in found for name in (one.wrong, one.right)]
    asked, changes = named_row([done], "rrt", {}), Changes.parse(hidden, scale=scales)
    assert asked is not None and len(names) > 1
    monkeypatch.setattr(cls, "load", counted("load", cls.load))
    monkeypatch.setattr(bench.pair, "reread", counted("reread", bench.pair.reread))
    together = pairs(asked, names, "rrt", places, changes=changes)
    assert calls == {"load": 1, "reread": opened}
    for one, (query, name) in zip(together, names, strict=True):
        alone = pair([done], query, name, "rrt", {}, places, changes=changes)
        assert (one.query, one.candidate, one.before, one.after) == (
            alone.query,
            alone.candidate,
            alone.before,
            alone.after,
        )
        assert one.score == alone.score and one.changed == alone.changed and one.notes == alone.notes


def test_of_one_query_no_interval_is_told(done: Run) -> None:
    values = pd.DataFrame({"first": [0.5, 0.5], "before": [0.4, 0.6], "after": [0.5, 0.5]}, index=["a", "b"])
    lines = told(WhatIf(done, "mnn", "--scale query:0.5", values))
    assert lines[1] == "  losing to the first stage (1): 40.0 -> 50.0, gain +10.0; first stage 50.0"
    assert lines[3].startswith("  all queries (2): 50.0 -> 50.0, gain +0.0 [")


def test_images_that_are_gone_are_named(done: Run, places: Places, tmp_path: Path) -> None:
    for file in done.dataset.gallery.values():
        file.unlink()
    with pytest.raises(UserError, match="no such image"):
        show_worst([done], "reverse", 1, {}, places, out=tmp_path / "sheet.png")


@pytest.mark.parametrize(
    ("method", "out", "said"),
    [("lightglue", "a.png", "no finished run has this row"), ("mnn", "a.jpg", "a picture is a .png")],
)
def test_what_there_is_not_is_refused(
    done: Run, places: Places, tmp_path: Path, method: str, out: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        show_worst([done], method, 1, {}, places, out=tmp_path / out)


def test_the_command_draws_failures_and_says_what_a_change_makes_of_them(
    cli: Callable[..., Result], buildings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["-d", f"folder:{buildings}", "-k", "12", "--max-side", "160", "--keep-descriptors", "150"]
    assert cli("run", "-m", "mnn,reverse", "--first-stage", "gem-lite0", *common).exit_code == 0
    sheet = cli("show", "--worst", "2", "-m", "reverse")
    assert sheet.exit_code == 0 and "written: show-worst-reverse.png" in sheet.output, sheet.output
    assert (tmp_path / "show-worst-reverse.png").is_file()
    changed = cli("show", "query0", "landmark0_0", "-m", "mnn", "--hide", "query:0%,0%,100%,50%")
    assert changed.exit_code == 0 and " with --hide query:0%,0%,100%,50%, " in changed.output, changed.output
    assert " with the change" in changed.output and (tmp_path / "show-query0-landmark0_0-mnn.png").is_file()
    for arguments, found in (
        ((), "no QUERY, no CANDIDATE and no --worst"),
        (("query0",), "QUERY, no CANDIDATE and no --worst"),
        (("query0", "landmark0_0", "--worst", "2"), "QUERY, CANDIDATE and --worst"),
    ):
        refused = cli("show", *arguments, "-m", "mnn")
        assert refused.exit_code == 1 and f"found {found}" in refused.output
        assert "expected QUERY CANDIDATE, or --worst N" in refused.output
    blended = cli("show", "--worst", "1", "-m", "reverse", "--blend", "add:0")
    assert blended.exit_code == 0 and "reverse with --blend add:0: mean AP, Medium" in blended.output, blended.output
    alone = cli("show", "query0", "landmark0_0", "-m", "mnn", "--blend", "add:1")
    assert alone.exit_code == 1 and "--blend add:1 of one pair" in alone.output
