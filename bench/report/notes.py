"""What stands below a table: what a reader must know to believe its numbers, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    floor, top = bounds
    hardware = runs[-1].record.identity.hardware
    anyone = metrics[runs[-1]]
    scorable = main.values(anyone, FIRST_STAGE).notna().any()  # an older run may have no positives
    notes = [
        f"First stage {floor:.1f}, ceiling of these lists {top:.1f} ({main.name}, percent). "
        "Controls are marked *: they are floors and ceilings, not contenders."
        if scorable
        else f"No query has a positive at {main.difficulty}, so no method can be scored and nothing compared."
    ]
    contenders = [name for name in latest if name not in controls and scorable]
    notes += _nothing_to_gain(runs[-1], bounds)
    notes += _without_value(runs[-1].dataset, anyone, main.measure.name)
    notes += _all_tied(latest, contenders)
    notes += _over_seeds(latest, metrics, main) if scorable else []
    notes.append(
        f"Measured on {machine(hardware)}; "
        "ms/query is of cached features; extract ms is of one thread, measured when the features were made."
        + ("" if _interleaved(runs) else " Rows come from several runs: their times were not interleaved.")
    )
    notes += _indexed(latest)
    notes += _disturbed(runs)
    if blend != Blend():
        notes.append(f"Order by blend {blend}, replayed from stored scores.")
    for run in runs:
        notes += [
            f"{method} did not run: {reason}"
            for method, reason in run.record.skipped.items()
            if method not in {m for _, m in latest.values()}
        ]
        if terms := run.record.features_noncommercial:
            notes.append(f"Features: NOT FOR COMMERCIAL USE ({terms}).")
        notes += [f"{method} failed: {reason}" for method, reason in run.record.failed.items()]
        notes += run.record.notes
        if run.record.unreadable:
            notes.append(f"{len(run.record.unreadable)} images could not be read and have no features.")
    sources = {name: run.record.identity.methods[method].source_sha256 for name, (run, method) in latest.items()}
    newest = {
        method: sources[name] for name, (_, method) in sorted(latest.items(), key=lambda row: row[1][0].record.finished)
    }
    if older := [name for name, (_, method) in latest.items() if sources[name] != newest[method]]:
        notes.append(f"Measured with earlier code than other rows of the same method: {', '.join(older)}.")
    restricted = {latest[name][1]: card.noncommercial for name, card in cards.items() if card.noncommercial}
    notes += [f"{method}: NOT FOR COMMERCIAL USE ({licence})." for method, licence in restricted.items()]
    return tuple(dict.fromkeys(notes))


def machine(hardware: Mapping[str, Any]) -> str:
    """The processors that a run was measured on, and its threads."""
    threads = hardware["threads"]
    return f"{hardware['cpu']}, {threads} thread{'s' * (threads != 1)}, {hardware['gpu'] or 'no GPU'}"


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
            said.setdefault((latest[name][1], f"{card.paper}; {card.licence}{trained}"), []).append(name)
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
