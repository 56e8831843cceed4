"""Spatial verification (Philbin et al., CVPR 2007): matches of local descriptors, then inliers of a geometric model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from bench.reranker import (
    Card,
    Explanation,
    FeatureBatch,
    FeatureCard,
    Features,
    Reranker,
    Scored,
    Seed,
    apply_preset,
    register,
)
from methods import _matching, _verification
from methods._matching import Matcher, Matches, match
from methods._parallel import each
from methods._verification import EngineName, Model, Verdict, Verification, verify

# preset -> what it sets. DELG (Cao et al., ECCV 2020) is as its perform_retrieval.py calls image_reranking.py.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "delg": {
        "matcher": "one-way",
        "distance": 1.0,
        "model": "affine",
        "engine": "trials",
        "trials": 1000,
        "threshold": 20.0,
        "score": "inliers",
    },
}
DESCRIPTORS: Mapping[str, int] = {"none": 500, "delg": 1000}  # preset -> descriptors, where none are given


def _ratio_of_inliers(matches: Matches, verdict: Verdict) -> float:
    return verdict.count / max(1, len(matches))


def _similarity_of_inliers(matches: Matches, verdict: Verdict) -> float:
    return float(matches.similarity[torch.from_numpy(verdict.inliers)].clamp(min=0).sum())


SCORES: Mapping[str, Callable[[Matches, Verdict], float]] = {
    "inliers": lambda matches, verdict: verdict.count,
    "ratio": _ratio_of_inliers,
    "weighted": _similarity_of_inliers,
}


@register(
    "ransac",
    needs={"local", "keypoints"},
    card=Card(
        paper="Philbin et al., CVPR 2007; LO-RANSAC of COLMAP, USAC of OpenCV, or that of DELG (ECCV 2020)",
        licence="Apache-2.0; pycolmap BSD-3-Clause",
    ),
)
class Ransac(Reranker):
    """Score: number of inliers, 0 where there are no more matches than the model needs. Ties keep first-stage order."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int | None = None  # best-scored local descriptors used per image; none: 500, with preset=delg 1000
        matcher: Matcher = "mutual"  # mutual or one-way nearest neighbours, or one-way by Lowe's ratio
        ratio: float = 0.9  # of matcher=ratio: nearest distance below this times the second nearest
        distance: float | None = None  # largest Euclidean distance of two matched unit descriptors; none: any
        model: Model = "affine"  # of how the candidate moved into the query; similarity: engine=opencv only
        engine: EngineName = "pycolmap"  # trials: exactly that many, no refinement; the others stop early and refine
        trials: int = 1000  # at most
        threshold: float = 8.0  # pixels of the query image
        seed: Seed = 0  # of every pair
        score: Literal["inliers", "ratio", "weighted"] = "inliers"  # or per match; or the sum of their cosines
        preset: Literal["none", "delg"] = "none"  # delg: as the DELG paper verifies; sets all but descriptors and seed

        def __post_init__(self) -> None:
            apply_preset(self, PRESETS)
            if self.descriptors is None:
                object.__setattr__(self, "descriptors", DESCRIPTORS[self.preset])
            elif self.descriptors < 1:
                raise ValueError("descriptors must be at least 1")
            _matching.check(self.matcher, self.ratio, self.distance)
            self.verification()

        def verification(self) -> Verification:
            return Verification(self.model, self.engine, self.trials, self.threshold, self.seed)

    def skip(self, features: FeatureCard) -> str | None:
        return _verification.missing(self.options.verification())

    def load(self) -> None:
        _verification.prepare(self.options.verification())

    def score(self, query: Features, candidates: FeatureBatch) -> Scored:
        pairs = each(partial(self._pair, query.top(self.options.descriptors)), candidates)
        scores, matches, inliers = torch.tensor(pairs, dtype=torch.float32).view(-1, 3).T
        return Scored(scores, {"matches": matches, "inliers": inliers})

    def explain(self, query: Features, candidate: Features) -> Explanation:
        matches, verdict = self._verified(query.top(self.options.descriptors), candidate)
        inliers = torch.from_numpy(verdict.inliers)
        adds = {
            "inliers": inliers.float(),
            "ratio": inliers.float() / max(1, len(matches)),
            "weighted": matches.similarity.cpu().clamp(min=0) * inliers,
        }
        return Explanation(matches.query.cpu(), matches.candidate.cpu(), adds[self.options.score], inliers)

    @torch.inference_mode()  # of the thread that it runs in
    def _pair(self, query: Features, candidate: Features) -> tuple[float, int, int]:
        """Score, matches and inliers of one candidate."""
        matches, verdict = self._verified(query, candidate)
        return SCORES[self.options.score](matches, verdict), len(matches), verdict.count

    def _verified(self, query: Features, candidate: Features) -> tuple[Matches, Verdict]:
        options, candidate = self.options, candidate.top(self.options.descriptors)
        matches = match(query.descriptors, candidate.descriptors, options.matcher, options.ratio, options.distance)
        query_points = query.keypoints[matches.query].numpy(force=True)
        candidate_points = candidate.keypoints[matches.candidate].numpy(force=True)
        return matches, verify(query_points, candidate_points, options.verification())
