"""Runs that differ in a seed alone, as the one row that they are: what a method gives whatever it happened to draw.

The seed is an option of the method, or that of the training which its weights are of.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.evaluation import COLUMNS
from bench.record import as_json
from bench.results import Run


@dataclass(frozen=True, eq=False)
class Seeds(Run):
    """One row of several runs, which are equal but for its seed.

    Values are means over the runs, times are of all of them. Whatever has no mean, such as a ranking, is the first's.
    """

    row: str
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise ValueError(f"{self.row}: {len(self.runs)} runs are not several seeds")

    @staticmethod
    def of(row: str, runs: Collection[Run]) -> Seeds:
        """From runs of one seal that all have the row; in the order of their seeds, whatever order they come in."""
        ordered = sorted(runs, key=lambda run: _given(run, row))
        first, rows = ordered[0].record, [run.record.identity.methods[row] for run in ordered]
        pooled = {option: [one.options[option] for one in rows] for option in _varied(ordered[0], row)}
        weights = {one.weights_sha256 for one in rows}
        identity = replace(
            rows[0],
            options={**rows[0].options, **pooled},
            weights_sha256=rows[0].weights_sha256 if len(weights) == 1 else None,
        )
        data = dict.fromkeys(said for run in ordered if (said := run.record.cards[row].trained_on) is not None)
        record = replace(
            first,
            identity=replace(first.identity, methods={row: identity}),
            costs={row: first.costs[row]},
            cards={row: replace(first.cards[row], trained_on="; ".join(data) or None)},
            trained={row: first.trained[row]} if row in first.trained else {},
        )
        return Seeds(ordered[0].folder, record, row, tuple(ordered))

    @property
    def said(self) -> str:
        """The seeds.

        A method of several seed options has a group of values for each run.
        """
        return ", ".join("/".join(map(str, _given(run, self.row))) for run in self.runs)

    @property
    def files(self) -> Mapping[str, Sequence[str]]:
        """The option that names the weights of each seed -> their files; empty where one file has them all."""
        how = self.record.trained.get(self.row)
        return {} if how is None else {how.option: self.record.identity.methods[self.row].options[how.option]}

    @cached_property
    def ledger(self) -> pd.DataFrame:
        """The samples of every run."""
        return pd.concat([run.ledger[run.ledger.method == self.row] for run in self.runs], ignore_index=True)

    def metrics(self, blend: Blend = Blend()) -> pd.DataFrame:
        return self.mean([run.metrics(blend) for run in self.runs])

    def mean(self, metrics: Iterable[pd.DataFrame]) -> pd.DataFrame:
        """Means of the row's measures by query; first stage and ceiling are those of the first run."""
        found = list(metrics)
        keys = list(COLUMNS[:-1])
        rows = [table[table["method"] == self.row].set_index(keys)["value"] for table in found]
        # NaN stays NaN: a query without positives has a value with no seed
        means = pd.concat(rows, axis=1).mean(axis=1, skipna=False).rename("value").reset_index()
        others = found[0][~found[0]["method"].isin(self.runs[0].record.costs)]
        return pd.concat([others, means], ignore_index=True)


def members(run: Run) -> tuple[Run, ...]:
    """The runs that were measured: those of several seeds, or the one."""
    return run.runs if isinstance(run, Seeds) else (run,)


def metrics_of(runs: Iterable[Run], blend: Blend) -> dict[Run, pd.DataFrame]:
    """Measures of runs and of their members, each read or replayed once."""
    runs = list(dict.fromkeys(runs))
    found = {one: one.metrics(blend) for one in dict.fromkeys(one for run in runs for one in members(run))}
    means = {run: run.mean(found[one] for one in run.runs) for run in runs if isinstance(run, Seeds)}
    return found | means


def pooled(places: Iterable[tuple[Run, str]], show: Collection[str] = ()) -> list[tuple[Run, str]]:
    """The rows of a table, given as a run and the row's name there, with those that differ in a seed alone as one.

    A method says which of its options are seeds, and how its weights were trained. An option that `show` names, a seed
    or the file of weights, tells rows apart. Different code, features or trainings are different rows, and so are
    different weights that say of no training. One seed alone stays what it is, be it of several files. Of several
    seeds each counts once, by its newest run.
    """
    groups: dict[str, list[tuple[Run, str]]] = {}
    for run, row in places:
        options = _varied(run, row)
        alone = not options or any(option in show for option in options)
        groups.setdefault(f"{len(groups)}" if alone else _but_seeds(run, row), []).append((run, row))
    found: list[tuple[Run, str]] = []
    for group in groups.values():
        row = group[0][1]
        newest = {_given(run, row): run for run, _ in sorted(group, key=lambda place: place[0].record.finished)}
        found += group if len(newest) == 1 else [(Seeds.of(row, newest.values()), row)]
    return found


def spread(values: Iterable[float]) -> float:
    """Sample standard deviation over seeds; NaN of one."""
    found = list(values)
    return float(np.std(found, ddof=1)) if len(found) > 1 else float("nan")


def _varied(run: Run, row: str) -> tuple[str, ...]:
    """The options in which runs of one row may differ: its seeds, and the one that names the file of its weights."""
    how = run.record.trained.get(row)
    return (*run.record.seeds.get(row, ()), *(() if how is None else (how.option,)))


def _but_seeds(run: Run, row: str) -> str:
    """All that a row is, but for its seeds."""
    identity, how = run.record.identity.methods[row], run.record.trained.get(row)
    rest = replace(
        identity,
        options={key: value for key, value in identity.options.items() if key not in _varied(run, row)},
        weights_sha256=identity.weights_sha256 if how is None else None,
    )
    return json.dumps([row, as_json(rest), None if how is None else how.but_seed], sort_keys=True)


def _given(run: Run, row: str) -> tuple[int, ...]:
    """The seeds that a run has in place of the options of `_varied`."""
    options, how = run.record.identity.methods[row].options, run.record.trained.get(row)
    return (*(options[option] for option in run.record.seeds.get(row, ())), *(() if how is None else (how.seed,)))
