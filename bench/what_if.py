"""A row of a finished run as it would have been with other images: every query's candidates, scored again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench import registry
from bench.blend import Blend
from bench.changes import Changes
from bench.device import resolve_device
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE, Rankings, evaluate, main_difficulty
from bench.metrics import primary
from bench.named_row import NamedRow, named_row
from bench.pair import require_pairs
from bench.places import Places
from bench.rescore import reread, score
from bench.results import Run
from bench.shortlist import UNION


@dataclass(frozen=True, eq=False)
class WhatIf:
    """What changes made of a row: its main measure of every query, NaN for those without a positive."""

    run: Run
    row: str  # with the options that were given
    by: str  # changes and blend, as the command line has them
    values: pd.DataFrame  # by query, with the columns `first`, `before` and `after`, in [0, 1]

    def __post_init__(self) -> None:
        if list(self.values.columns) != ["first", "before", "after"] or not self.values.index.is_unique:
            raise ValueError(
                f"columns {list(self.values.columns)}, expected first, before and after of each query once"
            )

    @property
    def groups(self) -> Mapping[str, pd.DataFrame]:
        """The queries that have a value, by whether the row as it was lost to the first stage, which comes first."""
        better = primary(self.run.dataset.protocol).better
        known = self.values.dropna()
        lost = better * (known["before"] - known["first"]) < 0
        return {"losing to the first stage": known[lost], "not losing": known[~lost], "all queries": known}


def what_if(
    runs: Sequence[Run],
    method: str,
    given: Mapping[str, Mapping[str, str]],
    places: Places,
    changes: Changes,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
    blend: Blend = Blend(),
) -> WhatIf:
    """Score every query of the newest run with the row again, with the changes, and with options that are given.

    A query's change is made to every query, and a candidate's to every candidate. A blend alone is replayed from the
    stored scores. UserError as of `bench.pair.pair`, and where neither changes nor options nor a blend are given.
    """
    newest = named_row(runs, method, {})
    assert newest is not None  # every run fits
    asked = named_row([newest.run], method, given)
    assert asked is not None
    run, row = asked.run, asked.row
    if not changes and not asked.given and blend == Blend():
        raise UserError(f"{row}: nothing to change", hint="name a change: --hide, --keep, --scale, --blend or -o")
    if changes or asked.given:
        stored = _scored(asked, method, places, changes, device, progress)
        after = _values(evaluate(Rankings(stored, run.shortlist, run.dataset, blend)), run)
    else:
        after = _values(run.metrics(blend), run)
    was = _values(run.metrics(), run)
    values = pd.DataFrame({"first": was[FIRST_STAGE], "before": was[row], "after": after[row]})
    by = [changes.said, f"--blend {blend}" if blend != Blend() else ""]
    return WhatIf(run, asked.shown, " ".join(filter(None, by)), values)


def _scored(
    asked: NamedRow,
    method: str,
    places: Places,
    changes: Changes,
    device: str,
    progress: Callable[[str, int, int], None] | None,
) -> pd.DataFrame:
    """Scores of all pairs of a run, as the run's own table has them."""
    run, row = asked.run, asked.row
    reranker = registry.get(row.partition("@")[0])(asked.options, resolve_device(device))
    require_pairs(row, reranker)
    shortlist, scores = run.shortlist, dict[str, np.ndarray]()
    total, done = len(shortlist.queries) * len(changes.each), 0
    reranker.load()
    for each in changes.each:
        with reread(run, row, run.dataset, method, reranker, places, each) as rereading:
            for number, query in enumerate(shortlist.queries):
                others = [rereading.candidate(shortlist.gallery[image]).read for image in shortlist.union(number)]
                similarities = shortlist.union_similarities(number).tolist()
                found = score(reranker, rereading.query(number).read, others, similarities)
                scores[query] = np.maximum(scores.get(query, found), found)
                done += 1
                if progress is not None:
                    progress("scoring", done, total)
    rows = [
        (row, UNION, query, shortlist.gallery[image], one)
        for number, query in enumerate(shortlist.queries)
        for image, one in zip(shortlist.union(number), scores[query], strict=True)
    ]
    return pd.DataFrame(rows, columns=["method", "list", "query", "candidate", "score"])


def _values(found: pd.DataFrame, run: Run) -> pd.DataFrame:
    """The main measure by query and method."""
    of_main = found["difficulty"] == main_difficulty(run.dataset)
    found = found[of_main & (found["measure"] == primary(run.dataset.protocol).name)]
    return found.pivot(index="query", columns="method", values="value")
