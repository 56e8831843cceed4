"""A gallery of any size: ids in one block of bytes, files named when they are asked for."""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import UserError

TOGETHER = 16_384  # images whose numbers are Python's at a time
MISSING = (-1, -1)  # what is said of a file that is not there


@dataclass(frozen=True)
class Layout:
    """Where the images lie whose ids begin with `prefix`: `folder/[a/b/c/]rest + suffix`.

    `spread` first characters of the rest are folders of their own, as Google Landmarks has it.
    """

    folder: Path
    suffix: str = ".jpg"
    prefix: str = ""
    spread: int = 0

    def __call__(self, image: str) -> Path:
        return Path(self.text(image))

    def text(self, image: str) -> str:
        """Without making a path of it, which takes most of the time."""
        rest = image.removeprefix(self.prefix)
        return os.path.join(self.folder, *rest[: self.spread], rest + self.suffix)


class _Files(ValuesView[Path]):
    def __init__(self, gallery: Gallery):
        super().__init__(gallery)
        self._gallery = gallery

    def __iter__(self) -> Iterator[Path]:
        return (file for _, file in self._gallery.items())


class _Pairs(ItemsView[str, Path]):
    def __init__(self, gallery: Gallery):
        super().__init__(gallery)
        self._gallery = gallery

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        return ((image, self._gallery.layout(image)(image)) for image in self._gallery)


class Gallery(Mapping[str, Path]):
    """Read-only id -> file, in the order given; about 12 bytes an image and the id's own.

    The layout of an id is the last of `layouts` whose prefix it begins with. `ids` are gone through once, and need not
    be held. UserError for an id given twice.
    """

    def __init__(self, ids: Iterable[str], layouts: Sequence[Layout], name: str = "gallery"):
        self._layouts = tuple(layouts)
        text, ends, hashes = bytearray(), array("Q", [0]), array("I")
        for image in ids:
            encoded = image.encode()
            text += encoded
            ends.append(len(text))
            hashes.append(_hash(encoded))
        self._text = bytes(text)
        # as few bytes as do: of a million images everything counts
        self._ends = np.frombuffer(ends, np.uint64).astype(np.uint32 if len(text) < 2**32 else np.int64)
        del text, ends
        found = np.frombuffer(hashes, np.uint32) if hashes else np.zeros(0, np.uint32)
        self._order = np.argsort(found, kind="stable").astype(np.int32)
        self._hashes = found[self._order]
        self._require_distinct(name)

    def _require_distinct(self, name: str) -> None:
        alike = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        for value in np.unique(self._hashes[alike]):
            seen: set[str] = set()
            first, last = (self._hashes.searchsorted(value, side) for side in ("left", "right"))
            for number in self._order[first:last].tolist():
                if (image := self.id_at(number)) in seen:
                    raise UserError(f"{name} names the image {image!r} twice")
                seen.add(image)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "stamps"}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        text = self._text
        for start in range(0, len(self), TOGETHER):
            for begin, end in pairwise(self._ends[start : start + TOGETHER + 1].tolist()):
                yield text[begin:end].decode()

    def __contains__(self, image: object) -> bool:
        return isinstance(image, str) and self._find(image) is not None

    def __getitem__(self, image: str) -> Path:
        if self._find(image) is None:
            raise KeyError(image)
        return self.layout(image)(image)

    def items(self) -> ItemsView[str, Path]:
        return _Pairs(self)  # no id is looked up

    def values(self) -> ValuesView[Path]:
        return _Files(self)

    def layout(self, image: str) -> Layout:
        """Where the image of that id lies."""
        return next(each for each in reversed(self._layouts) if image.startswith(each.prefix))

    def id_at(self, number: int) -> str:
        return self._text[self._ends[number] : self._ends[number + 1]].decode()

    def index(self, image: str) -> int:
        """Where the image stands. KeyError for one that is not there."""
        found = self._find(image)
        if found is None:
            raise KeyError(image)
        return found

    @cached_property
    def stamps(self) -> np.ndarray:
        """(n, 2) int64 size in bytes and time of change in ns of each file; MISSING where there is none.

        Files are asked for once, when this is first wanted.
        """
        found = np.empty((len(self), 2), np.int64)
        for number, image in enumerate(self):
            found[number] = stamp_of(self.layout(image).text(image))
        return found

    def forget(self) -> None:
        """Give the memory of `stamps` back; files are asked for again if they are wanted again."""
        vars(self).pop("stamps", None)

    def each_stamp(self) -> Iterator[tuple[int, int]]:
        """`stamps`, image by image."""
        stamps = self.stamps
        for start in range(0, len(self), TOGETHER):
            yield from map(tuple, stamps[start : start + TOGETHER].tolist())

    def stamp(self, image: str) -> tuple[int, int]:
        """That of one image. KeyError for one that is not there."""
        size, changed = self.stamps[self.index(image)].tolist()
        return size, changed

    def _find(self, image: str) -> int | None:
        wanted = np.uint32(_hash(image.encode()))
        at = int(self._hashes.searchsorted(wanted))
        while at < len(self._hashes) and self._hashes[at] == wanted:
            if self.id_at(int(self._order[at])) == image:
                return int(self._order[at])
            at += 1
        return None


def stamp_of(file: str | Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a file; MISSING for one that is not there or is none."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # a name that no file can have
        return MISSING
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else MISSING


def version_of(root: Path, images: Iterable[str]) -> str:
    """Which files these are, by their paths below `root` and sizes; by paths alone where not all are at hand."""
    names = sorted(images)
    try:
        lines = [f"{name} {(root / name).stat().st_size}" for name in names]
    except OSError:
        return "names " + hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    return "files " + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _hash(image: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(image, digest_size=4).digest())
