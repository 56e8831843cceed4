"""What another protocol makes of stored scores is what a run under it has, and a changed order is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from bench.blend import Blend
from bench.evaluation import FIRST_STAGE, graded
from bench.metrics import average_precision, primary, truncated_precision
from bench.report.sensitivity import (
    RECTANGULAR,
    TABLE,
    Choice,
    Rules,
    Sensitivity,
    cells,
    expected_precision,
    moves,
    order,
    sensitivity,
    to_markdown,
)
from bench.report.tables import compare
from bench.results import Run
from bench.run import Outcome

Go = Callable[..., Run]
NAMES = "identity,mnn,asmk,rrt,aqe"
PAIRWISE = ["asmk", "mnn", "rrt"]


def of(run: Run, blend: Blend = Blend(), **more: object) -> Sensitivity:
    return sensitivity([run], compare([run], blend), blend, **more)  # type: ignore[arg-type]


def choice(found: Sensitivity, said: str) -> Choice:
    (one,) = [one for one in found.choices if one.said.startswith(said)]
    return one


# --- it is what a run under that protocol has -----------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["blind", "paper"])
def test_under_its_own_protocol_a_row_has_the_tables_value(finished: Go, buildings: Path, policy: str) -> None:
    done = finished(buildings, NAMES, top_k=8, policy=policy)
    table, found = compare([done]), of(done)
    assert found.contenders == [name for name in table.rows.index[::-1] if name != "identity"]
    for name in found.contenders:
        assert found.value(name) == table.rows.loc[name, "mAP Medium"]
    assert found.value(FIRST_STAGE) == table.first_stage == table.rows.loc["identity", "mAP Medium"]


@pytest.mark.parametrize("policy", ["blind", "paper"])
def test_a_smaller_k_is_a_run_at_that_k(finished: Go, buildings: Path, policy: str) -> None:
    found = of(finished(buildings, NAMES, top_k=9, policy=policy), cuts=(2, 5))
    changed = 0
    for k in (2, 5):
        table = compare([finished(buildings, NAMES, top_k=k, policy=policy)])
        for name in PAIRWISE:
            assert found.value(name, choice(found, f"k {k}")) == table.rows.loc[name, "mAP Medium"]
            changed += found.value(name, choice(found, f"k {k}")) != found.value(name)
    assert changed > 1


def test_blind_lists_are_replayed_from_a_run_of_papers_lists(finished: Go, buildings: Path) -> None:
    for k in (3, 6, 9):
        found = of(finished(buildings, NAMES, top_k=k, policy="paper"))
        table = compare([finished(buildings, NAMES, top_k=k, policy="blind")])
        blind = choice(found, "policy blind")
        assert blind.rules.k == k
        for name in PAIRWISE:
            assert found.value(name, blind) == table.rows.loc[name, "mAP Medium"]


def test_papers_lists_are_replayed_as_far_as_their_candidates_were_scored(finished: Go, buildings: Path) -> None:
    found = of(finished(buildings, NAMES, top_k=12))  # the whole gallery, with an image of junk for each query
    paper = choice(found, "policy paper")
    assert (
        paper.rules.k == 11 and paper.said == "policy paper, k = 11" and choice(found, "k 11").rules.policy == "blind"
    )
    assert any(note.startswith("Policy paper at k = 12 needs candidates that were not scored") for note in found.notes)
    table = compare([finished(buildings, NAMES, top_k=11, policy="paper")])
    for name in PAIRWISE:
        assert found.value(name, paper) == table.rows.loc[name, "mAP Medium"]
    few = of(finished(buildings, NAMES, top_k=8))
    assert not [one for one in few.choices if one.family == "policy"]
    assert any("only a run with --policy paper can tell" in note for note in few.notes)


def test_policies_that_make_the_same_lists_are_said_to(finished: Go, instances: Path) -> None:
    found = of(finished(instances, "identity,mnn", top_k=5))
    assert found.notes[0] == "No image is ignored at All, so both policies make the same lists."
    assert {one.family for one in found.choices} == {"blend", "ties", "AP"}


@pytest.mark.parametrize("mine", ["replace", "add:0.5"])
def test_a_blend_is_the_table_under_that_blend(finished: Go, buildings: Path, mine: str) -> None:
    done = finished(buildings, NAMES, top_k=8)
    found = of(done, Blend.parse(mine))
    others = [one for one in found.choices if one.family == "blend"]
    assert len(others) == 3 and mine not in [one.name for one in others]
    for other in others:
        table = compare([done], Blend.parse(other.name))
        for name in found.contenders:  # those that score whole lists, too: the lists are the same
            assert found.value(name, other) == table.rows.loc[name, "mAP Medium"]
        assert found.value(FIRST_STAGE, other) == table.first_stage


def test_scores_of_whole_lists_are_not_replayed_on_others(finished: Go, buildings: Path) -> None:
    found = of(finished(buildings, NAMES, top_k=12))
    for one in found.choices:
        assert np.isnan(found.value("aqe", one)) == (one.family in ("policy", "k"))
    assert "Scores of whole lists cannot be replayed on other lists: aqe." in found.notes
    assert all(row[2:4] == ["–", "–"] for row in cells(found) if row[0] == "aqe")


def test_rectangular_precision_is_that_of_the_whole_ranking(finished: Go, buildings: Path) -> None:
    done = finished(buildings, NAMES, top_k=12)  # the whole gallery: nothing is behind the candidates
    found, values = of(done), []
    for number in range(2):
        positives, ignored = graded(done.shortlist, done.dataset, number, "Medium")
        ranking = [i for i in done.rankings().ranking("mnn", "Medium", number) if i not in ignored]
        places = np.flatnonzero(np.isin(ranking, positives)) + 1
        values.append(np.mean(np.arange(1, len(places) + 1) / places))
    assert found.value("mnn", choice(found, "rectangular AP")) == pytest.approx(100 * np.mean(values), abs=1e-12)


def test_the_best_contenders_alone_are_varied_where_that_is_asked_for(finished: Go, buildings: Path) -> None:
    done = finished(buildings, NAMES, top_k=8)
    found = of(done, most=2)
    assert found.contenders == of(done).contenders[:2] and "2 contenders of lower rank are left out." in found.notes


# --- ties -----------------------------------------------------------------------------------------------------------


def test_a_method_that_ties_all_is_between_its_best_and_its_worst_order(
    run: Callable[..., Outcome], buildings: Path, add_method: Callable
) -> None:
    add_method("flat", "def score(self, query, candidates):\n    return torch.zeros(len(candidates))")
    add_method("coarse", "def score(self, query, candidates):\n    return candidates.similarities.mul(4).round()")
    done = run(buildings, "identity,oracle,flat,coarse", top_k=8).run
    found, table = of(done), compare([done])
    worst, expected, best = (choice(found, f"ties {which}") for which in ("worst", "expected", "best"))
    for name in ("flat", "coarse"):
        assert found.value(name, worst) <= found.value(name) <= found.value(name, best)
        assert found.value(name, worst) < found.value(name, expected) < found.value(name, best)
    assert found.value("flat", best) == table.ceiling == table.rows.loc["oracle", "mAP Medium"]
    assert found.value("flat") == table.first_stage


LABELS = st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=6)


@given(LABELS, st.lists(st.integers(0, 5), max_size=3, unique=True))
def test_expected_precision_is_the_mean_over_all_orders_of_the_tied(rows: list[tuple[int, bool]], behind: list) -> None:
    scores = np.array([float(score) for score, _ in rows])
    positive = np.array([hit for _, hit in rows], np.bool_)
    tail = np.sort(np.array(behind, np.int64)) + len(rows)
    n = int(positive.sum()) + len(tail) + 1  # one more is never retrieved
    values = []
    for places in permutations(range(len(rows))):
        at = np.array(places, np.int64)
        if (np.diff(scores[at]) <= 0).all():
            values.append(average_precision(np.concatenate([np.flatnonzero(positive[at]), tail]), n))
    assert expected_precision(scores, positive, tail, n) == pytest.approx(np.mean(values), abs=1e-12)


def test_without_positives_there_is_no_expected_precision() -> None:
    assert np.isnan(expected_precision(np.zeros(3), np.zeros(3, np.bool_), np.array([], np.int64), 0))


def test_only_trapezoidal_precision_is_expected_over_ties() -> None:
    with pytest.raises(ValueError, match="no expected value over ties"):
        Rules("blind", 5, Blend(), RECTANGULAR, "expected")
    with pytest.raises(ValueError, match="k is 0"):
        Rules("blind", 0, Blend(), RECTANGULAR)


def test_rectangular_precision_has_no_cut() -> None:
    ranks = np.array([0, 3, 500_000])
    assert RECTANGULAR.value(ranks, n_positives=4) == truncated_precision(ranks, 10**6, 4)


# --- the order ------------------------------------------------------------------------------------------------------


def made(table: Mapping[str, float], better: int = 1, **under: Mapping[str, float]) -> Sensitivity:
    """Of values in the table, best first, and under other choices."""
    rules = Rules("blind", 100, Blend(), primary("revisited"))
    choices = tuple(Choice("k", name, rules) for name in under)
    values = pd.DataFrame({TABLE: table, **{f"k {name}": values for name, values in under.items()}})
    values.loc[FIRST_STAGE] = 50.0
    return Sensitivity("title", "mAP Medium", better, choices, values, ())


FOUR = {"a": 80.0, "b": 70.0, "c": 60.0, "d": 55.0}


def test_a_ranking_that_no_choice_changes_is_said_to_depend_on_none() -> None:
    found = made(FOUR, one={name: value / 2 for name, value in FOUR.items()}, two=FOUR)
    assert found.answer == (
        "The ranking of the first three methods (a, b, c) depends on none of the 2 other choices of protocol here."
    )
    assert [row[1:] for row in moves(found)] == [["same", ""], ["same", ""]]


def test_what_changes_the_first_three_is_named() -> None:
    found = made(FOUR, swapped=FOUR | {"a": 65.0}, overtaken=FOUR | {"d": 60.5}, same=FOUR)
    assert found.answer == (
        "The ranking of the first three methods (a, b, c) depends on the protocol: "
        "it changes under 2 of 3 other choices (k swapped; k overtaken)."
    )
    assert moves(found) == [
        ["k swapped", "first 3", "a ▼1, b ▲1"],
        ["k overtaken", "first 3", "c ▼1, d ▲1"],
        ["k same", "same", ""],
    ]
    assert cells(found)[0] == ["a", "80.0", "-15.0 ▼1", "0.0", "0.0"]
    assert cells(found)[-2:] == [
        ["first stage", "50.0", "0.0", "0.0", "0.0"],
        ["order", "", "first 3", "first 3", "same"],
    ]


def test_a_change_behind_the_first_three_leaves_their_ranking() -> None:
    five = FOUR | {"e": 40.0}
    found = made(five, one=five | {"e": 58.0})
    assert order(found, found.choices[0]) == "below" and "depends on none of" in found.answer


def test_equal_values_and_missing_ones_are_in_no_order() -> None:
    found = made(
        {"a": 70.0, "b": 70.0, "c": 60.0},
        equal={"a": 60.0, "b": 65.0, "c": 60.0},
        none=dict.fromkeys("abc", float("nan")),
    )
    assert [order(found, one) for one in found.choices] == ["same", "same"]
    assert cells(found)[0][2:] == ["-10.0", "–"]


def test_where_less_is_better_more_loses_places() -> None:
    found = made({"a": 10.0, "b": 20.0}, better=-1, other={"a": 30.0, "b": 20.0})
    assert moves(found) == [["k other", "first 3", "a ▼1, b ▲1"]] and "first two methods (a, b)" in found.answer


def test_one_method_has_no_order() -> None:
    assert made({"a": 10.0}, one={"a": 20.0}).answer.startswith("There are no two methods")


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_report_says_it_in_the_terminal_and_in_markdown(
    cli: Callable[..., Result], buildings: Path, tmp_path: Path
) -> None:
    small = ("--max-side", "160", "--keep-descriptors", "150", "-k", "8")
    assert cli("run", "-m", "identity,mnn,asmk", "-d", f"folder:{buildings}", *small).exit_code == 0
    shown = cli("report", "--sensitivity")
    assert shown.exit_code == 0 and "The ranking of the first two methods" in shown.output
    assert "only a run with --policy paper can tell" in shown.output
    plain = cli("report", "--sensitivity", "--format", "md").output
    assert "### Protocol sensitivity: folder:" in plain and "| method | mAP Medium | blend add:0.5 |" in plain
    refused = cli("report", "--sensitivity", "--format", "csv")
    assert refused.exit_code == 1 and "--sensitivity with --format csv" in refused.output


def test_markdown_has_a_column_for_each_choice(finished: Go, buildings: Path) -> None:
    found = of(finished(buildings, NAMES, top_k=8))
    lines = [line for line in to_markdown(found).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(found.choices) + 3} and len(lines) == 2 + 4 + 2
