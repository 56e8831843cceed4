"""How local descriptors are stored: as half-precision numbers, in a byte each, or in a bit each.

They are unit vectors, so a common factor needs no room: what is read back is made a unit vector again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def _bytes(rows: np.ndarray) -> np.ndarray:
    """(n, d) int8: the largest value of each row becomes 127 or -127."""
    return np.rint(rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True, initial=0), 1e-12) * 127).astype(np.int8)


def _bits(rows: np.ndarray) -> np.ndarray:
    """(n, ceil(d / 8)) uint8: one where a value is positive, as DELG's binarised descriptors (docs/protocols.md)."""
    return np.packbits(rows > 0, axis=1)


PRECISIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "float16": lambda rows: rows.astype(np.float16),
    "int8": _bytes,
    "binary": _bits,
}


def unpacked(stored: np.ndarray, dim: int | None = None) -> np.ndarray:
    """(n, d) float32 of what is stored, by its type; `dim` is d where bits are stored. Bits become +-1 / sqrt(d)."""
    if stored.dtype == np.uint8:
        signs = np.unpackbits(stored, axis=1, count=dim).astype(np.float32) * 2 - 1
        return signs / np.float32(np.sqrt(max(1, signs.shape[1])))
    rows = stored.astype(np.float32)
    if stored.dtype == np.int8:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows
