"""Multidimensional scaling of pairwise scores (Aiger et al., ICCV Workshops 2025, arXiv 2509.04351, and ours).

The paper embeds the similarities of a search by local features and reranks by the embedding. Its abstract is all that
was at hand. Ours are: the method whose scores are embedded, the distance, classical scaling (Torgerson, Psychometrika
1952), what is embedded, and the order by cosine. So its numbers are not those of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench import registry
from bench.cascade import Stage
from bench.errors import UserError
from bench.reranker import Card, FeatureBatch, FeatureCard, Features, Reranker, Scored, parse_options, register
from methods._neighbours import DECIMALS

TINY = 1e-9  # share of the largest eigenvalue below which one is rounding


def distances(similarity: Tensor) -> Tensor:
    """(n, n) distances from 0, of the most similar two images, to 1, of the least; 0 between an image and itself.

    1 - sqrt((s - least) / (most - least)) of symmetric (n, n) similarities s of any scale, whose diagonal is not read.
    The root keeps one pair of hundreds of matches from making all others equally far. Equal similarities give 1.
    """
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    pairs = similarity[~itself]
    least, most = pairs.min(), pairs.max()
    share = (similarity.clamp(min=least) - least) / torch.where(most > least, most - least, 1)
    return (1 - share.sqrt()).masked_fill(itself, 0)


def embedded(distance: Tensor, dims: int) -> Tensor:
    """(n, m) float64 coordinates around their mean whose distances come near the (n, n) given ones.

    Those of the `dims` largest eigenvalues, and of all that are as large as the last of them, since no order of these
    is better than another. Fewer where fewer are above zero: distances of no Euclidean space lose what does not fit.
    """
    squared = distance.double() ** 2
    centred = squared - squared.mean(dim=0) - squared.mean(dim=1, keepdim=True) + squared.mean()
    values, vectors = torch.linalg.eigh(-centred / 2)
    enough = values[-min(dims, len(values))] - TINY * values[-1]
    kept = (values >= enough) & (values > TINY * values[-1])
    return vectors[:, kept] * values[kept].sqrt()


def cosines_with_first(points: Tensor) -> Tensor:
    """(n - 1,) cosines of the first of (n, m) points and the others; 0 for a point in the mean of all."""
    norms = points.norm(dim=1)
    units = points / norms.clamp(min=TINY**0.5 * norms.max().clamp(min=TINY))[:, None]
    return units[1:] @ units[0]


@register(
    "mds", needs=(), card=Card(paper="after Aiger et al., ICCVW 2025; details are this project's", licence="Apache-2.0")
)
class MultidimensionalScaling(Reranker):
    """Score: cosine with the query where the nearest candidates' scores among each other are embedded, from -1 to 1.

    `inner` scores the k candidates, and the n nearest among each other: k + n (n - 1) / 2 pairs, where the method alone
    scores k. It is given the nearer of two images as the query. Of equal scores that of the higher first-stage
    similarity is nearer, so the order of the list makes no difference. All others are below -1, as `inner` orders them.
    """

    pairwise = False

    @dataclass(frozen=True)
    class Options:
        inner: str = "mnn"  # METHOD[:OPTION=VALUE]…, which scores pairs
        neighbours: int = 50  # n: nearest candidates that are embedded
        dims: int = 32  # of the embedding, at most
        by: Literal["cosine", "distance"] = "cosine"  # distance: score minus the Euclidean distance to the query

        def __post_init__(self) -> None:
            if self.neighbours < 1 or self.dims < 1:
                raise ValueError("neighbours and dims must be at least 1")
            stage = Stage.parse(self.inner)
            if stage.first is not None:
                raise ValueError(f"inner={self.inner} says how many candidates, which neighbours does")
            if stage.features is not None:
                raise ValueError(f"inner={self.inner} names features; give them to the row: mds@{stage.features}")

    def __init__(self, options: Any = None, device: torch.device | str = "cpu"):
        super().__init__(options, device)
        stage = Stage.parse(self.options.inner)
        cls = registry.get(stage.method)
        if cls.spec.control or not cls.pairwise:
            why = "is a control" if cls.spec.control else "scores whole lists"
            raise UserError(
                f"-o mds.inner={self.options.inner}: {stage.method} {why}",
                hint="take a method that scores pairs of images, such as mnn",
            )
        self._inner = cls(parse_options(cls, dict(stage.options)), device)

    def parts(self) -> Sequence[Reranker]:
        return [self._inner]

    def needs(self) -> frozenset[str]:
        return self._inner.needs()

    def skip(self, features: FeatureCard) -> str | None:
        return self._inner.skip(features)

    def bind(self, features: FeatureCard) -> None:
        self._inner.bind(features)

    def card(self) -> Card:
        inner = self._inner.card()
        trained = inner.trained_on and f"{self._inner.spec.name}: {inner.trained_on}"
        return Card(self.spec.card.paper, inner.licence, trained, inner.noncommercial)

    def load(self) -> None:
        self._inner.load()

    def descriptors_used(self, available: int) -> int:
        return self._inner.descriptors_used(available)

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return self.score_parts([(query, candidates)])

    def score_parts(self, inputs: Sequence[tuple[Features, FeatureBatch]]) -> Tensor:
        ((query, candidates),) = inputs
        direct = self._scores(query, candidates.images, candidates.similarities)
        near = self._nearest(query, candidates, direct)
        if not len(near):
            return direct
        points = embedded(distances(self._among(query, candidates, direct, near)), self.options.dims)
        found = self._order(points).round(decimals=DECIMALS)
        below = direct[near].min() - direct  # of those not near, at least 0
        scores = min(-1.0, float(found.min())) - 1 - below.clamp(min=0)
        scores[near] = found
        return scores

    def _order(self, points: Tensor) -> Tensor:
        if self.options.by == "cosine":
            return cosines_with_first(points).cpu()
        return -(points[1:] - points[0]).norm(dim=1).cpu()

    def _nearest(self, query: Features, candidates: FeatureBatch, direct: Tensor) -> Tensor:
        """(n,) positions, best first; none of an image without the descriptors that are read, which no pair places."""
        local = "local" in self.needs()
        if local and not len(query):
            return torch.zeros(0, dtype=torch.long)
        order = np.lexsort((-candidates.similarities.cpu().numpy(), -direct.numpy()))
        placed = [i for i in order if len(candidates.images[i]) or not local]
        return torch.tensor(placed[: self.options.neighbours], dtype=torch.long)

    def _among(self, query: Features, candidates: FeatureBatch, direct: Tensor, near: Tensor) -> Tensor:
        """(1 + n, 1 + n) symmetric scores of the query, which is first, and the nearest candidates; 0 with themselves.

        A pair is scored once: a method whose scores have a direction is given the nearer image as the query.
        """
        images = [candidates.images[i] for i in near.tolist()]
        above = torch.zeros((1 + len(images), 1 + len(images)), dtype=torch.float64)
        above[0, 1:] = direct[near]
        for row, image in enumerate(images[:-1], 1):
            above[row, row + 1 :] = self._scores(
                image, images[row:], candidates.similarities.new_zeros(len(images) - row)
            )
        return above + above.T

    def _scores(self, query: Features, images: Sequence[Features], similarities: Tensor) -> Tensor:
        """(k,) float64 on the CPU. ValueError for a score that is not finite."""
        found = self._inner.score(query, FeatureBatch(tuple(images), similarities))
        scores = (found.scores if isinstance(found, Scored) else found).detach().double().cpu()
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(f"{self._inner.spec.name} gave a score that is not finite")
        return scores
