"""Tables, listings and progress on a terminal; as wide as the terminal is, and 170 columns where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
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

if TYPE_CHECKING:
    from bench.report.tables import Table

WIDTH = 170  # columns of what is not a terminal


def console(stderr: bool = False) -> Console:
    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(stderr=stderr, width=WIDTH, soft_wrap=False)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A function of what is done, how much of it, and of how many; on stderr, a bar for each thing that is done."""
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


def print_listing(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text below their headings."""
    table = RichTable(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console().print(table, markup=False)


def print_table(table: Table) -> None:
    """Print a comparison with its notes and what its columns mean; controls are dim, the best contenders bold."""
    from bench.report.tables import cells  # with pandas, which a listing needs not wait for

    shown = RichTable(title=escape(table.title), box=box.SIMPLE_HEAVY, title_justify="left", pad_edge=False)
    shown.add_column("method", no_wrap=True)
    for column in table.columns:
        shown.add_column(column.name, justify="right")
    best = _best(table)
    for name, row in zip(table.rows.index, cells(table), strict=True):
        marked = [
            f"[bold]{text}[/bold]" if name in best.get(column.name, ()) else text
            for column, text in zip(table.columns, row[1:], strict=True)
        ]
        shown.add_row(escape(row[0]), *marked, style="dim" if name in table.controls else "")
    out = console()
    out.print(shown)
    for note in table.notes:
        out.print(f"  {note}", highlight=False, markup=False)
    for column in table.columns:
        out.print(f"  {column.name}: {column.meaning}", style="dim", highlight=False, markup=False)


def _best(table: Table) -> dict[str, set[str]]:
    """Column of which more is better -> the contenders with the most, where there are several to compare."""
    rows = table.rows.loc[[name for name in table.rows.index if name not in table.controls]]
    if len(rows) < 2:
        return {}
    columns = [column.name for column in table.columns if column.better > 0]
    return {name: set(rows.index[rows[name] == rows[name].max()]) for name in columns}
