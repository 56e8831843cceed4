"""What a terminal shows: every row, the best contenders marked, names as they are."""

from __future__ import annotations

import io
from collections.abc import Callable

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.report import terminal
from bench.report.columns import Column
from bench.report.tables import Table


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a table of two columns looks like on a terminal of 80 columns, with its styles."""

    def show(values: dict[str, tuple[float, float]], controls: set[str] = frozenset(), title: str = "a table") -> str:
        columns = (Column("mAP All", "mean average precision, All, percent", 1, 1), Column("ms", "time", 1, -1))
        rows = pd.DataFrame.from_dict(values, orient="index", columns=[c.name for c in columns])
        table = Table(
            title,
            columns,
            rows,
            dict.fromkeys(rows.index, "xfeat"),
            frozenset(controls),
            ("A [note].",),
            {},
            "mAP",
            1.0,
            2.0,
        )
        text = io.StringIO()
        there = Console(file=text, width=80, force_terminal=True, color_system="standard", legacy_windows=False)
        monkeypatch.setattr(terminal, "console", lambda: there)
        terminal.print_table(table)
        return text.getvalue()

    return show


BOLD = "\x1b[1m"


def bold(text: str) -> list[str]:
    return [part.split("\x1b")[0] for part in text.split(BOLD)[1:] if part[0].isdigit()]


def test_the_best_contenders_are_bold_and_controls_are_not_compared(shown: Callable[..., str]) -> None:
    text = shown({"oracle": (99.0, 1.0), "a": (50.0, 3.0), "b": (50.0, 2.0), "c": (40.0, 1.5)}, {"oracle"})
    assert bold(text) == ["50.0", "50.0"] and "oracle*" in text and "99.0" in text


def test_one_contender_is_not_the_best_of_any(shown: Callable[..., str]) -> None:
    assert bold(shown({"oracle": (99.0, 1.0), "a": (50.0, 3.0)}, {"oracle"})) == []


def test_brackets_are_no_markup(shown: Callable[..., str]) -> None:
    text = shown({"mnn [bold]": (float("nan"), 3.0), "b": (1.0, 2.0)}, title="of [/photos]")
    assert "mnn [bold]" in text and "of [/photos]" in text and "A [note]." in text and "–" in text
    assert "mAP All: mean average precision, All, percent" not in text


def test_what_columns_are_and_where_methods_come_from_is_said_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = (Column("mAP All", "mean average precision", 1, 1),)
    rows = pd.DataFrame({"mAP All": [1.0]}, index=["mnn"])
    cards = ("mnn: a paper; a licence",)
    table = Table("t", columns, rows, {"mnn": ""}, frozenset(), (), {}, "mAP", 1.0, 2.0, cards=cards)

    def printed(**asked: bool) -> str:
        text = io.StringIO()
        monkeypatch.setattr(terminal, "console", lambda: Console(file=text, width=100))
        terminal.print_table(table, **asked)
        return text.getvalue()

    assert "a licence" not in printed() and "report --explain" in printed() and "report --cards" in printed()
    whole = printed(cards=True, explain=True)
    assert "mnn: a paper; a licence" in whole and "mAP All: mean average precision" in whole and "`report" not in whole


def test_what_is_no_terminal_is_wide(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_listing(("name", "what"), [("a[b]", "x" * 100)])
    out = capsys.readouterr().out
    assert "a[b]" in out and "x" * 100 in out


@given(st.text("ab ,=/+:", max_size=40), st.integers(1, 12))
def test_lines_are_as_long_as_asked_for_and_nothing_is_lost(text: str, width: int) -> None:
    lines = terminal.wrapped(text, width)
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_narrow_listing_parts_options_between_one_another_and_not_within_their_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "console", lambda stderr=False: Console(width=34))
    terminal.print_listing(("method", "options"), [("cascade", "stages=rrt,lightglue:20 alpha=0.125, n=10")])
    *_, first, second = (line for line in capsys.readouterr().out.splitlines() if line.strip())
    assert first.split() == ["cascade", "stages=rrt,lightglue:"] and second.split() == ["20", "alpha=0.125,", "n=10"]


def test_progress_on_a_terminal_is_a_bar_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "console", lambda stderr=False: Console(stderr=stderr, force_terminal=True))
    with terminal.progress_bars() as progress:
        progress("scoring", 1, 2)
        progress("scoring", 2, 2)
    out, err = capsys.readouterr()
    assert out == "" and "scoring" in err and "2/2" in err


def test_without_a_terminal_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress_bars() as progress:
        progress("scoring", 1, 2)
        progress("scoring", 2, 2)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_long_work_says_how_far_it_is_every_ten_seconds() -> None:
    now, lines = [0.0], []
    progress = terminal.ProgressLines(lines.append, lambda: now[0])
    for second in range(61):
        now[0] = float(second)
        progress("scoring", 100 + second, 400)
        progress("extracting", 7, 9)
    assert [line for line in lines if line.startswith("scoring")][:2] == [
        "scoring: 110 of 400 after 0:10, about 4:50 left",
        "scoring: 120 of 400 after 0:20, about 4:40 left",
    ]
    assert len(lines) == 12 and lines[1] == "extracting: 7 of 9 after 0:10"


NAMES = ["mAP Easy", "mAP Medium", "mAP Hard", "mP@10 Medium", "headroom Medium", "ms/query p50", "ms/query p95"]
NAMES += ["ms/pair", "desc mean", "desc max", "KiB/image", "peak MiB"]


@pytest.mark.parametrize("width", [80, 100, 120, 170, 200])
@pytest.mark.parametrize("method", ["mnn", "cascade stages=rrt,lightglue:20:descriptors=200"])
def test_no_number_is_cut_at_any_width(monkeypatch: pytest.MonkeyPatch, width: int, method: str) -> None:
    columns = tuple(Column(name, f"meaning of {name}", 1, 1) for name in NAMES)
    values = [1000.1 + place for place in range(len(NAMES))]
    rows = pd.DataFrame.from_dict({method: values, "other": values}, orient="index", columns=NAMES)
    table = Table(
        "title", columns, rows, dict.fromkeys(rows.index, "xfeat+gem-lite0"), frozenset(), (), {}, "mAP", 1.0, 2.0
    )
    text = io.StringIO()
    monkeypatch.setattr(terminal, "console", lambda: Console(file=text, width=width))
    terminal.print_table(table)
    out = text.getvalue()
    assert "…" not in out and max(map(len, out.splitlines())) <= width
    left_out = " ".join(out.partition("Left out at")[2].split(".")[0].split())
    for name, value in zip(NAMES, values, strict=True):
        assert (f"{value:.1f}" in out) != (name in left_out), name
    assert "mAP Medium" not in left_out and "ms/query p50" not in left_out and "KiB/image" not in left_out
    assert "Left out" not in out or width < 200


def sized(monkeypatch: pytest.MonkeyPatch, table: Table, width: int) -> str:
    """What a terminal of so many columns shows."""
    text = io.StringIO()
    monkeypatch.setattr(terminal, "console", lambda: Console(file=text, width=width))
    terminal.print_table(table)
    return text.getvalue()


def gains(measure: str = "mAP", notes: tuple[str, ...] = ()) -> Table:
    """Of a control, a gain that is sure, one that is not, and a loss that is."""
    measures = (measure, "R@1" if measure == "mAP" else "mAP", "R@10")
    columns = (
        *(Column(f"{name} All", "m, percent", 1, 1) for name in measures),
        *(Column(name, "g", 1, signed=True) for name in ("gain", "gain low", "gain high")),
        Column("p", "of the gain", 3),
        *(Column(name, "cost", 1, -1) for name in ("ms/query p50", "KiB/image")),
    )
    rows = {
        "identity": [1, 2, 3, *[float("nan")] * 4, 8, 9],
        "rrt": [2, 3, 4, 5, 6, 7, 0.001, 9, 10],
        "mnn": [3, 4, 5, 6, 7, 8, 0.244, 10, 11],
        "aqe": [4, 5, 6, -7, 8, 9, 0.002, 11, 12],
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[column.name for column in columns])
    features = dict.fromkeys(table.index, "xfeat+gem-lite0")
    return Table("t", columns, table, features, frozenset({"identity"}), notes, {}, measure, 1.0, 2.0)


def test_the_p_of_a_gain_stays_longer_than_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [sized(monkeypatch, gains(), width) for width in range(40, 140)]
    shown = [("0.244" in out, "low" in out.split("Left out")[0]) for out in found]
    assert (True, False) in shown and (True, True) in shown and (False, True) not in shown


@pytest.mark.parametrize("width", range(40, 140))
def test_where_p_is_left_out_a_line_says_which_gains_are_sure(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    out = sized(monkeypatch, gains(), width)
    said = "p is below 0.05 for rrt, and for the loss of aqe." in " ".join(out.split())
    assert said == ("0.244" not in out)


def test_the_main_measure_is_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "R@1" not in sized(monkeypatch, gains(), 44).split("Left out")[0]
    assert "R@1" in sized(monkeypatch, gains("R@1"), 44).split("Left out")[0]


@pytest.mark.parametrize("width", range(40, 130))
def test_a_table_of_first_stages_has_their_names_and_no_cut_number(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    names = ["mAP Easy", "mAP Medium", "mAP Hard", "recall@100 Medium"]
    names += ["ceiling Easy", "ceiling Medium", "ceiling Hard", "KiB/image", "search ms", "extract ms"]
    columns = tuple(Column(name, "what it is", 1, 1) for name in names)
    values = [100.1 + place for place in range(len(names))]
    rows = pd.DataFrame.from_dict({"asmk@xfeat": values}, orient="index", columns=names)
    table = Table("t", columns, rows, {"asmk@xfeat": "xfeat"}, frozenset(), (), {}, "mAP", 1.0, 2.0, of="first stage")
    out = sized(monkeypatch, table, width)
    assert "…" not in out and "asmk@xfeat" in out and "100.1" in out and "102.1" in out
    left_out = " ".join(out.partition("Left out at")[2].split(".")[0].split())
    for name, value in zip(names, values, strict=True):
        assert (f"{value:.1f}" in out) != (name in left_out), name


def test_a_note_of_several_lines_is_told_from_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = ("first " * 12 + "/a/path/without/a/blank.safetensors", "second")
    lines = sized(monkeypatch, gains(notes=notes), 60).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("  first"))
    assert lines[begin + 1].startswith("    first") and "  second" in lines
    assert any("/a/path/without/a/blank.safetensors" in line for line in lines)


@pytest.mark.parametrize("width", range(70, 230))
def test_a_short_name_stays_in_one_line(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    columns = tuple(Column(name, "what it is", 1) for name in NAMES)
    values = [1000.1 + place for place in range(len(NAMES))]
    rows = pd.DataFrame.from_dict({"identity": values}, orient="index", columns=NAMES)
    table = Table("title", columns, rows, {"identity": "xfeat"}, frozenset(rows.index), (), {}, "mAP", 1.0, 2.0)
    text = io.StringIO()
    monkeypatch.setattr(terminal, "console", lambda: Console(file=text, width=width))
    terminal.print_table(table)
    assert "identity*" in text.getvalue()


def test_a_listing_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(terminal, "console", lambda: Console(file=text, width=60))
    terminal.print_listing(("name", "address"), [("a", "https://example.org/" + "x" * 90)])
    assert "…" not in text.getvalue() and text.getvalue().count("x") == 91
