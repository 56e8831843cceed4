"""Features that a store already has of the same contents, whatever the image was called and wherever it was.

Stores of equal identity hold what extraction would give again. Sizes of files are compared first, and only files whose
size is known are read to compare their sha256.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.errors import UserError
from bench.features.index import Row
from bench.features.items import UNREADABLE, Item, content, stamp
from bench.features.shards import write_shard
from bench.features.store import FeatureStore

SEARCHED = 16_384  # images looked for in every store together
WRITTEN = 512  # images of a shard


def stores_alike(folder: Path, identity: Mapping[str, object]) -> list[FeatureStore]:
    """The store in `folder`, then those beside it, that hold features of this identity."""
    beside = sorted(path for path in folder.parent.iterdir() if path != folder) if folder.parent.is_dir() else []
    found = []
    for path in (folder, *beside):
        try:
            if json.loads((path / "set.json").read_text()) == dict(identity) and (store := FeatureStore(path)):
                found.append(store)
        except (OSError, ValueError):
            continue  # no store, or one that is being written or removed
    return found


def take_over(folder: Path, wanted: Iterable[Item], identity: Mapping[str, object]) -> list[str]:
    """Copy into the store in `folder` what it or another one has of the contents of these images; notes on what came.

    An image whose features had failed is not looked for. OSError where the store cannot be written.
    """
    items, counts = iter(wanted), Counter[Path]()
    stores = stores_alike(folder, identity)
    while stores and (batch := list(islice(items, SEARCHED))):
        found = _found(batch, stores)
        for store in stores:
            of_store = [one for one in found if one.store is store]
            for start in range(0, len(of_store), WRITTEN):
                counts[store.folder] += _copy(of_store[start : start + WRITTEN], folder)
    return [
        f"{count} image{'s' * (count != 1)} with contents that were extracted before: features taken from "
        + ("other names of this data set" if path == folder else str(path))
        for path, count in counts.items()
        if count
    ]


@dataclass(frozen=True, eq=False)
class _Found:
    """An image that has features already, and when its files were last changed before they were read."""

    item: Item
    stat: tuple[int, ...]
    store: FeatureStore
    row: Row


def _found(items: Sequence[Item], stores: Sequence[FeatureStore]) -> list[_Found]:
    """In the order of the images; those that are nowhere are left out."""
    stats = [stamp(item.files) for item in items]
    of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, stat in enumerate(stats):
        if stat and stat != UNREADABLE:
            of_size[stat[::2]].append(number)
    possible: dict[int, list[tuple[FeatureStore, Row]]] = defaultdict(list)
    for store in stores:
        for row in store.rows():
            for number in of_size.get(row.stat[::2], ()):
                if row.error is None and row.box == items[number].box:
                    possible[number].append((store, row))
    found = []
    for number in sorted(possible):
        digest = content(items[number].files)
        where = next((one for one in possible[number] if digest and one[1].sha256 == digest), None)
        if where is not None:
            found.append(_Found(items[number], stats[number], *where))
    return found


def _copy(found: Sequence[_Found], folder: Path) -> int:
    """Write a shard of what one store has, as it is stored; how many images, none if that store is gone by now."""
    try:
        stored = [one.store.stored(one.row) for one in found]
    except (UserError, OSError):
        return 0
    listed = [
        {**one.entry, "key": where.item.key, "stat": where.stat} for where, one in zip(found, stored, strict=True)
    ]
    write_shard(folder, listed, [one.arrays for one in stored], lambda rows: rows, stored[0].local_dim)
    return len(listed)
