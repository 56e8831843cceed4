"""ELViS: how many local descriptors of two images vote for each other after an optimal-transport assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, FeatureCard, Features, Reranker, given_file, register
from methods.elvis.model import HINT, Elvis, load


@register(
    "elvis",
    needs={"local"},
    card=Card(
        paper="Suma et al., ELViS, ICLR 2026",
        licence="Apache-2.0 (own implementation); weights are yours",
        trained_on="what the given weights were trained on",
    ),
)
class ElvisVotes(Reranker):
    """Score: sum of the votes of all descriptors of both images, from 0 to their number.

    An image with more descriptors has more votes: compare images of equal numbers.
    """

    @dataclass(frozen=True)
    class Options:
        weights: Path | None = None  # a .safetensors of ours, or an authors' .pt; none are shipped
        descriptors: int | None = None  # best-scored local descriptors used per image; none: as trained, else 600

        def __post_init__(self) -> None:
            if self.descriptors is not None and self.descriptors < 1:
                raise ValueError("descriptors must be at least 1")

    def skip(self, features: FeatureCard) -> str | None:
        if self.options.weights is None:
            return "no weights are shipped: give some with -o elvis.weights=FILE"
        dim = self._weights[0].config.local_dim
        if dim != features.local_dim:
            return f"{self.options.weights} reads {dim}-d descriptors, {features.name} has {features.local_dim}-d"
        return None

    def made_for(self) -> str | None:
        features = None if self.options.weights is None else self._weights[1].get("features")
        return features if isinstance(features, str) else None

    def weights(self) -> Path:
        return given_file("elvis.weights", self.options.weights, HINT)

    def card(self) -> Card:
        name = "" if self.options.weights is None else self.options.weights.name
        return replace(self.spec.card, trained_on=f"what {name} was trained on (given by the user)")

    @cached_property
    def _weights(self) -> tuple[Elvis, Mapping[str, Any]]:
        return load(self.weights())

    @cached_property
    def _descriptors(self) -> int:
        return self.options.descriptors or int(self._weights[1].get("descriptors", 600))

    def descriptors_used(self, available: int) -> int:
        return min(available, self._descriptors)

    def load(self) -> None:
        self._model = self._weights[0].to(self.device)

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        images = [image.top(self._descriptors).descriptors for image in candidates]
        scores = self._model.score(query.top(self._descriptors).descriptors, images)
        empty = torch.tensor([len(image) == 0 for image in images], device=scores.device)
        return torch.where(empty, torch.finfo(torch.float32).min, scores)
