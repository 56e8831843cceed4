"""Spatial verification counts what agrees with one geometric model."""

import numpy as np
import pytest
import torch

from bench.conformance import batch_of, check_reranker, example, scores_of
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from bench.reranker import parse_options
from methods import _verification
from methods._verification import ENGINES
from methods.ransac import Ransac

XFEAT = card_of("xfeat")


def moved(image: Features, matrix: np.ndarray, noise: float = 0.0, seed: int = 0) -> Features:
    """The same descriptors at affinely moved keypoints."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.cat([image.keypoints, torch.ones(len(image), 1)], dim=1) @ torch.from_numpy(matrix).float().T
    jitter = noise * torch.randn(points.shape, generator=draw)
    return Features(**{**vars(image), "keypoints": points + jitter})


KINDS = [(name, model) for name, engine in ENGINES.items() for model in engine.MODELS]
AFFINE = np.array([[0.9, -0.2, 30.0], [0.25, 1.1, -12.0]])


@pytest.mark.parametrize("model", ["affine", "homography"])
def test_every_match_of_an_affinely_moved_image_is_an_inlier(model: str) -> None:
    query = example(80, XFEAT, 1)
    scores = scores_of(
        Ransac(Ransac.Options(model=model)), query, batch_of([moved(query, AFFINE), example(80, XFEAT, 2)])
    )
    assert scores[0] == 80
    assert scores[1] < 20


def test_matches_that_agree_on_nothing_are_not_inliers() -> None:
    query = example(80, XFEAT, 1)
    scattered = Features(**{**vars(query), "keypoints": example(80, XFEAT, 3).keypoints})
    good, bad = scores_of(Ransac(), query, batch_of([moved(query, AFFINE, noise=2.0), scattered]))
    assert good > 70 and bad < 15


def test_equal_seeds_give_equal_scores() -> None:
    query, images = example(60, XFEAT, 1), [example(60, XFEAT, i) for i in range(2, 6)]
    first, second = (scores_of(Ransac(Ransac.Options(seed=7)), query, batch_of(images)) for _ in range(2))
    assert torch.equal(first, second)


def test_no_more_matches_than_the_model_needs_scores_zero() -> None:
    query = example(3, XFEAT, 1)
    assert scores_of(Ransac(), query, batch_of([moved(query, AFFINE)])).tolist() == [0.0]


def _places(places: torch.Tensor) -> Features:
    return Features(**{**vars(example(40, XFEAT, 1)), "keypoints": places})


ODD = {
    "on a line": _places(torch.stack([torch.arange(40.0), 2 * torch.arange(40.0)], dim=1)),
    "one point": _places(torch.full((40, 2), 5.0)),
    "two points": _places(torch.arange(80.0).view(40, 2).remainder(4)),
    "outside": _places(torch.linspace(-1e4, 1e4, 80).view(40, 2)),
    "the same": example(40, XFEAT, 1),
    "two matches": example(2, XFEAT, 1),
    "nothing": example(0, XFEAT, 1),
}


@pytest.mark.parametrize(("engine", "model"), KINDS)
@pytest.mark.parametrize("score", ["inliers", "ratio", "weighted"])
def test_odd_keypoints_give_finite_scores(engine: str, model: str, score: str) -> None:
    method = Ransac(Ransac.Options(engine=engine, model=model, score=score, trials=50))
    if reason := method.skip(XFEAT):
        pytest.skip(reason)
    for query in ODD.values():
        scores = scores_of(method, query, batch_of(list(ODD.values())))
        assert torch.isfinite(scores).all() and (scores >= 0).all()
        assert scores[-2:].tolist() == [0, 0] or model == "similarity"


@pytest.mark.parametrize(("engine", "model"), KINDS)
def test_every_engine_keeps_the_promises_of_a_reranker(engine: str, model: str) -> None:
    options = Ransac.Options(engine=engine, model=model)
    if reason := Ransac(options).skip(XFEAT):
        pytest.skip(reason)
    check_reranker(Ransac, options)


def test_what_an_engine_imports_or_compiles_it_has_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(_verification, "verify", lambda query, candidate, settings: asked.append(settings))
    for engine, model in KINDS:
        Ransac(Ransac.Options(engine=engine, model=model)).load()
    assert [(settings.engine, settings.model) for settings in asked] == KINDS


@pytest.mark.parametrize(("engine", "model"), KINDS)
def test_equal_seeds_give_equal_scores_on_any_number_of_threads(engine: str, model: str) -> None:
    query = example(120, XFEAT, 1)
    images = [moved(query, AFFINE, noise, seed) for seed, noise in enumerate((1, 4, 8, 20, 60, 200))]
    method, before, found = Ransac(Ransac.Options(engine=engine, model=model, trials=200, seed=3)), [], []
    if reason := method.skip(XFEAT):
        pytest.skip(reason)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(scores_of(method, query, batch_of(images)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_other_seeds_may_find_other_inliers() -> None:
    query = example(120, XFEAT, 1)
    images = batch_of([moved(query, AFFINE, 20, seed) for seed in range(8)])
    found = {
        tuple(scores_of(Ransac(Ransac.Options(engine="trials", trials=20, seed=s)), query, images).tolist())
        for s in range(4)
    }
    assert len(found) > 1


def test_scores_are_counts_shares_or_sums_of_the_same_inliers() -> None:
    query = example(80, XFEAT, 1)
    candidates = batch_of([moved(query, AFFINE, 4), example(80, XFEAT, 2)])
    counted, shared, weighted = (
        Ransac(Ransac.Options(score=score)).score(query, candidates) for score in ("inliers", "ratio", "weighted")
    )
    matches, inliers = counted.details["matches"], counted.details["inliers"]
    assert torch.equal(counted.scores, inliers) and (inliers <= matches).all() and matches[0] == 80
    assert torch.allclose(shared.scores, inliers / matches)
    assert weighted.scores[0] == pytest.approx(float(inliers[0]), rel=1e-5)  # the matches are of cosine 1
    assert 0 < weighted.scores[1] < inliers[1]


def test_delgs_verification_is_a_preset() -> None:
    options = Ransac.Options(preset="delg", seed=4)
    assert (options.matcher, options.distance, options.model, options.engine) == ("one-way", 1.0, "affine", "trials")
    assert (options.trials, options.threshold, options.score, options.descriptors) == (1000, 20.0, "inliers", 1000)
    assert Ransac.Options(preset="delg", descriptors=500).descriptors == 500 == Ransac.Options().descriptors
    with pytest.raises(ValueError, match=r"preset=delg sets threshold=20\.0, which 5 contradicts"):
        Ransac.Options(preset="delg", threshold=5)


def test_delg_takes_one_way_matches_within_distance_one_and_needs_more_than_three() -> None:
    delg, query = Ransac(Ransac.Options(preset="delg")), example(60, XFEAT, 1)
    doubled = Features(
        **{n: torch.cat([v, v]) for n, v in vars(query).items() if n not in ("image_size", "scores")}
        | {
            "global_descriptor": query.global_descriptor,
            "image_size": query.image_size,
            "scores": torch.linspace(1, 0.1, 120),
        }
    )
    found = delg.score(doubled, batch_of([moved(query, AFFINE), example(60, XFEAT, 2)]))
    assert found.details["matches"][0] == 120  # several of the query's share one of the candidate's
    assert found.scores[0] == 120
    similarity = (doubled.descriptors @ example(60, XFEAT, 2).descriptors.T).amax(dim=1)
    assert found.details["matches"][1] == (similarity >= 0.5).sum()  # 2 - 2 cos <= 1
    three = example(3, XFEAT, 1)
    assert scores_of(delg, three, batch_of([three])).tolist() == [0]


def test_descriptors_of_two_sizes_cannot_be_matched() -> None:
    with pytest.raises(ValueError, match="cannot be matched"):
        Ransac().score(example(9, XFEAT, 1), batch_of([example(9, card_of("sift"), 1)]))


def test_only_the_best_descriptors_are_used() -> None:
    query = example(80, XFEAT, 1)
    assert scores_of(Ransac(Ransac.Options(descriptors=30)), query, batch_of([moved(query, AFFINE)])) == 30


@pytest.mark.parametrize(
    "given",
    [
        {"model": "affin"},
        {"threshold": "0"},
        {"trials": "many"},
        {"trails": "10"},
        {"model": "similarity"},
        {"seed": "-1"},
    ],
)
def test_a_wrong_option_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        parse_options(Ransac, given)
