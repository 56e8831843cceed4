"""Every engine finds the matches that agree with one model, survives degenerate points and repeats itself."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods._verification import ENGINES, MINIMAL, Verification, compiled, trials, verify

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


def drawn(matches: int, number: int, seed: int) -> np.ndarray:
    """(3, number) rows that the trials of a seed sample."""
    samples = trials._samples(trials._words(seed, 3 * number + trials.SPARE), matches, number)
    assert samples is not None
    return samples


def by_the_book(query: np.ndarray, candidate: np.ndarray, settings: Verification) -> np.ndarray:
    """The same samples, one after the other, with a general solver."""
    homogeneous = np.column_stack([candidate, np.ones(len(candidate))])
    best, most, least = np.zeros(len(query), dtype=bool), 0, np.inf
    for sample in drawn(len(query), settings.trials, settings.seed).T:
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
    samples = drawn(matches, 3000, seed)
    assert all(len(set(sample)) == 3 for sample in samples.T.tolist())
    for column in samples:
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


@given(st.integers(3, 5000), st.integers(1, 200), st.integers(0, 2**31 - 1))
def test_samples_are_those_of_numpys_generator(matches: int, number: int, seed: int) -> None:
    draw = np.random.default_rng(seed).integers(0, [[matches], [matches - 1], [matches - 2]], size=(3, number))
    first, second, third = drawn(matches, number, seed)
    assert np.array_equal(first, draw[0])
    assert np.array_equal(second, draw[1] + (draw[1] >= draw[0]))
    left = [[row for row in range(matches) if row not in pair] for pair in list(zip(first, second, strict=True))[:3]]
    assert third[:3].tolist() == [rows[at] for rows, at in zip(left, draw[2], strict=False)]


# the compiled search, and numpy's


def coordinates(kind: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    if kind == "pixels":
        return draw.uniform(0, 640, shape)
    if kind == "a grid":  # full of repeated points, lines and residuals of just the threshold
        return draw.integers(0, 6, shape).astype(float)
    if kind == "all sizes":
        return 10 ** draw.uniform(-12, 12, shape)
    points = draw.uniform(0, 640, shape)
    if kind == "one point":
        points[..., :, :] = points[..., :1, :]
    elif kind == "a line":
        points[..., 1] = 2 * points[..., 0] + 1
    else:
        points[..., draw.integers(shape[-2]), :] = {"not a number": np.nan, "infinite": np.inf}[kind]
    return points


KINDS = ("pixels", "a grid", "all sizes", "one point", "a line", "not a number", "infinite")
kinds = st.sampled_from(KINDS)


def by_numpy(query: np.ndarray, candidate: np.ndarray, settings: Verification) -> np.ndarray:
    """The inliers without compiled code."""
    words = trials._words(settings.seed, 3 * settings.trials + trials.SPARE)
    enough, found = trials.best(words, settings.trials, candidate, query, settings.threshold**2)
    assert enough
    return found


@pytest.fixture(scope="module")
def search() -> Callable[..., tuple[bool, np.ndarray]]:
    """Compiled code; for a test that cannot do without."""
    pytest.importorskip("numba", reason="the extra jit is not installed")
    found = compiled.search()
    assert found is not None
    return found


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of points that are not finite
@given(st.integers(4, 250), kinds, kinds, st.integers(0, 10**6), st.integers(1, 400), st.sampled_from([1.0, 2.0, 8.0]))
def test_compiled_trials_find_the_inliers_that_numpy_finds(
    search: object, matches: int, one: str, other: str, seed: int, number: int, threshold: float
) -> None:
    draw = np.random.default_rng(seed)
    query, candidate = (coordinates(kind, (matches, 2), draw) for kind in (one, other))
    settings = Verification("affine", "trials", number, threshold, seed)
    assert np.array_equal(verify(query, candidate, settings).inliers, by_numpy(query, candidate, settings))


@given(st.integers(4, 250), st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 5.0]))
def test_compiled_trials_find_what_moved_as_numpy_does(search: object, matches: int, seed: int, noise: float) -> None:
    points = matched("affine", matches // 3, matches - matches // 3, seed, noise)
    settings = Verification("affine", "trials", 1000, 12.0, seed)
    found = verify(*points, settings).inliers
    assert found.sum() >= 3 and np.array_equal(found, by_numpy(*points, settings))


def test_without_numba_trials_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points, settings = matched("affine", 30, 60, noise=3), Verification("affine", "trials")
    found = verify(*points, settings).inliers
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    monkeypatch.setattr(compiled, "search", compiled.search.__wrapped__)
    assert compiled.search() is None and compiled.missing() is None
    assert 20 <= found.sum() < 50 and np.array_equal(verify(*points, settings).inliers, found)


def test_where_random_words_run_out_more_are_drawn(
    search: Callable[..., tuple[bool, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, candidate = matched("affine", 30, 60, noise=3)
    for find in (search, trials.best):
        assert not find(trials._words(0, 298), 100, candidate, query, 64.0)[0]
        assert find(trials._words(0, 300), 100, candidate, query, 64.0)[0]
    settings = Verification("affine", "trials", 100)
    found = verify(query, candidate, settings).inliers
    monkeypatch.setattr(trials, "SPARE", -250)
    assert np.array_equal(verify(query, candidate, settings).inliers, found)


def test_a_rejected_word_is_passed_over(search: Callable[..., tuple[bool, np.ndarray]]) -> None:
    """2**32 is no multiple of 7, 6 or 5 rows, so that a word of 0 would favour the first of them."""
    query, candidate = matched("affine", 3, 4)
    plain = 10**8 * np.array([9, 20, 33], np.uint32)
    for rejecting in ([0, 9, 20, 33], [9, 0, 0, 20, 33], [9, 20, 0, 33]):
        words = 10**8 * np.array(rejecting, np.uint32)
        assert np.array_equal(trials._samples(words, 7, 1), trials._samples(plain, 7, 1))
        for find in (search, trials.best):
            assert find(plain, 1, candidate, query, 64.0)[0] and find(words, 1, candidate, query, 64.0)[0]
            assert not find(words[:-1], 1, candidate, query, 64.0)[0]
            assert np.array_equal(find(words, 1, candidate, query, 64.0)[1], find(plain, 1, candidate, query, 64.0)[1])


@pytest.mark.parametrize("error", [RuntimeError("no locator available"), PermissionError("read-only file system")])
def test_where_machine_code_cannot_be_kept_it_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    numba, asked = pytest.importorskip("numba", reason="the extra jit is not installed"), []

    def njit(signature: object, cache: bool = False, **how: object) -> Callable[[object], object]:
        asked.append((cache, how))
        if cache:
            raise error
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled.search.__wrapped__() is compiled.best
    assert [cache for cache, _ in asked] == [True, False] and asked[0][1] == asked[1][1]
    assert asked[0][1]["nogil"] is True and "fastmath" not in asked[0][1]


def test_a_numba_that_cannot_be_imported_is_named_and_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "numba", None)
    assert "numba is installed and cannot be imported" in (trials.missing() or "")
    assert ENGINES["pycolmap"].missing() is None
