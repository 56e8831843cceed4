"""Gates: who is reranked, at what cost, and what cannot be a gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench.errors import UserError
from bench.gate import REPLAYED, Gate, replay
from bench.results import Run
from cli import main


@pytest.fixture
def done(run: Callable, add_method: Callable[..., Path], instances: Path) -> Run:
    """Two methods that score pairs; `judge` gives the first candidate of each query another number."""
    text = "import torch\ndef score(self, query, candidates):\n    return torch.tensor([{} for c in candidates])\n"
    add_method("judge", text.format("float(c.descriptors.abs().sum() * 100 % 7)"), {"local"})
    add_method("other", text.format("float(c.descriptors.abs().sum() * 1e3 % 5)"), {"local"})
    found: Run = run(instances, "judge,other,identity", top_k=6).run
    return found


def of_gate(again: Run) -> pd.DataFrame:
    found = again.metrics()
    return found[found.method == REPLAYED]


def firsts(done: Run) -> np.ndarray:
    """The judge's score of each query's first candidate."""
    rankings = done.rankings()
    return np.array([rankings.scores("judge", name, q)[0] for q in range(9) for name in done.shortlist.lists])


@pytest.mark.parametrize(
    "text", ["judge,other", "judge:x,other", "judge:1", ":1,other", "judge:1,", "judge:1,a,b", "judge:nan,other"]
)
def test_what_is_no_gate_is_refused(done: Run, text: str) -> None:
    with pytest.raises(UserError, match="expected JUDGE:MOST,RERANKER"):
        replay([done], text)


def test_features_may_hold_colons() -> None:
    assert Gate.parse("ransac@superpoint:sp.pth:12.5,rrt") == Gate("ransac@superpoint:sp.pth", 12.5, "rrt")


@pytest.mark.parametrize(("most", "like"), [(-1.0, "identity"), (1e9, "other")])
def test_a_gate_that_is_always_shut_or_open_is_the_first_stage_or_the_reranker(
    done: Run, most: float, like: str
) -> None:
    again = replay([done], f"judge:{most},other")
    assert again is not None
    ours, theirs = of_gate(again), done.metrics()
    assert ours["value"].tolist() == theirs[theirs.method == like]["value"].tolist()


def test_the_queries_that_look_wrong_are_reranked_and_no_others(done: Run) -> None:
    scores = firsts(done)
    most = float(np.median(scores))
    again = replay([done], f"judge:{most},other")
    assert again is not None and 0 < (scores <= most).sum() < len(scores)
    ours, theirs = of_gate(again), done.metrics()
    of = {
        method: theirs[theirs.method == method].drop(columns="method").reset_index(drop=True)
        for method in ("identity", "other")
    }
    ours = ours.drop(columns="method").reset_index(drop=True)
    opens = dict(zip(done.shortlist.queries, scores <= most, strict=True))
    for i, row in ours.iterrows():
        expected = of["other" if opens[row["query"]] else "identity"].loc[i]
        assert row["query"] == expected["query"] and (
            row["value"] == expected["value"] or (np.isnan(row["value"]) and np.isnan(expected["value"]))
        )
    paper = again.record.cards[REPLAYED].paper
    assert f"other reorders {(scores <= most).sum()} of {len(scores)} lists" in str(paper)


def test_the_judge_costs_one_candidate_and_the_reranker_all_where_it_is_asked(done: Run) -> None:
    scores = firsts(done)
    most = float(np.median(scores))
    again = replay([done], f"judge:{most},other")
    assert again is not None
    measured = done.ledger.set_index(["method", "query"])["score_ms"]
    for (_, row), first in zip(again.ledger.iterrows(), scores, strict=True):
        expected = measured["judge", row.query] / 6 + (measured["other", row.query] if first <= most else 0)
        assert row.score_ms == pytest.approx(expected)


def test_a_listwise_judge_is_refused_and_absent_methods_give_no_row(run: Callable, instances: Path, done: Run) -> None:
    listwise = run(instances, "k-reciprocal,other,judge", top_k=6).run
    with pytest.raises(UserError, match="k-reciprocal scores whole lists"):
        replay([listwise], "k-reciprocal:1,other")
    assert replay([done], "judge:1,ransac") is None


def test_the_command_shows_the_row_and_says_what_lacks(done: Run) -> None:
    common = ["report", "--runs", str(done.folder.parent), "--format", "md", "--gate"]
    shown = CliRunner().invoke(main, [*common, "judge:3,other"])
    assert shown.exit_code == 0, shown.output
    assert f"| {REPLAYED} gate=judge:3,other |" in shown.output and "implied" in shown.output
    absent = CliRunner().invoke(main, [*common, "judge:3,ransac"])
    assert absent.exit_code != 0 and "no finished run above has both methods" in absent.output
