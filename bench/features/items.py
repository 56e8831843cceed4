"""The images of a data set as a feature store knows them: a key each, the files it is made from, and its box."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.datasets import Dataset
from bench.images import Box

TIMED = 32  # queries that are extracted by themselves, whatever the others: their median is what a new query costs
UNREADABLE = (-1, -1)  # what `stamp` says of files of which one cannot be read


@dataclass(frozen=True)
class Item:
    """One image: its key in the store, the files its features are made from and the box to crop."""

    key: str
    files: tuple[Path, ...]  # the image; for imported features their files, or none where they are not at hand
    box: Box | None = None
    required: bool = False  # a query: if it cannot be read, nothing can be compared
    alone: bool = False  # extracted by itself, so that the time of a single image is known


def query_key(dataset: Dataset, query: int) -> str:
    """The store's key of a query image: the gallery's own where the query is an uncropped gallery image."""
    q = dataset.queries[query]
    shared = q.box is None and dataset.gallery.get(q.id) == q.image
    return q.id if shared else f"query/{q.id}/"  # no gallery id ends with a slash


class Items(Iterable[Item]):
    """Every image of the data set once, queries first (an unreadable query must stop the run early)."""

    def __init__(self, dataset: Dataset, required: bool = True):
        self._dataset = dataset
        self._queries = {
            key: Item(key, (query.image,), query.box, required, i < TIMED)
            for i, query in enumerate(dataset.queries)
            for key in [query_key(dataset, i)]
        }

    def __len__(self) -> int:
        return len(self._queries) + len(self._dataset.gallery) - sum(k in self._dataset.gallery for k in self._queries)

    def __iter__(self) -> Iterator[Item]:
        yield from self._queries.values()
        for key in self._dataset.gallery:
            if key not in self._queries:
                yield Item(key, (self._dataset.gallery[key],))


def items(dataset: Dataset, required: bool = True) -> Items:
    """Every image of the data set; made one at a time. `required`: whether every query must be readable."""
    return Items(dataset, required)


def stamp(files: Sequence[Path]) -> tuple[int, ...]:
    """Size in bytes and time of change in ns of each file; -1, -1 if one cannot be read."""
    found: list[int] = []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            return UNREADABLE
        found += [status.st_size, status.st_mtime_ns]
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
