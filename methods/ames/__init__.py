"""AMES: a transformer reads the local descriptors of both images, without places, and says whether they match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, FeatureCard, Features, Reranker, given_file, register
from methods.ames.model import HINT, Ames, load


@register(
    "ames",
    needs={"local"},
    card=Card(
        paper="Suma et al., AMES, ECCV 2024",
        licence="Apache-2.0 (own implementation); weights are yours",
        trained_on="what the given weights were trained on",
    ),
)
class AsymmetricSimilarity(Reranker):
    """Score: the logit of (query, candidate); an image without local descriptors scores below every other."""

    @dataclass(frozen=True)
    class Options:
        weights: Path | None = None  # a .safetensors of ours, or an authors' .pt; none are shipped
        descriptors: int | None = None  # best-scored local descriptors used per image; none: as trained, else 600

        def __post_init__(self) -> None:
            if self.descriptors is not None and self.descriptors < 1:
                raise ValueError("descriptors must be at least 1")

    def skip(self, features: FeatureCard) -> str | None:
        if self.options.weights is None:
            return "no weights are shipped: give some with -o ames.weights=FILE"
        dim = self._weights[0].config.local_dim
        if dim != features.local_dim:
            return f"{self.options.weights} reads {dim}-d descriptors, {features.name} has {features.local_dim}-d"
        return None

    def made_for(self) -> str | None:
        features = None if self.options.weights is None else self._weights[1].get("features")
        return features if isinstance(features, str) else None

    def weights(self) -> Path:
        return given_file("ames.weights", self.options.weights, HINT)

    def card(self) -> Card:
        name = "" if self.options.weights is None else self.options.weights.name
        kind = "binary" if self.options.weights is not None and self._weights[0].config.binary else "full-precision"
        return replace(self.spec.card, trained_on=f"what {name} was trained on (given by the user, {kind})")

    @cached_property
    def _weights(self) -> tuple[Ames, Mapping[str, Any]]:
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
