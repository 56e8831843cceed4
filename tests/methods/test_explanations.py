"""What a method says a score is made of is what it counted."""

from __future__ import annotations

import pytest
import torch

from bench import registry
from bench.conformance import batch_of, check_reranker, scores_of
from bench.features import Features
from bench.reranker import Card, Explanation, Reranker, parse_options, register


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


@pytest.mark.parametrize("name", ["rrt", "identity", "aqe"])
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
