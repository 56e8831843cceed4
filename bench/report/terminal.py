"""Tables, listings and progress on a terminal; as wide as the terminal is, and 170 columns where there is none."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from bench.names import parts, without_folders

if TYPE_CHECKING:
    from bench.report.claims import Listing
    from bench.report.sensitivity import Sensitivity
    from bench.report.tables import Table

WIDTH = 170  # columns of what is not a terminal
GAP = 3  # columns between two of a table's
SIDES = 2  # columns at the sides of a table
LEAST = 20  # columns that the names of methods are folded into, where the terminal is narrow
# columns of a table that are left out first where not all fit: the beginnings of their names, in turn
LEFT_OUT = (
    "peak MiB",
    "desc max",
    "ms/query p95",
    ("better", "equal", "worse"),
    "sd seeds",
    "extract ms",
    "desc mean",
    "ms/pair",
    "mP@",
    "R@100",
    "R@10",
    "total ms",
    "headroom",
    "features",
    "gain ",
    "R@1 ",
    "ceiling",
    "p",
)


def console(stderr: bool = False) -> Console:
    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(stderr=stderr, width=WIDTH, soft_wrap=False)


EVERY = 10.0  # seconds between two lines of progress, where there is no terminal


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A function of what is done, how much of it, and of how many, which is shown on stderr.

    On a terminal, a bar for each thing that is done; elsewhere a line at most every EVERY seconds.
    """
    if not console(stderr=True).is_terminal:
        yield ProgressLines(console(stderr=True).print)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update


class ProgressLines:
    """Progress as lines: what is done, how much of how many, since when, and how long the rest may take.

    The first line of a thing comes EVERY seconds after it began, so that quick work says nothing.
    """

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic):
        self._write, self._clock = write, clock
        self._began: dict[str, tuple[float, int]] = {}  # seconds, and how much was done by then
        self._said: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        began, before = self._began.setdefault(what, (now, done))
        if now - self._said.setdefault(what, began) < EVERY:
            return
        self._said[what] = now
        rest = "" if done <= before else f", about {_duration((now - began) / (done - before) * (total - done))} left"
        self._write(f"{what}: {done} of {total} after {_duration(now - began)}{rest}")


def _duration(seconds: float) -> str:
    """
    >>> _duration(75), _duration(3 * 3600 + 125)
    ('1:15', '3:02:05')
    """
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell that takes several lines where its column is narrow. Nothing of it is cut."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        pieces = [piece for word in self.text.split() for piece in parts(word)]
        widest = max(map(len, self.text.split("\n")))
        return Measurement(max(map(len, pieces), default=0), widest).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for line in self.text.split("\n"):
            yield Text("\n".join(wrapped(line, options.max_width)), no_wrap=True)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` >= 1 characters: parted between words, else as `parts` has them, else anywhere.

    >>> wrapped("cascade stages=rrt,lightglue:20", 18), wrapped("abcdef", 4)
    (['cascade stages=', 'rrt,lightglue:20'], ['abcd', 'ef'])
    """
    lines = [""]
    for word in text.split(" "):
        if len(word) <= width:
            pieces = [word]
        else:
            pieces = [part[at : at + width] for part in parts(word) for at in range(0, len(part), width)]
        for number, part in enumerate(pieces):
            gap = " " * (number == 0 and bool(lines[-1]))
            if len(lines[-1]) + len(gap) + len(part) <= width:
                lines[-1] += gap + part
            else:
                lines.append(part)
    return lines if lines[0] or len(lines) == 1 else lines[1:]


def print_listing(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text below their headings."""
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(Cell, row))
    console().print(table, markup=False)


def print_table(table: Table, cards: bool = False, explain: bool = False) -> None:
    """Print a comparison, what it concludes first, with its notes; controls are dim, the best contenders bold.

    `cards` adds papers, licences and training data of the methods, `explain` what each column is. Files are told by
    their names alone where these differ, other formats have the folders too. Nothing else is cut: where the terminal is
    narrow, headings and names take several lines, and columns are left out in the order of `LEFT_OUT`, which a note
    says. Columns without a value, and measures that repeat another, say nothing and are left out.
    """
    from bench.report.formats import best, cells, worth_saying  # with pandas, which a listing needs not wait for
    from bench.report.verdict import sure_of

    table = replace(table, columns=worth_saying(table))
    out, texts, short = console(), cells(table), without_folders([str(name) for name in table.rows.index])

    def said(text: str) -> str:
        for name in sorted(short, key=len, reverse=True):
            text = text.replace(name, short[name]) if name != short[name] else text
        return text

    texts = [[said(name), *row] for name, *row in texts]
    columns = ["features", *(column.name for column in table.columns)]
    heads = _headings(columns, texts, out.width - SIDES, kept=f"{table.measure} ")
    shown = RichTable(title=escape(table.title), box=box.SIMPLE_HEAVY, title_justify="left", pad_edge=False)
    shown.add_column(table.of)
    for name, head in heads.items():
        shown.add_column(head, justify="left" if name == "features" else "right", no_wrap=True)
    leading = best(table)
    for name, row in zip(table.rows.index, texts, strict=True):
        marked = [
            f"[bold]{text}[/bold]" if name in leading.get(column.name, ()) else text
            for column, text in zip(table.columns, row[2:], strict=True)
            if column.name in heads
        ]
        features = [escape(row[1])] if "features" in heads else []
        shown.add_row(Cell(row[0]), *features, *marked, style="dim" if name in table.controls else "")
    if table.answer:
        out.print(f"{said(table.answer)}\n", style="bold", highlight=False, markup=False)
    out.print(shown)
    if missing := [name for name in columns if name not in heads]:
        command = {"first stage": "first-stages"}.get(table.of, "report")
        _note(out, f"Left out at {out.width} columns: {', '.join(missing)}. `{command} --format md` has them.")
    if "p" in missing:
        _note(out, said(sure_of(table.rows["gain"], table.rows["p"])))
    for note in (*map(said, table.notes), *(table.cards if cards else ())):
        _note(out, note)
    for column in (column for column in table.columns if explain and column.name in heads):
        _note(out, f"{column.name}: {column.meaning}", style="dim")
    pointers = ["`report --explain` says what each column is"] * (not explain)
    pointers += ["`report --cards` says where methods come from"] * (bool(table.cards) and not cards)
    if pointers:
        _note(out, f"{'; '.join(pointers)}.", style="dim")


def _note(out: Console, text: str, style: str | None = None) -> None:
    """Print a note whose lines after the first are indented more, so that the next note is told from them."""
    lines = textwrap.wrap(
        text, out.width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    out.print("\n".join(lines), style=style, highlight=False, markup=False)


def print_sensitivity(found: Sensitivity) -> None:
    """Print whether the order of methods depends on the protocol, then what other choices change.

    Where the terminal is too narrow for a column a choice, it is a line a choice, with the methods that change places.
    """
    from bench.report.sensitivity import MEANING, cells, columns, moves

    out = console()
    out.print(f"{found.answer}\n", style="bold", highlight=False, markup=False)
    heads, rows = [name.replace(" ", "\n", 1) for name in columns(found)], cells(found)
    wide = [max(len(text) for text in (*head.split("\n"), *of)) for head, *of in zip(heads, *rows, strict=True)]
    if sum(wide) + GAP * len(wide) + SIDES <= out.width:
        print_listing(heads, rows)
    elif found.choices:
        print_listing(["protocol", "order", "changed places"], moves(found))
    for note in (MEANING, *found.notes):
        _note(out, note)


def print_claims(found: Listing) -> None:
    """Print claims beside ours, then what is not listed and how to measure what is not reproduced."""
    from bench.report.claims import COLUMNS, cells, commands

    if found.judged:
        print_listing(COLUMNS, cells(found))
    print(*[found.note, *commands(found)], sep="\n")


def _headings(names: Sequence[str], cells: Sequence[Sequence[str]], width: int, kept: str) -> dict[str, str]:
    """Column name -> heading, of the columns that fit beside the names of methods, in one line or in several.

    Those whose names begin with `kept` stay.
    """

    def needed(head: str, place: int) -> int:
        return GAP + max(len(text) for text in (*head.split("\n"), *(row[place] for row in cells)))

    places = {name: place for place, name in enumerate(names, 1)}
    first = max((len(row[0]) for row in cells), default=0)
    if first + sum(needed(name, place) for name, place in places.items()) <= width:
        return {name: name for name in names}
    heads = {name: name.replace(" ", "\n") for name in names}
    room = width - min(first, LEAST)
    # on a terminal too narrow for what is left, the last columns go too: numbers and names that are cut say nothing
    order: tuple[str | tuple[str, ...], ...] = (*LEFT_OUT, *reversed(names))
    for begin in order:
        if sum(needed(head, places[name]) for name, head in heads.items()) <= room:
            break
        heads = {name: head for name, head in heads.items() if not name.startswith(begin) or name.startswith(kept)}
    return heads
