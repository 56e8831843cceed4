"""Bringing a feature store up to date: what is new or changed is read, a shard at a time, by one process."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from bench.errors import UserError
from bench.executor import Executor, Local, in_order
from bench.features import shards
from bench.features.items import Item, stamp
from bench.features.precision import PRECISIONS
from bench.features.reuse import take_over
from bench.features.shards import Entry, left_over, merge, sweep, write_shard
from bench.features.store import FeatureStore
from bench.files import write_whole, writing
from bench.locks import alone, alone_if_free

SHARD_IMAGES = 64  # how much is lost at most when extraction is killed
NAMED = 20  # unreadable queries named in a message
Stamped = tuple[tuple[int, ...], Entry]  # when an image was last changed, before it was read, and what was read of it


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did: images read anew, images that could not be read, and repairs worth telling."""

    extracted: int
    unreadable: Mapping[str, str]  # key -> reason
    notes: tuple[str, ...]
    caveats: tuple[str, ...] = ()  # what is so of the features themselves; said under every table made of them


@runtime_checkable
class Streams(Protocol):
    """What reads several images at a time, where it gains by it."""

    def stream(self, items: Iterable[Item]) -> Generator[Stamped, None, None]:
        """Each image's features in the order of the items, of which some more are drawn before they are needed."""


def _unreadable_queries(reasons: Sequence[str]) -> UserError:
    shown = [*reasons[:NAMED], *([f"and {len(reasons) - NAMED} more"] if len(reasons) > NAMED else [])]
    return UserError(
        f"{len(reasons)} query image{'s' * (len(reasons) > 1)} cannot be read:\n  " + "\n  ".join(shown),
        hint="replace these files, or leave their queries out with --skip-unreadable, which the table then says",
    )


def fill(
    wanted: Iterable[Item],
    folder: Path,
    make_read: Callable[[], Callable[[Item], Entry] | Streams],
    identity: Mapping[str, object],
    progress: Callable[[int, int], None] | None = None,
    *,
    exact: bool = False,
    executor: Executor = Local(),
    reuse: bool = False,
) -> ExtractReport:
    """Bring the store in `folder` up to date with the images `wanted`; finished shards are kept whatever happens.

    `make_read` is called if any of them is new or changed, and what it gives reads an image's features, or those of
    several at a time where it `Streams`. UserError for query images that cannot be read, all of them named, and for a
    full disk.

    `exact` stores them in float32, without the rounding of half precision. `reuse` takes over what this store or one
    beside it has of images of the same contents, where `identity` decides their features. `wanted` is gone through more
    than once.
    One process at a time writes to a store; a store that is up to date is not written to.
    """
    store, total = FeatureStore(folder), 0
    notes: list[str] = []
    if _outdated(store, identity) or any(True for _ in store.stale(wanted)):
        hint = "finished shards are kept; make room or choose another --cache-dir and run again"
        with writing(folder, hint), alone(folder, "extracting into") as locked:
            if locked:
                sweep(folder)
            total, notes = _update(wanted, folder, make_read, identity, progress, exact, executor, reuse)
        store = FeatureStore(folder)
    elif left_over(folder):
        with alone_if_free(folder) as free:
            if free:
                sweep(folder)
    errors = store.errors()
    failed = {item.key: errors[item.key] for item in wanted if item.key in errors} if errors else {}
    if unreadable := [failed[item.key] for item in wanted if item.required and item.key in failed] if failed else []:
        raise _unreadable_queries(unreadable)
    return ExtractReport(total, failed, tuple(notes))


def _outdated(store: FeatureStore, identity: Mapping[str, object]) -> bool:
    return bool(store.damaged) or (len(store) > 0 and store.identity != dict(identity))


def _update(
    wanted: Iterable[Item],
    folder: Path,
    make_read: Callable[[], Callable[[Item], Entry] | Streams],
    identity: Mapping[str, object],
    progress: Callable[[int, int], None] | None,
    exact: bool,
    executor: Executor,
    reuse: bool,
) -> tuple[int, list[str]]:
    """How many images were read into the store, and notes on what had changed. OSError where it cannot be written."""
    notes = []
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    store = FeatureStore(folder)
    if len(store) and store.identity != dict(identity):
        shutil.rmtree(folder / "shards")
        (folder / "shards").mkdir()
        notes.append(f"{folder}: extracted by another version or with other settings; extracting anew")
        store = FeatureStore(folder)
    for path, reason in store.damaged:
        shutil.rmtree(path.with_name(f"damaged-{path.name}"), ignore_errors=True)  # of an earlier time
        path.rename(path.with_name(f"damaged-{path.name}"))
        notes.append(
            f"shard {path} was damaged ({reason}); set aside as damaged-{path.name}, its images are read again"
        )
    total = sum(1 for _ in store.stale(wanted))
    if total and store.identity != dict(identity):
        write_whole(folder / "set.json", json.dumps(dict(identity), sort_keys=True))
    if total and reuse and (taken := take_over(folder, (item for item, _ in store.stale(wanted)), identity)):
        notes += taken
        merge(folder)
        store = FeatureStore(folder)
        total = sum(1 for _ in store.stale(wanted))
    if total:
        pack = None if exact else PRECISIONS[str(identity.get("precision", "float16"))]
        notes += _write_shards(store, wanted, total, make_read, pack, progress, executor)
        merge(folder)
    return total, notes


def _write_shards(
    store: FeatureStore,
    wanted: Iterable[Item],
    total: int,
    make_read: Callable[[], Callable[[Item], Entry] | Streams],
    pack: Callable[[np.ndarray], np.ndarray] | None,
    progress: Callable[[int, int], None] | None,
    executor: Executor,
) -> list[str]:
    """Read what is stale, a shard at a time, merging as it goes; notes on what had changed.

    Workers read; this process alone writes, in the images' order.
    """
    notes, done, broken = [], 0, False
    begun: deque[tuple[Item, str]] = deque()

    def drawn() -> Iterator[Item]:
        for item, reason in store.stale(wanted):
            begun.append((item, reason))
            yield item

    with closing(_read(drawn(), make_read, executor)) as found:
        for first in found:
            listed, arrays = [], []
            for stat, made in chain([first], islice(found, SHARD_IMAGES - 1)):
                item, reason = begun.popleft()
                if reason != "new":
                    name = item.files[0] if item.files else item.key
                    notes.append(f"{name} {reason} since its features were stored; read again")
                entry = {"key": item.key, "sha256": made.sha256, "stat": stat, "box": item.box, "error": made.error}
                listed.append(entry if made.times is None else {**entry, "ms": made.times})
                arrays.append(made.arrays)
                broken = broken or (item.required and made.error is not None)
                done += 1
                if progress:
                    progress(done, total)
            write_shard(store.folder, listed, arrays, pack)
            if done // SHARD_IMAGES % shards.MERGED == 0:
                merge(store.folder)  # what `store` has open may go: it looks up no arrays here
            if broken and not item.required:
                break  # every query has been read by now, and nothing can be compared
    return notes


def _read(
    items: Iterator[Item], make_read: Callable[[], Callable[[Item], Entry] | Streams], executor: Executor
) -> Generator[Stamped, None, None]:
    """What is read of each image, in order: of all in one go by this process, or of a shard at a time by workers."""
    tasks: Iterable[Iterable[Item]] = iter(lambda: list(islice(items, SHARD_IMAGES)), [])
    if not executor.hardware():  # this very process
        tasks = [items]
    for some in in_order(executor.map(partial(_reading, make_read), tasks, _described)):
        yield from some


def _reading(
    make_read: Callable[[], Callable[[Item], Entry] | Streams],
) -> Callable[[Iterable[Item]], Iterator[Stamped]]:
    """A worker's function."""
    read = make_read()
    if isinstance(read, Streams):
        return read.stream
    return lambda items: ((stamp(item.files), read(item)) for item in items)


def _described(items: Iterable[Item]) -> str:
    keys = [item.key for item in items]
    return f"the images {keys[0]} to {keys[-1]}"
