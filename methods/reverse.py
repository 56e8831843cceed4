"""Control: the first stage's order, backwards."""

from __future__ import annotations

from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, register


@register("reverse", needs=(), card=Card(paper=None, licence="Apache-2.0"), control=True)
class Reverse(Reranker):
    """Puts the least similar candidate first: how much the order of the shortlist is worth at all."""

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return -candidates.similarities
