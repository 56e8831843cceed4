"""What there is, as rows of text: rerankers, extractors and data sets, and whether each can be used here.

A plugin that cannot be imported has a row with its name and the error, and hides no other.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from bench import registry
from bench.datasets import catalogue
from bench.datasets.catalogue import Loader
from bench.errors import UserError
from bench.extractor import ExtractorSpec, waits
from bench.features.sets import EXTRACTORS, IMPORTS, card_of
from bench.places import Places
from bench.reranker import Reranker
from bench.rows import Asked, Wanted, wanted

METHODS = ("method", "reads", "options", "licence", "here")
EXTRACTED = ("extractor", "what", "local", "global", "licence", "here")
IMPORTED = ("imported", "what", "local", "global", "PLACE of `features import`")
DATASETS = ("data set", "what", "licence", "needs", "here")

Row = tuple[str, ...]
T = TypeVar("T")


def methods(features: str) -> list[Row]:
    """A row for each reranker with the columns METHODS; controls have a * behind their names.

    UserError for features of no known name.
    """
    card = card_of(features)

    def row(cls: type[Reranker]) -> Row:
        name = cls.spec.name
        found = wanted(Asked(name), cls(), features, frozenset())
        options = ", ".join(f"{f.name}={getattr(cls.Options(), f.name)}" for f in dataclasses.fields(cls.Options))
        return (
            name + ("*" if cls.spec.control else ""),
            ", ".join(sorted(cls().needs())),
            options.replace(str(Path.cwd()) + os.sep, ""),
            cls.spec.card.licence,
            found if isinstance(found, str) else _reads(found, card.known),
        )

    return _rows(registry.names(), registry.get, row, len(METHODS))


def _reads(row: Wanted, known: bool) -> str:
    """What a method would read."""
    names = dict.fromkeys(
        read.name
        for part in (row.parts or (row,))
        for name in part.choices[:1]
        if (read := name.reading(part.method.needs()))
    )
    on = f", reads {', '.join(names)}" if names else ""
    return f"ready{on}" if known or not names else f"as the imported files are{on}"


def extracted() -> list[Row]:
    """A row for each extractor, with the columns EXTRACTED."""

    def found(name: str) -> tuple[ExtractorSpec, str | None]:
        cls = EXTRACTORS.get(name)
        needs = f"needs weights: {name}:{cls.spec.takes}" if cls.spec.takes else None
        return cls.spec, cls.spec.skip() or needs or waits(cls, cls.Options())

    def row(of: tuple[ExtractorSpec, str | None]) -> Row:
        spec, missing = of
        dims = (_size(dim, "by option") for dim in (spec.local_dim, spec.global_dim))
        return (spec.name, spec.summary, *dims, spec.card.licence, missing or "ready")

    return _rows(EXTRACTORS.names(), found, row, len(EXTRACTED))


def imported() -> list[Row]:
    """A row for each kind of features of other programs, with the columns IMPORTED."""
    kinds = map(IMPORTS.get, IMPORTS.names())
    return [(kind.name, kind.summary, *(_size(dim, "as it is") for dim in kind.dims), kind.place) for kind in kinds]


def _size(dim: int | None, unknown: str) -> str:
    return unknown if dim is None else f"{dim}-d" if dim else "–"


def datasets(places: Places) -> list[Row]:
    """A row for each data set, with the columns DATASETS."""

    def row(loader: Loader) -> Row:
        return (loader.usage, loader.summary, loader.licence, loader.needs, catalogue.state(loader, places))

    return _rows(catalogue.names(), catalogue.get, row, len(DATASETS))


def _rows(names: Iterable[str], get: Callable[[str], T], row: Callable[[T], Row], columns: int) -> list[Row]:
    """A row for what each name gets; its name and the error where nothing can be got."""
    rows = []
    for name in names:
        try:
            found = get(name)
        except UserError as error:
            rows.append((name, *[""] * (columns - 2), error.message))
        else:
            rows.append(row(found))
    return rows
