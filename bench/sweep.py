"""Descriptor budget: each method at several numbers of local descriptors an image, all on one sealed shortlist.

A budget is the method's option `descriptors`. The features are extracted once, best descriptors first, and a budget
reads the first of them. Each budget is an ordinary run, so it is resumed, reused and reported as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import registry
from bench.errors import UserError
from bench.features.extractors import card as feature_card
from bench.features.store import write_whole
from bench.places import Places
from bench.report.plots import quality_against_descriptors
from bench.report.tables import FORMATS, Table, compare, label
from bench.run import Progress, Request, execute_together

OPTION = "descriptors"


@dataclass(frozen=True, eq=False)
class Sweep:
    """One table of all runs, by method and rising budget."""

    table: Table
    points: Mapping[str, tuple[str, int]]  # row -> method and budget, in the table's order
    notes: tuple[str, ...]


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


def requests(base: Request, budgets: Sequence[int]) -> list[Request]:
    """One request a budget, in the order given. UserError for methods without one and for more than is stored."""
    able = [name for name in registry.names() if _has_budget(name)]
    names = able if base.methods == ("all",) else list(dict.fromkeys(base.methods))
    for name in names:
        registry.get(name)  # an unknown name is refused with a suggestion
        if name not in able:
            raise UserError(
                f"--method {name}: it has no option {OPTION!r}, so it has no budget to sweep",
                hint=f"methods that have one: {', '.join(able)}",
            )
        if OPTION in base.options.get(name, {}):
            raise UserError(f"-o {name}.{OPTION}: the sweep sets it", hint="give the numbers with --descriptors")
    stored = base.extract.descriptors
    if max(budgets) > stored and not feature_card(base.features).imported:
        raise UserError(
            f"--descriptors {max(budgets)}: only the best {stored} of an image are stored",
            hint=f"--keep-descriptors {max(budgets)}",
        )
    return [
        replace(
            base,
            methods=tuple(names),
            options={**base.options, **{n: {**base.options.get(n, {}), OPTION: str(budget)} for n in names}},
        )
        for budget in budgets
    ]


def _has_budget(name: str) -> bool:
    try:
        return OPTION in {field.name for field in dataclasses.fields(registry.get(name).Options)}
    except UserError:  # a plugin that cannot be loaded
        return False


def sweep(base: Request, budgets: Sequence[int], places: Places, progress: Progress | None = None) -> Sweep:
    """Run every budget, or take what is finished, and put all of them into one table.

    All methods at all budgets that are not finished take turns query by query, so that their times compare.
    """
    outcomes = execute_together(requests(base, budgets), places, progress)
    rows = {
        label(outcome.run, method, {OPTION}): (method, budget)
        for budget, outcome in zip(budgets, outcomes, strict=True)
        for method in outcome.run.about["costs"]
    }
    table = compare([outcome.run for outcome in outcomes], show={OPTION})
    points = dict(sorted(rows.items(), key=lambda row: row[1]))
    notes = dict.fromkeys(note for outcome in outcomes for note in outcome.notes)
    return Sweep(replace(table, rows=table.rows.loc[list(points)]), points, tuple(notes))


def write(found: Sweep, folder: Path) -> list[Path]:
    """sweep.csv, sweep.md and sweep.png; the files written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"csv": FORMATS["csv"](found.table), "md": FORMATS["md"](found.table)}
        for kind, text in texts.items():
            write_whole(folder / f"sweep.{kind}", text)
        picture = quality_against_descriptors(found.table, found.points, folder, "sweep")
        return [*(folder / f"sweep.{kind}" for kind in texts), picture]
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write ({error.strerror or error})",
            hint="the runs are finished and kept; give the same command with another --out",
        ) from error
