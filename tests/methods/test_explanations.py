"""What a method says a score is made of is what it counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import registry
from bench.conformance import batch_of, check_reranker, scores_of
from bench.features import Features
from bench.reranker import Card, Explanation, Reranker, Saliency, parse_options, register
from methods.rrt.model import load_checkpoint


def made(name: str, **options: str) -> Reranker:
    cls = registry.get(name)
    method = cls(parse_options(cls, options))
    method.load()
    return method


COUNTING = [("mnn", {}), ("ransac", {}), ("lightglue", {}), ("lightglue", {"verify": "ransac"})]


@pytest.mark.parametrize(("name", "options"), COUNTING, ids=lambda value: str(value))
def test_as_many_pairs_count_as_the_score_says(images: list[Features], name: str, options: dict[str, str]) -> None:
    method = made(name, **options, descriptors="100")
    for candidate, score in zip(images, scores_of(method, images[0], batch_of(images)).tolist(), strict=True):
        found = method.explain(images[0], candidate)
        assert found is not None and int((found.adds == 1).sum()) == score == found.score
        assert len(found) == score or (found.inliers is not None and int(found.inliers.sum()) == score)
    assert found.what == "matches"


@pytest.mark.parametrize("name", ["ransac", "lightglue"])
def test_matches_and_inliers_are_those_of_the_details(images: list[Features], name: str) -> None:
    method = made(name, **({"verify": "ransac"} if name == "lightglue" else {}))
    details = method.score(images[0], batch_of(images)).details  # type: ignore[union-attr]
    for place, candidate in enumerate(images):
        found = method.explain(images[0], candidate)
        assert found is not None and found.inliers is not None
        assert (len(found), int(found.inliers.sum())) == (details["matches"][place], details["inliers"][place])


SUMMING = [
    ("ransac", {"score": "ratio"}),
    ("ransac", {"score": "weighted"}),
    ("ransac", {"preset": "delg"}),
    ("maxsim", {}),
    ("maxsim", {"direction": "both"}),
    ("asmk", {}),
    ("asmk", {"assignments": "5", "alpha": "2", "threshold": "0.2"}),
    ("asmk", {"binary": "true"}),
]


@pytest.mark.parametrize(("name", "options"), SUMMING, ids=lambda value: str(value))
def test_what_the_pairs_add_is_the_score(images: list[Features], name: str, options: dict[str, str]) -> None:
    method = made(name, **options)
    for candidate, score in zip(images, scores_of(method, images[0], batch_of(images)).tolist(), strict=True):
        found = method.explain(images[0], candidate)
        assert found is not None and found.score == pytest.approx(score, rel=1e-5)


def test_a_picture_and_itself_have_each_descriptor_with_itself(images: list[Features]) -> None:
    for name in ("mnn", "maxsim", "asmk"):
        found = made(name).explain(images[0], images[0])
        assert found is not None and len(found) and torch.equal(found.query, found.candidate), name


def test_pairs_are_of_the_same_place_of_a_shifted_picture(images: list[Features]) -> None:
    """The second picture is the first one without its first 24 columns and 8 rows."""
    for name in ("ransac", "lightglue", "mnn"):
        found = made(name).explain(images[0], images[1])
        assert found is not None
        moved = images[0].keypoints[found.query] - images[1].keypoints[found.candidate]
        right = (moved - torch.tensor([24.0, 8.0])).norm(dim=1) < 8
        assert right[found.adds > 0].float().mean() > 0.9, name


def test_rrt_attends_to_all_descriptors_that_it_reads_and_to_four_other_tokens(images: list[Features]) -> None:
    method = made("rrt", descriptors="100")
    found = method.explain(images[0], images[1])
    assert isinstance(found, Saliency) and not found.adds_up and found.score is None
    assert found.rows == tuple(method.descriptors_used(len(image)) for image in images[:2]) == (100, 100)
    assert list(found.elsewhere) == ["CLS", "SEP", "the query's global", "the candidate's global"]
    assert sum(found.totals) + sum(found.elsewhere.values()) == pytest.approx(1, abs=1e-5)
    assert all(total > 0.1 for total in found.totals)


def test_rrt_attends_to_each_of_its_tokens_by_name(images: list[Features]) -> None:
    """As torch's own attention does, whatever the order in which they are handed on."""
    method = made("rrt", descriptors="3")
    model = load_checkpoint(method.weights())  # type: ignore[arg-type]
    tokens = [method._tokens(image) for image in images[:2]]  # type: ignore[attr-defined]
    cls, source, *first, sep, target, a, b, c = model.attention(*tokens).tolist()
    found = method.explain(images[0], images[1])
    assert isinstance(found, Saliency) and found.query.tolist() == first and found.candidate.tolist() == [a, b, c]
    assert found.elsewhere == dict(
        zip(("CLS", "the query's global", "SEP", "the candidate's global"), (cls, source, sep, target), strict=True)
    )


@pytest.mark.parametrize(("n", "m"), [(0, 3), (1, 1), (3, 0), (0, 0)])
def test_rrt_says_what_it_attends_to_wherever_its_network_scores(images: list[Features], n: int, m: int) -> None:
    found = made("rrt").explain(images[0].top(n), images[1].top(m))
    if m == 0:
        assert found is None
    else:
        assert isinstance(found, Saliency) and found.rows == (n, m)


@pytest.mark.parametrize("name", ["identity", "aqe"])
def test_a_method_whose_score_is_of_no_pairs_says_so(images: list[Features], name: str) -> None:
    assert made(name).explain(images[0], images[1]) is None


ROWS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"query": torch.tensor([0])}, "query is torch.int64 (1,), expected 2 rows"),
        ({"candidate": torch.tensor([0.0, 1.0])}, "candidate is torch.float32"),
        ({"query": torch.tensor([0, -1])}, "query has the row -1"),
        ({"adds": torch.tensor([1.0, torch.nan])}, "finite"),
        ({"adds": torch.ones(2, 1)}, "adds has shape"),
        ({"inliers": torch.tensor([1, 0])}, "inliers is torch.int64"),
        ({"inliers": torch.tensor([True])}, "inliers is torch.bool (1,)"),
    ],
)
def test_an_explanation_of_bad_rows_is_refused(changed: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(ValueError) as error:
        Explanation(**{"query": ROWS, "candidate": ROWS, "adds": torch.ones(2), **changed})  # type: ignore[arg-type]
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"query": torch.ones(2, 1)}, "query is torch.float32 (2, 1), expected a float per descriptor"),
        ({"candidate": torch.tensor([1, 2])}, "candidate is torch.int64 (2,)"),
        ({"query": torch.tensor([0.5, -0.5])}, "query has weights that are negative or not finite"),
        ({"candidate": torch.tensor([torch.nan])}, "candidate has weights"),
        ({"candidate": torch.tensor([torch.inf])}, "candidate has weights"),
        ({"elsewhere": {"CLS": -0.1}}, "CLS has the weight -0.1"),
        ({"elsewhere": {"CLS": float("nan")}}, "CLS has the weight nan"),
        ({"elsewhere": {"CLS": 0.1}, "adds_up": True}, "CLS has some of it"),
    ],
)
def test_bad_weights_of_descriptors_are_refused(changed: dict[str, Any], said: str) -> None:
    good = {"query": torch.ones(2), "candidate": torch.ones(0), "what": "votes", "adds_up": False}
    assert Saliency(**good).rows == (2, 0)
    with pytest.raises(ValueError) as error:
        Saliency(**{**good, **changed})
    assert said in str(error.value)


def test_weights_add_up_to_a_score_where_they_say_so() -> None:
    weights = torch.tensor([0.5, 0.25]), torch.tensor([1.0])
    assert Saliency(*weights, "votes", adds_up=True).score == 1.75
    assert Saliency(*weights, "attention", adds_up=False).score is None
    assert Saliency(*weights, "attention", adds_up=False).totals == (0.75, 1.0)


def test_conformance_finds_explanations_of_images_without_descriptors() -> None:
    @register("inventive", needs={"local"}, card=Card(paper=None, licence="Apache-2.0"))
    class Inventive(Reranker):
        def score(self, query, candidates):
            return torch.zeros(len(candidates))

        def explain(self, query, candidate):
            return Saliency(torch.ones(len(query)), torch.ones(max(1, len(candidate))), "attention", adds_up=False)

    with pytest.raises(AssertionError, match="what is not there"):
        check_reranker(Inventive)


@pytest.mark.parametrize(
    ("more", "weight", "adds_up", "said"),
    [(1, 0.0, False, "what is not there"), (0, 0.5, True, "explains 0.5, scored 0"), (0, 0.5, False, None)],
)
def test_conformance_finds_weights_that_are_of_nothing_or_do_not_add_up(
    more: int, weight: float, adds_up: bool, said: str | None
) -> None:
    @register("leaning", needs={"local"}, card=Card(paper=None, licence="Apache-2.0"))
    class Leaning(Reranker):
        def score(self, query, candidates):
            return torch.zeros(len(candidates))

        def explain(self, query, candidate):
            weights = torch.zeros(len(query) + more)
            weights[:1] = weight
            return Saliency(weights, torch.zeros(0), "votes", adds_up)

    if said is None:
        check_reranker(Leaning)
        return
    with pytest.raises(AssertionError, match=said):
        check_reranker(Leaning)


@pytest.mark.parametrize(
    ("row", "adds", "said"), [(1000, 0.0, "what is not there"), (0, 0.5, "explains 0.5, scored 0")]
)
def test_conformance_finds_explanations_that_are_none(row: int, adds: float, said: str) -> None:
    @register("liar", needs={"local"}, card=Card(paper=None, licence="Apache-2.0"))
    class Liar(Reranker):
        def score(self, query, candidates):
            return torch.zeros(len(candidates))

        def explain(self, query, candidate):
            return Explanation(torch.tensor([row]), torch.tensor([0]), torch.tensor([adds]))

    with pytest.raises(AssertionError, match=said):
        check_reranker(Liar)
