"""Two stored feature sets to compare, and the images that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.datasets import Dataset
from bench.features import Features
from bench.features.store import FeatureStore
from bench.images import Box
from bench.names import shown


@dataclass(frozen=True, eq=False)
class StoredSet:
    """A feature set to compare: its stores, and what its import said. Either part may be missing, not both."""

    name: str
    local: FeatureStore | None
    globals_: FeatureStore | None
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.local is None and self.globals_ is None:
            raise ValueError(f"{self.name}: neither local nor global descriptors")

    @property
    def kinds(self) -> tuple[bool, bool]:
        """Whether it has local descriptors, and whether it has global ones."""
        has_local = self.local is not None and self.local.dims[0] > 0
        return has_local, self.globals_ is not None and self.globals_.dims[1] > 0

    @property
    def stores(self) -> tuple[FeatureStore, ...]:
        """Each once."""
        found = {store.folder: store for store in (self.local, self.globals_) if store is not None}
        return tuple(found.values())


@dataclass(frozen=True, eq=False)
class Subject:
    """The data set's images with features in both, in its own order: the gallery first."""

    dataset: Dataset
    keys: tuple[str, ...]
    boxes: Mapping[str, Box]

    @property
    def crops(self) -> np.ndarray:
        return np.array([key in self.boxes for key in self.keys], bool)


def absent_from(side: StoredSet, keys: Sequence[str]) -> set[str]:
    """Those of the images that one of its stores lacks, or could not read."""
    found: set[str] = set()
    for store in side.stores:
        found |= store.errors().keys()
        found |= {key for key in keys if key not in store}
    return found & set(keys)


def read(store: FeatureStore, key: str) -> Features:
    """The local descriptors of an image, with their keypoints."""
    return store.read(key, frozenset({"local", "keypoints"}))


def image_name(dataset: Dataset, key: str) -> str:
    """What a user knows the image of a key as."""
    return shown(key if key in dataset.gallery else f"query {key.removeprefix('query/').removesuffix('/')}")
