"""Measures equal the reference scorer's and keep what their definitions promise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import metrics
from bench.datasets import INSTANCE, PROTOCOLS, REVISITED, grade
from bench.datasets.revisited import read_ground_truth
from bench.metrics import (
    average_precision,
    evaluate_query,
    mean,
    measures,
    positive_ranks,
    precision_at,
    primary,
    recall_at,
)

SETS = ("roxford5k", "rparis6k")
EXACT = 1e-12
MEASURES = ("mAP", "mP@1", "mP@5", "mP@10")


def expected(reference: Path, official: Path, name: str) -> tuple[dict, np.ndarray, dict]:
    ground = read_ground_truth(official / name / f"gnd_{name}.pkl")
    ranks = np.load(reference / f"revisited_{name}.npz")["ranks"].astype(np.int64)
    return ground, ranks, json.loads((reference / f"revisited_{name}.json").read_text())


def sets_of(entry: dict, difficulty: str) -> tuple[set[int], set[int]]:
    positive, ignored = REVISITED[difficulty]
    return ({i for key in positive for i in entry[key]}, {i for key in ignored for i in entry[key]})


@pytest.mark.parametrize("difficulty", list(REVISITED))
@pytest.mark.parametrize("name", SETS)
def test_reference_scores_of_full_rankings(reference: Path, official: Path, name: str, difficulty: str) -> None:
    ground, ranks, answers = expected(reference, official, name)
    answer, values = answers[difficulty.lower()], []
    for query, entry in enumerate(ground["gnd"]):
        values.append(evaluate_query(ranks[:, query], *sets_of(entry, difficulty), MEASURES))
        if answer["aps"][query] is None:
            assert all(math.isnan(value) for value in values[-1].values())
        else:
            assert values[-1]["mAP"] == pytest.approx(answer["aps"][query], abs=EXACT, rel=0)
    assert mean([v["mAP"] for v in values]) == pytest.approx(answer["map"], abs=EXACT, rel=0)
    for k, at in zip((1, 5, 10), answer["mp_at_1_5_10"], strict=True):
        assert mean([v[f"mP@{k}"] for v in values]) == pytest.approx(at, abs=EXACT, rel=0)


@pytest.mark.parametrize("difficulty", list(REVISITED))
def test_reference_scores_through_grades(reference: Path, official: Path, difficulty: str) -> None:
    """The path the harness takes (ids, grades) gives what the index sets give."""
    ground, ranks, answers = expected(reference, official, SETS[0])
    images = ground["imlist"]
    for query in range(0, 70, 7):
        entry = ground["gnd"][query]
        grades = grade("q", **{key: [images[i] for i in entry[key]] for key in ("easy", "hard", "junk")})
        positive, ignored = (
            {images.index(i) for i, g in grades.items() if g in wanted} for wanted in REVISITED[difficulty]
        )
        found = evaluate_query(ranks[:, query], positive, ignored, ["mAP"])["mAP"]
        answer = answers[difficulty.lower()]["aps"][query]
        assert math.isnan(found) if answer is None else found == pytest.approx(answer, abs=EXACT, rel=0)


def test_positives_at_0_and_7_give_p10_of_a_quarter() -> None:
    ranks = np.array([0, 7])
    assert precision_at(ranks, 10, 2) == 0.25  # two of the 8 ranks up to the last positive, not of 10
    assert average_precision(ranks, 2) == pytest.approx((1 + 1 + 1 / 7 + 2 / 8) / 4, abs=EXACT)
    assert round(average_precision(ranks, 2), 3) == 0.598


@pytest.mark.parametrize("k", [1, 5, 10])
def test_one_positive_at_rank_0_gives_precision_1(k: int) -> None:
    assert precision_at(np.array([0]), k, 1) == 1.0


def test_nothing_found_is_zero_and_no_positives_is_nan() -> None:
    nothing = np.array([], dtype=np.int64)
    assert (average_precision(nothing, 3), precision_at(nothing, 10, 3), recall_at(nothing, 1, 3)) == (0.0, 0.0, 0.0)
    assert all(
        math.isnan(value)
        for value in (average_precision(nothing, 0), precision_at(nothing, 10, 0), recall_at(nothing, 1, 0))
    )


def test_a_positive_missing_from_the_list_costs_its_share() -> None:
    assert average_precision(np.array([0]), 2) == 0.5


def test_recall_is_one_from_the_rank_of_the_first_positive() -> None:
    ranks = np.array([3, 8])
    assert [recall_at(ranks, k, 2) for k in (1, 3, 4, 10)] == [0.0, 0.0, 1.0, 1.0]


def test_the_mean_leaves_out_queries_without_positives() -> None:
    assert mean([1.0, float("nan"), 0.0]) == 0.5
    assert math.isnan(mean([float("nan")]))


def test_an_image_both_positive_and_ignored_counts_as_positive() -> None:
    assert positive_ranks(np.array([4, 2, 7]), {2}, {2, 4}).tolist() == [0]


def test_every_protocol_has_its_measures_and_a_primary_one() -> None:
    assert {"mAP", "mP@1", "mP@5", "mP@10"} <= set(measures("revisited"))
    assert {"mAP", "R@1", "R@10", "R@100"} <= set(measures("instance"))
    assert {"R@1", "R@10", "R@100", "R@1000"} <= set(measures("sop"))
    names = {protocol: primary(protocol).name for protocol in PROTOCOLS}
    assert names == {"revisited": "mAP", "instance": "mAP", "sop": "R@1", "gldv2": "mAP@100", "vpr": "Recall@1"} | {
        "gpr1200": "mAP with query",
        "ilias": "mAP@1000",
        "met": "mAP@100",
    }
    assert INSTANCE["All"][0] == {"easy", "hard"}


def test_the_mean_of_ap_is_map_and_one_querys_is_ap() -> None:
    names = {name: (measure.of_query, measure.meaning) for name, measure in metrics.MEASURES.items()}
    assert names["mAP"] == ("AP", "mean average precision")
    assert names["mP@10"][0] == "P@10" and names["mAP@100"][0] == "AP@100" and names["R@1"][0] == "R@1"


def test_a_measure_says_which_direction_is_better() -> None:
    with pytest.raises(ValueError, match="better is 0, expected 1 or -1"):
        replace(primary("sop"), better=0)


@pytest.mark.parametrize("name", list(metrics.MEASURES))
def test_every_measure_is_in_the_docs(name: str) -> None:
    measure = metrics.MEASURES[name]
    row = f"| {name} | {measure.of_query} | {measure.meaning} | {', '.join(measure.protocols)} |"
    assert row in (Path(__file__).resolve().parents[2] / "docs" / "protocols.md").read_text().splitlines()


@given(st.lists(st.integers(0, 60), unique=True, max_size=8).map(sorted), st.integers(0, 4))
def test_every_measure_is_nan_without_positives_and_else_a_share(ranks: list[int], more: int) -> None:
    n = len(ranks) + more
    for name, measure in metrics.MEASURES.items():
        value = metrics.measure(np.array(ranks, np.int64), n, name)
        if n == 0:
            assert value == 0 if "vpr" in measure.protocols else math.isnan(value)
        else:
            assert -EXACT <= value <= 1 + EXACT


def literal_revisitop(ranking: list[int], ok: set[int], junk: set[int]) -> tuple[float, dict[int, float]]:
    """revisitop's rules, sentence by sentence, in plain Python."""
    where = [r for r, image in enumerate(ranking) if image in ok]
    away = [r for r, image in enumerate(ranking) if image in junk and image not in ok]
    where = [r - sum(j < r for j in away) for r in where]
    ap = 0.0
    for j, r in enumerate(where):
        before = 1.0 if r == 0 else j / r
        ap += (before + (j + 1) / (r + 1)) / 2 / len(ok)
    precision = {}
    for k in (1, 5, 10):
        least = min(max(r + 1 for r in where), k)
        precision[k] = sum(r + 1 <= least for r in where) / least
    return ap, precision


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[int], set[int], set[int]]:
    """A permutation with at least one positive, disjoint positives and ignored images."""
    n = draw(st.integers(1, 40))
    labels = draw(st.lists(st.sampled_from("pjn"), min_size=n, max_size=n))
    labels[draw(st.integers(0, n - 1))] = "p"
    ranking = draw(st.permutations(range(n)))
    return list(ranking), {i for i in range(n) if labels[i] == "p"}, {i for i in range(n) if labels[i] == "j"}


@given(rankings())
def test_equals_the_definition_read_literally(case: tuple[list[int], set[int], set[int]]) -> None:
    ranking, ok, junk = case
    ap, precision = literal_revisitop(ranking, ok, junk)
    found = evaluate_query(np.array(ranking), ok, junk, MEASURES)
    assert found["mAP"] == pytest.approx(ap, abs=EXACT)
    assert [found[f"mP@{k}"] for k in (1, 5, 10)] == [precision[k] for k in (1, 5, 10)]


@given(rankings())
def test_average_precision_lies_between_0_and_1(case: tuple[list[int], set[int], set[int]]) -> None:
    ranking, ok, junk = case
    assert all(0 <= value <= 1 + EXACT for value in evaluate_query(np.array(ranking), ok, junk, MEASURES).values())


@given(rankings())
def test_a_perfect_ranking_gives_1_and_no_other_gives_more(case: tuple[list[int], set[int], set[int]]) -> None:
    ranking, ok, junk = case
    perfect = sorted(ranking, key=lambda image: image not in ok)
    best = evaluate_query(np.array(perfect), ok, junk, MEASURES)
    assert all(value == pytest.approx(1, abs=EXACT) for value in best.values())


@given(rankings(), st.integers(1, 20))
def test_negatives_added_at_the_end_change_nothing(case: tuple[list[int], set[int], set[int]], more: int) -> None:
    ranking, ok, junk = case
    longer = ranking + list(range(1000, 1000 + more))
    assert evaluate_query(np.array(longer), ok, junk, MEASURES) == evaluate_query(np.array(ranking), ok, junk, MEASURES)


@given(rankings(), st.randoms())
def test_where_ignored_images_stand_changes_nothing(case: tuple[list[int], set[int], set[int]], random) -> None:
    ranking, ok, junk = case
    kept = [image for image in ranking if image not in junk]
    for image in sorted(junk):
        kept.insert(random.randint(0, len(kept)), image)
    assert evaluate_query(np.array(kept), ok, junk, MEASURES) == evaluate_query(np.array(ranking), ok, junk, MEASURES)


@given(rankings(), st.data())
def test_moving_a_positive_ahead_of_a_negative_never_lowers_average_precision(
    case: tuple[list[int], set[int], set[int]], data: st.DataObject
) -> None:
    ranking, ok, junk = case
    at = data.draw(st.integers(0, len(ranking) - 1))
    if at == 0 or ranking[at] not in ok or ranking[at - 1] in ok:
        return
    better = [*ranking[: at - 1], ranking[at], ranking[at - 1], *ranking[at + 1 :]]
    before, after = (evaluate_query(np.array(r), ok, junk, ["mAP"])["mAP"] for r in (ranking, better))
    assert after >= before - EXACT
