"""SuperGlue-style learned matching that runs out of the box: LightGlue with the LighterGlue weights on XFeat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.features import FeatureBatch, Features
from bench.features.extractors import FeatureCard
from bench.registry import register
from bench.reranker import Card, Reranker


@register(
    "lightglue",
    needs={"local", "keypoints"},
    card=Card(
        paper="Lindenberger et al., LightGlue, ICCV 2023; LighterGlue weights of Potje et al., XFeat, CVPR 2024",
        licence="Apache-2.0",
        trained_on="MegaDepth and synthetic warps (LighterGlue)",
    ),
)
class LightGlue(Reranker):
    """Score: number of matches. Fixed depth and width, so that the count is exact and independent of the batch."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 500  # best-scored local descriptors used per image
        match_threshold: float = 0.1  # least assignment probability of a match

        def __post_init__(self) -> None:
            if self.descriptors < 1 or not 0 <= self.match_threshold < 1:
                raise ValueError("descriptors must be at least 1 and match_threshold in [0, 1)")

    def skip(self, features: FeatureCard) -> str | None:
        if features.name != "xfeat":
            return f"the LighterGlue weights read XFeat descriptors, not {features.name}: use --features xfeat"
        return None

    def load(self) -> None:
        from third_party.xfeat_weights import load_lighterglue

        self._model = load_lighterglue(self.device, filter_threshold=self.options.match_threshold)

    def weights(self) -> Path | None:
        from third_party.xfeat_weights import weights_file

        return weights_file("xfeat-lighterglue.pt")

    @torch.inference_mode()
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        one = _image(query.top(self.options.descriptors))
        # one pair at a time: on a CPU a padded batch is slower, and images differ in their number of descriptors
        counts = [
            len(self._model({"image0": one, "image1": _image(other.top(self.options.descriptors))})["matches"][0])
            for other in candidates
        ]
        return torch.tensor(counts, dtype=torch.float32)


def _image(features: Features) -> dict[str, Tensor]:
    return {
        "keypoints": features.keypoints[None],
        "descriptors": features.descriptors[None],
        "image_size": features.image_size[None],
    }
