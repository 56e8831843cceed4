"""R2Former's reranker: a transformer reads which local descriptors of two images are alike, where, and how salient."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, register
from methods._descriptor_network import DescriptorNetwork
from methods.r2former.model import HINT, load, tokens


@register(
    "r2former",
    needs={"local", "keypoints"},
    card=Card(
        paper="Zhu et al., R2Former, CVPR 2023",
        licence="Apache-2.0 (own implementation); weights are yours",
        trained_on="what the given weights were trained on",
    ),
)
class RetrievalAndReranking(DescriptorNetwork):
    """Score: the logit of "same place" less that of "other", which orders as the probability does.

    The authors rank by it alone. `--blend sigmoid:RATIO,1` adds the first stage's similarity, as their training does.
    Detector scores are read as attention. An image without local descriptors scores below every other.
    """

    hint, read = HINT, staticmethod(load)

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        scores = self._model.score(self._tokens(query), [self._tokens(image) for image in candidates])
        empty = torch.tensor([len(image) == 0 for image in candidates], device=scores.device)
        return torch.where(empty, torch.finfo(torch.float32).min, scores)

    def _tokens(self, image: Features) -> Tensor:
        image = image.top(self._descriptors)
        return tokens(image.descriptors, image.keypoints, image.scores, image.image_size)
