"""Control: the first stage's own order."""

from __future__ import annotations

from torch import Tensor

from bench.features import FeatureBatch, Features
from bench.registry import register
from bench.reranker import Card, Reranker


@register("identity", needs=(), card=Card(paper=None, licence="Apache-2.0"), control=True)
class Identity(Reranker):
    """Scores a candidate by its first-stage similarity, so nothing moves: the floor every reranker must beat."""

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return candidates.similarities
