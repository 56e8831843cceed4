"""What a first stage is: a similarity of every query to the whole gallery, whose best are everyone's candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from bench.datasets import Dataset
from bench.features.extract import Part
from bench.features.imported import Import
from bench.features.items import items, query_key
from bench.features.sets import Progress, SetName, Stores
from bench.places import Places
from bench.search import Similarities
from bench.shortlist import Order, own_images
from bench.whitening import Whitening


@dataclass(frozen=True, eq=False)
class Context:
    """What a first stage is opened with."""

    dataset: Dataset
    stores: Stores
    places: Places
    whitening: Callable[[SetName], Whitening] | None = None  # of global descriptors; None: they are left as they are
    progress: Progress | None = None
    contents: dict[str, str] = field(default_factory=dict)  # what `content` has found

    def content(self, part: Part | Import) -> str:
        """sha256 over a part's features of every image of the data set, and how they were made."""
        if part.key not in self.contents:
            self.contents[part.key] = self.stores.part(part).content(items(self.dataset).keys())
        return self.contents[part.key]

    @property
    def queries(self) -> list[str]:
        """Keys of the queries in the stores."""
        return [query_key(self.dataset, number) for number in range(len(self.dataset.queries))]

    @cached_property
    def own(self) -> np.ndarray:
        """(nq,) gallery index of each query's own image, -1 where it is not in the gallery."""
        return own_images(self.dataset, Order.of(self.dataset.gallery))


@dataclass(frozen=True, eq=False)
class Opened:
    """A first stage that is ready to search."""

    name: str  # as tables and the seal have it
    content: str  # sha256 over the features that it searches
    similarities: Similarities
    parts: tuple[Part | Import, ...]  # of features, that it reads of an image
    bytes_per_image: float  # what it keeps of a gallery image
    unranked: frozenset[int] = frozenset()  # numbers of the queries that have none of its features


class FirstStage(Protocol):
    """A first stage by name, before anything of it is there."""

    @property
    def name(self) -> str:
        """As the command line and tables have it; equal names mean equal first stages."""

    @property
    def sets(self) -> tuple[SetName, ...]:
        """The features that it reads."""

    def open(self, context: Context) -> Opened:
        """Ready to search, its features extracted where they were not. UserError where that cannot be."""
