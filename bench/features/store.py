"""The feature store: shards of memory-mapped arrays, written whole or not at all, no pickle.

A shard is a folder of `.npy` arrays and a `shard.json` that lists its images, the sha256 of the files each was made
from (the image, or files of features) and the size in bytes of every array. It is written under a temporary name and
renamed, so a shard that exists is whole; a shard whose files have other sizes than it says was damaged afterwards and
is reported, set aside and extracted again. Every so many shards are merged into one, so that a million images are some
dozens of shards; which shard and row an image is in is looked up in `bench.features.index`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice, pairwise, tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.datasets import Dataset
from bench.errors import UserError
from bench.executor import Executor, Local, in_order
from bench.features import Features
from bench.features.index import Index, Row, Shard, shards
from bench.features.precision import PRECISIONS, unpacked
from bench.files import read_json, write_whole, writing
from bench.images import Box
from bench.locks import alone
from bench.search import Vectors

LOCAL: Mapping[str, type] = {
    "descriptors": np.float16,
    "keypoints": np.float32,
    "scales": np.float16,
    "orientations": np.float16,
    "scores": np.float16,
}
# what a method's declared needs make it read, and so what a deployed system would have to store for it
READS = {
    "local": ("descriptors", "scales", "scores"),
    "keypoints": ("keypoints", "orientations"),
    "global": ("global_descriptor",),
}
ALL = frozenset(READS)
WHOLE: Mapping[str, type] = {"global_descriptor": np.float16, "image_size": np.int32}
SHARD_IMAGES = 64  # how much is lost at most when extraction is killed
MERGED = 256  # small shards that become one of 16,384 images
REMEMBERED = 65_536  # places of images kept in memory
NOTHING = torch.zeros(0)
NAMED = 20  # unreadable queries named in a message
MAPPED = 96  # shards whose files are open at a time: eight each, and a process may have 1,024


@dataclass(frozen=True)
class Item:
    """One image: its key in the store, the files its features are made from and the box to crop."""

    key: str
    files: tuple[Path, ...]  # the image; for imported features their files, or none where they are not at hand
    box: Box | None = None
    required: bool = False  # a query: if it cannot be read, nothing can be compared


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
            key: Item(key, (query.image,), query.box, required)
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


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did: images read anew, images that could not be read, and repairs worth telling."""

    extracted: int
    unreadable: Mapping[str, str]  # key -> reason
    notes: tuple[str, ...]
    caveats: tuple[str, ...] = ()  # what is so of the features themselves; said under every table made of them


class FeatureStore:
    """Features of many images, by key. Opening reads no list of images; arrays are mapped when first used."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._index = Index(folder)
        self._maps: dict[int, dict[str, np.ndarray]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self.damaged = self._index.damaged

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.folder,)  # another process opens it anew

    def __contains__(self, key: str) -> bool:
        return self._index.find(key) is not None

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        """Every key, in the order in which reading is fastest."""
        return iter(self._index)

    def error(self, key: str) -> str | None:
        """Why the image has no features, or None."""
        row = self._index.find(key)
        return None if row is None else row.error

    def errors(self) -> dict[str, str]:
        """Why images have no features, by key."""
        return self._index.errors()

    @cached_property
    def identity(self) -> dict[str, object] | None:
        """What was extracted and how; None if the record of it is lost."""
        try:
            return json.loads((self.folder / "set.json").read_text())
        except (OSError, ValueError):
            return None

    def content(self, keys: Iterable[str]) -> str:
        """sha256 over the extraction's identity and the image contents of these keys."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode())
        for row in self._index.rows(keys):
            if row is None:
                raise KeyError("an image that is not in the store")
            digest.update(f"{row.key}\0{row.sha256}\0{row.box}\n".encode())
        return digest.hexdigest()

    @cached_property
    def dims(self) -> tuple[int, int]:
        """Values of a local and of a global descriptor; 0 where the images have none."""
        arrays, about = self._arrays(0), self.identity or {}
        whole = arrays["global_descriptor"].shape[1] if "global_descriptor" in arrays else 0
        local = arrays["descriptors"].shape[1] if "descriptors" in arrays else 0
        if local and arrays["descriptors"].dtype != np.float16 and arrays["descriptors"].dtype != np.float32:
            local = int(read_json(self._index.shards[0] / "shard.json")["local_dim"])  # packed rows do not tell
        return int(about.get("local_dim", local)), int(about.get("global_dim", whole))  # type: ignore[call-overload]

    def times(self) -> tuple[float, float] | None:
        """Median ms to decode an image and to extract from it, as measured when it was done; None if it was not."""
        lists = (read_json(path / "shard.json")["images"] for path in self._index.shards)
        found = [entry["ms"] for listed in lists for entry in listed if entry.get("ms")]
        return None if not found else tuple(np.median(np.array(found), axis=0).tolist())  # type: ignore[return-value]

    def copies(self, keys: Collection[str], among: Iterable[str]) -> dict[str, str]:
        """For each of `keys` whose image has the same bytes as one of `among`, the last such image.

        An image is no copy of itself, and one that could not be read is no copy of any.
        """
        wanted = {row.sha256: row.key for row in self._index.rows(keys) if row is not None and row.sha256}
        these, again = tee(among)
        found = {}
        for image, row in zip(these, self._index.rows(again), strict=True):
            if row is not None and wanted.get(row.sha256, image) != image:
                found[wanted[row.sha256]] = image
        return found

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        found = self._maps.get(number)
        if found is None:
            folder = self._index.shards[number]
            try:
                found = {
                    # a plain view of the map: indexing a memmap itself costs more than reading a row
                    name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
                    for name in (*LOCAL, *WHOLE, "offsets")
                    if name == "offsets" or (folder / f"{name}.npy").is_file()
                }
            except FileNotFoundError as error:
                raise UserError(
                    f"{folder}: was removed while the store was in use", hint="run the same command again"
                ) from error
            if len(self._maps) >= MAPPED:
                self._maps.pop(next(iter(self._maps)), None)
            self._maps[number] = found
        return found

    def read(self, key: str, needs: frozenset[str] = ALL, top: int | None = None) -> Features:
        """Features of one image in float32, with only what `needs` names and at most the best `top` local rows."""
        return self.read_all([key], needs, lambda count: count if top is None else top)[0]

    def read_all(
        self, keys: Sequence[str], needs: frozenset[str] = ALL, top: Callable[[int], int] | None = None
    ) -> tuple[Features, ...]:
        """As `read`, of several images; `top` says how many of an image's local rows are read. ValueError for rows
        that are not in the order of their scores."""
        parts, sizes = [], []
        for key in keys:
            shard, row = self._place(key)
            arrays = self._arrays(shard)
            start, stop = arrays["offsets"][row], arrays["offsets"][row + 1]
            rows = int(stop - start) if "local" in needs else 0
            if top is not None:
                rows = min(rows, top(rows))
            parts.append((arrays, row, slice(start, start + rows)))
            sizes.append(rows)
        total = sum(sizes)

        def joined(name: str) -> Tensor:
            if name not in parts[0][0] or (name in READS["keypoints"] and "keypoints" not in needs):
                return torch.zeros((total, *((2,) if name == "keypoints" else (0,) * (name == "descriptors"))))
            stored = np.concatenate([arrays[name][at] for arrays, _, at in parts])
            if name == "descriptors" and stored.dtype != np.float16:
                return torch.from_numpy(unpacked(stored, self.dims[0]))
            return torch.from_numpy(stored).float()

        local = {name: joined(name) for name in LOCAL}
        ends = torch.tensor(sizes).cumsum(0)[:-1]
        rising = torch.nonzero(local["scores"][1:] > local["scores"][:-1]).flatten() + 1
        if not torch.isin(rising, ends).all():
            raise ValueError(f"local descriptors of one of {keys[0]!r}, … are not sorted by descending score")
        whole = [arrays["global_descriptor"][row] for arrays, row, _ in parts] if "global" in needs else []
        columns = {
            "global_descriptor": torch.from_numpy(np.stack(whole)).float().unbind() if whole else [NOTHING] * len(keys),
            "image_size": torch.from_numpy(np.stack([a["image_size"][row] for a, row, _ in parts])).float().unbind(),
            **{name: rows.split(sizes) for name, rows in local.items()},
        }
        return tuple(
            Features.checked(**dict(zip(columns, values, strict=True)))
            for values in zip(*columns.values(), strict=True)
        )

    def _place(self, key: str) -> tuple[int, int]:
        """Shard and row. Those looked up of late are remembered: every method reads the same candidates."""
        found = self._places.get(key)
        if found is None:
            if len(self._places) >= REMEMBERED:
                self._places.clear()
            found = self._places[key] = self._index.place(key)
        return found

    def count(self, key: str) -> int:
        """Number of local descriptors stored for the image."""
        shard, row = self._place(key)
        offsets = self._arrays(shard)["offsets"]
        return int(offsets[row + 1] - offsets[row])

    def places(self, keys: Iterable[str]) -> np.ndarray:
        """(len(keys), 2) int32 shard and row of each image. KeyError for one that is not here."""
        flat = np.fromiter(
            (number for key, row in zip_keys(keys, self._index) for number in _place(key, row)), dtype=np.int32
        )
        return flat.reshape(-1, 2)

    def counts(self, keys: Iterable[str]) -> np.ndarray:
        """(len(keys),) numbers of local descriptors."""
        places = self.places(keys)
        found = np.empty(len(places), np.int64)
        for shard in np.unique(places[:, 0]):
            at = places[:, 0] == shard
            found[at] = np.diff(self._arrays(int(shard))["offsets"])[places[at, 1]]
        return found

    def vectors(self, keys: Iterable[str]) -> Vectors:
        """The global descriptors of these images as they are stored, for a search to take block by block."""
        places = self.places(keys)
        return Vectors(
            len(places), lambda start, stop: self._globals(places[start:stop]), lambda at: self._globals(places[at])
        )

    def _globals(self, places: np.ndarray) -> np.ndarray:
        """(n, D) copies of the rows at (n, 2) places; their pages are given back to the system."""
        first = self._arrays(int(places[0, 0]))["global_descriptor"]
        rows = np.empty((len(places), *first.shape[1:]), first.dtype)
        ends = np.flatnonzero(np.r_[np.diff(places[:, 0]) != 0, True]) + 1
        for start, stop in pairwise([0, *ends.tolist()]):
            array = self._arrays(int(places[start, 0]))["global_descriptor"]
            at = places[start:stop, 1]
            straight = at[-1] - at[0] == len(at) - 1 and (np.diff(at) == 1).all()
            rows[start:stop] = array[at[0] : at[-1] + 1] if straight else array[at]
            if straight:
                array.base._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]
        return rows

    def global_descriptors(self, keys: Sequence[str]) -> np.ndarray:
        """(len(keys), D) float32; rows of zeros for images without features."""
        return self._globals(self.places(keys)).astype(np.float32)

    def bytes_per_image(self, needs: frozenset[str]) -> tuple[int, int]:
        """Stored bytes of one image's global descriptor and of one local row, for what `needs` names."""
        arrays = self._arrays(0)
        names = [name for need in needs & ALL for name in READS[need] if name in arrays]
        size = {name: int(np.prod(arrays[name].shape[1:])) * arrays[name].itemsize for name in names}
        return size.get("global_descriptor", 0), sum(size[name] for name in names if name in LOCAL)

    def stale(self, wanted: Iterable[Item]) -> Iterator[tuple[Item, str]]:
        """Images to extract, with the reason: new, or changed since (by size and time first, then by content)."""
        items, again = tee(wanted)
        for item, row in zip(items, self._index.rows(item.key for item in again), strict=True):
            if row is None:
                yield item, "new"
            elif row.box != item.box:
                yield item, "has another query box"
            elif item.files and _stat(item.files) != row.stat and _hash(item.files) != row.sha256:
                yield item, "changed"


def zip_keys(keys: Iterable[str], index: Index) -> Iterator[tuple[str, Row | None]]:
    these, again = tee(keys)
    return zip(these, index.rows(again), strict=True)


def _place(key: str, row: Row | None) -> tuple[int, int]:
    if row is None:
        raise KeyError(key)
    return row.shard, row.row


def _stat(files: Sequence[Path]) -> tuple[int, ...]:
    found: list[int] = []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            return (-1, -1)
        found += [status.st_size, status.st_mtime_ns]
    return tuple(found)


def _hash(files: Sequence[Path]) -> str:
    """As `Entry.sha256`; empty if a file cannot be read."""
    try:
        hashes = []
        for path in files:
            with path.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        return "+".join(hashes)
    except OSError:
        return ""


def _unreadable_queries(reasons: Sequence[str]) -> UserError:
    shown = [*reasons[:NAMED], *([f"and {len(reasons) - NAMED} more"] if len(reasons) > NAMED else [])]
    return UserError(
        f"{len(reasons)} query image{'s' * (len(reasons) > 1)} cannot be read:\n  " + "\n  ".join(shown),
        hint="replace these files, or leave their queries out with --skip-unreadable, which the table then says",
    )


@dataclass(frozen=True)
class Entry:
    """What is stored of one image: arrays named as the fields of `Features`, and what they were made from."""

    sha256: str  # of the item's file, or of each, joined by +; empty if they could not be read
    arrays: Mapping[str, np.ndarray]  # of local features, the global descriptor or both; the same names in every image
    error: str | None = None  # why the image has no features
    times: tuple[float, float] | None = None  # ms to decode the image, and to extract from it


def _write_shard(
    folder: Path,
    listed: list[dict],
    arrays: list[Mapping[str, np.ndarray]],
    pack: Callable[[np.ndarray], np.ndarray] | None,
) -> None:
    """One shard of these images; `pack` stores descriptors, and without it everything is stored in float32."""
    kept, _ = shards(folder / "shards")

    def kind(stored: type) -> type:
        return np.float32 if pack is None and stored is np.float16 else stored

    number = max((shard.last for shard in kept), default=-1) + 1
    dim = arrays[0]["descriptors"].shape[1] if "descriptors" in arrays[0] else 0
    with _new_shard(folder, f"{number:06d}", listed, dim) as temporary:
        for name in LOCAL.keys() & arrays[0].keys():
            rows = np.concatenate([a[name] for a in arrays])
            stored = pack(rows) if pack is not None and name == "descriptors" else rows.astype(kind(LOCAL[name]))
            np.save(temporary / f"{name}.npy", stored)
        for name in WHOLE.keys() & arrays[0].keys():
            np.save(temporary / f"{name}.npy", np.stack([a[name] for a in arrays]).astype(kind(WHOLE[name])))
        rows_of = (len(a["scores"]) if "scores" in a else 0 for a in arrays)
        np.save(temporary / "offsets.npy", np.cumsum([0, *rows_of]).astype(np.int64))


@contextmanager
def _new_shard(folder: Path, name: str, listed: list[dict], local_dim: int) -> Iterator[Path]:
    """A folder to write arrays to, which becomes the shard of that name when all are written."""
    temporary = folder / "shards" / f"tmp-{os.getpid()}-{secrets.token_hex(4)}"  # other machines have the same pids
    temporary.mkdir()
    try:
        yield temporary
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        (temporary / "shard.json").write_text(json.dumps({"files": files, "local_dim": local_dim, "images": listed}))
        temporary.rename(folder / "shards" / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def merge(folder: Path) -> None:
    """Merge every MERGED small shards of a store into one, and remove what a merged one replaces.

    The merged shard appears whole, under a name that says which shards it stands for; those are removed afterwards, so
    that a process killed at any point leaves every image in place.
    """
    found, replaced = shards(folder / "shards")
    for path in replaced:
        shutil.rmtree(path, ignore_errors=True)
    small = [shard for shard in found if shard.first == shard.last]
    for start in range(0, len(small) - MERGED + 1, MERGED):
        _merge(folder, small[start : start + MERGED])


def _merge(folder: Path, parts: Sequence[Shard]) -> None:
    contents = [read_json(part.path / "shard.json") for part in parts]
    lists = [content["images"] for content in contents]
    name = f"{parts[0].first:06d}-{parts[-1].last:06d}"
    entries = [entry for listed in lists for entry in listed]
    with _new_shard(folder, name, entries, contents[0].get("local_dim", 0)) as temporary:
        for array in (name for name in (*LOCAL, *WHOLE) if (parts[0].path / f"{name}.npy").is_file()):
            pieces = [np.load(part.path / f"{array}.npy", mmap_mode="r") for part in parts]
            rows = sum(map(len, pieces))
            # an empty array cannot be mapped
            whole: Any = (
                np.lib.format.open_memmap(
                    temporary / f"{array}.npy", "w+", pieces[0].dtype, (rows, *pieces[0].shape[1:])
                )
                if rows
                else np.empty((0, *pieces[0].shape[1:]), pieces[0].dtype)
            )
            at = 0
            for piece in pieces:
                whole[at : at + len(piece)] = piece
                at += len(piece)
            if rows:
                whole.flush()
            else:
                np.save(temporary / f"{array}.npy", whole)
        counts = [np.diff(np.load(part.path / "offsets.npy")) for part in parts]
        np.save(temporary / "offsets.npy", np.cumsum(np.concatenate([[0], *counts])).astype(np.int64))
    for part in parts:
        shutil.rmtree(part.path, ignore_errors=True)


def fill(
    wanted: Iterable[Item],
    folder: Path,
    make_read: Callable[[], Callable[[Item], Entry]],
    identity: Mapping[str, object],
    progress: Callable[[int, int], None] | None = None,
    *,
    exact: bool = False,
    executor: Executor = Local(),
) -> ExtractReport:
    """Bring the store in `folder` up to date with the images `wanted`; finished shards are kept whatever happens.

    `make_read` is called if any of them is new or changed, and what it gives reads an image's features. UserError for
    query images that cannot be read, all of them named, and for a full disk.

    `exact` stores them in float32, without the rounding of half precision. `wanted` is gone through more than once.
    One process at a time writes to a store; a store that is up to date is not written to.
    """
    store, total = FeatureStore(folder), 0
    notes: list[str] = []
    if _outdated(store, identity) or any(True for _ in store.stale(wanted)):
        hint = "finished shards are kept; make room or choose another --cache-dir and run again"
        with writing(folder, hint), alone(folder, "extracting into") as locked:
            if locked:
                _sweep(folder)
            total, notes = _update(wanted, folder, make_read, identity, progress, exact, executor)
        store = FeatureStore(folder)
    errors = store.errors()
    failed = {item.key: errors[item.key] for item in wanted if item.key in errors} if errors else {}
    if unreadable := [failed[item.key] for item in wanted if item.required and item.key in failed] if failed else []:
        raise _unreadable_queries(unreadable)
    return ExtractReport(total, failed, tuple(notes))


def _outdated(store: FeatureStore, identity: Mapping[str, object]) -> bool:
    return bool(store.damaged) or (len(store) > 0 and store.identity != dict(identity))


def _sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished: who writes holds the lock, so nobody is at work on it."""
    for left in (folder / "shards").glob("tmp-*"):
        shutil.rmtree(left, ignore_errors=True)


def _update(
    wanted: Iterable[Item],
    folder: Path,
    make_read: Callable[[], Callable[[Item], Entry]],
    identity: Mapping[str, object],
    progress: Callable[[int, int], None] | None,
    exact: bool,
    executor: Executor,
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
    if total:
        pack = None if exact else PRECISIONS[str(identity.get("precision", "float16"))]
        if store.identity != dict(identity):
            write_whole(folder / "set.json", json.dumps(dict(identity), sort_keys=True))
        notes += _write_shards(store, wanted, total, make_read, pack, progress, executor)
        merge(folder)
    return total, notes


def _write_shards(
    store: FeatureStore,
    wanted: Iterable[Item],
    total: int,
    make_read: Callable[[], Callable[[Item], Entry]],
    pack: Callable[[np.ndarray], np.ndarray] | None,
    progress: Callable[[int, int], None] | None,
    executor: Executor,
) -> list[str]:
    """Read what is stale, a shard at a time, merging as it goes; notes on what had changed.

    Workers read; this process alone writes, in the images' order.
    """
    notes, done, broken = [], 0, False
    begun: deque[list[tuple[Item, str]]] = deque()

    def chunks() -> Iterator[list[Item]]:
        todo = store.stale(wanted)
        while chunk := list(islice(todo, SHARD_IMAGES)):
            begun.append(chunk)
            yield [item for item, _ in chunk]

    for found in in_order(executor.map(partial(_reading, make_read), chunks(), _described)):
        listed, arrays, chunk = [], [], begun.popleft()
        for (item, reason), (stat, made) in zip(chunk, found, strict=True):
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
        _write_shard(store.folder, listed, arrays, pack)
        if done // SHARD_IMAGES % MERGED == 0:
            merge(store.folder)  # what `store` has mapped may go: it looks up no arrays here
        if broken and not chunk[-1][0].required:
            break  # every query has been read by now, and nothing can be compared
    return notes


def _reading(
    make_read: Callable[[], Callable[[Item], Entry]],
) -> Callable[[list[Item]], Iterator[tuple[tuple[int, ...], Entry]]]:
    """A worker's function: when each image was last changed, before it is read, and what is read of it."""
    read = make_read()
    return lambda items: ((_stat(item.files), read(item)) for item in items)


def _described(items: list[Item]) -> str:
    return f"the images {items[0].key} to {items[-1].key}"
