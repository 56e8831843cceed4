"""Reading files that may be damaged or hostile: a value, or ValueError that says what is wrong, in bounded memory.

Text is UTF-8, with or without a byte order mark. Writing is whole or not at all, and a failure is the user's to mend.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import NoRoom, UserError

INSTEAD = {  # what to do where it is not room that lacks
    errno.ENOENT: "was it removed while it was in use? make the folder, or run the same command again",
    errno.EEXIST: "a file stands where a folder is needed; choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another place",
}
FULL = (errno.ENOSPC, errno.EDQUOT, None)
LARGEST_NPZ = 16 * 2**30  # bytes of all arrays together


def read_text(path: Path) -> str:
    """The text of a UTF-8 file without its byte order mark. UnicodeDecodeError (a ValueError) or OSError."""
    return path.read_text(encoding="utf-8-sig")


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends, one at a time. UnicodeDecodeError (a ValueError) or OSError."""
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            yield line.removesuffix("\n")


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes. OSError for one that cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(place: Path) -> str:
    """sha256 of a file's bytes; of a folder, over the names and bytes of all files in it. OSError as `file_hash`."""
    if not place.is_dir():
        return file_hash(place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    listed = "".join(f"{path.relative_to(place).as_posix()}\0{file_hash(path)}\n" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the file's name once all is written, or goes. OSError.

    What killed processes left of earlier tries goes first: whoever still writes holds a lock on its own.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):
        _remove_abandoned(left)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")  # machines have equal pids
    held = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(held)


def _remove_abandoned(temporary: Path) -> None:
    with suppress(OSError):  # it is being written, is gone by now, or cannot be locked or removed
        held = os.open(temporary, os.O_RDWR)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()
        finally:
            os.close(held)


def write_whole(path: Path, text: str) -> None:
    """Write under a temporary name and rename: the file has its old content or all of the new. OSError."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def new_map(path: Path, kind: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A new `.npy` array of at least one value, mapped to be written to. OSError, also where the disk lacks room.

    All of its room is taken first: a full disk kills a process that writes to a map, without a word.
    """
    array = np.lib.format.open_memmap(path, "w+", kind, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
    return array


def write_json(path: Path, content: object) -> None:
    """Write whole or not at all. OSError."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True))


@contextmanager
def writing(place: Path, hint: str = "make room there, or choose another place") -> Iterator[None]:
    """What is done inside writes to `place`; a folder that may not be written is a UserError, a full disk NoRoom."""
    try:
        yield
    except OSError as error:
        # numpy, which wrote less than it was to, does not say why
        reason = error.strerror or os.strerror(errno.ENOSPC)
        kind = NoRoom if error.errno in FULL else UserError
        raise kind(f"{place}: cannot write ({reason})", hint=INSTEAD.get(error.errno or 0, hint)) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file. ValueError for anything that is not JSON, OSError for a file that cannot be read."""
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("lists or objects nested too deep") from error


def read_npz(path: Path, largest: int = LARGEST_NPZ) -> dict[str, np.ndarray]:
    """Every array of a `.npz` file, never a pickled object.

    ValueError for a damaged file, and for one that declares more than it has or than `largest` bytes, before any of it
    is held; OSError for one that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > largest:
                raise ValueError(f"arrays of more than {largest} bytes")
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in archive.infolist()}
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile, zlib and numpy's header parser raise many kinds
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{entry.filename}: array format {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = header(file)
        if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != entry.file_size - file.tell():
            raise ValueError(f"{entry.filename}: {entry.file_size} bytes do not hold an array {shape} of {kind}")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
