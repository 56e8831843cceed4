"""The two feature sets of a comparison, by name or by the folder of a store."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from bench.datasets import Dataset
from bench.datasets.catalogue import load
from bench.errors import UserError
from bench.features.diff import Difference, DiffOptions, diff
from bench.features.diff_stored import StoredSet
from bench.features.extract import ExtractOptions
from bench.features.import_record import Record
from bench.features.sets import EXTRACTORS, IMPORTS, Progress, SetName, Stores
from bench.features.store import FeatureStore
from bench.names import shown
from bench.places import Places

SHARDS = "shards"


def side_of(text: str) -> SetName | Path:
    """What a name means: a feature set, or a folder where it begins with no name of one.

    UserError for a folder that holds no features, and as `SetName.parse`.

    >>> side_of("sift").name
    'sift+gem-lite0'
    """
    first = text.partition("+")[0].partition(":")[0]
    folder = Path(text).expanduser()
    if first in {*EXTRACTORS.names(), *IMPORTS.names()} or not ("/" in text or folder.is_dir()):
        return SetName.parse(text, where=text)
    if not (folder / SHARDS).is_dir():
        what = f"no features in it, expected a folder {SHARDS}" if folder.is_dir() else "no such folder"
        raise UserError(
            f"{shown(text)}: {what}",
            hint="name a feature set, or the folder that `features import` or --into named",
        )
    return folder


def diff_named(
    dataset: str,
    names: tuple[str, str],
    extract: ExtractOptions,
    how: DiffOptions,
    device: torch.device,
    places: Places,
    progress: Progress | None = None,
) -> Difference:
    """Compare what `names` name. Photographs are needed where a set is extracted here.

    UserError for names that mean nothing, sets that are not there, and stores of another data set.
    """
    sides = [side_of(text) for text in names]
    _require_accepted(sides)
    photographs = any(isinstance(side, SetName) and not side.imported for side in sides)
    data = load(dataset, places, None if progress is None else partial(progress, "generating images"), photographs)
    a, b = (
        opened(text, side, data, extract, device, places, progress) for text, side in zip(names, sides, strict=True)
    )
    return diff(data, a, b, how, progress)


def _require_accepted(sides: Sequence[SetName | Path]) -> None:
    """UserError for a set under a licence that must be accepted first."""
    for side in sides:
        if isinstance(side, SetName) and side.terms:
            raise UserError(
                f"{side.name}: its weights may not be used commercially",
                hint=f"extract it with run --accept-licence {side.terms[0]}, and name the folder of its store",
            )


def opened(
    text: str,
    side: SetName | Path,
    dataset: Dataset,
    options: ExtractOptions,
    device: torch.device,
    places: Places,
    progress: Progress | None = None,
) -> StoredSet:
    """Its stores, brought up to date where it is extracted here. UserError for imports that are not there."""
    if isinstance(side, Path):
        store = FeatureStore(side)
        if not len(store):
            damaged = "; ".join(f"{shown(path)} is damaged ({reason})" for path, reason in store.damaged)
            raise UserError(f"{shown(text)}: {damaged or 'it holds no image'}", hint="extract or import it anew")
        record = Record.read(side)
        local, whole = store.dims
        return StoredSet(
            text,
            store if local else None,
            store if whole else None,
            () if record is None or record.caveats is None else record.caveats,
        )
    stores = Stores(dataset, options, device, places, progress)
    found = stores.of(side)
    return StoredSet(text, found.local, found.globals_, stores.report().caveats)


def import_place(folder: Path, dataset: str, kind: str) -> Path:
    """The folder, where it may be given as --into. UserError for one that holds anything but an import."""
    try:
        other = folder.is_dir() and any(folder.iterdir()) and not (folder / "source.json").is_file()
    except OSError as error:
        raise UserError(
            f"--into {shown(folder)}: cannot be read ({error.strerror})", hint="name a new folder"
        ) from error
    if other or folder.is_file():
        raise UserError(
            f"--into {shown(folder)}: it holds something else than features that were imported",
            hint=f"name a new folder: features import {kind} PLACE --dataset {shlex.quote(dataset)} --into FOLDER",
        )
    return folder
