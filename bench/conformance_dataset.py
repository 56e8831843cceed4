"""What every data set must keep; an author's tests call `check_dataset(load, Place(…))` in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.datasets import Dataset, Instances, Query
from bench.datasets.catalogue import get
from bench.datasets.dataset import Loader, Place
from bench.errors import UserError
from bench.images import cut, size_of
from bench.names import encodable


def check_dataset(load: Loader | str, place: Place) -> None:
    """Raise AssertionError, naming the data set, if it breaks a promise that the harness relies on.

    Ids are unique text; the ground truth grades images of the gallery for queries that there are, and one query or more
    has a positive; photographs exist and boxes lie inside them, where `place.images`; it reads the same a second time,
    whatever order the file system lists its files in. UserError as of `Loader`.
    """
    loader = get(load) if isinstance(load, str) else load
    with _listing_backwards(False):
        data = loader(place)
    _check_ids(data)
    _check_grades(data)
    if place.images:
        _check_images(data)
    with _listing_backwards(True):
        again = loader(place)
    for part in ("protocol", "image_set", "queries", "grades", "notes"):
        assert getattr(again, part) == getattr(data, part), f"{data.name}: {part} differ when it is read again"
    assert list(again.gallery.items()) == list(data.gallery.items()), (
        f"{data.name}: the gallery, or its order, differs when it is read again"
    )
    if place.images:
        bare = loader(replace(place, images=False))
        assert bare.queries == data.queries and bare.grades == data.grades, (
            f"{data.name}: queries or grades differ where photographs need not be here"
        )


def _check_ids(data: Dataset) -> None:
    gallery = list(data.gallery)
    assert len(gallery) == len(set(gallery)) == len(data.gallery), f"{data.name}: gallery ids are not unique"
    for image in (*gallery, *(query.id for query in data.queries)):
        assert isinstance(image, str) and image and encodable(image), f"{data.name}: the id {image!r} is no text"
    assert data.image_set, f"{data.name}: image_set is empty; it says which version of the images these are"


def _check_grades(data: Dataset) -> None:
    if not isinstance(data.grades, Instances):  # whose images need not be queries
        strange = data.grades.keys() - {query.id for query in data.queries}
        assert not strange, f"{data.name}: grades of {min(strange)!r}, which is no query"
    assert any(len(data.without_positives(difficulty)) < len(data.queries) for difficulty in data.difficulties), (
        f"{data.name}: no query has a positive"
    )


def _check_images(data: Dataset) -> None:
    for file in (*data.gallery.values(), *(query.image for query in data.queries)):
        assert isinstance(file, Path) and file.is_file(), f"{data.name}: {file} is no file"
    for query in data.queries:
        assert query.box is None or _inside(query, data), (
            f"{data.name}: the box {query.box} of query {query.id!r} does not lie inside {query.image}"
        )


def _inside(query: Query, data: Dataset) -> bool:
    """Whether the box is one that is cut to itself, or a note says that it is not."""
    assert query.box is not None
    try:
        whole = cut(query.box, size_of(query.image), query.image) == tuple(round(value) for value in query.box)
    except UserError:
        return False
    return whole or any(query.id in note for note in data.notes)


@contextmanager
def _listing_backwards(backwards: bool) -> Iterator[None]:
    """Inside, folders are listed by name, or backwards: whoever sorts does not notice."""

    class Listed:
        """What `os.scandir` gives: entries that are gone through once, closed like a file."""

        def __init__(self, entries: list[os.DirEntry]):
            self._entries = iter(entries)

        def __iter__(self) -> Iterator[os.DirEntry]:
            return self._entries

        def __next__(self) -> os.DirEntry:
            return next(self._entries)

        def __enter__(self) -> Listed:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            self._entries = iter(())

    listdir: Callable[..., list[Any]] = os.listdir
    scandir: Callable[..., Any] = os.scandir

    def scanned(*given: Any, **named: Any) -> Listed:
        with scandir(*given, **named) as entries:
            return Listed(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    os.listdir = lambda *given, **named: sorted(listdir(*given, **named), reverse=backwards)  # type: ignore[assignment]
    os.scandir = scanned  # type: ignore[assignment]
    try:
        yield
    finally:
        os.listdir, os.scandir = listdir, scandir  # type: ignore[assignment]
