"""Rows of a `.npy` file, read into memory of the caller's.

A map would count every page that was touched as memory of the process, and a system maps some around each of them: of
candidates that lie far apart in a large gallery, many times what is read. A file that was cut short is an error here,
where a map would kill the process.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np

from bench.errors import UserError


class ArrayFile:
    """An array in a file, of which rows are read when they are asked for. Opening it reads its head alone.

    The array begins at row `first` of the file; `shape` and `dtype` are those of what is left. OSError for a file that
    cannot be opened, ValueError for one that holds no array of plain values, too few rows, or another number of bytes
    than its head says.
    """

    def __init__(self, path: Path, first: int = 0):
        self._file = -1
        self.path = path
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"{path}: array format {version}")
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, by_columns, self.dtype = header(file)
            self._start = file.tell()
            if not self.shape or self.dtype.hasobject:
                raise ValueError(f"{path}: expected rows of plain values, found {self.dtype} {self.shape}")
            self._row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
            size = os.fstat(file.fileno()).st_size
            if size != self._start + self._row * len(self):
                raise ValueError(f"{path}: {size} bytes do not hold an array {self.shape} of {self.dtype}")
            if not 0 <= first <= len(self):
                raise ValueError(f"{path}: no row {first}, it has {len(self)}")
            self._file = os.dup(file.fileno())
        # of an array that lies column by column no row lies in one piece; nothing here writes such any more
        self._map = np.load(path, mmap_mode="r")[first:] if by_columns and len(self) and self._row else None
        self._start += first * self._row
        self.shape = (len(self) - first, *self.shape[1:])

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def __len__(self) -> int:
        return int(self.shape[0])

    def into(self, rows: np.ndarray, start: int) -> None:
        """Fill `rows` (m, …) with those from `start` on. ValueError for rows of another kind or that are not there.

        UserError for a file that was cut short since it was opened.
        """
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape[1:]:
            raise ValueError(f"{self.path}: rows are {self.dtype} {self.shape[1:]}, not {rows.dtype} {rows.shape[1:]}")
        if not 0 <= start <= start + len(rows) <= len(self):
            raise ValueError(f"{self.path}: no rows {start} to {start + len(rows)}, it has {len(self)}")
        if self._map is not None:
            rows[:] = self._map[start : start + len(rows)]
            return
        if not rows.nbytes:
            return
        left, at = memoryview(rows.data).cast("B"), self._start + start * self._row
        while len(left):
            read = os.preadv(self._file, [left], at)
            if not read:
                raise UserError(
                    f"{self.path}: was cut short while the store was in use", hint="run the same command again"
                )
            left, at = left[read:], at + read

    def rows(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, …) of the rows from `start` on."""
        found = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.into(found, start)
        return found

    def gather(self, rows: np.ndarray, at: np.ndarray) -> None:
        """Fill `rows` (m, …) with those at the indices `at` (m,); what lies in a row is read in one piece."""
        if not len(at):
            return
        ends = np.flatnonzero(np.r_[np.diff(at) != 1, True]) + 1
        for begin, end in pairwise([0, *ends.tolist()]):
            self.into(rows[begin:end], int(at[begin]))
