"""Mutual nearest neighbours, counted: what spatial verification starts from, without the geometry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.reranker import Card, Explanation, FeatureBatch, FeatureCard, Features, Reranker, register
from methods._matching import Matches, match
from methods._parallel import each

XFEAT = 0.82  # that of XFeat's own matcher, and of sets of which no other is known
# least cosine by local descriptors: the best mAP Medium on the demo (docs/measurements.md, Least cosines)
LEAST: Mapping[str, float] = {"xfeat": XFEAT, "sift": 0.92, "aliked": 0.6, "disk": 0.6}
TOGETHER = 4  # candidates whose products one thread writes to the same memory


def mutual_counts(query: Tensor, candidates: Sequence[Tensor], least: float) -> Iterator[int]:
    """For each candidate, how many of the mutual matches that `match` finds have a cosine of at least `least`.

    Descriptors are (n, d) of the query and (m, d) of a candidate, unit norm, on the CPU. A nearest neighbour that is
    similar enough is in a row whose best is: only those rows, a few of hundreds as a rule, are looked at again.
    """
    query = query.float()
    memory = query.new_empty(len(query) * max(map(len, candidates), default=0))  # new memory costs as much as a pass
    for candidate in candidates:
        if not len(query) or not len(candidate):
            yield 0
            continue
        cosines = memory[: len(query) * len(candidate)].view(len(query), len(candidate))
        values = torch.mm(query, candidate.float().T, out=cosines).numpy()
        best = values.max(axis=1)
        enough = np.flatnonzero(best >= np.float32(least))
        rows = values[enough]
        nearest = rows.argmax(axis=1)
        mutual = best[enough] == rows.max(axis=0, initial=-np.inf)[nearest]
        yield len(np.unique(nearest[mutual]))  # equally similar descriptors of the query share their one match


@register(
    "mnn",
    needs={"local"},
    card=Card(
        paper="least cosines: XFeat's is that of its matcher, Potje et al., CVPR 2024; others chosen on the demo",
        licence="Apache-2.0",
    ),
)
class MutualNearestNeighbours(Reranker):
    """Score: number of pairs that are each other's most similar descriptor, and similar enough."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 500  # best-scored local descriptors used per image
        similarity: float | None = None  # least cosine of a match; none: what suits the feature set

        def __post_init__(self) -> None:
            if self.descriptors < 1 or not -1 <= (self.similarity or 0) <= 1:
                raise ValueError("descriptors must be at least 1 and similarity in [-1, 1]")

    _least = XFEAT  # of the descriptors that it reads; `bind` says which

    def bind(self, features: FeatureCard) -> None:
        self._least = LEAST.get(features.local, XFEAT)

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        one, *images = (image.top(self.options.descriptors).descriptors for image in (query, *candidates))
        if one.device.type != "cpu":
            return torch.stack([self._enough(match(one, image)).sum() for image in images]).float()
        groups = [images[start : start + TOGETHER] for start in range(0, len(images), TOGETHER)]
        counts = each(lambda group: list(mutual_counts(one, group, self._similarity)), groups)
        return torch.tensor([count for group in counts for count in group], dtype=torch.float32)

    @property
    def _similarity(self) -> float:
        return self._least if self.options.similarity is None else self.options.similarity

    def _enough(self, found: Matches) -> Tensor:
        """(m,) bool, which matches are similar enough."""
        return found.similarity >= self._similarity

    def explain(self, query: Features, candidate: Features) -> Explanation:
        one, other = (image.top(self.options.descriptors).descriptors for image in (query, candidate))
        found = match(one, other)
        return Explanation.counted(torch.stack([found.query, found.candidate], dim=1)[self._enough(found)])
