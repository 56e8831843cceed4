"""Late interaction of two sets of local descriptors (ColBERT, Khattab and Zaharia, SIGIR 2020, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.reranker import Card, Explanation, FeatureBatch, Features, Reranker, register

# (n, m) cosines of query and candidate descriptors -> () similarity
MEANS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "query": lambda cosine: cosine.amax(dim=1).mean(),
    "both": lambda cosine: (cosine.amax(dim=1).mean() + cosine.amax(dim=0).mean()) / 2,
}


@register("maxsim", needs={"local"}, card=Card(paper="Khattab and Zaharia, ColBERT, SIGIR 2020", licence="Apache-2.0"))
class MaxSim(Reranker):
    """Score: mean best cosine of each query descriptor over the candidate's, from -1 to 1.

    ColBERT takes their sum, which sorts alike. An image without local descriptors scores -1.
    """

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 500  # best-scored local descriptors used per image
        direction: Literal["query", "both"] = "query"  # both: the mean with the same in the other direction

        def __post_init__(self) -> None:
            if self.descriptors < 1:
                raise ValueError("descriptors must be at least 1")

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        one, mean = query.top(self.options.descriptors).descriptors, MEANS[self.options.direction]
        scores = one.new_full((len(candidates),), -1.0)
        for i, image in enumerate(candidates):
            if len(one) and len(image):
                scores[i] = mean(one @ image.top(self.options.descriptors).descriptors.T).clamp(min=-1)
        return scores

    def explain(self, query: Features, candidate: Features) -> Explanation | None:
        """Each descriptor with its nearest one; of both directions, the query's descriptors first."""
        one, other = (image.top(self.options.descriptors).descriptors for image in (query, candidate))
        if not len(one) or not len(other):
            return None
        cosine = one @ other.T
        best, nearest = cosine.max(dim=1)
        rows, columns, adds = torch.arange(len(one), device=one.device), nearest, best / len(one)
        if self.options.direction == "both":
            back, row_of = cosine.max(dim=0)
            rows = torch.cat([rows, row_of])
            columns = torch.cat([columns, torch.arange(len(other), device=one.device)])
            adds = torch.cat([adds, back / len(other)]) / 2
        return Explanation(rows.cpu(), columns.cpu(), adds.cpu(), what="nearest neighbours")
