"""Neighbourhoods of global descriptors within one list, the same whatever the list's order."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.features import FeatureBatch, Features

DECIMALS = 9  # similarities are compared to so many, so that equal descriptors tie wherever they stand


def with_query(query: Features, candidates: FeatureBatch) -> Tensor:
    """(1 + k, D) float64 global descriptors, the query's first."""
    return torch.cat([query.global_descriptor[None], candidates.global_descriptors()]).double()


def cosines(descriptors: Tensor) -> Tensor:
    """(n, n) float64 cosines of (n, D) unit descriptors; 0 between a zero descriptor and all others, 1 with itself."""
    return (descriptors @ descriptors.T).fill_diagonal_(1)


def nearest(similarity: Tensor, count: int) -> Tensor:
    """(m, n) bool: the `count` most similar of each row of (m, n), and all that are as similar as the last of them."""
    if count < 1:
        return torch.zeros_like(similarity, dtype=torch.bool)
    similarity = similarity.round(decimals=DECIMALS)
    return similarity >= similarity.topk(min(count, similarity.shape[1]), dim=1).values[:, -1:]
