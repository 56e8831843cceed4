"""AMES: a transformer reads the local descriptors of both images, without places, and says whether they match."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from bench.reranker import Card, Features, Saliency, register
from methods._descriptor_network import DescriptorNetwork
from methods.ames.model import HINT, Ames, load


@register(
    "ames",
    needs={"local"},
    card=Card(
        paper="Suma et al., AMES, ECCV 2024",
        licence="Apache-2.0 (own implementation and weights)",
        trained_on="warped photographs and generated buildings of other seeds, see methods/ames/CARD.md",
    ),
)
class AsymmetricSimilarity(DescriptorNetwork):
    """Score: the logit of (query, candidate); an image without local descriptors scores below every other."""

    hint, read = HINT, staticmethod(load)
    shipped = Path(__file__).with_name("weights.safetensors")

    def card(self) -> Card:
        card = super().card()
        return replace(card, trained_on=f"{card.trained_on}, {'binary' if self.binary else 'full precision'}")

    @torch.inference_mode()
    def explain(self, query: Features, candidate: Features) -> Saliency | None:
        """The last layer's attention of the match token: the mean of its self- and its cross-attention.

        None for a candidate without local descriptors: no network scores it.
        """
        one, other = (image.top(self._descriptors).descriptors for image in (query, candidate))
        if not len(other):
            return None
        match, first, second = cast(Ames, self._model).attention(one, other).cpu().split([1, len(one), len(other)])
        return Saliency(first, second, "attention", adds_up=False, elsewhere={"the match token": float(match)})

    @property
    def binary(self) -> bool:
        """Whether the weights read descriptors by their signs alone."""
        return bool(self.network.config.binary)
