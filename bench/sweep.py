"""Methods with several values of their options, all on one sealed shortlist.

A descriptor budget is the option `descriptors` of every method: features are extracted once, best descriptors first,
and a budget reads the first of them. Any other option is varied for one method (`Varied`). Each choice of values is an
ordinary run, so it is resumed, reused and reported as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from bench import registry
from bench.errors import UserError
from bench.features.sets import Progress, SetName
from bench.files import write_whole, writing
from bench.places import Places
from bench.prepare import asked_rows
from bench.report.formats import FORMATS
from bench.report.plots import quality_against_descriptors
from bench.report.row_names import label
from bench.report.tables import Table, compare
from bench.reranker import parse_options
from bench.rows import Asked, same_row
from bench.run import Outcome, execute
from bench.setup import Selection, Setup

OPTION = "descriptors"


@dataclass(frozen=True, eq=False)
class Sweep:
    """One table of all runs, by method and rising budget."""

    table: Table
    points: Mapping[str, tuple[str, int]]  # row -> method and budget, in the table's order; empty without budgets
    notes: tuple[str, ...]
    failed: tuple[str, ...]  # rows that did not get to their end, each once


def budgets_of(text: str) -> tuple[int, ...]:
    """Ascending numbers of descriptors from a comma-separated text, each once; UserError for anything else.

    >>> budgets_of("100, 25,100")
    (25, 100)
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and int(part) > 0):
            raise UserError(
                f"--descriptors {text}: {part!r} is not a number of descriptors",
                hint="whole numbers of at least 1, separated by commas, for example 25,50,100",
            )
    return tuple(sorted({int(part) for part in parts}))


def selections(setup: Setup, base: Selection, budgets: Sequence[int]) -> list[Selection]:
    """One selection a budget, in the order given. UserError for methods without one and for more than is stored."""
    able = [name for name in registry.names() if _has_budget(name)]
    every = ("all",) in {base.methods, tuple(Asked.parse(text).method for text in base.methods)}
    names = [row for row in asked_rows(base.methods) if not every or row.method in able]
    for row in names:
        registry.get(row.method)  # an unknown name is refused with a suggestion
        if row.method not in able:
            raise UserError(
                f"--method {row}: it has no option {OPTION!r}, so it has no budget to sweep",
                hint=f"methods that have one: {', '.join(able)}",
            )
        for name in (row.method, str(row)):
            if OPTION in base.options.get(name, {}):
                raise UserError(f"-o {name}.{OPTION}: the sweep sets it", hint="give the numbers with --descriptors")
    stored = setup.extract.descriptors
    sets = {setup.features, *(row.features for row in names if row.features is not None)}
    if max(budgets) > stored and not all(SetName.parse(text).imported for text in sets):
        raise UserError(
            f"--descriptors {max(budgets)}: only the best {stored} of an image are stored",
            hint=f"--keep-descriptors {max(budgets)}",
        )
    return [
        Selection(
            tuple(map(str, names)),
            {
                **base.options,
                **{str(row): {**base.options.get(str(row), {}), OPTION: str(budget)} for row in names},
            },
        )
        for budget in budgets
    ]


@dataclass(frozen=True)
class Varied:
    """One option of one method, or of its row on some features, and the values it takes."""

    method: str  # METHOD or METHOD@FEATURES
    option: str
    values: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Varied:
        """
        >>> Varied.parse("ransac.seed=0,1,2")
        Varied(method='ransac', option='seed', values=('0', '1', '2'))
        """
        at = text.find("@") + 1  # names of features may have a dot or = themselves, options have none
        before, equals, values = text[at:].rpartition("=") if at else text.partition("=")
        method, dot, option = (text[:at] + before).rpartition(".")
        found = tuple(dict.fromkeys(value.strip() for value in values.split(",")))
        if not (method and dot and option and equals and all(found)):
            raise UserError(f"--vary {text}: expected METHOD.OPTION=VALUE,VALUE", hint="--vary ransac.seed=0,1,2")
        return Varied(method, option, found)


def combinations(base: Selection, varied: Sequence[Varied]) -> list[Selection]:
    """One selection for every combination of values; methods that are not varied are run once, with the first."""
    places = [(v.method, v.option) for v in varied]
    for method, option in places:
        if option in base.options.get(method, {}) or places.count((method, option)) > 1:
            raise UserError(f"--vary {method}.{option}: it is given twice", hint="one --vary for each option, no -o")
    for each in varied:
        row = Asked.parse(each.method)
        given = {**base.options.get(row.method, {}), **base.options.get(each.method, {})}
        for value in each.values:  # one that is refused stops all before any work
            parse_options(registry.get(row.method), {**given, each.option: value})
    methods = tuple(dict.fromkeys(v.method for v in varied))
    found: list[Selection] = []
    for values in product(*(v.values for v in varied)):
        options = {method: dict(given) for method, given in base.options.items()}
        for (method, option), value in zip(places, values, strict=True):
            options.setdefault(method, {})[option] = value
        names = methods if found or base.methods == ("all",) else (*methods, *base.methods)
        names = tuple(dict.fromkeys(names))
        known = {*names, *(Asked.parse(name).method for name in names)}
        found.append(Selection(names, {m: o for m, o in options.items() if m in known}))
    return found


def vary(
    setup: Setup,
    base: Selection,
    varied: Sequence[Varied],
    places: Places,
    progress: Progress | None = None,
    *,
    force: bool = False,
) -> Sweep:
    """Run every combination, or take what is finished, and put all into one table; seeds alone: and their spread."""
    outcomes = execute(setup, combinations(base, varied), places, progress, force=force)
    options = {v.option for v in varied}
    table = compare([outcome.run for outcome in outcomes], show=options)
    notes = dict.fromkeys(note for outcome in outcomes for note in outcome.notes)
    if options == {"seed"}:
        spread = [note for v in varied for note in _spread(table, v)]
        table = replace(table, notes=(*spread, *table.notes))
    return Sweep(table, {}, tuple(notes), _failed(outcomes))


def _failed(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row for outcome in outcomes for row in outcome.run.record.failed))


def _spread(table: Table, varied: Varied) -> list[str]:
    """Mean, sample standard deviation and range of the primary measure over the rows of the varied method."""

    def is_it(row: str) -> bool:
        name = row.split(" ")[0]
        plain = "@" not in varied.method and name.partition("@")[0] == varied.method
        return plain or same_row(varied.method, name, table.features[row].split("+"))

    rows = table.rows[[f" {varied.option}=" in row and is_it(row) for row in table.rows.index]]
    return [
        f"{varied.method}, {len(rows)} seeds, {column}: mean {rows[column].mean():.2f}, standard deviation "
        f"{rows[column].std():.2f}, {rows[column].min():.2f} to {rows[column].max():.2f}."
        for column in rows.columns
        if column.startswith(f"{table.measure} ") and len(rows) > 1
    ]


def _has_budget(name: str) -> bool:
    try:
        return OPTION in {field.name for field in dataclasses.fields(registry.get(name).Options)}
    except UserError:  # a plugin that cannot be loaded
        return False


def sweep(
    setup: Setup,
    base: Selection,
    budgets: Sequence[int],
    places: Places,
    progress: Progress | None = None,
    *,
    force: bool = False,
) -> Sweep:
    """Run every budget, or take what is finished, and put all of them into one table.

    All methods at all budgets that are not finished take turns query by query, so that their times compare.
    """
    outcomes = execute(setup, selections(setup, base, budgets), places, progress, force=force)
    rows = {
        label(outcome.run, method, {OPTION}): (method, budget)
        for budget, outcome in zip(budgets, outcomes, strict=True)
        for method in outcome.run.record.costs
    }
    table = compare([outcome.run for outcome in outcomes], show={OPTION})
    points = dict(sorted(rows.items(), key=lambda row: row[1]))
    notes = dict.fromkeys(note for outcome in outcomes for note in outcome.notes)
    return Sweep(replace(table, rows=table.rows.loc[list(points)]), points, tuple(notes), _failed(outcomes))


def write(found: Sweep, folder: Path) -> list[Path]:
    """sweep.csv, sweep.md and, where budgets were swept, sweep.png; the files written."""
    with writing(folder, "the runs are finished and kept; give the same command with another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"csv": FORMATS["csv"](found.table), "md": FORMATS["md"](found.table)}
        for kind, text in texts.items():
            write_whole(folder / f"sweep.{kind}", text)
    pictures = [quality_against_descriptors(found.table, found.points, folder, "sweep")] if found.points else []
    return [*(folder / f"sweep.{kind}" for kind in texts), *pictures]
