"""Measures come from the candidates and from where the other graded images stand, and equal the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.datasets import REVISITED, Dataset, Query, grade
from bench.datasets.revisited import read_ground_truth
from bench.errors import UserError
from bench.results import FIRST_STAGE, evaluate
from bench.search import Found
from bench.shortlist import UNION, Order, Policy, Shortlist, graded_images, seal

K = 100


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
    return seal(dataset, order, found, graded, features="f", features_content="c", policy=policy, k=K)


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
    found = evaluate(pd.concat(rows, ignore_index=True), shortlist, dataset)
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
            else:
                at = dict(zip(("mP@1", "mP@5", "mP@10"), answer["mp_at_1_5_10"], strict=True))[str(measure)]
                assert np.nanmean(per_query) == pytest.approx(at, abs=1e-12)


def test_a_method_without_a_querys_scores_is_an_error(official: Path) -> None:
    dataset = official_set(official, "roxford5k")
    ranks = np.tile(np.arange(len(dataset.gallery)), (70, 1))
    with pytest.raises(UserError, match="half: no scores for query"):
        evaluate(
            pd.DataFrame(columns=["method", "list", "query", "candidate", "score"]),
            shuffled(dataset, ranks, "blind"),
            dataset,
            methods=["half"],
        )
