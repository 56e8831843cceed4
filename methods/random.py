"""Control: a random order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.reranker import Card, FeatureBatch, Features, Reranker, Seed, register

PRIME = 1_000_003


@register("random", needs={"global"}, card=Card(paper=None, licence="Apache-2.0"), control=True)
class Random(Reranker):
    """A score drawn from the seed and the candidate's own descriptor, so that presentation order changes nothing."""

    @dataclass(frozen=True)
    class Options:
        seed: Seed = 0

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        generator = torch.Generator().manual_seed(self.options.seed)
        direction = torch.randint(1, 2**20, query.global_descriptor.shape, generator=generator)
        mixed = _whole(candidates.global_descriptors()) * _whole(query.global_descriptor)
        return (mixed * direction).sum(dim=1).remainder(PRIME).double() / PRIME


def _whole(descriptor: Tensor) -> Tensor:
    """Integers, whose sums do not depend on the order of adding, so neither on the number of candidates."""
    return (descriptor.cpu() * 2**12).round().long()
