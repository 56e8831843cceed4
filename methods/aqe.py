"""Average query expansion: Chum et al., ICCV 2007; weighted by similarity: Radenovic, Tolias, Chum, TPAMI 2018."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from bench.reranker import Card, FeatureBatch, Features, Reranker, register


@register(
    "aqe",
    needs={"global"},
    card=Card(paper="Chum et al., ICCV 2007; Radenovic, Tolias, Chum, TPAMI 2018", licence="Apache-2.0"),
)
class AverageQueryExpansion(Reranker):
    """Score: cosine with the expanded query, the unit sum of q and cos(q, x)^alpha x over the first n candidates x.

    The papers search the whole gallery again; here the shortlist alone is scored. Which candidates are first is the
    first stage's order; the weights come from the descriptors given, which `--whiten` leaves unwhitened. A negative
    cosine counts as 0.
    """

    pairwise = False

    @dataclass(frozen=True)
    class Options:
        n: int = 10  # first candidates that expand the query
        alpha: float = 3.0  # exponent of their weights; 0: all weigh as much as the query

        def __post_init__(self) -> None:
            if self.n < 1 or self.alpha < 0:
                raise ValueError("n must be at least 1 and alpha at least 0")

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        descriptors = candidates.global_descriptors()
        first = descriptors[: self.options.n]
        weights = (first @ query.global_descriptor).clamp(min=0) ** self.options.alpha
        return descriptors @ F.normalize(query.global_descriptor + weights @ first, dim=0)
