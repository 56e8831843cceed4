"""Reranking Transformer: one small transformer reads both images' descriptors and says whether they match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, FeatureCard, Features, Reranker, Saliency, Training, given_file, register
from methods.rrt.engine import Precision
from methods.rrt.model import RRT, SCALES, SINGLE_SCALE, RRTConfig, Tokens, load_checkpoint

SHIPPED = Path(__file__).with_name("weights.safetensors")
MADE_FOR = ("xfeat", "gem-lite0")  # local and global descriptors that the shipped weights read
# What a released .pt was made for, which it does not say itself; weights of `train rrt` say it in their card.
RELEASED: Mapping[str, Any] = {"descriptors": 500, "scale_ids": "released"}
# Row of the scale embedding for DELG's scales 0.5, 0.7071, 1, 1.4142, 2, 2.8284 and 4. The code that trained the
# released checkpoints compared float32 scales with float64 limits a hair above them, so that three of seven fell into
# the bin below and rows 1, 3 and 5 never trained (docs/protocols.md, Training); `fixed` is what was meant.
SCALE_IDS: Mapping[str, tuple[int, ...]] = {"released": (0, 0, 2, 2, 4, 4, 6), "fixed": tuple(range(SCALES))}


def scale_ids(scales: Tensor, how: str) -> Tensor:
    """(n,) int64 ids of the DELG scales (n,): of the nominal scale that is nearest in log scale, whatever the last bit.

    >>> scale_ids(torch.tensor([0.5, 0.70710677, 1, 1.4142135, 2, 2.828427, 4]), "released").tolist()
    [0, 0, 2, 2, 4, 4, 6]
    """
    nearest = (2 * torch.log2(scales) + 2).round().clamp(0, SCALES - 1).long()
    return torch.tensor(SCALE_IDS[how], device=scales.device)[nearest]


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
        descriptors: int | None = None  # best-scored local descriptors used per image; none: what the weights are for
        weights: Path = SHIPPED  # a .safetensors of `train rrt`, or a released .pt
        scale_ids: Literal["released", "fixed"] | None = None  # of DELG's scales; none: what the weights are for
        precision: Precision = "fp32"  # of the matrix products; tf32 (CUDA) and bf16 may change ranks

        def __post_init__(self) -> None:
            if self.descriptors is not None and self.descriptors < 1:
                raise ValueError("descriptors must be at least 1")

    def skip(self, features: FeatureCard) -> str | None:
        if self.options.weights == SHIPPED and (features.local, features.global_) != MADE_FOR:
            return (
                f"the shipped weights read {' and '.join(MADE_FOR)} descriptors, not {features.name}: use "
                "--features xfeat, or give others with -o rrt.weights=FILE"
            )
        if self.options.weights == SHIPPED and not SHIPPED.is_file():
            return f"{SHIPPED} is missing from this installation"
        config, made_for = self._weights_card
        if (config.local_dim, config.global_dim) != (features.local_dim, features.global_dim):
            return (
                f"{self.options.weights} reads {config.local_dim}-d local and {config.global_dim}-d global "
                f"descriptors, {features.name} has {features.local_dim}-d and {features.global_dim}-d"
            )
        if self.options.precision == "tf32" and self.device.type != "cuda":
            return f"-o rrt.precision=tf32 is of CUDA devices, not of {self.device.type}: use fp32 or bf16"
        if self.options.scale_ids and "scale_ids" not in made_for:
            return f"{self.options.weights} was trained without scales: leave out -o rrt.scale_ids"
        return None

    def made_for(self) -> str | None:
        if self.options.weights == SHIPPED:
            return "+".join(MADE_FOR)
        features = self._weights_card[1].get("features")
        return features if isinstance(features, str) else None

    def weights(self) -> Path:
        return given_file("rrt.weights", self.options.weights, "a .safetensors of `train rrt`, or a released RRT .pt")

    def trained(self) -> Training | None:
        return Training.of(self._weights_card[1])

    def card(self) -> Card:
        made_for = f", for {self._weights_card[1].get('descriptors', RELEASED['descriptors'])} descriptors an image"
        if self.options.weights == SHIPPED:
            return replace(self.spec.card, trained_on=f"{self.spec.card.trained_on}{made_for}")
        name = self.options.weights.name
        epoch = "" if name.endswith(".safetensors") else "; the epoch of the released ones was chosen on ROxford itself"
        return replace(self.spec.card, trained_on=f"what {name} was trained on (given by the user{epoch}){made_for}")

    @cached_property
    def _weights_card(self) -> tuple[RRTConfig, Mapping[str, Any]]:
        """The sizes of the weights, and what they were made for."""
        model = load_checkpoint(self.weights())
        return model.config, model.card or RELEASED

    @cached_property
    def _descriptors(self) -> int:
        return self.options.descriptors or int(self._weights_card[1].get("descriptors", RELEASED["descriptors"]))

    def descriptors_used(self, available: int) -> int:
        return min(available, self._descriptors)

    def load(self) -> None:
        self._model: RRT = load_checkpoint(self.options.weights).to(self.device)

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        pairs = [self._tokens(image) for image in candidates]
        scores = self._model.score(self._tokens(query), pairs, precision=self.options.precision)
        empty = torch.tensor([len(pair.local) == 0 for pair in pairs], device=scores.device)
        return torch.where(empty, torch.finfo(torch.float32).min, scores)

    @torch.inference_mode()
    def explain(self, query: Features, candidate: Features) -> Saliency | None:
        """The last layer's attention of CLS. None for a candidate without local descriptors: no network scores it."""
        one, other = self._tokens(query), self._tokens(candidate)
        if not len(other.local):
            return None
        sizes = [1, 1, len(one.local), 1, 1, len(other.local)]
        cls, source, first, sep, target, second = self._model.attention(one, other).cpu().split(sizes)
        others = {"CLS": cls, "SEP": sep, "the query's global": source, "the candidate's global": target}
        elsewhere = {name: float(weight) for name, weight in others.items()}
        return Saliency(first, second, "attention", adds_up=False, elsewhere=elsewhere)

    def _tokens(self, image: Features) -> Tokens:
        image = image.top(self._descriptors)
        how = self.options.scale_ids or self._weights_card[1].get("scale_ids")
        ids = scale_ids(image.scales, how) if how else torch.full_like(image.scales, SINGLE_SCALE, dtype=torch.long)
        return Tokens(image.descriptors, ids, image.global_descriptor)
