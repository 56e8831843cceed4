"""ELViS: how many local descriptors of two images vote for each other after an optimal-transport assignment."""

from __future__ import annotations

from bench.reranker import Card, register
from methods._descriptor_network import DescriptorNetwork
from methods.elvis.model import HINT, load


@register(
    "elvis",
    needs={"local"},
    card=Card(
        paper="Suma et al., ELViS, ICLR 2026",
        licence="Apache-2.0 (own implementation); weights are yours",
        trained_on="what the given weights were trained on",
    ),
)
class ElvisVotes(DescriptorNetwork):
    """Score: sum of the votes of all descriptors of both images, from 0 to their number.

    An image with more descriptors has more votes: compare images of equal numbers.
    """

    hint, read = HINT, staticmethod(load)
