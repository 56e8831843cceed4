"""Reading a feature store: rows of arrays of shards, no pickle, opened in the same time whatever its size.

A shard whose files have other sizes than it says was damaged after it was written; it is reported, set aside and read
again. Which shard and row an image is in is looked up in `bench.features.index`.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise, tee
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError
from bench.features import Features
from bench.features.arrays import ArrayFile
from bench.features.index import Index, Row
from bench.features.items import Item, content, stamp
from bench.features.precision import unpacked
from bench.features.shards import LOCAL
from bench.files import read_json
from bench.search import Vectors

# what a method's declared needs make it read, and so what a deployed system would have to store for it
READS = {
    "local": ("descriptors", "scales", "scores"),
    "keypoints": ("keypoints", "orientations"),
    "global": ("global_descriptor",),
}
ALL = frozenset(READS)
REMEMBERED = 16_384  # places of images kept in memory
TOGETHER = 8_192  # images whose places are held at a time where all of a gallery are counted
NOTHING = torch.zeros(0)
T = TypeVar("T")
OPEN = 96  # shards whose files are open at a time: eight each, and a process may have 1,024


@dataclass(frozen=True, eq=False)
class Stored:
    """What is stored of one image, in the precision of the store."""

    arrays: Mapping[str, np.ndarray]  # named as the fields of `Features`, those that the store has
    entry: Mapping[str, Any]  # its entry in the shard's list
    local_dim: int  # values of a local descriptor before it was packed; 0 where there are none


class Places:
    """Where images lie, shard and row of each: of those that follow one another in a shard the first is kept."""

    def __init__(self, pairs: Iterable[tuple[int, int]]):
        firsts, shards, rows = array("q"), array("i"), array("i")
        count, shard, row = 0, -1, -1
        for one, other in pairs:
            row += 1
            if one != shard or other != row:
                shard, row = one, other
                firsts.append(count)
                shards.append(shard)
                rows.append(row)
            count += 1
        self._count = count
        self._firsts = np.array(firsts, np.int64)  # number of the first image of each run
        self._shards, self._rows = np.array(shards, np.int32), np.array(rows, np.int32)

    def __len__(self) -> int:
        return self._count

    def at(self, numbers: np.ndarray) -> np.ndarray:
        """(m, 2) shard and row of the images of these numbers (m,)."""
        run = np.searchsorted(self._firsts, numbers, side="right") - 1
        return np.stack([self._shards[run], self._rows[run] + numbers - self._firsts[run]], axis=1)


class FeatureStore:
    """Features of many images, by key. Opening reads no list of images; arrays are opened when first used."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._index = Index(folder)
        self._open: dict[int, dict[str, ArrayFile]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._last: tuple[int, tuple[dict[str, Any], int]] = (-1, ({}, 0))
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
        for key, sha256, box in self._index.contents(keys):
            digest.update(f"{key}\0{sha256}\0{box}\n".encode())
        return digest.hexdigest()

    @cached_property
    def dims(self) -> tuple[int, int]:
        """Values of a local and of a global descriptor; 0 where the images have none."""
        arrays, about = self._arrays(0), self.identity or {}
        whole = arrays["global_descriptor"].shape[1] if "global_descriptor" in arrays else 0
        local = arrays["descriptors"].shape[1] if "descriptors" in arrays else 0
        if local and arrays["descriptors"].dtype != np.float16 and arrays["descriptors"].dtype != np.float32:
            local = int(self._listed(0)[0]["local_dim"])  # packed rows do not tell
        return int(about.get("local_dim", local)), int(about.get("global_dim", whole))  # type: ignore[call-overload]

    def times(self, keys: Iterable[str]) -> tuple[float, float] | None:
        """Median ms to decode one of these images and to extract from it, as measured when it was done.

        None where it was not measured, as of imported features.
        """
        places, found = self.places(keys), []
        for shard in np.unique(places[:, 0]):
            about, first = self._listed(int(shard))
            found += [about["images"][first + row].get("ms") for row in places[places[:, 0] == shard, 1]]
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
        """What is stored of an image of this store, as it is. UserError: it was removed meanwhile."""
        arrays, (about, first) = self._arrays(row.shard), self._listed(row.shard)
        start, stop = arrays["offsets"].rows(row.row, row.row + 2)
        return Stored(
            {
                name: array.rows(start, stop) if name in LOCAL else array.rows(row.row, row.row + 1)[0]
                for name, array in arrays.items()
                if name != "offsets"
            },
            about["images"][first + row.row],
            int(about["local_dim"]),
        )

    def _listed(self, number: int) -> tuple[dict[str, Any], int]:
        """What a shard says of itself, and which of the images it lists is its first; that of the last one asked for is
        remembered."""
        if self._last[0] != number:
            found = self._where(number, lambda folder, first: (read_json(folder / "shard.json"), first))
            self._last = number, found
        return self._last[1]

    def _arrays(self, number: int) -> dict[str, ArrayFile]:
        found = self._open.get(number)
        if found is None:
            names = self._index.arrays(number)

            def opened(folder: Path, first: int) -> dict[str, ArrayFile]:
                # `offsets` of a merged shard say where rows of its local features lie, whichever shard they are from
                return {name: ArrayFile(folder / f"{name}.npy", 0 if name in LOCAL else first) for name in names}

            found = self._where(number, opened)
            if len(self._open) >= OPEN:
                self._open.pop(next(iter(self._open)), None)
            self._open[number] = found
        return found

    def _where(self, number: int, opened: Callable[[Path, int], T]) -> T:
        """What `opened` gives of the folder that holds a shard and the row there that is its first.

        Another process may have merged the shard into a larger one. UserError where it was removed.
        """
        folder = self._index.shards[number]
        with suppress(FileNotFoundError):
            return opened(folder, 0)
        with suppress(FileNotFoundError):
            if (merged := self._index.merged(number)) is not None:
                return opened(*merged)
        raise UserError(f"{folder}: was removed while the store was in use", hint="run the same command again")

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
            start, stop = arrays["offsets"].rows(row, row + 2).tolist()
            rows = stop - start if "local" in needs else 0
            if top is not None:
                rows = min(rows, top(rows))
            parts.append((arrays, row, start))
            sizes.append(rows)
        total = sum(sizes)

        def joined(name: str) -> Tensor:
            if name not in parts[0][0] or (name in READS["keypoints"] and "keypoints" not in needs):
                return torch.zeros((total, *((2,) if name == "keypoints" else (0,) * (name == "descriptors"))))
            first, at = parts[0][0][name], 0
            stored = np.empty((total, *first.shape[1:]), first.dtype)
            for (arrays, _, start), size in zip(parts, sizes, strict=True):
                arrays[name].into(stored[at : at + size], start)
                at += size
            if name == "descriptors" and stored.dtype != np.float16:
                return torch.from_numpy(unpacked(stored, self.dims[0]))
            return torch.from_numpy(stored).float()

        local = {name: joined(name) for name in LOCAL}
        ends = torch.tensor(sizes).cumsum(0)[:-1]
        rising = torch.nonzero(local["scores"][1:] > local["scores"][:-1]).flatten() + 1
        if not torch.isin(rising, ends).all():
            raise ValueError(f"local descriptors of one of {keys[0]!r}, … are not sorted by descending score")

        def each(name: str) -> Sequence[Tensor]:
            rows = np.concatenate([arrays[name].rows(row, row + 1) for arrays, row, _ in parts])
            return torch.from_numpy(rows).float().unbind()

        columns = {
            "global_descriptor": each("global_descriptor") if "global" in needs else [NOTHING] * len(keys),
            "image_size": each("image_size"),
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
        start, stop = self._arrays(shard)["offsets"].rows(row, row + 2)
        return int(stop - start)

    def places(self, keys: Iterable[str]) -> np.ndarray:
        """(len(keys), 2) int32 shard and row of each image. KeyError for one that is not here."""
        return np.fromiter(self._index.places(keys), dtype=(np.int32, 2))

    def counts(self, keys: Iterable[str]) -> np.ndarray:
        """(len(keys),) int32 numbers of local descriptors."""
        rest, found = self._index.places(keys), []
        while len(places := np.fromiter(islice(rest, TOGETHER), dtype=(np.int32, 2))):
            counts = np.empty(len(places), np.int32)
            for shard in np.unique(places[:, 0]):
                at, offsets = places[:, 0] == shard, self._arrays(int(shard))["offsets"]
                counts[at] = np.diff(offsets.rows(0, len(offsets)))[places[at, 1]]
            found.append(counts)
        return np.concatenate([np.empty(0, np.int32), *found])

    def vectors(self, keys: Iterable[str]) -> Vectors:
        """The global descriptors of these images as they are stored, for a search to take block by block."""
        places = Places(self._index.places(keys))
        return Vectors(
            len(places),
            lambda start, stop: self._globals(places.at(np.arange(start, stop))),
            lambda numbers: self._globals(places.at(numbers)),
        )

    def _globals(self, places: np.ndarray) -> np.ndarray:
        """(n, D) rows at (n, 2) places."""
        first = self._arrays(int(places[0, 0]))["global_descriptor"]
        rows = np.empty((len(places), *first.shape[1:]), first.dtype)
        ends = np.flatnonzero(np.r_[np.diff(places[:, 0]) != 0, True]) + 1
        for start, stop in pairwise([0, *ends.tolist()]):
            array = self._arrays(int(places[start, 0]))["global_descriptor"]
            array.gather(rows[start:stop], places[start:stop, 1])
        return rows

    def global_descriptors(self, keys: Sequence[str]) -> np.ndarray:
        """(len(keys), D) float32; rows of zeros for images without features."""
        return self._globals(self.places(keys)).astype(np.float32)

    def bytes_per_image(self, needs: frozenset[str]) -> tuple[int, int]:
        """Stored bytes of one image's global descriptor and of one local row, for what `needs` names."""
        arrays = self._arrays(0)
        names = [name for need in needs & ALL for name in READS[need] if name in arrays]
        size = {name: int(np.prod(arrays[name].shape[1:])) * arrays[name].dtype.itemsize for name in names}
        return size.get("global_descriptor", 0), sum(size[name] for name in names if name in LOCAL)

    def stale(self, wanted: Iterable[Item]) -> Iterator[tuple[Item, str]]:
        """Images to extract, with the reason: new, or changed since (by size and time first, then by content)."""
        items, again = tee(wanted)
        for item, row in zip(items, self._index.rows(item.key for item in again), strict=True):
            if row is None:
                yield item, "new"
            elif row.box != item.box:
                yield item, "has another query box"
            elif (
                item.files
                and (stamp(item.files) if item.stat is None else item.stat) != row.stat
                and content(item.files) != row.sha256
            ):
                yield item, "changed"
