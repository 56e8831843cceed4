"""Runs that differ in a seed alone, as the one row that they are: what a method gives whatever it happened to draw."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.evaluation import COLUMNS
from bench.record import MethodIdentity, as_json
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
        first = ordered[0].record
        mine, options = first.identity.methods[row], first.seeds[row]
        values = zip(*(_given(run, row) for run in ordered), strict=True)
        pooled = {option: list(of) for option, of in zip(options, values, strict=True)}
        identity = replace(mine, options={**mine.options, **pooled})
        record = replace(
            first,
            identity=replace(first.identity, methods={row: identity}),
            costs={row: first.costs[row]},
            cards={row: first.cards[row]},
        )
        return Seeds(ordered[0].folder, record, row, tuple(ordered))

    @property
    def said(self) -> str:
        """The seeds.

        A method of several seed options has a group of values for each run.
        """
        return ", ".join("/".join(map(str, _given(run, self.row))) for run in self.runs)

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

    A method says which of its options are seeds; one that `show` names tells rows apart. Different code, weights or
    features are different rows. One seed alone stays what it is.
    """
    groups: dict[str, list[tuple[Run, str]]] = {}
    for run, row in places:
        seeds = run.record.seeds.get(row, ())
        alone = not seeds or any(option in show for option in seeds)
        key = f"{len(groups)}" if alone else _but_seeds(row, run.record.identity.methods[row], seeds)
        groups.setdefault(key, []).append((run, row))
    return [
        group[0] if len(group) == 1 else (Seeds.of(group[0][1], [run for run, _ in group]), group[0][1])
        for group in groups.values()
    ]


def spread(values: Iterable[float]) -> float:
    """Sample standard deviation over seeds; NaN of one."""
    found = list(values)
    return float(np.std(found, ddof=1)) if len(found) > 1 else float("nan")


def _but_seeds(row: str, identity: MethodIdentity, seeds: Collection[str]) -> str:
    """All that a row is, but for its seeds."""
    options: Mapping[str, object] = {key: value for key, value in identity.options.items() if key not in seeds}
    return json.dumps([row, as_json(replace(identity, options=options))], sort_keys=True)


def _given(run: Run, row: str) -> tuple[int, ...]:
    options = run.record.identity.methods[row].options
    return tuple(options[option] for option in run.record.seeds[row])
