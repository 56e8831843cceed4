"""Reranking with refined global descriptors (SuperGlobal, Shao et al., ICCV 2023, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, register
from methods._neighbours import cosines, nearest


def refined(descriptors: Tensor, neighbours: int, beta: float) -> Tensor:
    """(k, D) weighted means of each descriptor (weight 1) and its nearest of the list (beta times their cosine)."""
    cosine = cosines(descriptors)
    weights = (beta * cosine.clamp(min=0) * nearest(cosine, neighbours + 1)).fill_diagonal_(1)
    return weights @ descriptors / weights.sum(dim=1, keepdim=True)


@register("superglobal", needs={"global"}, card=Card(paper="Shao et al., SuperGlobal, ICCV 2023", licence="Apache-2.0"))
class SuperGlobal(Reranker):
    """Score: mean of q . x' and q' . x'; x' is the refined candidate, q' the element-wise maximum of the best x'.

    The best are those of highest q . x'. As in the authors' code, neither x' nor q' is normalised and q' is without q.
    Their pooling, which makes the first stage's descriptors, is not part of this, and their list of 400 is the
    shortlist. Unlike theirs, a negative cosine weighs 0, and images that tie with the last neighbour are neighbours
    too, so that the order of the list makes no difference.
    """

    pairwise = False

    @dataclass(frozen=True)
    class Options:
        neighbours: int = 9  # K: nearest candidates that refine one; the expanded query is of K + 1
        beta: float = 0.15  # weight of a neighbour, times its cosine

        def __post_init__(self) -> None:
            if self.neighbours < 0 or self.beta < 0:
                raise ValueError("neighbours and beta must be at least 0")

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        descriptors = refined(candidates.global_descriptors().double(), self.options.neighbours, self.options.beta)
        direct = descriptors @ query.global_descriptor.double()
        best = nearest(direct[None], self.options.neighbours + 1)[0]
        return (direct + descriptors @ descriptors[best].amax(dim=0)) / 2
