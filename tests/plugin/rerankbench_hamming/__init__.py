"""A reranker in a package of its own: what a third party writes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, register


@register("hamming", needs={"local"}, card=Card(paper=None, licence="MIT"))
class Hamming(Reranker):
    """Mean over the query's descriptors of the most signs that a descriptor of the candidate shares with it."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 100  # best-scored local descriptors used per image

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        signs = query.top(self.options.descriptors).descriptors.sign()
        scores = torch.full((len(candidates),), -float(query.descriptors.shape[1]))
        for i, image in enumerate(candidates):
            if len(signs) and len(image):
                others = image.top(self.options.descriptors).descriptors.sign()
                scores[i] = (signs @ others.T).amax(dim=1).mean()
        return scores
