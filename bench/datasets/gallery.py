"""A gallery of any size: ids in one block of bytes, files named when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.errors import UserError


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
        rest = image.removeprefix(self.prefix)
        return self.folder.joinpath(*rest[: self.spread], rest + self.suffix)


class Gallery(Mapping[str, Path]):
    """Read-only id -> file, in the order given; about 50 bytes an image and the id's own.

    The layout of an id is the last of `layouts` whose prefix it begins with. UserError for an id given twice.
    """

    def __init__(self, ids: Iterable[str], layouts: Sequence[Layout], name: str = "gallery"):
        encoded = [image.encode() for image in ids]
        self._layouts = tuple(layouts)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._text = b"".join(encoded)
        hashes = np.fromiter(map(_hash, encoded), np.uint64, len(encoded))
        del encoded
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._order]
        for at in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]):
            if self.id_at(int(self._order[at])) == self.id_at(int(self._order[at + 1])):
                raise UserError(f"{name} names the image {self.id_at(int(self._order[at]))!r} twice")

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        return map(self.id_at, range(len(self)))

    def __contains__(self, image: object) -> bool:
        return isinstance(image, str) and self._find(image) is not None

    def __getitem__(self, image: str) -> Path:
        if self._find(image) is None:
            raise KeyError(image)
        return next(each for each in reversed(self._layouts) if image.startswith(each.prefix))(image)

    def id_at(self, number: int) -> str:
        return self._text[self._ends[number] : self._ends[number + 1]].decode()

    def index(self, image: str) -> int:
        """Where the image stands. KeyError for one that is not there."""
        found = self._find(image)
        if found is None:
            raise KeyError(image)
        return found

    def _find(self, image: str) -> int | None:
        wanted = np.uint64(_hash(image.encode()))
        at = int(np.searchsorted(self._hashes, wanted))
        while at < len(self._hashes) and self._hashes[at] == wanted:
            if self.id_at(int(self._order[at])) == image:
                return int(self._order[at])
            at += 1
        return None


def version_of(root: Path, images: Iterable[str]) -> str:
    """Which files these are, by their paths below `root` and sizes; by paths alone where not all are at hand."""
    names = sorted(images)
    try:
        lines = [f"{name} {(root / name).stat().st_size}" for name in names]
    except OSError:
        return "names " + hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    return "files " + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _hash(image: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest())
