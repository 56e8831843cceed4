"""Mutual nearest neighbours, counted: what spatial verification starts from, without the geometry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, register
from methods._matching import match
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
            return (match(one, candidate.top(most).descriptors).similarity >= self.options.similarity).sum()

        return torch.stack(each(count, candidates)).float()
