"""Aggregated selective match kernel (Tolias, Avrithis, Jegou, ICCV 2013; IJCV 2016; HOW, ECCV 2020).

The selectivity, the binary variant and the normalisation are those of the authors' package `asmk` (MIT), with whose
scores these agree; its inverted file and its inverse document frequency (off by default there) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.reranker import Card, Explanation, FeatureBatch, FeatureCard, Features, Reranker, given_file, register
from methods.asmk.codebook import Codebook

SHIPPED = Path(__file__).with_name("codebook.safetensors")
COMPARED = 128  # descriptors compared with all words together: their products stay near the processor
TRAIN = "train asmk --recipe kmeans {} --out FILE.safetensors"


@dataclass(frozen=True, eq=False)
class Aggregates:
    """One vector for each of the w visual words that an image has."""

    words: Tensor  # (w,) long or int, ascending, no word twice
    vectors: Tensor  # (w, d) unit norm; zero where a word's residuals cancel out


def aggregate(descriptors: Tensor, centroids: Tensor, assignments: int = 1, binary: bool = False) -> Aggregates:
    """Sums of the residuals of (n, d) descriptors to the words they fall into, as unit vectors.

    A descriptor falls into the `assignments` nearest of the (words, d) centroids. `binary` keeps signs alone, of which
    an exact zero counts as negative: the product of two such vectors is 1 - 2 times the share of differing signs.
    """
    nearest = nearest_words(descriptors, centroids, assignments)
    words, word_of = nearest.flatten().unique(return_inverse=True)
    residuals = (descriptors[:, None] - centroids[nearest]).flatten(0, 1)
    # a product with the membership matrix: on a GPU, index_add sums in no fixed order
    members = word_of == torch.arange(len(words), device=word_of.device)[:, None]
    sums = members.to(residuals) @ residuals
    if binary:
        return Aggregates(words, torch.where(sums > 0, 1.0, -1.0) / sums.shape[1] ** 0.5)
    return Aggregates(words, F.normalize(sums, dim=1))


def nearest_words(descriptors: Tensor, centroids: Tensor, assignments: int) -> Tensor:
    """(n, assignments) the nearest of the (words, d) centroids of (n, d) descriptors, nearest first."""
    bias = -centroids.square().sum(dim=1) / 2
    if assignments == 1 and descriptors.device.type == "cpu":  # numpy finds the greatest of a row faster than torch
        closeness = (F.linear(some, centroids, bias).numpy(force=True) for some in descriptors.split(COMPARED))
        return torch.from_numpy(np.concatenate([rows.argmax(axis=1) for rows in closeness]))[:, None]
    return F.linear(descriptors, centroids, bias).topk(assignments, dim=1).indices


def similarity(query: Aggregates, candidate: Aggregates, alpha: float, threshold: float) -> Tensor:
    """() Sum of u^alpha over the common words whose u, the cosine of their vectors, is at least `threshold`.

    Divided by the root of both images' similarity to themselves, which is their number of words (gamma in the paper).
    """
    if not len(query.words) or not len(candidate.words):
        return query.vectors.new_zeros(())
    _, cosine = _common(query, candidate)
    kept = cosine[cosine >= threshold].clamp(min=0)
    return kept.pow(alpha).sum() / (len(query.words) * len(candidate.words)) ** 0.5


def _common(query: Aggregates, candidate: Aggregates) -> tuple[Tensor, Tensor]:
    """(c,) the words that both images have, which is at least one each, and (c,) the cosine of their vectors."""
    place = torch.searchsorted(candidate.words, query.words).clamp(max=len(candidate.words) - 1)
    common = candidate.words[place] == query.words
    return query.words[common], (query.vectors[common] * candidate.vectors[place[common]]).sum(dim=1)


@register(
    "asmk",
    needs={"local"},
    card=Card(
        paper="Tolias, Avrithis, Jegou, ICCV 2013; Tolias, Jenicek, Chum, ECCV 2020",
        licence="Apache-2.0 (own implementation and codebook)",
        trained_on="k-means of 1,200 photographs, see methods/asmk/CARD.md",
    ),
)
class Asmk(Reranker):
    """Score: the kernel, from 0 to about 1 (more with several assignments); 0 without local descriptors.

    Of a gallery image the aggregates are kept, and no query makes them again.
    """

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 500  # best-scored local descriptors used per image
        codebook: Path = SHIPPED  # a .safetensors of `train asmk`
        alpha: float = 3.0  # exponent of the selectivity
        threshold: float = 0.0  # least cosine of two aggregates that counts
        assignments: int = 1  # words that a query descriptor falls into; a candidate's has one (HOW: 5 and 1)
        binary: bool = False  # keep only the signs of aggregates (ASMK*)

        def __post_init__(self) -> None:
            if self.descriptors < 1 or self.assignments < 1:
                raise ValueError("descriptors and assignments must be at least 1")
            if not self.alpha > 0 or not 0 <= self.threshold < 1:
                raise ValueError("alpha must be above 0 and threshold in [0, 1)")

    def skip(self, features: FeatureCard) -> str | None:
        if self.options.codebook == SHIPPED and not SHIPPED.is_file():
            return f"{SHIPPED} is missing from this installation"
        found = self._codebook
        if (found.features, found.centroids.shape[1]) != (features.local_key, features.local_dim):
            source = (
                "--store STORE"
                if features.imported
                else f"--photos PHOTOS --features {features.local}{':WEIGHTS' * bool(features.weights)}"
            )
            return (
                f"the codebook {self.options.codebook.name} is of {found.centroids.shape[1]}-d {found.features} "
                f"descriptors, not of {features.local_dim}-d {features.local_key}: make one with "
                f"`{TRAIN.format(source)}` and give it with -o asmk.codebook=FILE.safetensors"
            )
        if self.options.assignments > len(found.centroids):
            return f"-o asmk.assignments={self.options.assignments}: the codebook has {len(found.centroids)} words"
        return None

    def made_for(self) -> str | None:
        return self._codebook.features

    def weights(self) -> Path:
        return given_file("asmk.codebook", self.options.codebook, TRAIN.format("--photos PHOTOS"))

    def card(self) -> Card:
        if self.options.codebook == SHIPPED:
            return self.spec.card
        return replace(self.spec.card, trained_on=f"{self._codebook.trained_on} (codebook given by the user)")

    @cached_property
    def _codebook(self) -> Codebook:
        return Codebook.load(self.weights())

    def load(self) -> None:
        self._centroids = self._codebook.centroids.to(self.device)

    def index(self, image: Features) -> Mapping[str, Tensor]:
        found = self._aggregate(image, 1)
        return {"words": found.words.int(), "vectors": found.vectors}

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        options = self.options
        one = self._aggregate(query, options.assignments)
        index = map(self.index, candidates) if candidates.index is None else candidates.index
        kept = (Aggregates(image["words"], image["vectors"]) for image in index)
        return torch.stack([similarity(one, image, options.alpha, options.threshold) for image in kept])

    def _aggregate(self, image: Features, assignments: int) -> Aggregates:
        best = image.top(self.options.descriptors).descriptors
        return aggregate(best, self._centroids, assignments, self.options.binary)

    def explain(self, query: Features, candidate: Features) -> Explanation | None:
        """For each common word that counts, the two descriptors in it whose residuals are most alike."""
        options, assignments = self.options, (self.options.assignments, 1)
        best = [image.top(options.descriptors).descriptors for image in (query, candidate)]
        one, other = (self._aggregate(image, n) for image, n in zip((query, candidate), assignments, strict=True))
        if not len(one.words) or not len(other.words):
            return None
        words, cosine = _common(one, other)
        kept = (cosine >= options.threshold) & (cosine > 0)
        adds = cosine[kept].pow(options.alpha) / (len(one.words) * len(other.words)) ** 0.5
        words_of = [nearest_words(of, self._centroids, n) for of, n in zip(best, assignments, strict=True)]
        pairs = [self._alike(best, words_of, word) for word in words[kept].tolist()]
        rows = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
        return Explanation(rows[:, 0], rows[:, 1], adds.cpu(), what="common words")

    def _alike(self, descriptors: list[Tensor], words_of: list[Tensor], word: int) -> tuple[int, int]:
        """A row of either image in this word."""
        rows = [(words == word).any(dim=1).nonzero()[:, 0] for words in words_of]
        one, other = (
            F.normalize(of[at] - self._centroids[word], dim=1) for of, at in zip(descriptors, rows, strict=True)
        )
        place = int((one @ other.T).argmax())
        return int(rows[0][place // len(other)]), int(rows[1][place % len(other)])
