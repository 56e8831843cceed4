"""What a terminal shows: every row, the best contenders marked, names as they are."""

from __future__ import annotations

import io
from collections.abc import Callable

import pandas as pd
import pytest
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
