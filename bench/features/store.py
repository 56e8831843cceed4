"""Reading a feature store: memory-mapped arrays of shards, no pickle, opened in the same time whatever its size.

A shard whose files have other sizes than it says was damaged after it was written; it is reported, set aside and read
again. Which shard and row an image is in is looked up in `bench.features.index`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError
from bench.features import Features
from bench.features.index import Index, Row
from bench.features.items import Item, content, stamp
from bench.features.precision import unpacked
from bench.features.shards import LOCAL, WHOLE
from bench.files import read_json
from bench.search import Vectors

# what a method's declared needs make it read, and so what a deployed system would have to store for it
READS = {
    "local": ("descriptors", "scales", "scores"),
    "keypoints": ("keypoints", "orientations"),
    "global": ("global_descriptor",),
}
ALL = frozenset(READS)
REMEMBERED = 65_536  # places of images kept in memory
NOTHING = torch.zeros(0)
RELEASED = 256  # images whose rows are read before the pages of all maps are given back to the system
MAPPED = 96  # shards whose files are open at a time: eight each, and a process may have 1,024


@dataclass(frozen=True, eq=False)
class Stored:
    """What is stored of one image, in the precision of the store."""

    arrays: Mapping[str, np.ndarray]  # named as the fields of `Features`, those that the store has
    entry: Mapping[str, Any]  # its entry in the shard's list
    local_dim: int  # values of a local descriptor before it was packed; 0 where there are none


class FeatureStore:
    """Features of many images, by key. Opening reads no list of images; arrays are mapped when first used."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._index = Index(folder)
        self._maps: dict[int, dict[str, np.ndarray]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._last: tuple[int, dict[str, Any]] = (-1, {})
        self._held = 0  # images read since pages were given back
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

    def times(self, keys: Iterable[str]) -> tuple[float, float] | None:
        """Median ms to decode one of these images and to extract from it, as measured when it was done.

        None where it was not measured, as of imported features.
        """
        places, found = self.places(keys), []
        for shard in np.unique(places[:, 0]):
            images = read_json(self._index.shards[int(shard)] / "shard.json")["images"]
            found += [images[row].get("ms") for row in places[places[:, 0] == shard, 1]]
        found = [ms for ms in found if ms]
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

    def rows(self) -> Iterator[Row]:
        """What every image was made from, in the order in which reading is fastest."""
        return self._index.all()

    def stored(self, row: Row) -> Stored:
        """What is stored of an image of this store, as it is. UserError, OSError: it was removed meanwhile."""
        arrays, about = self._arrays(row.shard), self._listed(row.shard)
        start, stop = arrays["offsets"][row.row : row.row + 2]
        return Stored(
            {
                name: array[start:stop] if name in LOCAL else array[row.row]
                for name, array in arrays.items()
                if name != "offsets"
            },
            about["images"][row.row],
            int(about["local_dim"]),
        )

    def _listed(self, number: int) -> dict[str, Any]:
        """What a shard says of itself; that of the last one asked for is remembered."""
        if self._last[0] != number:
            self._last = number, read_json(self._index.shards[number] / "shard.json")
        return self._last[1]

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
        self._release(len(keys))
        return tuple(
            Features.checked(**dict(zip(columns, values, strict=True)))
            for values in zip(*columns.values(), strict=True)
        )

    def _release(self, read: int) -> None:
        """Give pages back once many images were read, so that memory does not grow with the gallery: all are copied."""
        self._held += read
        if self._held >= RELEASED:
            self._held = 0
            for arrays in list(self._maps.values()):
                for array in arrays.values():
                    _give_back(array)

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
            _give_back(array)
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
            elif item.files and stamp(item.files) != row.stat and content(item.files) != row.sha256:
                yield item, "changed"


def _give_back(array: np.ndarray) -> None:
    """The system may have the memory of a mapped array; what is read of it later is read again."""
    if isinstance(array.base, np.memmap):  # an empty array is not mapped
        array.base._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def zip_keys(keys: Iterable[str], index: Index) -> Iterator[tuple[str, Row | None]]:
    these, again = tee(keys)
    return zip(these, index.rows(again), strict=True)


def _place(key: str, row: Row | None) -> tuple[int, int]:
    if row is None:
        raise KeyError(key)
    return row.shard, row.row
