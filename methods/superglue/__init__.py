"""SuperGlue (Sarlin et al., CVPR 2020): how many keypoints of two images a graph network assigns to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.reranker import (
    Card,
    Explanation,
    FeatureBatch,
    FeatureCard,
    Features,
    Reranker,
    Scored,
    apply_preset,
    given_file,
    register,
)
from methods.superglue.model import Keypoints, SuperGlue, load

WHERE = (
    "give Magic Leap's superglue_outdoor.pth or superglue_indoor.pth (github.com/magicleap/"
    "SuperGluePretrainedNetwork, models/weights; academic and non-profit use only) with -o superglue.weights=FILE"
)
# preset -> what it sets: the settings of Tan's reranking experiments (docs/protocols.md), whose images are
# read at full size with the outdoor weights for oxford and as 320x320 with the indoor weights for sop
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "oxford": {"descriptors": 1024, "iterations": 20, "match_threshold": 0.2},
    "sop": {"descriptors": 1024, "iterations": 20, "match_threshold": 0.2},
}


@register(
    "superglue",
    needs={"local", "keypoints"},
    card=Card(
        paper="Sarlin et al., CVPR 2020",
        licence="Apache-2.0 (own implementation); weights are yours, Magic Leap's are non-commercial",
        trained_on="what the given weights were trained on",
        noncommercial="magic-leap",
    ),
)
class SuperGlueMatches(Reranker):
    """Score: number of matches. Ties keep first-stage order."""

    @dataclass(frozen=True)
    class Options:
        weights: Path | None = None  # a .pth in the official layout, of any number of layers; none are shipped
        descriptors: int = 500  # best-scored local descriptors used per image
        iterations: int = 20  # of Sinkhorn's algorithm
        match_threshold: float = 0.2  # least probability of a match
        preset: Literal["none", "oxford", "sop"] = "none"  # as Tan ran it

        def __post_init__(self) -> None:
            apply_preset(self, PRESETS)
            if self.descriptors < 1 or self.iterations < 1 or not 0 <= self.match_threshold < 1:
                raise ValueError("descriptors and iterations must be at least 1 and match_threshold in [0, 1)")

    def skip(self, features: FeatureCard) -> str | None:
        if self.options.weights is None:
            return f"no weights are shipped: {WHERE}, and --features superpoint:WEIGHTS"
        self.weights()  # refuses a file that is not there
        dim = load(self.options.weights).config.dim
        if dim != features.local_dim:
            return f"{self.options.weights} reads {dim}-d descriptors, {features.name} has {features.local_dim}-d"
        return None

    def weights(self) -> Path | None:
        return None if self.options.weights is None else given_file("superglue.weights", self.options.weights, WHERE)

    def load(self) -> None:
        assert self.options.weights is not None  # else `skip` has said so
        self._model: SuperGlue = load(self.options.weights, self.device)

    def score(self, query: Features, candidates: FeatureBatch) -> Scored:
        images = [self._keypoints(image) for image in candidates]
        found = self._model.score(self._keypoints(query), images, self.options.iterations, self.options.match_threshold)
        counts = torch.stack([(places >= 0).sum() for places, _ in found])
        sums = torch.stack([confidence[places >= 0].sum() for places, confidence in found])
        return Scored(counts.float(), {"confidence": sums})

    def explain(self, query: Features, candidate: Features) -> Explanation:
        one, other = self._keypoints(query), [self._keypoints(candidate)]
        ((places, _),) = self._model.score(one, other, self.options.iterations, self.options.match_threshold)
        rows = (places >= 0).nonzero()[:, 0]
        return Explanation.counted(torch.stack([rows, places[rows]], dim=1))

    def _keypoints(self, image: Features) -> Keypoints:
        image = image.top(self.options.descriptors)
        return Keypoints(image.keypoints, image.scores, image.descriptors, image.image_size)
