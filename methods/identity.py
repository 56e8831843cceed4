"""Control: the first stage's own order."""

from __future__ import annotations

from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, register


@register("identity", needs=(), card=Card(paper=None, licence="Apache-2.0"), control=True)
class Identity(Reranker):
    """Scores a candidate by its first-stage similarity, so nothing moves: the floor every reranker must beat."""

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return candidates.similarities
