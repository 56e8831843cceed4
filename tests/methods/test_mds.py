"""Scores of pairs, embedded by multidimensional scaling: what is embedded, where it is put, and what is left below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench import registry
from bench.conformance import check_reranker, example
from bench.errors import UserError
from bench.features import FeatureBatch, Features
from bench.features.sets import card_of
from bench.reranker import Card, Reranker, Scored, parse_options, register
from methods.mds import MultidimensionalScaling, cosines_with_first, distances, embedded

XFEAT = card_of("xfeat")
PLANE = st.lists(st.tuples(*[st.integers(-8, 8)] * 2), min_size=2, max_size=12)


@register("pairs", needs={"local"}, card=Card(paper=None, licence="Apache-2.0"))
class Pairs(Reranker):
    """Scores by a table; an image is its number, the first value of its only descriptor."""

    table: ClassVar[Callable[[int, int], float]]
    asked: ClassVar[list[tuple[int, int]]] = []

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor | Scored:
        pairs = [(number(query), number(image)) for image in candidates]
        self.asked.extend(pairs)
        scores = torch.tensor([type(self).table(*pair) for pair in pairs], dtype=torch.float64)
        return Scored(scores, {"numbers": scores})


def number(image: Features) -> int:
    return int(image.descriptors[0, 0]) if len(image) else -1


def image(i: int) -> Features:
    empty = example(0 if i < 0 else 1, XFEAT, 1)
    return empty if i < 0 else replace(empty, descriptors=torch.full((1, 64), float(i)))


def scored(
    table: Callable[[int, int], float],
    candidates: Sequence[int],
    similarities: Sequence[float] | None = None,
    query: int = 0,
    **options: Any,
) -> Tensor:
    """Of a list whose images score each other by a table; the query is image 0, and -1 has no descriptors."""
    near = torch.tensor(similarities or [1 - i / 1000 for i in range(len(candidates))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pairs, "table", staticmethod(table), raising=False)
        Pairs.asked.clear()
        get = registry.get
        patch.setattr(registry, "get", lambda name: Pairs if name == "pairs" else get(name))
        method = MultidimensionalScaling(MultidimensionalScaling.Options(inner="pairs", **options))
        return method.score(image(query), FeatureBatch(tuple(map(image, candidates)), near))


def apart(points: Tensor) -> Tensor:
    """(n, n) distances without the rounding of torch.cdist."""
    return (points[:, None] - points[None]).norm(dim=2)


@given(PLANE)
def test_points_of_the_plane_are_embedded_back_to_their_distances(points: list[tuple[int, int]]) -> None:
    given_ = apart(torch.tensor(points, dtype=torch.float64))
    found = embedded(given_, 2)
    assert found.shape[1] <= 2
    assert torch.allclose(apart(found), given_, atol=1e-6)
    assert torch.allclose(found.mean(dim=0), torch.zeros(1, dtype=torch.float64), atol=1e-9)


def test_fewer_dimensions_keep_the_longest_axes() -> None:
    """Of a rectangle of 6 and 2, one dimension keeps the 6 and lets the 2 fall together."""
    points = torch.tensor([[0, 0], [6, 0], [0, 2], [6, 2]], dtype=torch.float64)
    found = apart(embedded(apart(points), 1))
    assert torch.allclose(found, apart(points * torch.tensor([1, 0])), atol=1e-9)


def test_dimensions_as_large_as_the_last_are_kept_with_it() -> None:
    """All four corners of a regular simplex are equally far, whichever are cut; so none is."""
    equal = 1 - torch.eye(4, dtype=torch.float64)
    assert embedded(equal, 1).shape == (4, 3)
    assert torch.allclose(apart(embedded(equal, 1)), equal)


def test_distances_of_no_space_lose_what_does_not_fit() -> None:
    """The way from 0 to 2 over 1 is shorter than the direct one: no points are so, and the nearest lie on a line."""
    found = embedded(torch.tensor([[0, 1, 9], [1, 0, 1], [9, 1, 0]], dtype=torch.float64), 5)
    assert found.shape == (3, 1) and found[1].abs() < 1e-9 < found[0].abs()


@pytest.mark.parametrize(("a", "b"), [(1, 0), (7, 100), (0.01, -3)])
def test_distances_are_of_any_scale_of_scores(a: float, b: float) -> None:
    """Of pairs 0, 1 and 4, from the least to the most similar: roots are 0, 1/2 and 1 of the way."""
    similarity = a * torch.tensor([[9, 4, 1], [4, 9, 0], [1, 0, 9]], dtype=torch.float64) + b
    expected = torch.tensor([[0, 0, 0.5], [0, 0, 1], [0.5, 1, 0]], dtype=torch.float64)
    assert torch.allclose(distances(similarity), expected)


def test_cosines_are_around_the_mean_and_0_in_it() -> None:
    points = torch.tensor([[1, 0], [2, 0], [0, 3], [-1, 1], [0, 0]], dtype=torch.float64)
    assert cosines_with_first(points).tolist() == pytest.approx([1, 0, -(0.5**0.5), 0])
    assert cosines_with_first(torch.zeros((3, 0))).tolist() == [0, 0]


@given(PLANE)
def test_scores_that_come_from_the_plane_give_its_distances(points: list[tuple[int, int]]) -> None:
    """Images score (1 - d / widest)^2; a copy of the query, and a pair that is widest, make distances d / widest."""
    plane = torch.tensor([points[0], *points], dtype=torch.float64)
    far = apart(plane)
    widest = float(far.max())
    if widest == 0:
        return
    found = scored(lambda i, j: (1 - float(far[i, j]) / widest) ** 2, range(1, len(plane)), by="distance", dims=2)
    assert torch.allclose(-found, far[0, 1:] / widest, atol=1e-6)


def test_what_the_others_say_corrects_a_score_of_the_query() -> None:
    """Candidate 1 is near the query and near what is near it, but has no score with it; 5 to 12 are far around."""
    angle = torch.arange(12) * torch.pi / 2
    radius = torch.cat([torch.full((4,), 1.0), torch.linspace(4, 8, 8)])
    ring = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).double()
    far = apart(torch.cat([torch.zeros((1, 2)).double(), ring]))

    def table(i: int, j: int) -> float:
        return 0.0 if (i, j) == (0, 1) else (1 - float(far[i, j]) / float(far.max())) ** 2

    assert table(0, 1) < min(table(0, j) for j in range(2, 13))  # the last by its score
    scores = scored(table, range(1, 13), dims=2, by="distance")
    assert int((scores > scores[0]).sum()) <= 4


def table_of(seed: int) -> Callable[[int, int], float]:
    """Scores with a direction, and no two of them equal."""
    values = torch.rand((50, 50), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda i, j: float(values[i, j])


@given(st.integers(0, 500), st.permutations(range(1, 13)), st.integers(1, 14), st.integers(1, 14))
def test_the_order_of_the_list_makes_no_difference(seed: int, order: list[int], neighbours: int, dims: int) -> None:
    first = [1 - i / 100 for i in range(12)]
    one = scored(table_of(seed), range(1, 13), first, neighbours=neighbours, dims=dims)
    other = scored(table_of(seed), order, [first[i - 1] for i in order], neighbours=neighbours, dims=dims)
    assert torch.allclose(one[[i - 1 for i in order]], other, atol=1e-7)


@pytest.mark.parametrize("by", ["cosine", "distance"])
def test_equal_scores_keep_the_first_stages_order(by: str) -> None:
    assert len(set(scored(lambda i, j: 7.0, range(1, 9), dims=3, by=by).tolist())) == 1


@pytest.mark.parametrize("by", ["cosine", "distance"])
def test_identical_images_score_equally(by: str) -> None:
    """Images 1, 11 and 21 are one picture, as far as scores tell."""
    of = table_of(3)

    def table(i: int, j: int) -> float:
        return of(min(i % 10, j % 10), max(i % 10, j % 10))

    scores = scored(table, [1, 2, 11, 3, 4, 21, 5], by=by)
    assert scores[0] == scores[2] == scores[5]
    assert len(set(scores.tolist())) == 5


def test_a_copy_of_the_query_is_first() -> None:
    of = table_of(4)
    scores = scored(lambda i, j: 9.0 if {i, j} == {0, 3} else of(min(i % 3, j % 3), max(i % 3, j % 3)), [1, 2, 3, 4, 5])
    assert scores.argmax() == 2 and scores[2] == pytest.approx(1)


@pytest.mark.parametrize("by", ["cosine", "distance"])
@pytest.mark.parametrize("score", [-2.0, 0.0, 5.0])
def test_one_candidate_has_a_score(by: str, score: float) -> None:
    scores = scored(lambda i, j: score, [1], by=by)
    assert scores.shape == (1,) and bool(scores.isfinite().all())


def test_the_others_stay_below_in_their_order() -> None:
    """Of 8 candidates, 3 are embedded: those with most matches, and of equal ones those of higher similarity."""
    matches = {1: 2.0, 2: 9.0, 3: 4.0, 4: 7.0, 5: 4.0, 6: 0.0, 7: 1.0, 8: 2.0}
    scores = scored(lambda i, j: matches[j] if i == 0 else 3.0, list(matches), neighbours=3)
    near, others = scores[[1, 3, 2]], scores[[4, 0, 7, 6, 5]]
    assert near.min() >= -1 > others.max()
    assert others[1] == others[2] and others.tolist() == sorted(others.tolist(), reverse=True)
    assert len(set(others.tolist())) == 4


def test_each_pair_is_scored_once_and_the_nearer_image_is_the_query() -> None:
    scored(lambda i, j: float(10 - j) if i == 0 else 1.0, [4, 2, 3, 1, 5], neighbours=3)
    assert Pairs.asked == [(0, 4), (0, 2), (0, 3), (0, 1), (0, 5), (1, 2), (1, 3), (2, 3)]


def test_images_without_descriptors_are_last_and_not_embedded() -> None:
    scores = scored(lambda i, j: -1e38 if -1 in (i, j) else float(i + j), [-1, 1, 2, -1, 3])
    assert scores[0] == scores[3] < scores[[1, 2, 4]].min() - 1
    assert all(-1 not in pair for pair in Pairs.asked if pair[0] > 0) and bool(scores.isfinite().all())


def test_a_list_or_a_query_without_descriptors_is_as_the_inner_method_leaves_it() -> None:
    assert scored(lambda i, j: 3.0, [-1, -1]).tolist() == [3, 3]
    assert scored(lambda i, j: float(j), [2, 1, 3], query=-1).tolist() == [2, 1, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_and_its_method_named(value: float) -> None:
    with pytest.raises(ValueError, match="pairs gave a score that is not finite"):
        scored(lambda i, j: value if i else 1.0, [1, 2, 3])


def test_it_is_what_its_inner_method_is() -> None:
    method = MultidimensionalScaling(MultidimensionalScaling.Options(inner="ransac:descriptors=30:seed=4"))
    assert method.needs() == {"local", "keypoints"} and method.descriptors_used(500) == 30
    assert method.parts()[0].options.seed == 4
    trained, own = (
        MultidimensionalScaling(MultidimensionalScaling.Options(inner=name)).card() for name in ("rrt", "mnn")
    )
    assert trained.trained_on == f"rrt: {registry.get('rrt')().card().trained_on}" and own.trained_on is None
    assert trained.paper == own.paper and "this project" in str(own.paper)
    no_weights = MultidimensionalScaling(MultidimensionalScaling.Options(inner="r2former"))
    assert "no weights" in str(no_weights.skip(XFEAT))


@pytest.mark.parametrize("inner", ["mnn", "maxsim:direction=both", "ransac", "rrt"])
def test_it_conforms_around_methods_of_every_kind(inner: str) -> None:
    check_reranker(MultidimensionalScaling, MultidimensionalScaling.Options(inner=inner, neighbours=4))


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"neighbours": "0"}, "at least 1"),
        ({"dims": "0"}, "at least 1"),
        ({"inner": "mnn:20"}, "inner=mnn:20 says how many candidates, which neighbours does"),
        ({"inner": "mnn@sift"}, "inner=mnn@sift names features; give them to the row: mds@sift"),
        ({"inner": "mnn:20=:x"}, "neither a number"),
        ({"by": "angle"}, "angle"),
    ],
)
def test_a_wrong_option_is_refused(given_: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_options(MultidimensionalScaling, given_)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("diffusion", "diffusion scores whole lists"),
        ("mds", "mds scores whole lists"),
        ("oracle", "oracle is a control"),
        ("nothing", "nothing"),
        ("mnn:similarity=none:descriptors=many", "-o mnn.descriptors=many"),
    ],
)
def test_an_inner_method_that_cannot_be_is_refused(inner: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        MultidimensionalScaling(MultidimensionalScaling.Options(inner=inner))


def test_a_run_reads_what_the_inner_method_reads_and_a_cascade_may_end_with_it(run: Callable, instances: Path) -> None:
    options = {"mds": {"inner": "ransac", "neighbours": "4"}, "cascade": {"stages": "mnn,mds:4:neighbours=3"}}
    done = run(instances, "ransac,mds,mds@sift,cascade", top_k=6, options=options).run
    methods = done.record.identity.methods
    assert set(methods) == {"ransac", "mds", "mds@sift", "cascade"}
    assert methods["mds"].features == methods["ransac"].features == ("xfeat",)
    assert methods["mds@sift"].features == ("sift",)
    costs = done.record.costs
    assert costs["mds"].kib_per_image == costs["ransac"].kib_per_image > 0
    assert done.record.cards["mds"].paper != done.record.cards["ransac"].paper
