"""Data sets that the program makes itself: kept in the cache, whole or not at all, and checked when they are read."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.datasets import Dataset, folder
from bench.errors import UserError
from bench.files import read_json, writing
from bench.locks import alone

DONE = "content.json"


def ready(place: Path) -> bool:
    return (place / DONE).is_file()


def make(place: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill the folder `place` if it is not there: under a temporary name, renamed when whole.

    One process makes it; another that wants it waits. UserError where it cannot be written.
    """
    if ready(place):
        return
    hint = "make room, or choose another place with --cache-dir or RERANKBENCH_CACHE"
    with writing(place, hint), alone(place, "making the images in") as locked:
        if ready(place):
            return
        if locked:
            for left in place.parent.glob(f"{glob.escape(place.name)}.tmp-*"):  # of processes that were killed
                shutil.rmtree(left, ignore_errors=True)
        temporary = place.with_name(f"{place.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        shutil.rmtree(place, ignore_errors=True)  # without content.json it is not whole
        try:
            temporary.mkdir()
            write(temporary)
            (temporary / DONE).write_text(json.dumps({"sha256": content(temporary)}))
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def content(place: Path) -> str:
    """sha256 over the names and bytes of every image and of the ground truth."""
    digest = hashlib.sha256()
    for file in sorted(path for path in place.rglob("*") if path.is_file() and path.name != DONE):
        digest.update(file.relative_to(place).as_posix().encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def load(place: Path, name: str) -> Dataset:
    """The data set made there; UserError if an image no longer has its content."""
    hint = "delete that folder; it is made again"
    try:
        recorded = str(read_json(place / DONE)["sha256"])
        found = content(place)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: the cached {name} images cannot be read ({error})", hint=hint) from error
    if found != recorded:
        raise UserError(
            f"{place}: the cached {name} images have changed (sha256 {found[:8]}, expected {recorded[:8]})", hint=hint
        )
    return replace(folder.load(place, name), image_set=f"generated {recorded[:12]}")
