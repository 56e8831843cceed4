"""Cascade (Viola and Jones, CVPR 2001): a cheap method ranks the whole shortlist, dearer ones its first candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import registry
from bench.cascade import order, parse_stages
from bench.errors import UserError
from bench.replay import ranks_as_scores
from bench.reranker import Card, FeatureBatch, FeatureCard, Features, Reranker, Scored, parse_options, register


@register("cascade", needs=(), card=Card(paper="Viola and Jones, CVPR 2001, for rerankers", licence="Apache-2.0"))
class Cascade(Reranker):
    """Score: k for the first of the final order, 1 for the last; only the order has a meaning."""

    pairwise = False

    @dataclass(frozen=True)
    class Options:
        stages: tuple[str, ...] = (
            "rrt",
            "lightglue:20",
        )  # METHOD[@FEATURES][:FIRST][:OPTION=VALUE], FIRST candidates of the one before

        def __post_init__(self) -> None:
            parse_stages(self.stages)

    def __init__(self, options: Any = None, device: torch.device | str = "cpu"):
        super().__init__(options, device)
        self._stages = parse_stages(self.options.stages)
        classes = [registry.get(stage.method) for stage in self._stages]
        self._parts = [
            cls(parse_options(cls, dict(stage.options)), device)
            for cls, stage in zip(classes, self._stages, strict=True)
        ]
        if "truth" in self.needs():
            raise UserError(
                f"-o cascade.stages={','.join(self.options.stages)}: a stage reads the ground truth",
                hint="a cascade is a contender, so controls that know the answers cannot be its stages",
            )

    def parts(self) -> Sequence[Reranker]:
        return self._parts

    def part_features(self) -> Sequence[str | None]:
        return [stage.features for stage in self._stages]

    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs() for part in self._parts))

    def skip(self, features: FeatureCard) -> str | None:
        """Of stages without features of their own."""
        parts = [part for part, own in zip(self._parts, self.part_features(), strict=True) if own is None]
        return "; ".join(f"{part.spec.name}: {reason}" for part in parts if (reason := part.skip(features))) or None

    def card(self) -> Card:
        cards = {part.spec.name: part.card() for part in self._parts}
        trained = "; ".join(f"{name}: {card.trained_on}" for name, card in cards.items() if card.trained_on)
        terms = [card.noncommercial for card in cards.values() if card.noncommercial]
        licences = dict.fromkeys(card.licence for card in cards.values())
        return Card(self.spec.card.paper, " and ".join(licences), trained or None, terms[0] if terms else None)

    def load(self) -> None:
        for part in self._parts:
            part.load()

    def descriptors_used(self, available: int) -> int:
        return max(part.descriptors_used(available) for part in self._parts)

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return self.score_parts([(query, candidates)] * len(self._parts))

    def score_parts(self, inputs: Sequence[tuple[Features, FeatureBatch]]) -> Tensor:
        stages = [
            (stage.first, _scorer(part, query, candidates))
            for stage, part, (query, candidates) in zip(self._stages, self._parts, inputs, strict=True)
        ]
        return torch.from_numpy(ranks_as_scores(order(len(inputs[0][1]), stages)))


def _scorer(part: Reranker, query: Features, candidates: FeatureBatch) -> Callable[[np.ndarray], np.ndarray]:
    """What `part` scores of the candidates at some positions, with no more descriptors than it reads by itself."""

    def cut(image: Features) -> Features:
        return image.top(part.descriptors_used(len(image)))

    def score(at: np.ndarray) -> np.ndarray:
        chosen = candidates.at(at.tolist())
        found = part.score(cut(query), replace(chosen, images=tuple(map(cut, chosen.images))))
        return (found.scores if isinstance(found, Scored) else found).detach().double().cpu().numpy()

    return score
