"""Control: every positive of the shortlist first."""

from __future__ import annotations

from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, register


@register("oracle", needs={"truth"}, card=Card(paper=None, licence="Apache-2.0"), control=True)
class Oracle(Reranker):
    """Reads the ground truth: the best any reranker of this shortlist can do, in every difficulty at once."""

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        assert candidates.positives is not None  # the harness gives them to whoever declares `truth`
        return candidates.positives.float()
