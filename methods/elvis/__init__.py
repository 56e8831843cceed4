"""ELViS: how many local descriptors of two images vote for each other after an optimal-transport assignment."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from bench.reranker import Card, Features, Saliency, register
from methods._descriptor_network import DescriptorNetwork
from methods.elvis.model import HINT, Elvis, load


@register(
    "elvis",
    needs={"local"},
    card=Card(
        paper="Suma et al., ELViS, ICLR 2026",
        licence="Apache-2.0 (own implementation and weights)",
        trained_on="warped photographs and generated buildings of other seeds, see methods/elvis/CARD.md",
    ),
)
class ElvisVotes(DescriptorNetwork):
    """Score: sum of the votes of all descriptors of both images, from 0 to their number.

    An image with more descriptors has more votes: compare images of equal numbers.
    """

    hint, read = HINT, staticmethod(load)
    shipped = Path(__file__).with_name("weights.safetensors")

    @torch.inference_mode()
    def explain(self, query: Features, candidate: Features) -> Saliency | None:
        """The votes of all descriptors. None where an image has no descriptors, so that nothing votes."""
        one, other = (image.top(self._descriptors).descriptors for image in (query, candidate))
        if not len(one) or not len(other):
            return None
        model = cast(Elvis, self._model)
        first, second = model.votes(model.embed(one), model.embed(other))
        return Saliency(first.cpu(), second.cpu(), "votes", adds_up=True)
