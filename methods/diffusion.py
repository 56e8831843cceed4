"""Diffusion on a graph of the candidates (Iscen et al., CVPR 2017, sections 2 and 3), within the shortlist.

The paper's graph is of the whole gallery, and its images have several regions; here it is of the candidates, with one
descriptor each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, register
from methods._neighbours import cosines, nearest, with_query


def transitions(similarity: Tensor, neighbours: int, gamma: float) -> Tensor:
    """(k, k) S = D^-1/2 A D^-1/2; A has cosine^gamma where two images are among each other's nearest, else 0."""
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    near = nearest(similarity.masked_fill(itself, -torch.inf), neighbours) & ~itself
    affinity = similarity.clamp(min=0) ** gamma * (near & near.T)
    degree = affinity.sum(dim=1)
    root = torch.where(degree > 0, degree, 1) ** -0.5  # an image without neighbours keeps its zeros
    return root[:, None] * affinity * root


@register("diffusion", needs={"global"}, card=Card(paper="Iscen et al., CVPR 2017", licence="Apache-2.0"))
class Diffusion(Reranker):
    """Score: f of (I - alpha S) f = y, where y has the cosine^gamma of the query's nearest candidates, else 0.

    At least 0, and 0 for what the query's nearest do not reach. The order of the list makes no difference.
    """

    pairwise = False

    @dataclass(frozen=True)
    class Options:
        neighbours: int = 10  # nearest candidates that one is joined to, if mutual
        seeds: int = 10  # nearest candidates of the query, which it starts from
        alpha: float = 0.99  # share that walks on at each step, in [0, 1)
        gamma: float = 3.0  # exponent of the cosines

        def __post_init__(self) -> None:
            if self.neighbours < 1 or self.seeds < 1:
                raise ValueError("neighbours and seeds must be at least 1")
            if not 0 <= self.alpha < 1 or not self.gamma > 0:
                raise ValueError("alpha must be in [0, 1) and gamma above 0")

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        similarity = cosines(with_query(query, candidates))
        start, among = similarity[0, 1:], similarity[1:, 1:]
        walk = transitions(among, self.options.neighbours, self.options.gamma)
        first = start.clamp(min=0) ** self.options.gamma * nearest(start[None], self.options.seeds)[0]
        system = torch.eye(len(among), dtype=walk.dtype, device=walk.device) - self.options.alpha * walk
        return torch.linalg.solve(system, first)
