"""The feature store: shards of memory-mapped arrays, written whole or not at all, no pickle.

A shard is a folder of `.npy` arrays and a `shard.json` that lists its images, the sha256 of the files each was made
from (the image, or files of features) and the size in bytes of every array. It is written under a temporary name and
renamed, so a shard that exists is whole; a shard whose files have other sizes than it says was damaged afterwards and
is reported, set aside and extracted again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from bench.datasets import Box, Dataset
from bench.errors import UserError
from bench.features import Features
from bench.features.extractors import FeatureExtractor
from bench.images import UnreadableImage, content_hash, crop, decode, read_bytes

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


def items(dataset: Dataset) -> list[Item]:
    """Every image of the data set once, queries first (an unreadable query must stop the run early)."""
    queries = {
        key: Item(key, (q.image,), q.box, required=True)
        for i, q in enumerate(dataset.queries)
        for key in [query_key(dataset, i)]
    }
    return [*queries.values(), *(Item(k, (path,)) for k, path in dataset.gallery.items() if k not in queries)]


@dataclass(frozen=True)
class _Row:
    shard: int
    row: int
    sha256: str
    stat: tuple[int, ...]  # size in bytes and mtime in ns of each of its files when they were read
    box: Box | None
    error: str | None


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did: images read anew, images that could not be read, and repairs worth telling."""

    extracted: int
    unreadable: Mapping[str, str]  # key -> reason
    notes: tuple[str, ...]


class FeatureStore:
    """Features of many images, by key. Opening reads the shard lists only; arrays are mapped when first used."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._rows: dict[str, _Row] = {}
        self._shards: list[Path] = []
        self._maps: dict[int, dict[str, np.ndarray]] = {}
        self.damaged: list[tuple[Path, str]] = []
        for path in sorted((folder / "shards").glob("[0-9]*")) if (folder / "shards").is_dir() else []:
            listed = _read_shard_list(path)
            if isinstance(listed, str):
                self.damaged.append((path, listed))
                continue
            number = len(self._shards)
            self._shards.append(path)
            for row, entry in enumerate(listed):  # later shards replace earlier ones: a changed image is read again
                box = None if entry["box"] is None else tuple(entry["box"])
                self._rows[entry["key"]] = _Row(number, row, entry["sha256"], tuple(entry["stat"]), box, entry["error"])

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        """Every key, in the order in which reading is fastest."""
        return iter(self._rows)

    def error(self, key: str) -> str | None:
        """Why the image has no features, or None."""
        return self._rows[key].error

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
        for key in keys:
            row = self._rows[key]
            digest.update(f"{key}\0{row.sha256}\0{row.box}\n".encode())
        return digest.hexdigest()

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        found = self._maps.get(number)
        if found is None:
            folder = self._shards[number]
            found = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in (*LOCAL, *WHOLE, "offsets")
            }
            if len(self._maps) >= MAPPED:
                self._maps.pop(next(iter(self._maps)), None)
            self._maps[number] = found
        return found

    def read(self, key: str, needs: frozenset[str] = ALL, top: int | None = None) -> Features:
        """Features of one image in float32, with only what `needs` names and at most the best `top` local rows."""
        at = self._rows[key]
        arrays = self._arrays(at.shard)
        start, stop = (int(o) for o in arrays["offsets"][at.row : at.row + 2])
        if "local" not in needs:
            stop = start
        elif top is not None:
            stop = min(stop, start + top)
        unread = () if "keypoints" in needs else READS["keypoints"]
        local = {
            name: torch.zeros((stop - start, *arrays[name].shape[1:]))
            if name in unread
            else torch.from_numpy(arrays[name][start:stop].astype(np.float32))
            for name in LOCAL
        }
        whole = arrays["global_descriptor"][at.row] if "global" in needs else np.zeros(0)
        return Features(
            global_descriptor=torch.from_numpy(whole.astype(np.float32)),
            image_size=torch.from_numpy(arrays["image_size"][at.row].astype(np.float32)),
            **local,
        )

    def count(self, key: str) -> int:
        """Number of local descriptors stored for the image."""
        at = self._rows[key]
        offsets = self._arrays(at.shard)["offsets"]
        return int(offsets[at.row + 1] - offsets[at.row])

    def global_descriptors(self, keys: Sequence[str]) -> np.ndarray:
        """(len(keys), D) float32; rows of zeros for images without features."""
        rows = [self._arrays(self._rows[key].shard)["global_descriptor"][self._rows[key].row] for key in keys]
        return np.stack(rows).astype(np.float32)

    def bytes_per_image(self, needs: frozenset[str]) -> tuple[int, int]:
        """Stored bytes of one image's global descriptor and of one local row, for what `needs` names."""
        arrays = self._arrays(0)
        names = [name for need in needs & ALL for name in READS[need]]
        size = {name: int(np.prod(arrays[name].shape[1:])) * arrays[name].itemsize for name in names}
        return size.get("global_descriptor", 0), sum(size[name] for name in names if name in LOCAL)

    def stale(self, wanted: Iterable[Item]) -> list[tuple[Item, str]]:
        """Images to extract, with the reason: new, or changed since (by size and time first, then by content)."""
        todo = []
        for item in wanted:
            row = self._rows.get(item.key)
            if row is None:
                todo.append((item, "new"))
            elif row.box != item.box:
                todo.append((item, "has another query box"))
            elif item.files and _stat(item.files) != row.stat and _hash(item.files) != row.sha256:
                todo.append((item, "changed"))
        return todo


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


def _read_shard_list(path: Path) -> list[dict] | str:
    """The shard's images, or what is wrong with it."""
    try:
        listed = json.loads((path / "shard.json").read_text())
        for name, size in listed["files"].items():
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, expected {size}"
        return listed["images"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def _unreadable_query(reason: str) -> UserError:
    return UserError(f"query image cannot be read: {reason}", hint="replace the file, or take it out of the data set")


@dataclass(frozen=True)
class Entry:
    """What is stored of one image: arrays named as the fields of `Features`, and what they were made from."""

    sha256: str  # of the item's file, or of each, joined by +; empty if they could not be read
    arrays: Mapping[str, np.ndarray]
    error: str | None = None  # why the image has no features


def _extract_one(item: Item, extractor: FeatureExtractor) -> Entry:
    """The features of one image; an unreadable one has an error and empty arrays."""
    card = extractor.card
    (path,) = item.files
    sha256, error = "", None
    try:
        data = read_bytes(path)
        sha256 = content_hash(data)
        image, ratio = crop(decode(data, path), item.box, path)
        arrays = extractor(image, ratio)
    except UnreadableImage as problem:
        if item.required:
            raise _unreadable_query(problem.message) from problem
        error = problem.message
        arrays = {
            "global_descriptor": np.zeros(card.global_dim),
            "descriptors": np.zeros((0, card.local_dim)),
            "keypoints": np.zeros((0, 2)),
            "scales": np.zeros(0),
            "orientations": np.zeros(0),
            "scores": np.zeros(0),
            "image_size": np.ones(2),
        }
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise UserError(f"{path}: the extractor {card.name!r} gave non-finite {name}")
    return Entry(sha256, arrays, error)


def _running(pid: str) -> bool:
    """Whether a process of that number is alive (another extraction into the same store)."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _write_shard(folder: Path, listed: list[dict], arrays: list[Mapping[str, np.ndarray]], exact: bool) -> None:
    shards = folder / "shards"

    def kind(stored: type) -> type:
        return np.float32 if exact and stored is np.float16 else stored

    taken = [int(path.name.partition(".")[0]) for path in shards.iterdir() if path.name[:1].isdigit()]
    temporary = shards / f"tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name in LOCAL:
            np.save(temporary / f"{name}.npy", np.concatenate([a[name] for a in arrays]).astype(kind(LOCAL[name])))
        for name in WHOLE:
            np.save(temporary / f"{name}.npy", np.stack([a[name] for a in arrays]).astype(kind(WHOLE[name])))
        np.save(temporary / "offsets.npy", np.cumsum([0, *(len(a["scores"]) for a in arrays)]).astype(np.int64))
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        (temporary / "shard.json").write_text(json.dumps({"files": files, "images": listed}))
        temporary.rename(shards / f"{max(taken, default=-1) + 1:06d}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def extract(
    wanted: Sequence[Item],
    folder: Path,
    make_extractor: Callable[[], FeatureExtractor],
    identity: Mapping[str, object],
    progress: Callable[[int, int], None] | None = None,
) -> ExtractReport:
    """Bring the store in `folder` up to date with the images `wanted`; finished shards are kept whatever happens.

    Raises UserError for a query image that cannot be read and for a full disk.
    """

    def make_read() -> Callable[[Item], Entry]:
        extractor = make_extractor()
        return lambda item: _extract_one(item, extractor)

    return fill(wanted, folder, make_read, identity, progress)


def fill(
    wanted: Sequence[Item],
    folder: Path,
    make_read: Callable[[], Callable[[Item], Entry]],
    identity: Mapping[str, object],
    progress: Callable[[int, int], None] | None = None,
    *,
    exact: bool = False,
) -> ExtractReport:
    """As `extract`, with features from anywhere: `make_read` is called if any of `wanted` is new or changed.

    `exact` stores them in float32, without the rounding of half precision.
    """
    notes = []
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    for left in (folder / "shards").glob("tmp-*"):
        if not _running(left.name.removeprefix("tmp-")):
            shutil.rmtree(left, ignore_errors=True)  # a killed extraction's unfinished shard
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
    todo = store.stale(wanted)
    notes += [
        f"{item.files[0]} {reason} since its features were stored; read again"
        for item, reason in todo
        if reason != "new"
    ]
    if todo:
        read = make_read()
        try:
            if store.identity != dict(identity):
                write_whole(folder / "set.json", json.dumps(dict(identity), sort_keys=True))
            for start in range(0, len(todo), SHARD_IMAGES):
                listed, arrays = [], []
                for item, _ in todo[start : start + SHARD_IMAGES]:
                    stat = _stat(item.files)  # before it is read: a change meanwhile is then noticed
                    made = read(item)
                    listed.append(
                        {"key": item.key, "sha256": made.sha256, "stat": stat, "box": item.box, "error": made.error}
                    )
                    arrays.append(made.arrays)
                    if progress:
                        progress(start + len(listed), len(todo))
                _write_shard(folder, listed, arrays, exact)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot write features ({error.strerror or error})",
                hint="finished shards are kept; make room or choose another --cache-dir and run again",
            ) from error
        store = FeatureStore(folder)
    failed = {item.key: why for item in wanted if (why := store.error(item.key)) is not None}
    for query in wanted:
        if query.required and query.key in failed:
            raise _unreadable_query(failed[query.key])
    return ExtractReport(len(todo), failed, tuple(notes))
