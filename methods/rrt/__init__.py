"""Reranking Transformer: one small transformer reads both images' descriptors and says whether they match."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import UserError
from bench.features import FeatureBatch, Features
from bench.features.extractors import FeatureCard
from bench.registry import register
from bench.reranker import Card, Reranker
from methods.rrt.model import RRT, SINGLE_SCALE, Tokens, load_checkpoint

SHIPPED = Path(__file__).with_name("weights.safetensors")
RELEASED_SCALE_ONE = 2  # the row that the released checkpoints read for image scale 1 (FACTS section 6)


@register(
    "rrt",
    needs={"global", "local"},
    card=Card(
        paper="Tan, Yuan, Ordonez, ICCV 2021 (Google Landmarks architecture)",
        licence="Apache-2.0 (own implementation and weights)",
        trained_on="warped photographs and generated buildings of other seeds, see methods/rrt/CARD.md",
    ),
)
class RerankingTransformer(Reranker):
    """Score: the logit of (query, candidate); an image without local descriptors scores below every other."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 100  # best-scored local descriptors used per image
        weights: Path = SHIPPED  # a .safetensors of `train rrt`, or a released .pt

        def __post_init__(self) -> None:
            if self.descriptors < 1:
                raise ValueError("descriptors must be at least 1")

    def skip(self, features: FeatureCard) -> str | None:
        if self.options.weights == SHIPPED and features.name != "xfeat":
            return (
                f"the shipped weights read XFeat descriptors, not {features.name}: use --features xfeat, or give "
                "others with -o rrt.weights=FILE"
            )
        if self.options.weights == SHIPPED and not SHIPPED.is_file():
            return f"{SHIPPED} is missing from this installation"
        config = load_checkpoint(self.weights()).config
        if (config.local_dim, config.global_dim) != (features.local_dim, features.global_dim):
            return (
                f"{self.options.weights} reads {config.local_dim}-d local and {config.global_dim}-d global "
                f"descriptors, {features.name} has {features.local_dim}-d and {features.global_dim}-d"
            )
        return None

    def weights(self) -> Path:
        if not self.options.weights.is_file():
            raise UserError(
                f"-o rrt.weights={self.options.weights}: no such file",
                hint="a .safetensors written by `train rrt`, or a released RRT .pt",
            )
        return self.options.weights

    def card(self) -> Card:
        if self.options.weights == SHIPPED:
            return self.spec.card
        return replace(
            self.spec.card, trained_on=f"what {self.options.weights.name} was trained on (given by the user)"
        )

    def load(self) -> None:
        self._model: RRT = load_checkpoint(self.options.weights).to(self.device)

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        pairs = [self._tokens(image) for image in candidates]
        scores = self._model.score(self._tokens(query), pairs)
        empty = torch.tensor([len(pair.local) == 0 for pair in pairs], device=scores.device)
        return torch.where(empty, torch.finfo(torch.float32).min, scores)

    def _tokens(self, image: Features) -> Tokens:
        image = image.top(self.options.descriptors)
        row = SINGLE_SCALE if self._model.card else RELEASED_SCALE_ONE
        ids = torch.full((len(image),), row, dtype=torch.long, device=image.descriptors.device)
        return Tokens(image.descriptors, ids, image.global_descriptor)
