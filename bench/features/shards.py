"""Writing shards: folders of `.npy` arrays that appear whole or not at all.

A shard's `shard.json` lists its images, the sha256 of the files each was made from (the image, or files of features),
and the size in bytes of every array. It is written under a temporary name and renamed. Every so many shards are merged
into one, so that a million images are some dozens of shards; it lists the shards it stands for, and the first row of
each.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from bench.features.index import Shard, shards
from bench.files import new_map, read_json

LOCAL: Mapping[str, type] = {
    "descriptors": np.float16,
    "keypoints": np.float32,
    "scales": np.float16,
    "orientations": np.float16,
    "scores": np.float16,
}
WHOLE: Mapping[str, type] = {"global_descriptor": np.float16, "image_size": np.int32}
MERGED = 256  # small shards that become one of 16,384 images


@dataclass(frozen=True)
class Entry:
    """What is stored of one image: arrays named as the fields of `Features`, and what they were made from."""

    sha256: str  # of the item's file, or of each, joined by +; empty if they could not be read
    arrays: Mapping[str, np.ndarray]  # of local features, the global descriptor or both; the same names in every image
    error: str | None = None  # why the image has no features
    times: tuple[float, float] | None = None  # ms to decode the image, and to extract from it


def write_shard(
    folder: Path,
    listed: list[dict],
    arrays: list[Mapping[str, np.ndarray]],
    pack: Callable[[np.ndarray], np.ndarray] | None,
    local_dim: int | None = None,
) -> None:
    """One shard of these images; `pack` stores descriptors, and without it everything is stored in float32.

    `local_dim` is the number of values of a local descriptor, where those of `arrays` are packed already.
    """
    kept, _ = shards(folder / "shards")

    def kind(stored: type) -> type:
        return np.float32 if pack is None and stored is np.float16 else stored

    number = max((shard.last for shard in kept), default=-1) + 1
    dim = arrays[0]["descriptors"].shape[1] if "descriptors" in arrays[0] else 0
    dim = dim if local_dim is None else local_dim
    with _new_shard(folder, f"{number:06d}", listed, dim) as temporary:
        for name in LOCAL.keys() & arrays[0].keys():
            rows = np.concatenate([a[name] for a in arrays])
            stored = pack(rows) if pack is not None and name == "descriptors" else rows.astype(kind(LOCAL[name]))
            np.save(temporary / f"{name}.npy", np.ascontiguousarray(stored))  # each row in one piece
        for name in WHOLE.keys() & arrays[0].keys():
            np.save(temporary / f"{name}.npy", np.stack([a[name] for a in arrays]).astype(kind(WHOLE[name])))
        rows_of = (len(a["scores"]) if "scores" in a else 0 for a in arrays)
        np.save(temporary / "offsets.npy", np.cumsum([0, *rows_of]).astype(np.int64))


@contextmanager
def _new_shard(
    folder: Path, name: str, listed: list[dict], local_dim: int, parts: Mapping[str, int] = {}
) -> Iterator[Path]:
    """A folder to write arrays to, which becomes the shard of that name when all are written."""
    temporary = folder / "shards" / f"tmp-{os.getpid()}-{secrets.token_hex(4)}"  # other machines have the same pids
    temporary.mkdir()
    try:
        yield temporary
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        content = {"files": files, "local_dim": local_dim, **({"parts": parts} if parts else {}), "images": listed}
        (temporary / "shard.json").write_text(json.dumps(content))
        temporary.rename(folder / "shards" / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def left_over(folder: Path) -> list[Path]:
    """What killed processes left in a store, or others are at work on: temporary folders, and what was merged."""
    return [*(folder / "shards").glob("tmp-*"), *shards(folder / "shards")[1]]


def sweep(folder: Path) -> None:
    """Remove what killed processes left. Only for who holds the store's lock, so that nobody is at work on it."""
    for path in left_over(folder):
        shutil.rmtree(path, ignore_errors=True)


def merge(folder: Path) -> None:
    """Merge every MERGED small shards of a store into one, and remove what a merged one replaces.

    The merged shard appears whole, under a name that says which shards it stands for; those are removed afterwards, so
    that a process killed at any point leaves every image in place.
    """
    sweep(folder)
    found, _ = shards(folder / "shards")
    small = [shard for shard in found if shard.first == shard.last]
    for start in range(0, len(small) - MERGED + 1, MERGED):
        _merge(folder, small[start : start + MERGED])


def _merge(folder: Path, parts: Sequence[Shard]) -> None:
    contents = [read_json(part.path / "shard.json") for part in parts]
    lists = [content["images"] for content in contents]
    name = f"{parts[0].first:06d}-{parts[-1].last:06d}"
    entries = [entry for listed in lists for entry in listed]
    firsts = accumulate(map(len, lists), initial=0)
    begins = {part.path.name: first for part, first in zip(parts, firsts, strict=False)}
    with _new_shard(folder, name, entries, contents[0].get("local_dim", 0), begins) as temporary:
        for array in (name for name in (*LOCAL, *WHOLE) if (parts[0].path / f"{name}.npy").is_file()):
            pieces = [np.load(part.path / f"{array}.npy", mmap_mode="r") for part in parts]
            rows = sum(map(len, pieces))
            # an empty array cannot be mapped
            whole: Any = (
                new_map(temporary / f"{array}.npy", pieces[0].dtype, (rows, *pieces[0].shape[1:]))
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
