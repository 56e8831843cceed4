"""An inverted file on disk: for every visual word, the images that have it and a vector of each, in blocks of images.

A block is a folder of `.npy` arrays that appears whole or not at all, so that an interrupted build goes on with the
next one. `about.json` holds what the file was built from; a file of anything else is built anew.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.errors import UserError
from bench.files import new_map, read_json, write_json, writing
from bench.locks import alone

IMAGES = 16_384  # of a block: its postings of a word are read in one piece
MOST_IMAGES = 65_536  # of a block, whose images are numbered in two bytes
FORMAT = 1
ABOUT = "about.json"


class Postings(NamedTuple):
    """Words of some images, each with the image that has it and its vector as it is stored."""

    words: np.ndarray  # (n,) int64
    images: np.ndarray  # (n,) int64, numbers within the block
    vectors: np.ndarray  # (n, width)


@dataclass(frozen=True)
class Layout:
    """What every block of an inverted file has alike."""

    words: int
    width: int  # values of a stored vector
    kind: str  # numpy's name of their type
    block: int = IMAGES  # images of a block; the last may have fewer

    def __post_init__(self) -> None:
        if not (self.words > 0 and self.width > 0 and 0 < self.block <= MOST_IMAGES):
            raise ValueError(f"{self}: words and width must be above 0, and block in 1 to {MOST_IMAGES}")


@dataclass(frozen=True, eq=False)
class Block:
    """The postings of some images, by word and then by image; the constructor refuses what does not fit together.

    Of word w: `images[starts[w] : starts[w + 1]]` ascend, and `vectors` has the same rows.
    """

    layout: Layout
    starts: np.ndarray  # (words + 1,) int64
    images: np.ndarray  # (n,) uint16 numbers within the block
    vectors: np.ndarray  # (n, width)
    words_of: np.ndarray  # (b,) int32 numbers of words of each image

    def __post_init__(self) -> None:
        n, layout = len(self.images), self.layout
        expected = {
            "starts": ((layout.words + 1,), "int64"),
            "images": ((n,), "uint16"),
            "vectors": ((n, layout.width), layout.kind),
            "words_of": ((len(self.words_of),), "int32"),
        }
        for name, (shape, kind) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != kind:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {kind} {shape}")
        if self.starts[0] != 0 or self.starts[-1] != n or (np.diff(self.starts) < 0).any():
            raise ValueError(f"starts do not ascend from 0 to {n}")

    def __len__(self) -> int:
        return len(self.words_of)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.starts, self.images, self.vectors, self.words_of))

    @property
    def counted(self) -> bool:
        """Whether the images have as many postings as `words_of` says. Reads every number of an image."""
        return bool(np.array_equal(np.bincount(self.images, minlength=len(self)), self.words_of))

    @staticmethod
    def open(folder: Path, layout: Layout) -> Block:
        """Postings are memory-mapped. ValueError or OSError for arrays that are missing, cut short or do not fit."""

        def mapped(name: str) -> np.ndarray:
            # copy on write, since torch takes no array that may not be written; nothing is written
            return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))

        try:
            starts, words_of = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("starts", "words_of"))
            return Block(layout, starts, mapped("images"), mapped("vectors"), words_of)
        except EOFError as error:  # numpy's word for an empty file
            raise ValueError(str(error)) from error


def write_block(folder: Path, layout: Layout, images: int, parts: Sequence[Postings]) -> None:
    """The block of so many images, whose postings are given in the order of the images, words ascending in each.

    What stands in its place is replaced. OSError where it cannot be written.
    """
    temporary = folder.with_name(f"tmp-{os.getpid()}-{secrets.token_hex(4)}")  # other machines have the same pids
    temporary.mkdir()
    try:
        words = np.concatenate([np.zeros(0, np.int64), *(part.words for part in parts)])
        numbers = np.concatenate([np.zeros(0, np.int64), *(part.images for part in parts)])
        order = np.argsort(words, kind="stable")
        np.save(temporary / "starts.npy", np.searchsorted(words[order], np.arange(layout.words + 1)))
        np.save(temporary / "images.npy", numbers[order].astype(np.uint16))
        np.save(temporary / "words_of.npy", np.bincount(numbers, minlength=images).astype(np.int32))
        _write_vectors(temporary / "vectors.npy", layout, order, parts)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_vectors(path: Path, layout: Layout, order: np.ndarray, parts: Sequence[Postings]) -> None:
    if not len(order):
        np.save(path, np.zeros((0, layout.width), layout.kind))  # an empty array cannot be mapped for writing
        return
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    # straight to the file: a second copy of all vectors in memory would double what a build needs
    sorted_ = new_map(path, np.dtype(layout.kind), (len(order), layout.width))
    at = 0
    for part in parts:
        sorted_[place[at : at + len(part.words)]] = part.vectors
        at += len(part.words)
    sorted_.flush()


@dataclass(frozen=True)
class InvertedFile:
    """A whole inverted file in a folder."""

    folder: Path
    layout: Layout
    count: int  # images
    nbytes: int  # of all arrays

    @property
    def bytes_per_image(self) -> float:
        """Mean over the gallery: an image's vectors, its number in each posting, and its share of all other arrays."""
        return self.nbytes / max(self.count, 1)

    @property
    def blocks(self) -> int:
        return -(-self.count // self.layout.block)

    def block(self, number: int) -> Block:
        """The images from `number * layout.block` on. UserError where it was damaged since it was built."""
        place = _place(self.folder, number)
        try:
            return Block.open(place, self.layout)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{place}: damaged since it was built ({error})", hint="run the same command again, which mends it"
            ) from error

    def damaged(self) -> list[int]:
        """Blocks that are missing, cut short, or of other images than they say."""
        return [number for number in range(self.blocks) if not self.has(number)]

    def has(self, number: int) -> bool:
        """Whether a block is there and whole."""
        try:
            block = Block.open(_place(self.folder, number), self.layout)
        except (OSError, ValueError):
            return False
        return len(block) == min(self.layout.block, self.count - number * self.layout.block) and block.counted


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}"


def built(
    folder: Path,
    identity: Mapping[str, object],
    layout: Layout,
    count: int,
    read: Callable[[int, int], Iterable[Postings]],
    progress: Callable[[int, int], None] | None = None,
) -> InvertedFile:
    """The inverted file of `count` images in the folder, built as far as it is not there.

    `identity` is what it is built from, as JSON has it. `read(start, stop)` gives the postings of these images in their
    order, numbered from 0; it is called for ascending blocks, without those that are whole. `progress` is told how many
    images are done, of how many. One process at a time builds; UserError for a full disk or a folder that may not be
    written to.
    """
    said = {"format": FORMAT, "layout": vars(layout), **identity}
    if (found := _whole(folder, said, layout, count)) is not None:
        return found
    with writing(folder, "finished blocks are kept; make room and run again"), alone(folder, "building") as locked:
        for left in folder.glob("tmp-*") if locked else ():  # of killed processes: who writes holds the lock
            shutil.rmtree(left, ignore_errors=True)
        for other in folder.glob("[0-9]" * 6) if _about(folder).get("identity") != said else ():
            shutil.rmtree(other)
        folder.mkdir(exist_ok=True)
        write_json(folder / ABOUT, {"identity": said})
        file, nbytes = InvertedFile(folder, layout, count, 0), 0
        for number in range(file.blocks):
            start, stop = number * layout.block, min((number + 1) * layout.block, count)
            if not file.has(number):
                write_block(_place(folder, number), layout, stop - start, list(read(start, stop)))
            nbytes += file.block(number).nbytes
            if progress is not None:
                progress(stop, count)
        write_json(folder / ABOUT, {"identity": said, "images": count, "bytes": nbytes})
    return InvertedFile(folder, layout, count, nbytes)


def _about(folder: Path) -> dict:
    try:
        found = read_json(folder / ABOUT)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole(folder: Path, said: Mapping[str, object], layout: Layout, count: int) -> InvertedFile | None:
    about = _about(folder)
    if about.get("identity") != said or about.get("images") != count or not isinstance(about.get("bytes"), int):
        return None
    file = InvertedFile(folder, layout, count, about["bytes"])
    return None if file.damaged() else file
