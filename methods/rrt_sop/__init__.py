"""The product variant of the Reranking Transformer: reads the two images' 7x7 local maps, and no global descriptor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, FeatureCard, Features, Reranker, given_file, register
from methods.rrt_sop.matcher import CELLS
from methods.rrt_sop.model import HINT, LOCAL, SOPModel, fingerprint, load_model

BATCH = 16  # candidates scored together


@register(
    "rrt-sop",
    needs={"local"},
    card=Card(
        paper="Tan, Yuan, Ordonez, ICCV 2021 (Stanford Online Products architecture)",
        licence="Apache-2.0 (own implementation); weights are yours",
    ),
)
class RerankingTransformerSOP(Reranker):
    """Score: the logit of (query, candidate); an image without local descriptors scores below every other."""

    @dataclass(frozen=True)
    class Options:
        weights: Path | None = None  # of `train rrt-sop`, or an official .pt; none are shipped

    def skip(self, features: FeatureCard) -> str | None:
        if features.local != "sop":
            return "reads the 7x7 map of a product trunk: --features sop:WEIGHTS -o rrt-sop.weights=WEIGHTS"
        if self.options.weights is None:
            return "no weights are shipped: train some (`train rrt-sop`) and give -o rrt-sop.weights=FILE"
        model = load_model(self.weights())
        if "matcher." in model.without:
            return f"{self.options.weights}: weights of the first stage, whose matcher is not trained"
        # another trunk or map makes descriptors that this matcher has never seen
        if not features.weights or fingerprint(model, LOCAL) != fingerprint(load_model(features.weights[0]), LOCAL):
            given = ",".join(map(str, features.weights)) or "none"
            return (
                f"{self.options.weights} was trained on another trunk than that of the features ({given}): "
                f"use --features sop:{self.options.weights}"
            )
        return None

    def made_for(self) -> str | None:
        return None if self.options.weights is None else f"sop:{self.options.weights}"

    def weights(self) -> Path:
        return given_file("rrt-sop.weights", self.options.weights, HINT)

    def card(self) -> Card:
        if self.options.weights is None:
            return self.spec.card
        return replace(
            self.spec.card, trained_on=f"what {self.options.weights.name} was trained on (given by the user)"
        )

    def load(self) -> None:
        model: SOPModel = load_model(self.weights())
        self._matcher = model.matcher.to(self.device)

    def descriptors_used(self, available: int) -> int:
        return min(available, CELLS)

    @torch.inference_mode()
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        one = query.top(CELLS).descriptors[None]
        others = [image.top(CELLS).descriptors for image in candidates]
        scores = torch.full((len(others),), torch.finfo(torch.float32).min, device=self.device)
        by_length: dict[int, list[int]] = {}
        for i, other in enumerate(others):
            by_length.setdefault(len(other), []).append(i)
        by_length.pop(0, None)
        for same in by_length.values():
            for start in range(0, len(same), BATCH):
                chosen = same[start : start + BATCH]
                batch = torch.stack([others[i] for i in chosen])
                scores[chosen] = self._matcher(one.expand(len(chosen), -1, -1), batch)
        return scores
