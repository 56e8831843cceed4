"""k-reciprocal encoding (Zhong et al., CVPR 2017), over the query and its candidates alone.

Written from the paper's equations. What they leave open is as in the authors' code: distances are squared Euclidean,
divided by the largest of their row, and an image is the first of its own neighbours. Unlike that code, and as in the
paper, the encoding is not divided by its sum and a set joins when it shares two thirds of its members or more. The
paper's neighbours come from the whole gallery; here they come from the list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, register
from methods._neighbours import cosines, nearest, with_query


def reciprocal(similarity: Tensor, k: int) -> Tensor:
    """(n, n) bool: R(p, k), the pairs within each other's k nearest; itself is always one more (equation 2)."""
    near = nearest(similarity, k + 1)
    return near & near.T


def encode(similarity: Tensor, distance: Tensor, k1: int, k2: int) -> Tensor:
    """(n, n) the vectors V (equation 7) of the expanded sets R* (equation 3), averaged over k2 neighbours (11)."""
    near, half = reciprocal(similarity, k1), reciprocal(similarity, k1 // 2).double()
    shared = near.double() @ half
    joins = near & (3 * shared >= 2 * half.sum(dim=1))
    expanded = near | (joins.double() @ half > 0)
    vectors = torch.exp(-distance) * expanded
    averaged = nearest(similarity, k2).double()
    return averaged @ vectors / averaged.sum(dim=1, keepdim=True)


@register("k-reciprocal", needs={"global"}, card=Card(paper="Zhong et al., CVPR 2017", licence="Apache-2.0"))
class KReciprocal(Reranker):
    """Score: minus the distance, lambda times the original one and 1 - lambda times the Jaccard distance (equation 12).

    The order of the list makes no difference. A zero descriptor (an unreadable image) has cosine 0 with all others.
    """

    pairwise = False

    @dataclass(frozen=True)
    class Options:
        k1: int = 20  # neighbours of a reciprocal set
        k2: int = 6  # images, itself among them, that an encoding is averaged over; 1: no averaging
        original: float = 0.3  # lambda, weight of the original distance, from 0 to 1

        def __post_init__(self) -> None:
            if self.k1 < 1 or self.k2 < 1 or not 0 <= self.original <= 1:
                raise ValueError("k1 and k2 must be at least 1 and original in [0, 1]")

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        similarity = cosines(with_query(query, candidates))
        distance = (2 - 2 * similarity).clamp(min=0)
        distance = distance / distance.amax(dim=1, keepdim=True).clamp(min=1e-9)
        vectors = encode(similarity, distance, self.options.k1, self.options.k2)
        common = torch.minimum(vectors[0], vectors[1:]).sum(dim=1)
        either = torch.maximum(vectors[0], vectors[1:]).sum(dim=1)
        return -(self.options.original * distance[0, 1:] + (1 - self.options.original) * (1 - common / either))
