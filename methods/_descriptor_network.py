"""What rerankers share whose network reads the local descriptors of two images, and whose weights are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, FeatureCard, Features, Reranker, Training, given_file

DESCRIPTORS = 600  # an image, where the weights do not say; as the authors of AMES and ELViS evaluate


class Network(Protocol):
    """`config.local_dim` is d, the size of a descriptor; `score` takes (n, d) of the query and (m, d) of candidates."""

    config: Any

    def score(self, query: Tensor, candidates: Sequence[Tensor]) -> Tensor: ...

    def to(self, device: torch.device) -> Network: ...


class DescriptorNetwork(Reranker):
    """Subclasses say how a file is read, and register themselves."""

    hint: ClassVar[str]  # what files are expected

    @dataclass(frozen=True)
    class Options:
        weights: Path | None = None  # a .safetensors of ours, or an authors' .pt; none are shipped
        descriptors: int | None = None  # best-scored local descriptors used per image; none: as trained, else 600

        def __post_init__(self) -> None:
            if self.descriptors is not None and self.descriptors < 1:
                raise ValueError("descriptors must be at least 1")

    @staticmethod
    def read(path: Path) -> tuple[Any, Mapping[str, Any]]:
        """The network of a file of weights, and its card. UserError."""
        raise NotImplementedError

    def skip(self, features: FeatureCard) -> str | None:
        if self.options.weights is None:
            return f"no weights are shipped: give some with -o {self.spec.name}.weights=FILE"
        dim = self.network.config.local_dim
        if dim != features.local_dim:
            return f"{self.options.weights} reads {dim}-d descriptors, {features.name} has {features.local_dim}-d"
        return None

    def made_for(self) -> str | None:
        features = None if self.options.weights is None else self._weights[1].get("features")
        return features if isinstance(features, str) else None

    def weights(self) -> Path:
        return given_file(f"{self.spec.name}.weights", self.options.weights, self.hint)

    def trained(self) -> Training | None:
        return None if self.options.weights is None else Training.of(self._weights[1])

    def card(self) -> Card:
        if self.options.weights is None:
            return self.spec.card
        return replace(
            self.spec.card, trained_on=f"what {self.options.weights.name} was trained on (given by the user)"
        )

    @cached_property
    def _weights(self) -> tuple[Network, Mapping[str, Any]]:
        return self.read(self.weights())

    @property
    def network(self) -> Network:
        return self._weights[0]

    @cached_property
    def _descriptors(self) -> int:
        return self.options.descriptors or int(self._weights[1].get("descriptors", DESCRIPTORS))

    def descriptors_used(self, available: int) -> int:
        return min(available, self._descriptors)

    def load(self) -> None:
        self._model = self.network.to(self.device)

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        images = [image.top(self._descriptors).descriptors for image in candidates]
        scores = self._model.score(query.top(self._descriptors).descriptors, images)
        empty = torch.tensor([len(image) == 0 for image in images], device=scores.device)
        return torch.where(empty, torch.finfo(torch.float32).min, scores)
