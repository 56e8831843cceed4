"""What stands below a table: what a reader must know to believe its numbers, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.datasets import Dataset
from bench.errors import listed
from bench.evaluation import FIRST_STAGE
from bench.record import MethodCard
from bench.report.columns import Quality, per_query
from bench.report.seeds import Seeds, members, spread
from bench.results import Run

DISTURBED = 0.15  # share of the cores that other programs may keep busy before a table says so


def notes_of(
    latest: Mapping[str, tuple[Run, str]],
    cards: Mapping[str, MethodCard],
    controls: frozenset[str],
    metrics: Mapping[Run, pd.DataFrame],
    main: Quality,
    blend: Blend,
    bounds: tuple[float, float],
) -> tuple[str, ...]:
    """Each note once, of rows by name with their runs; `bounds` are first stage and ceiling of `main` in percent."""
    runs = list(dict.fromkeys(one for run, _ in latest.values() for one in members(run)))
    anyone = metrics[runs[-1]]
    scorable = main.values(anyone, FIRST_STAGE).notna().any()  # an older run may have no positives
    contenders = [name for name in latest if name not in controls and scorable]
    measured = {row: max(run.record.finished for run, of in latest.values() if of == row) for _, row in latest.values()}
    notes = [
        _bounds(main, bounds) if scorable else _no_value(main),
        *_nothing_to_gain(runs[-1], bounds),
        *_without_value(runs[-1].dataset, anyone, main.measure.name),
        *_all_tied(latest, contenders),
        *(_over_seeds(latest, metrics, main) if scorable else []),
        _measured(runs),
        *_indexed(latest),
        *_disturbed(runs),
        *([f"Order by blend {blend}, replayed from stored scores."] if blend != Blend() else []),
        *(note for run in runs for note in _of_run(run, measured)),
        *_with_earlier_code(latest),
        *_restricted(latest, cards),
    ]
    return tuple(dict.fromkeys(notes))


def _bounds(main: Quality, bounds: tuple[float, float]) -> str:
    """Between which values the rows lie."""
    floor, top = bounds
    return (
        f"First stage {floor:.1f}, ceiling of these lists {top:.1f} ({main.name}, percent). "
        "Controls are marked *: they are floors and ceilings, not contenders."
    )


def _no_value(main: Quality) -> str:
    return f"No query has a positive at {main.difficulty}, so no method can be scored and nothing compared."


def _measured(runs: Sequence[Run]) -> str:
    """What the times are of."""
    return (
        f"Measured on {machine(runs[-1].record.identity.hardware)}; "
        "ms/query is of cached features; extract ms is of one thread, measured when the features were made."
        + ("" if _interleaved(runs) else " Rows come from several runs: their times were not interleaved.")
    )


def _of_run(run: Run, measured: Mapping[str, str]) -> Iterator[str]:
    """What a run says of itself, and of what it asked for that was not measured, or only before; when each row was."""
    for row, reason in run.record.skipped.items():
        if row not in measured:
            yield f"{row} did not run: {reason}"
    if terms := run.record.features_noncommercial:
        yield f"Features: NOT FOR COMMERCIAL USE ({terms})."
    for row, reason in run.record.failed.items():
        if measured.get(row, "") < run.record.finished:
            yield f"{row} failed: {reason}"
    yield from run.record.notes
    if run.record.unreadable:
        yield f"{len(run.record.unreadable)} images could not be read and have no features."


def _with_earlier_code(latest: Mapping[str, tuple[Run, str]]) -> list[str]:
    """Which rows were measured with other code than the newest of their method."""
    sources = {name: run.record.identity.methods[row].source_sha256 for name, (run, row) in latest.items()}
    by_time = sorted(latest.items(), key=lambda of: of[1][0].record.finished)
    newest = {row: sources[name] for name, (_, row) in by_time}
    older = [name for name, (_, row) in latest.items() if sources[name] != newest[row]]
    return [f"Measured with earlier code than other rows of the same method: {', '.join(older)}."] if older else []


def _restricted(latest: Mapping[str, tuple[Run, str]], cards: Mapping[str, MethodCard]) -> list[str]:
    """Which methods may not be used commercially, each once."""
    licences = {latest[name][1]: card.noncommercial for name, card in cards.items() if card.noncommercial}
    return [f"{row}: NOT FOR COMMERCIAL USE ({licence})." for row, licence in licences.items()]


def machine(hardware: Mapping[str, Any]) -> str:
    """The processors that a run was measured on, and its threads."""
    threads, workers = hardware["threads"], hardware.get("workers")
    several = f", {workers} workers beside one another" if workers is not None else ""
    return f"{hardware['cpu']}, {threads} thread{'s' * (threads != 1)}, {hardware['gpu'] or 'no GPU'}{several}"


def _indexed(latest: Mapping[str, tuple[Run, str]]) -> list[str]:
    """A note for each row that reads what it keeps of gallery images, which is in none of its times."""
    costs = {name: run.record.indexed[row] for name, (run, row) in latest.items() if row in run.record.indexed}
    return [
        f"{name}: its times are of indexed images; to index one took {cost.ms:.1f} ms, and {cost.kib:.1f} KiB are kept."
        for name, cost in costs.items()
    ]


def _disturbed(runs: Sequence[Run]) -> list[str]:
    """A note where other programs took enough of the machine to make times longer."""
    found = [(run.record.others_busy or 0.0, run.record.identity.hardware.get("cores")) for run in runs]
    busy, cores = max(found, key=lambda pair: pair[0])
    if not isinstance(cores, int) or busy < DISTURBED * cores:
        return []
    return [
        f"Other programs kept {busy:.1f} of {cores} cores busy while this was measured, so times are longer than on a "
        "quiet machine."
    ]


def origins(
    latest: Mapping[str, tuple[Run, str]], cards: Mapping[str, MethodCard], controls: frozenset[str]
) -> tuple[str, ...]:
    """Where contenders come from, as their cards say, once for all rows of a sweep."""
    said: dict[tuple[str, str], list[str]] = {}  # method, what its card says -> rows
    for name, card in cards.items():
        if name not in controls:
            trained = f"; trained on {card.trained_on}" if card.trained_on else ""
            paper = f"{card.paper}; " if card.paper else ""
            said.setdefault((latest[name][1], f"{paper}{card.licence}{trained}"), []).append(name)
    return tuple(f"{rows[0] if len(rows) == 1 else method}: {text}" for (method, text), rows in said.items())


def _nothing_to_gain(run: Run, bounds: tuple[float, float]) -> list[str]:
    """Why no reordering of the candidates could change a row, where that is so."""
    floor, top = bounds
    values = np.concatenate([run.shortlist.similarities[name] for name in run.shortlist.lists])
    tied = int((values == values[:, :1]).all(axis=1).sum()) if values.shape[1] > 1 else 0
    notes = []
    if run.shortlist.header.k == 1:
        notes.append("Every list has one candidate, so no method can change its order.")
    elif floor == top:
        notes.append("The first stage already is at the ceiling of these lists, so no method can gain.")
    if tied:
        notes.append(
            f"The first stage gave all candidates of {tied} of {len(values)} lists the same similarity; "
            "their order is the gallery's."
        )
    return notes


def _without_value(dataset: Dataset, metrics: pd.DataFrame, measure: str) -> list[str]:
    """Which queries have no positive at a difficulty; they are in no mean of it."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for difficulty in dataset.difficulties:
        values = per_query(metrics, FIRST_STAGE, difficulty, measure)
        lacking.setdefault(tuple(map(str, values.index[values.isna()])), []).append(difficulty)
    total = len(dataset.queries)
    return [
        f"No query has a positive at {' and '.join(difficulties)}: there are no values."
        if len(out) == total
        else f"Without a positive at {' and '.join(difficulties)}, and left out of the means there: "
        f"{len(out)} of {total} queries ({listed(out)})."
        for out, difficulties in lacking.items()
        if out
    ]


def _all_tied(latest: Mapping[str, tuple[Run, str]], contenders: Sequence[str]) -> list[str]:
    """Which methods told no candidate from another."""
    notes = []
    for name in contenders:
        run, method = latest[name]
        if run.shortlist.header.k > 1 and all(_without_order(one, method) for one in members(run)):
            notes.append(f"{name} gave all candidates of every query the same score: its row is the first stage's.")
    return notes


def _without_order(run: Run, method: str) -> bool:
    """Whether it gave all candidates of every query one score."""
    scores = run.scores[run.scores["method"] == method].groupby(["list", "query"])["score"]
    return bool((scores.max() == scores.min()).all())


def _over_seeds(latest: Mapping[str, tuple[Run, str]], metrics: Mapping[Run, pd.DataFrame], main: Quality) -> list[str]:
    """What stands in the rows of several seeds."""
    notes = []
    for name, (run, method) in latest.items():
        if isinstance(run, Seeds):
            values = [main.mean(metrics[one], method) for one in run.runs]
            notes.append(
                f"{name} (seeds {run.said}): {main.name} of each {', '.join(f'{value:.2f}' for value in values)}; "
                f"standard deviation {spread(values):.2f}."
            )
    if notes:
        notes.append(
            "A row of several seeds has the mean over them. Its interval is over queries and seeds, its p of each "
            "query's mean, and its ms of all samples."
        )
    return notes


def _interleaved(runs: Sequence[Run]) -> bool:
    """Whether the methods of all runs took turns."""
    return len(runs) == 1 or len({run.record.together or (run.folder.name,) for run in runs}) == 1
