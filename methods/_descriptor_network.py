"""What rerankers share whose network reads the local descriptors of two images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, FeatureCard, Features, Reranker, Training, given_file

MADE_FOR = "xfeat"  # what the shipped weights read
DESCRIPTORS = 600  # an image, where the weights do not say; as the authors of AMES and ELViS evaluate


class Network(Protocol):
    """`config.local_dim` is d, the size of a descriptor; `score` takes (n, d) of the query and (m, d) of candidates."""

    config: Any

    def score(self, query: Tensor, candidates: Sequence[Tensor]) -> Tensor: ...

    def to(self, device: torch.device) -> Network: ...


class DescriptorNetwork(Reranker):
    """Subclasses say how a file is read and which is shipped, and register themselves."""

    hint: ClassVar[str]  # what files are expected
    shipped: ClassVar[Path | None] = None  # weights that read XFeat's descriptors; None: there are none

    @dataclass(frozen=True)
    class Options:
        weights: Path | None = None  # a .safetensors of `train`, or an authors' .pt; none: the shipped ones
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
            if self.shipped is None:
                return f"no weights are shipped: give some with -o {self.spec.name}.weights=FILE"
            if features.local != MADE_FOR:
                return (
                    f"the shipped weights read {MADE_FOR} descriptors, not {features.name}: use --features {MADE_FOR}, "
                    f"or give others with -o {self.spec.name}.weights=FILE"
                )
            if not self.shipped.is_file():
                return f"{self.shipped} is missing from this installation"
        dim = self.network.config.local_dim
        if dim != features.local_dim:
            return f"{self.weights()} reads {dim}-d descriptors, {features.name} has {features.local_dim}-d"
        return None

    def made_for(self) -> str | None:
        if self._file is None:
            return None
        features = MADE_FOR if self.options.weights is None else self._weights[1].get("features")
        return features if isinstance(features, str) else None

    @property
    def _file(self) -> Path | None:
        return self.options.weights or self.shipped

    def weights(self) -> Path:
        return given_file(f"{self.spec.name}.weights", self._file, self.hint)

    def trained(self) -> Training | None:
        return None if self._file is None else Training.of(self._weights[1])

    def card(self) -> Card:
        if self._file is None:
            return self.spec.card
        made_for = f", for {self._descriptors} descriptors an image"
        if self.options.weights is None:
            return replace(self.spec.card, trained_on=f"{self.spec.card.trained_on}{made_for}")
        name = self.options.weights.name
        return replace(self.spec.card, trained_on=f"what {name} was trained on (given by the user){made_for}")

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
