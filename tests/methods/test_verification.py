"""Every engine finds the matches that agree with one model, survives degenerate points and repeats itself."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods._verification import ENGINES, MINIMAL, Verification, trials, verify

CHOICES = [(engine, model) for engine, offered in ENGINES.items() for model in offered.MODELS]
every = pytest.mark.parametrize(("engine", "model"), CHOICES)
MOVES = {  # similarity is one of each of the wider models
    "similarity": np.array([[0.9, -0.25, 30.0], [0.25, 0.9, -12.0], [0, 0, 1]]),
    "affine": np.array([[0.9, -0.2, 30.0], [0.25, 1.1, -12.0], [0, 0, 1]]),
    "homography": np.array([[0.9, -0.2, 30.0], [0.25, 1.1, -12.0], [4e-4, -2e-4, 1]]),
    "fundamental": np.array([[0.9, -0.2, 30.0], [0.25, 1.1, -12.0], [0, 0, 1]]),
}


def matched(model: str, good: int, bad: int, seed: int = 0, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Query and candidate points: the first `good` are moved by the model, the rest lie anywhere."""
    draw = np.random.default_rng(seed)
    candidate = draw.uniform(0, 600, (good + bad, 2))
    moved = np.column_stack([candidate, np.ones(good + bad)]) @ MOVES[model].T
    query = moved[:, :2] / moved[:, 2:] + noise * draw.standard_normal((good + bad, 2))
    query[good:] = draw.uniform(0, 600, (bad, 2))
    return query, candidate


def skip_if_missing(engine: str) -> None:
    if reason := ENGINES[engine].missing():
        pytest.skip(reason)


@every
def test_what_moved_together_are_the_inliers(engine: str, model: str) -> None:
    skip_if_missing(engine)
    inliers = verify(*matched(model, 60, 30), Verification(model, engine, threshold=3)).inliers
    assert inliers.shape == (90,) and inliers.dtype == bool
    assert inliers[:60].all()
    assert inliers[60:].sum() <= (10 if model == "fundamental" else 3)  # an epipolar line passes near some points


@every
def test_points_that_agree_on_nothing_are_outliers(engine: str, model: str) -> None:
    skip_if_missing(engine)
    assert verify(*matched(model, 0, 60), Verification(model, engine, threshold=3)).count <= 25


DEGENERATE = {
    "none": np.zeros((0, 2)),
    "one": np.array([[3.0, 4.0]]),
    "a line": np.stack([np.arange(40.0), 2 * np.arange(40.0)], axis=1),
    "one point": np.full((40, 2), 5.0),
    "two points": np.array([[0.0, 0.0], [9.0, 3.0]] * 20),
    "outside": np.random.default_rng(3).uniform(-1e5, 1e5, (40, 2)),
}


@every
@pytest.mark.parametrize("query", list(DEGENERATE))
@pytest.mark.parametrize("candidate", list(DEGENERATE))
def test_degenerate_points_give_a_verdict(engine: str, model: str, query: str, candidate: str) -> None:
    skip_if_missing(engine)
    n = min(len(DEGENERATE[query]), len(DEGENERATE[candidate]))
    inliers = verify(DEGENERATE[query][:n], DEGENERATE[candidate][:n], Verification(model, engine)).inliers
    assert inliers.shape == (n,) and inliers.dtype == bool


@every
def test_no_more_matches_than_the_model_needs_are_no_inliers(engine: str, model: str) -> None:
    skip_if_missing(engine)
    query, candidate = matched(model, 20, 0)
    needed = MINIMAL[model]
    assert verify(query[:needed], candidate[:needed], Verification(model, engine)).count == 0
    if model != "fundamental":  # eight matches of a plane leave it open
        assert verify(query[: needed + 1], candidate[: needed + 1], Verification(model, engine)).count == needed + 1


@every
def test_equal_seeds_give_equal_verdicts_on_any_number_of_threads(engine: str, model: str) -> None:
    skip_if_missing(engine)
    sets = [matched(model, 15, 60, seed, noise=4) for seed in range(12)]
    settings = Verification(model, engine, trials=60, seed=5)
    alone = [verify(*points, settings).inliers for points in sets]
    for threads in (2, 4):
        with ThreadPoolExecutor(threads) as pool:
            together = pool.map(lambda points: verify(*points, settings).inliers, sets)
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(("engine", "model"), [("pycolmap", "affine"), ("opencv", "affine"), ("trials", "affine")])
def test_the_seed_decides_the_samples(engine: str, model: str) -> None:
    skip_if_missing(engine)
    points = matched(model, 10, 90, noise=8)
    found = {verify(*points, Verification(model, engine, trials=5, seed=seed)).inliers.tobytes() for seed in range(12)}
    assert len(found) > 1


@every
def test_residuals_are_pixels_of_the_query(engine: str, model: str) -> None:
    """A candidate a hundred times the size changes nothing; where the query is, the threshold is too narrow or wide."""
    skip_if_missing(engine)
    if model == "fundamental":
        return  # its distance is to the epipolar lines of both images
    query, candidate = matched("similarity", 80, 0, noise=2)
    settings = Verification(model, engine, threshold=8)
    assert verify(query, 100 * candidate, settings).count >= 75
    assert verify(100 * query, candidate, settings).count < 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine": "trials", "model": "homography"},
        {"engine": "pycolmap", "model": "similarity"},
        {"engine": "poselib"},
        {"trials": 0},
        {"threshold": 0.0},
        {"threshold": float("nan")},
        {"seed": -1},
    ],
)
def test_a_wrong_setting_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        Verification(**wrong)


def test_an_unsupported_model_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"similarity.*opencv: affine, similarity"):
        Verification("similarity", "pycolmap")


def test_points_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3, 2\)"):
        verify(np.zeros((4, 2)), np.zeros((3, 2)), Verification())


# trials: DELG's RANSAC


def by_the_book(query: np.ndarray, candidate: np.ndarray, settings: Verification) -> np.ndarray:
    """The same samples, one after the other, with a general solver."""
    homogeneous = np.column_stack([candidate, np.ones(len(candidate))])
    best, most, least = np.zeros(len(query), dtype=bool), 0, np.inf
    for sample in trials._samples(len(query), settings.trials, np.random.default_rng(settings.seed)):
        if np.linalg.matrix_rank(homogeneous[sample]) < 3:
            continue
        model = np.linalg.solve(homogeneous[sample], query[sample])
        squares = ((homogeneous @ model - query) ** 2).sum(axis=1)
        inliers = squares < settings.threshold**2
        if (inliers.sum(), -squares.sum()) > (most, -least):
            best, most, least = inliers, int(inliers.sum()), squares.sum()
    return best


@given(st.integers(4, 60), st.integers(0, 1000), st.integers(1, 120))
def test_trials_is_ransac_by_the_book(matches: int, seed: int, number: int) -> None:
    points = matched("affine", matches // 2, matches - matches // 2, seed, noise=3)
    settings = Verification("affine", "trials", number, threshold=10, seed=seed)
    assert np.array_equal(verify(*points, settings).inliers, by_the_book(*points, settings))


@given(st.integers(3, 9), st.integers(0, 100))
def test_a_sample_is_three_different_matches_and_each_is_as_likely(matches: int, seed: int) -> None:
    samples = trials._samples(matches, 3000, np.random.default_rng(seed))
    assert all(len(set(sample)) == 3 for sample in samples.tolist())
    for column in samples.T:
        assert np.allclose(np.bincount(column, minlength=matches) / 3000, 1 / matches, atol=0.06)


def test_a_residual_of_exactly_the_threshold_is_none_below_it() -> None:
    candidate = np.array([[0.0, 0.0], [64.0, 0.0], [0.0, 64.0], [64.0, 64.0]])
    query = candidate + [[0, 0], [0, 0], [0, 0], [4, 0]]  # whichever three fit, the fourth is off by four
    assert verify(query, candidate, Verification("affine", "trials", 50, threshold=4.0)).count == 3
    assert verify(query, candidate, Verification("affine", "trials", 50, threshold=4.001)).count == 4


def test_many_matches_of_one_candidate_point_are_no_agreement() -> None:
    query, candidate = matched("affine", 0, 50)
    candidate[:40] = candidate[0]
    assert verify(query, candidate, Verification("affine", "trials", threshold=5)).count <= 8


def test_trials_agrees_with_scikit_image() -> None:
    reason = "scikit-image is not installed"
    measure = pytest.importorskip("skimage.measure", reason=reason)
    transform = pytest.importorskip("skimage.transform", reason=reason)

    def reference(query: np.ndarray, candidate: np.ndarray, seed: int) -> np.ndarray:
        return measure.ransac(
            (candidate, query), transform.AffineTransform, 3, 8.0, max_trials=200, stop_probability=1, rng=seed
        )[1]

    clean = matched("affine", 40, 20)
    settings = Verification("affine", "trials", 200, threshold=8.0)
    assert np.array_equal(verify(*clean, settings).inliers, reference(*clean, 0))
    noisy = [matched("affine", good, 40, good, noise=2) for good in (25, 35, 45)]
    counts = [(verify(*points, settings).count, int(reference(*points, 0).sum())) for points in noisy]
    assert all(abs(ours - theirs) <= 4 for ours, theirs in counts), counts
