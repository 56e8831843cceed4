"""Mutual nearest neighbours, counted: what spatial verification starts from, without the geometry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.reranker import Card, Explanation, FeatureBatch, Features, Reranker, register
from methods._matching import Matches, match
from methods._parallel import each


@register(
    "mnn",
    needs={"local"},
    card=Card(
        paper="the least cosine of 0.82 is that of XFeat's matcher, Potje et al., CVPR 2024", licence="Apache-2.0"
    ),
)
class MutualNearestNeighbours(Reranker):
    """Score: number of pairs that are each other's most similar descriptor, and similar enough."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 500  # best-scored local descriptors used per image
        similarity: float = 0.82  # least cosine of a match; the default is for XFeat

        def __post_init__(self) -> None:
            if self.descriptors < 1 or not -1 <= self.similarity <= 1:
                raise ValueError("descriptors must be at least 1 and similarity in [-1, 1]")

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        one, most = query.top(self.options.descriptors).descriptors, self.options.descriptors

        def count(candidate: Features) -> Tensor:
            return self._enough(match(one, candidate.top(most).descriptors)).sum()

        return torch.stack(each(count, candidates)).float()

    def _enough(self, found: Matches) -> Tensor:
        """(m,) bool, which matches are similar enough."""
        return found.similarity >= self.options.similarity

    def explain(self, query: Features, candidate: Features) -> Explanation:
        one, other = (image.top(self.options.descriptors).descriptors for image in (query, candidate))
        found = match(one, other)
        return Explanation.counted(torch.stack([found.query, found.candidate], dim=1)[self._enough(found)])
