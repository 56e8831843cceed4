"""Contact sheets: what a method puts first where it does worst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.blend import Blend
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE, graded, main_difficulty
from bench.images import Box, UnreadableImage, crop, decode, read_bytes
from bench.metrics import primary
from bench.names import shown as readable
from bench.places import slug
from bench.report.groups import Group
from bench.report.plots import saved
from bench.report.row_names import label
from bench.results import Run

SHOWN = 8  # images of a ranking
SIDE = 160  # pixels of a thumbnail's longer side
COLOURS = {"right": "#0072b2", "wrong": "#d55e00", "ignored": "0.6"}  # told apart by all eyes


def worst(run: Run, method: str, reference: str, blend: Blend = Blend()) -> list[tuple[int, float, float]]:
    """Query numbers with the primary measure of the method and of the reference, greatest loss first, no gains."""
    found, measure = run.metrics(blend), primary(run.dataset.protocol)
    found = found[(found["difficulty"] == main_difficulty(run.dataset)) & (found["measure"] == measure.name)]
    values = found.pivot(index="query", columns="method", values="value")
    numbers = {query: i for i, query in enumerate(run.shortlist.queries)}
    rows = [
        (numbers[query], ours, theirs)
        for query, ours, theirs in zip(values.index, values[method], values[reference], strict=True)
        if measure.better * (ours - theirs) < 0  # also leaves out queries without positives
    ]
    return sorted(rows, key=lambda row: (measure.better * (row[1] - row[2]), row[0]))


def worst_queries(
    run: Run, method: str, reference: str, folder: Path, name: str, blend: Blend = Blend(), rows: int = 6
) -> Path | None:
    """A sheet of the queries that lose most: query, and the first images of the method and of the reference.

    The file written; None if the method loses on no query.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    lost = worst(run, method, reference, blend)
    if not lost:
        return None
    shown, rankings, difficulty = lost[:rows], run.rankings(blend), main_difficulty(run.dataset)
    measure = primary(run.dataset.protocol).of_query
    figure, places = plt.subplots(
        2 * len(shown),
        SHOWN + 1,
        figsize=(1.35 * (SHOWN + 1), 2.6 * len(shown) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for row, (number, ours, theirs) in enumerate(shown):
        query = run.dataset.queries[number]
        right, ignored = graded(run.shortlist, run.dataset, number, difficulty)
        for line, (by, value) in enumerate(((method, ours), (reference, theirs))):
            axes = places[2 * row + line]
            _show(axes[0], query.image, query.box if line == 0 else None, "black" if line == 0 else None)
            axes[0].set_title(readable(query.id)[:24] if line == 0 else "", fontsize=7)
            axes[0].set_xlabel(f"{by}\n{measure} {100 * value:.1f}", fontsize=8)
            for place in range(1, SHOWN + 1):
                _show(axes[place], query.image, None, None)
            for place, index in enumerate(rankings.ranking(by, difficulty, number)[:SHOWN], 1):
                kind = "right" if index in right else "ignored" if index in ignored else "wrong"
                _show(axes[place], run.dataset.gallery[run.shortlist.gallery[index]], None, COLOURS[kind])
                axes[place].set_title(kind, fontsize=7, color=COLOURS[kind], pad=2)
    figure.suptitle(
        f"{readable(run.dataset.name)}, {difficulty}: "
        f"where {_row(run, method)} loses most to {_row(run, reference)} "
        f"({len(lost)} of {len(run.shortlist.queries)} queries lose)",
        fontsize=9,
    )
    return saved(figure, folder, name, 110)


def _show(axes: Any, file: Path, box: Box | None, colour: str | None) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=colour is not None, color=colour, linewidth=3)
    if colour is None:
        return
    try:
        image, _ = crop(decode(read_bytes(file), file), box, file)
    except UnreadableImage:
        axes.text(0.5, 0.5, "cannot\nbe read", ha="center", va="center", fontsize=7)
        return
    axes.imshow(image[:: max(1, max(image.shape) // SIDE), :: max(1, max(image.shape) // SIDE)])


def sheets(
    groups: Sequence[Group], worst: str, folder: Path, elsewhere: Sequence[Run] = (), blend: Blend = Blend()
) -> list[str]:
    """Draw a sheet for each group that has both rows of METHOD[,REFERENCE], and say in a line what was drawn.

    Without REFERENCE it is the first stage. The images of runs `elsewhere` are not here. UserError where no group has
    both rows in runs whose images are.
    """
    method, _, reference = worst.partition(",")
    reference = reference or FIRST_STAGE
    lines = []
    for group in groups:
        chosen = chosen_run([run for run in group.measured if run not in elsewhere], method, reference)
        if chosen is not None:
            sheet = worst_queries(chosen, method, reference, folder, f"{group.table.stem}-worst-{slug(method)}", blend)
            lines.append(f"plot: {sheet or f'none: {method} loses on no query'}")
    if not lines:
        there = "the images of runs that are added are not here; ask for the picture where they were measured"
        raise UserError(
            f"--worst {worst}: no finished run above has {' and '.join(worst.split(','))}",
            hint=there if elsewhere else None,
        )
    return lines


def chosen_run(runs: Sequence[Run], method: str, reference: str) -> Run | None:
    """The last of the runs that has both; they are rows of one table (`bench.report.tables.table_groups`)."""
    having = [run for run in runs if {method, reference} <= {FIRST_STAGE, *run.record.costs}]
    return having[-1] if having else None


def _row(run: Run, method: str) -> str:
    """As the table names it, for a method may stand there with several options."""
    return "the first stage" if method == FIRST_STAGE else label(run, method)
