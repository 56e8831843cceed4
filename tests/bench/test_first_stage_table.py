"""First stages beside each other: what is in their lists, what could be made of them, and what they cost."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from rich.console import Console

from bench.datasets import Dataset, Query
from bench.errors import UserError
from bench.evaluation import CEILING, FIRST_STAGE
from bench.features.extract import ExtractOptions
from bench.first_stage_table import Compared, first_stages, recall
from bench.first_stages.names import COMPARED, DEFAULT
from bench.places import Places
from bench.report import terminal
from bench.report.formats import FORMATS
from bench.run import Outcome
from bench.search import Dense, Vectors
from bench.setup import Setup
from bench.shortlist import first_stage

EXTRACT = ExtractOptions(max_side=160, descriptors=150)
SMALL = ("--max-side", "160", "--keep-descriptors", "150", "--threads", "1")
Go = Callable[..., Outcome]
Cli = Callable[..., Result]


@pytest.fixture
def compare(places: Places) -> Callable[..., Compared]:
    """`compare(folder, "gem-lite0", …, top_k=5)`: these first stages, with the session's features."""

    def go(path: Path, *names: str, **more: object) -> Compared:
        more.setdefault("extract", EXTRACT)
        return first_stages(Setup(f"folder:{path}", **more), names, places)  # type: ignore[arg-type]

    return go


# --- by hand ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("blind", {"Easy": 1 / 2, "Medium": 1 / 4, "Hard": 0}), ("paper", {"Easy": 1 / 2, "Medium": 1 / 2, "Hard": 1})],
)
def test_recall_is_the_mean_share_of_the_positives_that_are_in_the_list(
    policy: str, expected: dict[str, float]
) -> None:
    """Lists of four: of q1 c a e f, behind them b; of q2 e f g h, behind them d. No grade of q3 is positive."""
    order = {"q1": "caefbdgh", "q2": "efghdabc", "q3": "abcdefgh"}
    grades = {"q1": {"a": "easy", "b": "hard", "c": "junk"}, "q2": {"d": "easy"}, "q3": {"h": "junk"}}
    queries = tuple(Query(name, Path(f"{name}.png")) for name in order)
    dataset = Dataset("tiny", "revisited", "v1", queries, {i: Path(f"{i}.png") for i in "abcdefgh"}, grades)
    values = np.array([[8.0 - order[query.id].index(image) for image in "abcdefgh"] for query in queries])
    similarities = Dense(np.eye(3), Vectors.of(values.T))
    made = first_stage(dataset, similarities, name="f", content="c", policy=policy, k=4)  # type: ignore[arg-type]
    assert {name: recall(made, dataset, name) for name in dataset.difficulties} == pytest.approx(expected)


def test_without_a_positive_there_is_no_recall() -> None:
    queries = (Query("q", Path("q.png")),)
    dataset = Dataset("tiny", "revisited", "v1", queries, {i: Path(i) for i in "abc"}, {"q": {"a": "junk"}})
    made = first_stage(
        dataset, Dense(np.eye(1), Vectors.of(np.ones((3, 1)))), name="f", content="c", policy="blind", k=2
    )
    assert np.isnan(recall(made, dataset, "Medium"))


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Of both queries of `buildings`: another image, a hard one, another, the easy one; not the other hard one."""
    lines = [
        f"query{q} Q0 {image} {rank} {9 - rank} theirs\n"
        for q in range(2)
        for rank, image in enumerate(("other0", f"landmark{q}_1", "other1", f"landmark{q}_0"))
    ]
    (tmp_path / "theirs.run").write_text("".join(lines))
    return tmp_path / "theirs.run"


def test_measures_and_ceilings_of_given_lists(compare: Callable, buildings: Path, lists: Path) -> None:
    table = compare(buildings, f"list:{lists}", top_k=4).table
    (row,) = table.rows.index
    assert row == "imported:theirs.run" and table.features[row] == ""
    assert table.rows.loc[row].to_dict() == pytest.approx(
        {
            "mAP Easy": 100 * (0 + 1 / 3) / 2,  # third, hard images left out
            "mAP Medium": 100 * ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 3,
            "mAP Hard": 100 * (0 + 1 / 2) / 2 / 2,
            "recall@4 Medium": 100 * 2 / 3,
            "ceiling Easy": 100,
            "ceiling Medium": 100 * 2 / 3,
            "ceiling Hard": 100 / 2,
            **dict.fromkeys(("KiB/image", "search ms", "extract ms"), float("nan")),
        },
        nan_ok=True,
    )
    assert any(note.startswith("Candidates are those of theirs.run") for note in table.notes)


# --- what the table says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["blind", "paper"])
def test_a_row_has_what_a_run_on_that_first_stage_has(compare: Callable, run: Go, images: Path, policy: str) -> None:
    names = ["gem-lite0", "asmk@xfeat", DEFAULT]
    table = compare(images, *names, top_k=5, policy=policy).table
    assert set(table.rows.index) == set(names)
    for name in names:
        done = run(images, "identity", first_stage=name, top_k=5, policy=policy).run
        metrics = done.metrics().query("measure == 'mAP'").groupby(["method", "difficulty"])["value"].mean() * 100
        for difficulty in done.dataset.difficulties:
            assert table.rows.loc[name, f"mAP {difficulty}"] == pytest.approx(metrics[FIRST_STAGE, difficulty])
            assert table.rows.loc[name, f"ceiling {difficulty}"] == pytest.approx(metrics[CEILING, difficulty])
    (main,) = (column for column in table.rows if column.startswith("recall@5"))
    assert table.rows[main].between(0, 100).all() and table.rows[main].nunique() > 1


def test_the_best_first_stage_comes_first_and_equal_names_once(compare: Callable, instances: Path) -> None:
    table = compare(instances, "gem-lite0", "xfeat+gem-lite0", "asmk@xfeat", "asmk:binary=true@xfeat", DEFAULT).table
    assert set(table.rows.index) == {"gem-lite0", "asmk@xfeat", DEFAULT} and len(table.rows) == 3
    assert table.rows["mAP All"].is_monotonic_decreasing and table.rows["mAP All"].nunique() > 1
    assert dict(table.features) == {"gem-lite0": "gem-lite0", "asmk@xfeat": "xfeat", DEFAULT: "gem-lite0+xfeat"}
    assert not table.controls


def test_costs_are_those_of_what_is_kept_and_read(compare: Callable, instances: Path, places: Places) -> None:
    rows = compare(instances, "gem-lite0", "asmk@xfeat", "asmk:binary=false@xfeat", DEFAULT).table.rows
    sizes = rows["KiB/image"]
    assert sizes["gem-lite0"] == 1280 * 2 / 1024
    assert sizes[DEFAULT] == pytest.approx(sizes["gem-lite0"] + sizes["asmk@xfeat"])
    kept = set()
    for about in places.cache.glob("first-stages/*/about.json"):
        if (content := json.loads(about.read_text())).get("images") == 9:
            arrays = [np.load(path) for path in about.parent.glob("[0-9]*/*.npy")]
            assert content["bytes"] == sum(array.nbytes for array in arrays)
            kept.add(content["bytes"] / 9 / 1024)
    assert {sizes["asmk@xfeat"], sizes["asmk:binary=false@xfeat"]} <= kept
    assert sizes["asmk@xfeat"] < sizes["asmk:binary=false@xfeat"]  # a bit instead of two bytes a value
    assert (rows["search ms"] > 0).all() and (rows["extract ms"] > 0).all()
    # an image is decoded once, and both parts are extracted from it
    assert rows["extract ms"][DEFAULT] > max(rows["extract ms"][["gem-lite0", "asmk@xfeat"]])
    assert rows["extract ms"][DEFAULT] < rows["extract ms"][["gem-lite0", "asmk@xfeat"]].sum()


def test_a_first_stage_that_cannot_be_had_is_a_note_and_the_others_are_compared(
    compare: Callable, instances: Path, places: Places
) -> None:
    table = compare(instances, "delg", "gem-lite0", "asmk@sift", "list:/nowhere.run").table
    assert list(table.rows.index) == ["gem-lite0"]
    said = {note.partition(" cannot be compared: ")[0]: note for note in table.notes if "cannot be compared" in note}
    assert set(said) == {"delg", "asmk@sift", "list:/nowhere.run"}
    assert "images have not been imported" in said["delg"] and "no such file" in said["list:/nowhere.run"].lower()
    assert "features import delg" in said["delg"] and "train asmk" in said["asmk@sift"]
    assert not places.runs.exists()  # nothing is measured, so there is no run
    with pytest.raises(UserError, match="have not been imported"):
        compare(instances, "delg")


def test_the_default_is_marked_whether_it_is_compared_or_not(compare: Callable, instances: Path) -> None:
    both = [compare(instances, *names).table.notes[0] for names in ((DEFAULT, "gem-lite0"), ("gem-lite0",))]
    assert both[0] == f"`run` takes {DEFAULT} where nothing else is asked for."
    assert both[1] == f"`run` takes {DEFAULT} where nothing else is asked for, which is not among these."


def test_queries_that_cannot_be_read_are_left_out_as_a_run_does(
    cli: Cli, write_instances: Callable[..., Path], tmp_path: Path
) -> None:
    root = write_instances(tmp_path / "set", 2, 3)
    (root / "object0" / "view0.png").write_bytes(b"")
    command = ("first-stages", "-d", f"folder:{root}", *SMALL, "--first-stage", "gem-lite0", "--first-stage", DEFAULT)
    refused = cli(*command)
    assert refused.exit_code == 1 and "1 query image cannot be read" in refused.output
    assert "--skip-unreadable" in refused.output
    done = cli(*command, "--skip-unreadable", "--format", "json")
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout)
    note = "1 of 6 queries cannot be read and are left out (--skip-unreadable): object0/view0."
    assert note in table["notes"] and not any("no features of the first stage" in said for said in table["notes"])
    assert "1 images cannot be read and have no features" in done.stderr
    ran = cli("run", "-m", "identity", *command[1:-2], "--skip-unreadable")
    assert ran.exit_code == 0, ran.output
    report = json.loads(cli("report", "--format", "json").stdout)
    (ours,) = (row["mAP All"] for row in table["rows"] if row["first stage"] == "gem-lite0")
    assert report["rows"][0]["mAP All"] == pytest.approx(ours)


# --- on the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["terminal", *FORMATS])
def test_every_format_holds_the_same_table(cli: Cli, compare: Callable, images: Path, form: str) -> None:
    done = cli("first-stages", "-d", f"folder:{images}", "-k", "5", *SMALL, "--format", form)
    assert done.exit_code == 0, done.output
    text, table = done.stdout, compare(images, top_k=5).table
    names, quality = list(table.rows.index), [c.name for c in table.columns if not c.name.endswith(" ms")]
    assert len(names) == len(COMPARED)
    if form == "json":
        content = json.loads(text)
        assert [row["first stage"] for row in content["rows"]] == names
        for row, name in zip(content["rows"], names, strict=True):
            assert [row[c] for c in quality] == pytest.approx(table.rows.loc[name, quality].tolist())
            assert row["features"] == table.features[name]
        assert content["k"] == 5 and content["notes"][0] == table.notes[0]
    elif form == "csv":
        read = pd.read_csv(io.StringIO(text)).set_index("first stage")
        assert list(read.index) == names
        np.testing.assert_allclose(read[quality], table.rows[quality], rtol=1e-12)
    elif form == "md":
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert lines[0].startswith("| first stage | features | mAP ")
        assert [line.split("|")[1].strip() for line in lines[2:]] == names
    elif form == "latex":
        body = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(body) == 1 + len(names) and text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    else:
        assert all(name in "".join(text.split()) for name in names) and "recall@5" in "".join(text.split())
        assert "ceiling" in text and table.notes[0] in " ".join(text.split())


def test_a_narrow_terminal_is_told_the_command_that_has_all_columns(
    compare: Callable, buildings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = io.StringIO()
    monkeypatch.setattr(terminal, "console", lambda: Console(file=text, width=60))
    terminal.print_table(compare(buildings, "gem-lite0", DEFAULT).table)
    assert "`first-stages --format md` has them" in " ".join(text.getvalue().split())
