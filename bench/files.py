"""Reading files that may be damaged or hostile: a value, or ValueError that says what is wrong, in bounded memory."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_NPZ = 16 * 2**30  # bytes of all arrays together


def read_json(path: Path) -> Any:
    """The content of a JSON file. ValueError for anything that is not JSON, OSError for a file that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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
