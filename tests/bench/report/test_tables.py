"""Tables show what the table of measures says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench import metrics
from bench.evaluation import FIRST_STAGE
from bench.metrics import Measure
from bench.report.tables import compare
from bench.results import Run


@pytest.fixture
def done(run: Callable, instances: Path) -> Run:
    return run(instances, "identity,oracle,reverse", top_k=8).run


def reciprocal(ranks: np.ndarray, n_positives: int) -> float:
    return float("nan") if n_positives == 0 else 1 / (1 + ranks[0])


def first_rank(ranks: np.ndarray, n_positives: int) -> float:
    """A share of which less is better."""
    return float("nan") if n_positives == 0 else ranks[0] / 100


def test_a_measure_is_one_entry_and_older_runs_have_it_too(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Measure("MRR", "RR", "mean reciprocal rank", reciprocal, ("instance",), digits=3)
    monkeypatch.setitem(metrics.MEASURES, "MRR", entry)  # type: ignore[misc]
    table = compare([done])
    (column,) = [column for column in table.columns if column.name == "MRR All"]
    assert (column.meaning, column.digits, column.better) == ("mean reciprocal rank, All, percent", 3, 1)
    values = done.metrics().query("measure == 'MRR' and method == 'identity'")["value"]
    assert table.rows.loc["identity", "MRR All"] == pytest.approx(100 * values.mean()) and 0 < values.mean() <= 1
    assert table.measure == "mAP" and table.about["measure"] == "mAP All"


def test_a_measure_that_is_not_shown_has_no_column(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Measure("R@2", "R@2", "two", partial(metrics.recall_at, k=2), ("instance",), shown=False)
    monkeypatch.setitem(metrics.MEASURES, "R@2", entry)  # type: ignore[misc]
    assert not [column for column in compare([done]).columns if column.name.startswith("R@2")]


def test_rows_are_ordered_and_compared_in_the_direction_that_is_better(
    done: Run, run: Callable, instances: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    less = Measure("rank", "rank", "first rank", first_rank, ("instance",), better=-1)
    monkeypatch.setattr("bench.metrics.MEASURES", {"rank": less, **metrics.MEASURES})
    other = run(instances, "mnn,aqe", top_k=8).run
    table = compare([done, other])
    ranks = table.rows["rank All"]
    controls = [name for name in table.rows.index if name in table.controls]
    assert table.measure == "rank" and ranks[controls].is_monotonic_decreasing  # the best row of each kind is the last
    assert ranks["oracle"] == table.ceiling < table.first_stage and table.rows.loc["oracle", "headroom All"] == 100
    contenders = [name for name in table.rows.index if name not in table.controls]
    assert ranks[contenders].is_monotonic_decreasing
    (best,) = [note for note in table.notes if note.startswith("Best: ")]
    assert ranks[best.removeprefix("Best: ").split(";")[0].rstrip(".")] == ranks[contenders].min()
    assert done.metrics()[done.metrics().method == FIRST_STAGE]["measure"].iloc[0] == "rank"
