"""Control: the same score for every candidate."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, register


@register("constant", needs=(), card=Card(paper=None, licence="Apache-2.0"), control=True)
class Constant(Reranker):
    """All ties: must equal `identity` exactly, because ties keep the first stage's order. Catches tie bugs."""

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return torch.zeros(len(candidates))
