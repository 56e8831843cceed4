"""A sheet of failures: of the queries where a row loses most to the first stage, what came first and what fell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.blend import Blend
from bench.changes import Changes
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE, graded, main_difficulty
from bench.metrics import primary
from bench.named_row import named_row
from bench.names import shown
from bench.pair import Pair, pairs, weights_note
from bench.places import Places, slug
from bench.report.matches import COLOURS, DPI, MARGIN, WIDTH, panel
from bench.report.pictures import worst
from bench.report.plots import saved
from bench.report.row_names import label
from bench.report.statistics import compare
from bench.reranker import Saliency
from bench.results import Run
from bench.what_if import WhatIf, what_if

ABOVE, BETWEEN, BELOW, HIGHEST = 40, 50, 16, 230  # pixels above all rows, above and below a pair, and of its images
CHARACTERS = 40  # of a name


@dataclass(frozen=True)
class Failure:
    """A query that loses to the first stage, with the candidates to look at."""

    query: str
    first: float  # the main measure of the first stage, in [0, 1]
    value: float  # that of the row
    wrong: str  # the candidate that the row puts first of those that are wrong
    right: str  # of the right ones below it, the one that fell furthest from its place in the first stage

    def __post_init__(self) -> None:
        if self.wrong == self.right:
            raise ValueError(f"{self.wrong!r} is wrong and right for {self.query!r}")


def failures(run: Run, row: str, most: int) -> tuple[list[Failure], int]:
    """The queries that lose most, the greatest loss first, and how many lose at all.

    A query whose list has no right candidate below a wrong one is left out.
    """
    lost, rankings, difficulty = worst(run, row, FIRST_STAGE), run.rankings(), main_difficulty(run.dataset)
    found = []
    for number, value, first in lost:
        right, ignored = graded(run.shortlist, run.dataset, number, difficulty)
        order = rankings.ranking(row, difficulty, number)
        before = {int(image): place for place, image in enumerate(rankings.ranking(FIRST_STAGE, difficulty, number))}
        is_wrong = ~np.isin(order, np.concatenate([right, ignored]))
        if not is_wrong.any():
            continue
        top = int(is_wrong.argmax())
        fell = {int(image): place - before[int(image)] for place, image in enumerate(order) if place > top}
        below = [image for image in fell if image in set(right.tolist())]
        if below:
            names = [run.shortlist.gallery[image] for image in (int(order[top]), max(below, key=lambda i: fell[i]))]
            found.append(Failure(run.shortlist.queries[number], first, value, names[0], names[1]))
    return found[:most], len(lost)


def show_worst(
    runs: Sequence[Run],
    method: str,
    most: int,
    given: Mapping[str, Mapping[str, str]],
    places: Places,
    changes: Changes = Changes(),
    device: str = "cpu",
    out: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    blend: Blend = Blend(),
) -> list[str]:
    """Draw the sheet of the newest run that has the row, and say in lines what is on it.

    The queries are those of the run. Changes and options that are given are made to the pairs that are drawn. With them
    and with a blend, the lines say what they make of all queries. UserError as of `bench.pair.pair`.
    """
    if out is not None and out.suffix != ".png":
        raise UserError(f"--out {out}: a picture is a .png", hint=f"--out {out.with_suffix('.png')}")
    newest = named_row(runs, method, {})
    assert newest is not None  # every run fits
    run, row = newest.run, newest.row
    asked = named_row([run], method, given)
    assert asked is not None
    found, lost = failures(run, row, most)
    lines = []
    if changes or asked.given or blend != Blend():
        lines = told(what_if([run], method, given, places, changes, device, progress, blend))
    if not found:
        return [*lines, f"{row} loses on no query that can be shown, of {len(run.shortlist.queries)}"]
    named = [(one.query, name) for one in found for name in (one.wrong, one.right)]
    shown_pairs = pairs(asked, named, method, places, device, changes)
    drawn = list(zip(shown_pairs[::2], shown_pairs[1::2], strict=True))
    measure = primary(run.dataset.protocol).of_query
    for one, (wrong, right) in zip(found, drawn, strict=True):
        lines.append(
            f"query {shown(one.query)}: {measure} {100 * one.first:.1f} -> {100 * one.value:.1f}; "
            f"wrong {_said(wrong)}; right {_said(right)}"
        )
    # a sheet has no room for what each pair's weights are apart from its descriptors
    notes = dict.fromkeys(note for each in shown_pairs for note in each.notes if note != weights_note(each.explanation))
    about = f"{shown(run.dataset.name)}, {main_difficulty(run.dataset)}: where {label(run, row)} loses most to the "
    title = f"{about}first stage ({lost} of {len(run.shortlist.queries)} queries lose)"
    path = out or Path(f"show-worst-{slug(method)}.png")
    with_change = " ".join([changes.said, *(f"-o {key}={value}" for key, value in sorted(asked.given.items()))]).strip()
    written = draw_sheet(found, drawn, measure, title, with_change, path)
    return [*lines, *(f"note: {note}" for note in notes), f"written: {written}"]


def told(found: WhatIf) -> list[str]:
    """What changes made of all queries, of those that lose to the first stage and of the others, in lines."""
    measure = primary(found.run.dataset.protocol)
    lines = [
        f"{found.row}{found.by and f' with {found.by}'}: mean {measure.of_query}, {main_difficulty(found.run.dataset)}"
    ]
    for name, values in found.groups.items():
        of = f"{name} ({len(values)})"
        if not len(values):
            lines.append(f"  {of}")
            continue
        first, before, after = (100 * values[column].mean() for column in ("first", "before", "after"))
        test = compare(values["after"], values["before"], better=measure.better)
        low, high = 100 * test.interval.low, 100 * test.interval.high
        sure = "" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}], p {test.p:.3f}"  # of one query nothing is
        lines.append(
            f"  {of}: {before:.1f} -> {after:.1f}, gain {100 * test.difference:+.1f}{sure}; first stage {first:.1f}"
        )
    return lines


def _said(of: Pair) -> str:
    """A candidate with its places and scores."""
    places = " -> ".join(str(place) for place in (of.before, of.after, of.changed and of.changed.after) if place)
    scores = " -> ".join(f"{score:.4g}" for score in (of.score, of.changed and of.changed.score) if score is not None)
    name = shown(of.candidate)
    return f"{name if len(name) <= CHARACTERS else f'…{name[1 - CHARACTERS :]}'}: place {places}, score {scores or '–'}"


def draw_sheet(
    found: Sequence[Failure],
    drawn: Sequence[tuple[Pair, ...]],
    measure: str,
    title: str,
    changed: str,
    path: Path,
) -> Path:
    """The file written: a row for each failure, the query beside the wrong candidate and again beside the right one."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    height = ABOVE + len(found) * (BETWEEN + HIGHEST + BELOW)
    figure = plt.figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")

    def text(x: float, y: float, words: str, points: float, **more: Any) -> None:
        figure.text(x / WIDTH, 1 - y / height, words.replace("$", r"\$"), fontsize=points, va="center", **more)

    text(MARGIN, 14, title, 10, weight="bold")
    text(MARGIN, 32, f"{_key(drawn)}{changed and f' Changed: {changed}.'}", 8, color="0.35")
    top = float(ABOVE)
    for one, two in zip(found, drawn, strict=True):
        query = (
            f"query {shown(one.query)}: {measure} {100 * one.first:.1f} in the first stage, {100 * one.value:.1f} here"
        )
        text(MARGIN, top + 14, query, 9, weight="bold")
        for side, (kind, of) in enumerate(zip(("wrong", "right"), two, strict=True)):
            left = side * WIDTH / 2
            colour = COLOURS["negative" if kind == "wrong" else "easy"]
            text(left + MARGIN, top + 36, f"{kind}: {_said(of)}", 8, color=colour, weight="bold")
            panel(figure, of, left, top + BETWEEN, WIDTH // 2, HIGHEST)
        top += BETWEEN + HIGHEST + BELOW
    return saved(figure, path.parent, path.stem, DPI)


def _key(drawn: Sequence[tuple[Pair, ...]]) -> str:
    """What is drawn on the images, in a sentence."""
    found = next((of.explanation for two in drawn for of in two if of.explanation is not None), None)
    places = "Places are those in the first stage, then those here."
    if isinstance(found, Saliency):
        return f"{places} Discs: {found.what} of each local descriptor; the strongest tenth is outlined."
    if found is not None:
        return f"{places} Solid lines: {found.what} that count; dashed ones do not."
    return places
