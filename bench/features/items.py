"""The images of a data set as a feature store knows them: a key each, the files it is made from, and its box."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

from bench.datasets import Dataset
from bench.datasets.gallery import MISSING, Gallery, stamp_of
from bench.images import Box

TIMED = 32  # queries that are extracted by themselves, whatever the others: their median is what a new query costs
UNREADABLE = MISSING  # what `stamp` says of files of which one cannot be read


@dataclass(frozen=True)
class Item:
    """One image: its key in the store, the files its features are made from and the box to crop."""

    key: str
    files: tuple[Path, ...]  # the image; for imported features their files, or none where they are not at hand
    box: Box | None = None
    required: bool = False  # a query: if it cannot be read, nothing can be compared
    alone: bool = False  # extracted by itself, so that the time of a single image is known
    stat: tuple[int, ...] | None = None  # `stamp` of the files, where it was asked for before; None: it was not


def query_key(dataset: Dataset, query: int) -> str:
    """The store's key of a query image: the gallery's own where the query is an uncropped gallery image."""
    q = dataset.queries[query]
    shared = q.box is None and dataset.gallery.get(q.id) == q.image
    return q.id if shared else f"query/{q.id}/"  # no gallery id ends with a slash


class Items(Iterable[Item]):
    """Every image of the data set once, queries first (an unreadable query must stop the run early)."""

    def __init__(self, dataset: Dataset, required: bool = True, asked: bool = False):
        self._dataset = dataset
        self._stamps = asked and isinstance(dataset.gallery, Gallery)
        self._queries = {
            key: Item(key, (query.image,), query.box, required, i < TIMED)
            for i, query in enumerate(dataset.queries)
            for key in [query_key(dataset, i)]
        }

    def __len__(self) -> int:
        return len(self._queries) + len(self._dataset.gallery) - sum(k in self._dataset.gallery for k in self._queries)

    def __iter__(self) -> Iterator[Item]:
        gallery = self._dataset.gallery
        stamps: Iterable[tuple[int, ...] | None] = repeat(None)
        if self._stamps and isinstance(gallery, Gallery):
            stamps = gallery.each_stamp()
            for key, item in self._queries.items():
                yield replace(item, stat=gallery.stamp(key)) if key in gallery else item
        else:
            yield from self._queries.values()
        for (key, file), stat in zip(gallery.items(), stamps, strict=False):
            if key not in self._queries:
                yield Item(key, (file,), stat=stat)

    def keys(self) -> Iterator[str]:
        """Those of the items, in their order."""
        yield from self._queries
        yield from (key for key in self._dataset.gallery if key not in self._queries)


def items(dataset: Dataset, required: bool = True, *, asked: bool = False) -> Items:
    """Every image of the data set; made one at a time. `required`: whether every query must be readable.

    `asked`: what a compact gallery remembers of its files is taken for what they are, and none is asked for again.
    """
    return Items(dataset, required, asked)


def stamp(files: Sequence[Path]) -> tuple[int, ...]:
    """Size in bytes and time of change in ns of each file; -1, -1 if one cannot be read."""
    found: list[int] = []
    for path in files:
        one = stamp_of(path)
        if one == UNREADABLE:
            return UNREADABLE
        found += one
    return tuple(found)


def content(files: Sequence[Path]) -> str:
    """As `Entry.sha256`; empty if a file cannot be read."""
    try:
        hashes = []
        for path in files:
            with path.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        return "+".join(hashes)
    except OSError:
        return ""
