"""Control: a random order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.features import FeatureBatch, Features
from bench.registry import register
from bench.reranker import Card, Reranker


@register("random", needs={"global"}, card=Card(paper=None, licence="Apache-2.0"), control=True)
class Random(Reranker):
    """A score drawn from the seed and the candidate's own descriptor, so that presentation order changes nothing."""

    @dataclass(frozen=True)
    class Options:
        seed: int = 0

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        generator = torch.Generator().manual_seed(self.options.seed)
        direction = torch.randn(query.global_descriptor.shape[0], generator=generator)
        mixed = candidates.global_descriptors().cpu() * query.global_descriptor.cpu()
        return (mixed @ direction * 1e6).remainder(1.0)
