"""Matching and spatial verification against what a researcher would write first, and both of them in threads."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from bench.conformance import batch_of
from bench.features import Features
from bench.features.items import query_key
from bench.features.sets import FeatureSet
from bench.places import Places
from bench.rows import Row as MethodRow
from bench.scores import Scorer
from methods._matching import Matches, match
from methods._parallel import each
from methods._verification import ENGINES, Verification, compiled, trials, verify
from methods.maxsim import MaxSim
from methods.mnn import mutual_counts
from methods.ransac import Ransac
from tests.speed import demo_scorer, interleaved
from tests.speed.table import Probe, Row, Work, show

CANDIDATES = 100
TRIALS, THRESHOLD = 1000, 12.0
LEAST, SIMILAR = 0.82, 0.08  # of XFeat: the least cosine, and the share of descriptors that have one on the demo
TIMES_FASTER = {
    "matching": 1.8,
    "counting": 1.15,
    "verification": 150.0,
    "threads": 1.7,
    "scikit-image": 300.0,
    "numpy": 10.0,
}
REPEATS = 20  # of calls that take less than a millisecond
RESIDUAL, MODEL = 13, 40  # operations of a match's squared residual, and of a sample's model
AUC_MAY_FALL = 0.02


def plain_match(query: Tensor, candidate: Tensor) -> Tensor:
    """(m, 2) mutual nearest neighbours from `torch.cdist` and `topk`, one pair of images at a time."""
    distances = torch.cdist(query, candidate)
    forward = distances.topk(1, dim=1, largest=False).indices[:, 0]
    backward = distances.topk(1, dim=0, largest=False).indices[0]
    rows = torch.arange(len(query))
    mutual = backward[forward] == rows
    return torch.stack([rows[mutual], forward[mutual]], dim=1)


def overlapping(descriptors: int, size: int, candidates: int, share: float = 0.5) -> list[Tensor]:
    """A query and candidates, each of which shows a share of the query's descriptors again, a little changed."""
    again = round(share * descriptors)
    draw = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(descriptors, size, generator=draw), dim=1)
    found = [query]
    for _ in range(candidates):
        other = torch.randn(descriptors, size, generator=draw) / size**0.5
        other[:again] = query[:again] + 0.3 * other[:again]
        found.append(F.normalize(other[torch.randperm(descriptors, generator=draw)], dim=1))
    return found


def bench_matching(descriptors: int, size: int = 128, rounds: int = 5, candidates: int = CANDIDATES) -> bool:
    """One query against its candidates; whether the matches are the plain ones."""
    query, *images = overlapping(descriptors, size, candidates)
    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: [plain_match(query, image) for image in images],
        "match": lambda: each(partial(match, query), images),
    }
    probe = Probe()
    medians = interleaved({**calls, **probe.calls}, rounds)
    same = all(_equal(match(query, image), plain_match(query, image)) for image in images)
    seconds = medians.seconds["match"] / candidates
    ratio = medians.seconds["plain"] / medians.seconds["match"]
    bound, target = probe.peaks(medians).bound(product(descriptors, size), seconds), TIMES_FASTER["matching"]
    return show([Row(f"match {descriptors}x{size}", seconds, "cdist, topk", ratio, target, bound, same)], medians)


def bench_maxsim(descriptors: int, size: int = 64, rounds: int = 9, candidates: int = CANDIDATES) -> bool:
    """MaxSim of a query and its candidates against a loop over them; whether no score differs by 1e-6 or more."""
    query, *images = (
        Features.checked(descriptors=rows) for rows in overlapping(descriptors, size, candidates, SIMILAR)
    )
    batch, method, probe = batch_of(images), MaxSim(MaxSim.Options(descriptors=descriptors)), Probe()

    def plain() -> Tensor:
        return torch.stack([(query.descriptors @ image.descriptors.T).max(dim=1).values.mean() for image in images])

    medians = interleaved({"plain": plain, "score": lambda: method.score(query, batch), **probe.calls}, rounds)
    same = bool((plain() - method.score(query, batch)).abs().max() < 1e-6)
    seconds, ratio = medians.seconds["score"] / candidates, medians.seconds["plain"] / medians.seconds["score"]
    bound = probe.peaks(medians).bound(product(descriptors, size), seconds)
    return show([Row(f"maxsim {descriptors}x{size}", seconds, "a loop", ratio, None, bound, same)], medians)


def product(descriptors: int, size: int) -> Work:
    """Cosines of two images' descriptors: what exact matching needs at least. One image comes from memory."""
    return Work(2 * descriptors**2 * size, 4 * descriptors * size)


def _equal(found: Matches, plain: Tensor) -> bool:
    return torch.equal(torch.stack([found.query, found.candidate], dim=1), plain)


def bench_counting(descriptors: int, size: int = 64, rounds: int = 9, candidates: int = CANDIDATES) -> bool:
    """Counts of similar mutual matches without the matches; whether they are the numbers of those. Also the products.

    One product of a query with all its candidates leaves the processor's cache, and is no faster than one a pair.
    """
    query, *images = overlapping(descriptors, size, candidates, SIMILAR)
    together = torch.cat(images)
    calls: dict[str, Callable[[], object]] = {
        "matches": lambda: [int((match(query, image).similarity >= LEAST).sum()) for image in images],
        "counts": lambda: list(mutual_counts(query, images, LEAST)),
        "products": lambda: deque((query @ image.T for image in images), maxlen=0),
        "one product": lambda: query @ together.T,
    }
    probe = Probe()
    medians = interleaved({**calls, **probe.calls}, rounds)
    same = calls["matches"]() == calls["counts"]()
    peaks, work, rows = probe.peaks(medians), product(descriptors, size), []
    for name, what, target in (
        ("counts", f"mnn {descriptors}x{size}", TIMES_FASTER["counting"]),
        ("products", "  products of it alone", None),
        ("one product", "  all in one product", None),
    ):
        seconds, ratio = medians.seconds[name] / candidates, medians.seconds["matches"] / medians.seconds[name]
        bound, held = peaks.bound(work, seconds), same if name == "counts" else None
        rows.append(Row(what, seconds, "listing them", ratio, target, bound, held))
    return show(rows, medians)


def matched_pairs(
    scorer: Scorer, store: FeatureSet, queries: int, each: int
) -> list[tuple[bool, np.ndarray, np.ndarray]]:
    """Whether a candidate is positive, and the (m, 2) points of its matches with the query: `each` of either kind."""
    pairs, needs = [], frozenset({"local", "keypoints"})
    for number in range(queries):
        candidates = scorer.shortlist.union(number)
        query = store.read(query_key(scorer.dataset, number), needs, 500)
        grades = scorer.dataset.grades[scorer.shortlist.queries[number]]
        names = [scorer.shortlist.gallery[c] for c in candidates]
        kinds = [[n for n in names if (grades.get(n) in ("easy", "hard")) == good] for good in (True, False)]
        for good, chosen in zip((True, False), kinds, strict=True):
            for name in [n for n in chosen if grades.get(n) != "junk"][:each]:
                image = store.read(name, needs, 500)
                found = match(query.descriptors, image.descriptors)
                if len(found) >= 4:
                    pairs.append((good, query.keypoints[found.query].numpy(), image.keypoints[found.candidate].numpy()))
    return pairs


def skimage_inliers(query: np.ndarray, candidate: np.ndarray, trials: int = TRIALS) -> int:
    """Inliers as DELG counts them: scikit-image's RANSAC of an affine model with all of its trials."""
    from skimage.measure import ransac
    from skimage.transform import AffineTransform

    _, inliers = ransac(
        (candidate, query), AffineTransform, min_samples=3, residual_threshold=THRESHOLD, max_trials=trials, rng=0
    )
    return 0 if inliers is None else int(inliers.sum())


def bench_verification(places: Places, queries: int = 20, each: int = 3) -> bool:
    """Every engine's affine model on the demo's matches, given; whether none tells pairs worse than scikit-image."""
    found = demo_scorer(places)
    if found is None or find_spec("skimage") is None:
        print("verification: needs the features of the demo (`make demo`) and the package scikit-image (extra test)")
        return True
    pairs = matched_pairs(*found, queries, each)
    truth = [good for good, _, _ in pairs]
    counts: dict[str, Callable[[np.ndarray, np.ndarray], int]] = {"skimage": skimage_inliers}
    for name, engine in ENGINES.items():
        if engine.missing() is None:
            counts[name] = partial(_count, Verification("affine", name, TRIALS, THRESHOLD))  # type: ignore[arg-type]
    calls: dict[str, Callable[[], object]] = {
        name: partial(_all, count, pairs if name != "skimage" else pairs[:: len(pairs) // 12])
        for name, count in counts.items()
    }
    medians = interleaved(calls, 3)
    seconds = {n: s / len(pairs if n != "skimage" else pairs[:: len(pairs) // 12]) for n, s in medians.seconds.items()}
    auc = {name: roc_auc_score(truth, _all(count, pairs)) for name, count in counts.items()}
    target, rows = TIMES_FASTER["verification"], []
    for name in counts:
        ratio = None if name == "skimage" else seconds["skimage"] / seconds[name]
        rows.append(Row(f"{name}, demo", seconds[name], "" if ratio is None else "scikit-image", ratio, target))
    show(rows, medians)
    said = ", ".join(f"{name} {value:.3f}" for name, value in auc.items())
    print(f"  AUC of inliers, {len(pairs)} pairs of the demo with their matches given: {said}")
    return all(value >= auc["skimage"] - AUC_MAY_FALL for value in auc.values())


def bench_trials(matches: int, rounds: int = 5, number: int = TRIALS) -> bool:
    """The trials of `ransac` on one thread: compiled, by numpy, and scikit-image's as many; whether inliers are equal.

    A third of the matches agree. The peak is that of products in double precision.
    """
    if find_spec("skimage") is None or compiled.search() is None:
        print("ransac trials: needs the packages scikit-image and numba (extra dev)")
        return True
    draw, agree = np.random.default_rng(matches), matches // 3
    candidate = draw.uniform(0, 600, (matches, 2))
    query = draw.uniform(0, 600, (matches, 2))
    query[:agree] = candidate[:agree] @ [[0.9, 0.25], [-0.2, 1.1]] + [30, -12] + 3 * draw.normal(size=(agree, 2))
    settings = Verification("affine", "trials", number, THRESHOLD)

    def by_numpy() -> np.ndarray:
        words = trials._words(settings.seed, 3 * number + trials.SPARE)
        return trials.best(words, number, candidate, query, THRESHOLD**2)[1]

    calls: dict[str, Callable[[], object]] = {
        "scikit-image": lambda: skimage_inliers(query, candidate, number),
        "numpy": lambda: [by_numpy() for _ in range(REPEATS)],
        "compiled": lambda: [verify(query, candidate, settings) for _ in range(REPEATS)],
    }
    probe = Probe(1, torch.float64)
    medians = interleaved({**calls, **probe.calls}, rounds)
    repeats = {"scikit-image": 1, "numpy": REPEATS, "compiled": REPEATS}
    seconds = {name: medians.seconds[name] / n for name, n in repeats.items()}
    same = bool((by_numpy() == verify(query, candidate, settings).inliers).all())
    work = Work(number * (RESIDUAL * matches + MODEL))
    bound, what = probe.peaks(medians).bound(work, seconds["compiled"]), f"ransac trials, {matches}"
    rows = []
    for name in ("scikit-image", "numpy"):
        ratio = seconds[name] / seconds["compiled"]
        rows.append(Row(what, seconds["compiled"], name, ratio, TIMES_FASTER[name], bound, same))
    return show(rows, medians)


def _count(settings: Verification, query: np.ndarray, candidate: np.ndarray) -> int:
    return verify(query, candidate, settings).count


def _all(count: Callable[[np.ndarray, np.ndarray], int], pairs: list[tuple[bool, np.ndarray, np.ndarray]]) -> list[int]:
    return [count(query, candidate) for _, query, candidate in pairs]


def bench_threads(places: Places, queries: int = 10) -> None:
    """Matching and verification of whole shortlists of the demo with one thread and with two."""
    found = demo_scorer(places)
    if found is None:
        return
    scorer, store = found
    before, methods = torch.get_num_threads(), {"pycolmap": Ransac(), "trials": Ransac(Ransac.Options(engine="trials"))}
    try:
        for name, method in methods.items():
            method.load()
            ratios, times = [], []
            for query in range(queries):
                ms = {}
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    done = [scorer.score(MethodRow(name, method, store), query) for _ in range(2)]
                    ms[threads] = min(one.score_ms / one.pairs for one in done)
                ratios.append(ms[1] / ms[2])
                times.append(ms[2] / 1e3)
            ratio, target = statistics.median(ratios), TIMES_FASTER["threads"]
            print(Row(f"{name}, 2 threads", statistics.median(times), "1 thread", ratio, target))
    finally:
        torch.set_num_threads(before)
