"""Measures come from the candidates and from where the other graded images stand, and equal the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.blend import Blend
from bench.datasets import REVISITED, Dataset, Query, grade
from bench.datasets.revisited import read_ground_truth
from bench.errors import UserError
from bench.evaluation import CEILING, FIRST_STAGE, Rankings, evaluate, graded
from bench.search import Found
from bench.shortlist import UNION, Order, Policy, Shortlist, graded_images, seal

K = 100
NOTHING = pd.DataFrame(columns=["method", "list", "query", "candidate", "score"])  # scores of no method


def official_set(official: Path, name: str) -> Dataset:
    ground = read_ground_truth(official / name / f"gnd_{name}.pkl")
    images = ground["imlist"]
    grades = {
        query: grade(query, **{key: [images[i] for i in entry[key]] for key in REVISITED["Hard"][1] | {"hard"}})
        for query, entry in zip(ground["qimlist"], ground["gnd"], strict=True)
    }
    queries = tuple(Query(query, Path(query)) for query in ground["qimlist"])
    return Dataset(name, "revisited", "v", queries, {image: Path(image) for image in images}, grades)


def shuffled(dataset: Dataset, ranks: np.ndarray, policy: Policy) -> Shortlist:
    """A shortlist whose first stage is the rankings (nq, n) with the first K of each in any order."""
    order, draw = Order.of(dataset.gallery), np.random.default_rng(3)
    graded, mixed = graded_images(dataset, order), ranks.copy()
    for row in mixed:
        draw.shuffle(row[:K])
    places = np.argsort(mixed, axis=1)
    found = Found(
        mixed,
        np.tile(np.linspace(1, 0, ranks.shape[1], dtype=np.float32), (len(ranks), 1)),
        tuple(places[q, images] for q, images in enumerate(graded)),
    )
    return seal(dataset, order, found, graded, name="f", content="c", policy=policy, k=K)


@pytest.mark.parametrize("policy", ["blind", "paper"])
@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_a_method_that_puts_the_candidates_right_has_the_references_scores(
    reference: Path, official: Path, name: str, policy: Policy
) -> None:
    dataset = official_set(official, name)
    ranks = np.load(reference / f"revisited_{name}.npz")["ranks"].astype(np.int64).T
    answers = json.loads((reference / f"revisited_{name}.json").read_text())
    shortlist = shuffled(dataset, ranks, policy)
    index, rows = {image: i for i, image in enumerate(dataset.gallery)}, []
    for q, query in enumerate(shortlist.queries):
        candidates = [shortlist.gallery[i] for i in shortlist.union(q)]
        places = np.argsort(ranks[q])[[index[image] for image in candidates]]
        pairs = {"method": "right", "list": UNION, "query": query, "candidate": candidates}
        rows.append(pd.DataFrame({**pairs, "score": -places.astype(float)}))
    found = evaluate(Rankings(pd.concat(rows, ignore_index=True), shortlist, dataset))
    for difficulty in REVISITED:
        answer = answers[difficulty.lower()]
        own = found[(found.method == "right") & (found.difficulty == difficulty)]
        for measure, values in own.groupby("measure"):
            per_query = values.set_index("query")["value"].loc[list(shortlist.queries)].to_numpy()
            if measure == "mAP":
                expected = np.array([np.nan if ap is None else ap for ap in answer["aps"]])
                np.testing.assert_allclose(per_query, expected, atol=1e-12, rtol=0)
                mixed = found[(found.method == FIRST_STAGE) & (found.measure == "mAP")]["value"]
                assert mixed.mean() != pytest.approx(np.nanmean(expected), abs=1e-6)
            elif str(measure).startswith("mP@"):
                at = dict(zip(("mP@1", "mP@5", "mP@10"), answer["mp_at_1_5_10"], strict=True))[str(measure)]
                assert np.nanmean(per_query) == pytest.approx(at, abs=1e-12)


def test_a_method_without_a_querys_scores_is_an_error(official: Path) -> None:
    dataset = official_set(official, "roxford5k")
    ranks = np.tile(np.arange(len(dataset.gallery)), (70, 1))
    with pytest.raises(UserError, match="half: no scores for query"):
        evaluate(Rankings(NOTHING, shuffled(dataset, ranks, "blind"), dataset), ["half"])


# --- who stands where ---------------------------------------------------------------------------------------------


def small(policy: Policy) -> tuple[Shortlist, Dataset]:
    """One query; a gallery of a (easy), b (junk), c (hard) and d, in this order, and the first three of each list."""
    dataset = Dataset(
        "small",
        "revisited",
        "v",
        (Query("q", Path("q")),),
        {image: Path(image) for image in "abcd"},
        {"q": grade("q", easy=["a"], hard=["c"], junk=["b"])},
    )
    order = Order.of(dataset.gallery)
    graded, similarities = graded_images(dataset, order), np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    found = Found(np.arange(4)[None], similarities, tuple(graded))
    return seal(dataset, order, found, graded, name="f", content="c", policy=policy, k=3), dataset


def stored(rows: dict[tuple[str, str], str]) -> pd.DataFrame:
    """(method, list) -> images, best first."""
    return pd.DataFrame(
        [(m, name, "q", c, -float(i)) for (m, name), images in rows.items() for i, c in enumerate(images)],
        columns=NOTHING.columns,
    )


def named(rankings: Rankings, method: str, difficulty: str) -> str:
    return "".join(rankings.shortlist.gallery[i] for i in rankings.ranking(method, difficulty, 0))


@pytest.mark.parametrize("policy", ["blind", "paper"])
def test_a_method_ranks_the_candidates_of_a_list_by_its_scores_of_their_union(policy: Policy) -> None:
    rankings = Rankings(stored({("m", UNION): "dcba"}), *small(policy))
    for difficulty in REVISITED:
        first = named(rankings, FIRST_STAGE, difficulty)
        assert named(rankings, "m", difficulty) == "".join(sorted(first, reverse=True))
    assert named(rankings, FIRST_STAGE, "Hard") == ("abc" if policy == "blind" else "cda")


def test_a_method_that_scores_each_list_is_ranked_by_its_own() -> None:
    rankings = Rankings(stored({("m", "Easy"): "dab", ("m", "Medium"): "cda", ("m", "Hard"): "acd"}), *small("paper"))
    assert [named(rankings, "m", difficulty) for difficulty in REVISITED] == ["dab", "cda", "acd"]


def test_a_blend_decides_by_similarity_too_and_ties_keep_the_first_stages_order() -> None:
    table = stored({("m", UNION): "cba"})
    for blend, order in (("replace", "cba"), ("add:0", "abc"), ("add:0.01", "abc"), ("add:1", "cba")):
        assert named(Rankings(table, *small("blind"), Blend.parse(blend)), "m", "Medium") == order
    assert named(Rankings(table.assign(score=1.0), *small("blind")), "m", "Medium") == "abc"


def test_the_ceiling_puts_every_positive_first() -> None:
    rankings = Rankings(NOTHING, *small("blind"))
    assert [named(rankings, CEILING, difficulty) for difficulty in REVISITED] == ["abc", "acb", "cab"]


def test_positive_and_ignored_are_what_the_difficulty_says() -> None:
    shortlist, dataset = small("blind")
    names = [[[shortlist.gallery[i] for i in part] for part in graded(shortlist, dataset, 0, d)] for d in REVISITED]
    assert names == [[["a"], ["b", "c"]], [["a", "c"], ["b"]], [["c"], ["a", "b"]]]


def test_scores_that_lack_one_candidate_are_not_those_of_a_complete_run() -> None:
    for images in ("ab", "abd", "abcd"):
        rankings = Rankings(stored({("m", UNION): images}), *small("blind"))
        if set("abc") <= set(images):
            assert named(rankings, "m", "Easy") == "abc"
        else:
            with pytest.raises(UserError, match="m: no scores for query 'q'"):
                rankings.ranking("m", "Easy", 0)
