"""Mutual nearest neighbours, counted: what spatial verification starts from, without the geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.reranker import Card, Explanation, FeatureBatch, FeatureCard, Features, Reranker, register
from methods._matching import Matches, match
from methods._parallel import each

XFEAT = 0.82  # that of XFeat's own matcher, and of sets of which no other is known
# least cosine by local descriptors: the best mAP Medium on the demo (docs/measurements.md, Least cosines)
LEAST: Mapping[str, float] = {"xfeat": XFEAT, "sift": 0.92, "aliked": 0.6, "disk": 0.6}


@register(
    "mnn",
    needs={"local"},
    card=Card(
        paper="least cosines: XFeat's is that of its matcher, Potje et al., CVPR 2024; others chosen on the demo",
        licence="Apache-2.0",
    ),
)
class MutualNearestNeighbours(Reranker):
    """Score: number of pairs that are each other's most similar descriptor, and similar enough."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 500  # best-scored local descriptors used per image
        similarity: float | None = None  # least cosine of a match; none: what suits the feature set

        def __post_init__(self) -> None:
            if self.descriptors < 1 or not -1 <= (self.similarity or 0) <= 1:
                raise ValueError("descriptors must be at least 1 and similarity in [-1, 1]")

    _least = XFEAT  # of the descriptors that it reads; `bind` says which

    def bind(self, features: FeatureCard) -> None:
        self._least = LEAST.get(features.local, XFEAT)

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        one, most = query.top(self.options.descriptors).descriptors, self.options.descriptors

        def count(candidate: Features) -> Tensor:
            return self._enough(match(one, candidate.top(most).descriptors)).sum()

        return torch.stack(each(count, candidates)).float()

    def _enough(self, found: Matches) -> Tensor:
        """(m,) bool, which matches are similar enough."""
        least = self._least if self.options.similarity is None else self.options.similarity
        return found.similarity >= least

    def explain(self, query: Features, candidate: Features) -> Explanation:
        one, other = (image.top(self.options.descriptors).descriptors for image in (query, candidate))
        found = match(one, other)
        return Explanation.counted(torch.stack([found.query, found.candidate], dim=1)[self._enough(found)])
