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

from bench.features.items import query_key
from bench.features.sets import FeatureSet
from bench.places import Places
from bench.rows import Row
from bench.scores import Scorer
from methods._matching import Matches, match
from methods._parallel import each
from methods._verification import ENGINES, Verification, verify
from methods.mnn import mutual_counts
from methods.ransac import Ransac
from tests.speed import demo_scorer, interleaved, verdict

CANDIDATES = 100
TRIALS, THRESHOLD = 1000, 12.0
LEAST, SIMILAR = 0.82, 0.08  # of XFeat: the least cosine, and the share of descriptors that have one on the demo
TIMES_FASTER = {"matching": 1.8, "counting": 1.15, "verification": 150.0, "threads": 1.7}
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
    medians = interleaved(calls, rounds)
    rate = {name: candidates / seconds for name, seconds in medians.seconds.items()}
    same = all(_equal(match(query, image), plain_match(query, image)) for image in images)
    print(
        f"matching, {descriptors} descriptors of {size}: {rate['match']:.0f} pairs/s, plain {rate['plain']:.0f}: "
        f"{verdict(rate['match'] / rate['plain'], TIMES_FASTER['matching'])}; "
        f"{'the same' if same else 'OTHER'} matches; {medians}"
    )
    return same


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
    medians = interleaved(calls, rounds)
    same = calls["matches"]() == calls["counts"]()
    ratio = {name: medians.seconds["matches"] / seconds for name, seconds in medians.seconds.items()}
    print(
        f"counting mutual matches, {descriptors} descriptors of {size}: "
        f"{verdict(ratio['counts'], TIMES_FASTER['counting'])}; products alone {ratio['products']:.2f} x, all in one "
        f"{ratio['one product']:.2f} x; {'the same' if same else 'OTHER'} counts; {medians}"
    )
    return same


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


def skimage_inliers(query: np.ndarray, candidate: np.ndarray) -> int:
    """Inliers as DELG counts them: scikit-image's RANSAC of an affine model with all of its trials."""
    from skimage.measure import ransac
    from skimage.transform import AffineTransform

    _, inliers = ransac(
        (candidate, query), AffineTransform, min_samples=3, residual_threshold=THRESHOLD, max_trials=TRIALS, rng=0
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
    held, auc = True, {name: roc_auc_score(truth, _all(count, pairs)) for name, count in counts.items()}
    print(f"verification, affine, {len(pairs)} pairs of the demo with their matches given, one thread; {medians}")
    for name in counts:
        times = "" if name == "skimage" else verdict(seconds["skimage"] / seconds[name], TIMES_FASTER["verification"])
        print(f"  {name + ':':10s}{1e3 * seconds[name]:8.3f} ms a pair, AUC {auc[name]:.3f}  {times}")
        held = held and auc[name] >= auc["skimage"] - AUC_MAY_FALL
    return held


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
            ratios = []
            for query in range(queries):
                ms = {}
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    ms[threads] = min(scorer.score(Row(name, method, store), query).score_ms for _ in range(2))
                ratios.append(ms[1] / ms[2])
            print(f"ransac, {name}, two threads: {verdict(statistics.median(ratios), TIMES_FASTER['threads'])}")
    finally:
        torch.set_num_threads(before)
