"""Files of DELG features (Cao, Araujo, Sim, ECCV 2020): `<image>.delg_global` and `<image>.delg_local`.

Written by DELG's extraction scripts (tensorflow/models, research/delf, Apache-2.0): one serialized protobuf message a
file, of the schema in docs/protocols.md, without magic or checksum. This reads the wire format; no code of theirs.
A file is somebody else's data: its size is bounded, every length is held against what is left of its message before it
is used, nothing recurses and no byte is read more than a fixed number of times. The outcome is a value or a UserError
that names the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.errors import UserError

LARGEST = 8 * 2**20  # bytes of a file; 1,000 descriptors of 128 have 0.56 MB
MOST = 2**16  # features of a file, and values of a descriptor
SCALARS = 5  # fields 2 to 6 of a feature: x, y, scale, orientation, strength
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True, eq=False)
class LocalDescriptors:
    """The rows of a `.delg_local` in the file's order (DELG writes descending strength): float32, bit for bit."""

    descriptors: np.ndarray  # (n, d); (0, 0) where there are no features
    keypoints: np.ndarray  # (n, 2) x, y in pixels of the image that DELG was given (for a query: of its crop)
    scales: np.ndarray  # (n,) 1 / scale of the image pyramid: 0.5, 0.7071, 1, 1.4142, 2, 2.8284 or 4
    orientations: np.ndarray  # (n,) 0 in DELG's files
    strengths: np.ndarray  # (n,) attention scores


class _Malformed(Exception):
    pass


def read_bytes(path: Path) -> bytes:
    """The file's content; UserError if it cannot be read or is larger than any file of DELG features."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) > LARGEST:
        raise UserError(f"{path}: more than {LARGEST // 2**20} MiB, which no file of DELG features has")
    return data


def parse_global(data: bytes, path: Path) -> np.ndarray:
    """(D,) float32 global descriptor of a `.delg_global` (a DatumProto); `path` is for the error message."""
    try:
        spans, shape = _datum(data, 0, len(data), [], [])
        values = np.frombuffer(b"".join(data[a:b] for a, b in _checked(spans, shape, 0)), "<f4")
    except _Malformed as error:
        raise _unreadable(path, error) from error
    return values.astype(np.float32)


def parse_local(data: bytes, path: Path) -> LocalDescriptors:
    """The local descriptors of a `.delg_local` (a DelfFeatures); an empty file has none. `path`: as above."""
    try:
        blocks: list[np.ndarray] = []
        at = count = 0
        while at < len(data):
            number, wire, start, stop = _field(data, at, len(data))
            if (number, wire) == (1, BYTES):
                # nearly every file repeats the framing of its first feature to its end: those are read at once
                block, stop = _features(data, at, start, stop, alike=not blocks)
                if blocks and block.shape[1] != blocks[0].shape[1]:
                    raise _Malformed(f"the descriptor of feature {count} has another length than those before it")
                blocks.append(block)
                count += len(block)
                if count > MOST:
                    raise _Malformed(f"more than {MOST} features")
            at = stop
    except _Malformed as error:
        raise _unreadable(path, error) from error
    rows = np.concatenate(blocks) if blocks else np.zeros((0, SCALARS), np.float32)
    x_y, scales, orientations, strengths = rows[:, :2], rows[:, 2], rows[:, 3], rows[:, 4]
    return LocalDescriptors(rows[:, SCALARS:], x_y, scales, orientations, strengths)


def _unreadable(path: Path, error: _Malformed) -> UserError:
    return UserError(f"{path}: not a readable file of DELG features ({error})", hint="copy it or extract it again")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """(value, where it ends)"""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _Malformed(f"it breaks off in a number at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _Malformed(f"a number of more than 10 bytes before byte {at}")


def _field(data: bytes, at: int, end: int) -> tuple[int, int, int, int]:
    """(number, wire type, start and end of the payload) of the field at `at` in a message that ends at `end`."""
    tag, start = _varint(data, at, end)
    wire = tag & 7
    if wire == BYTES:
        size, start = _varint(data, start, end)
        stop = start + size
    elif wire == VARINT:
        stop = _varint(data, start, end)[1]
    elif wire in (FIXED32, FIXED64):
        stop = start + (4 if wire == FIXED32 else 8)
    else:
        raise _Malformed(f"wire type {wire} at byte {at}, which DELG's messages do not have")
    if not 8 <= tag < 2**32:
        raise _Malformed(f"field number {tag >> 3} at byte {at}")
    if stop > end:
        raise _Malformed(f"a field of {stop - start} bytes at byte {start}, where its message has {end - start} left")
    return tag >> 3, wire, start, stop


def _datum(
    data: bytes, at: int, end: int, spans: list[tuple[int, int]], shape: list[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Of a DatumProto, added to `spans` and `shape`: the bytes of its floats, packed or not, and its dimensions."""
    while at < end:
        number, wire, inner, stop = _field(data, at, end)
        at = stop
        if wire != BYTES or number not in (1, 2, 3):
            continue
        if number == 3:
            raise _Malformed(f"integers at byte {inner}, expected floats")
        while inner < stop:
            member, kind, start, inner = _field(data, inner, stop)
            if member != 1:
                continue
            if number == 1 and kind in (BYTES, VARINT):
                while start < inner:
                    size, start = _varint(data, start, inner)
                    shape.append(size)
                    if len(shape) > SCALARS:
                        raise _Malformed(f"a shape of more than {SCALARS} dimensions")
            elif number == 2 and kind in (BYTES, FIXED32) and start < inner:
                if (inner - start) % 4:
                    raise _Malformed(f"{inner - start} bytes of floats at byte {start}")
                spans.append((start, inner))
                if len(spans) > MOST:
                    raise _Malformed(f"more than {MOST} values")
    return spans, shape


def _checked(spans: list[tuple[int, int]], shape: list[int], at: int) -> list[tuple[int, int]]:
    values = sum(b - a for a, b in spans) // 4
    if not 0 < values <= MOST or (shape and math.prod(shape) != values):
        raise _Malformed(f"a descriptor of {values} values and shape {shape} in the message at byte {at}")
    return spans


def _features(data: bytes, at: int, start: int, stop: int, alike: bool) -> tuple[np.ndarray, int]:
    """Rows (m, SCALARS + d) of the feature at `at`, and where they end.

    With `alike`, of all that follow it with the same framing too: whose bytes are equal but for the values.
    """
    spans: list[tuple[int, int]] = []
    shape: list[int] = []
    scalars: dict[int, tuple[int, int]] = {}  # a field may be left out (0), and the last of several counts
    inner = start
    while inner < stop:
        number, wire, a, inner = _field(data, inner, stop)
        if (number, wire) == (1, BYTES):
            _datum(data, a, inner, spans, shape)
        elif 2 <= number < 2 + SCALARS and wire == FIXED32:
            scalars[number - 2] = (a, inner)
    values = [*scalars.values(), *_checked(spans, shape, at)]
    size = stop - at
    rows = np.frombuffer(data, np.uint8, (len(data) - at) // size * size if alike else size, at).reshape(-1, size)
    columns = np.concatenate([np.arange(a - at, b - at) for a, b in values])
    if alike:
        framing = np.ones(size, dtype=bool)
        framing[columns] = False
        same = (rows[:, framing] == rows[0, framing]).all(axis=1)
        rows = rows[: len(rows) if same.all() else int(same.argmin())]
    found = rows.take(columns, axis=1).view("<f4").astype(np.float32, copy=False)
    block = np.zeros((len(rows), SCALARS + found.shape[1] - len(scalars)), np.float32)
    block[:, [*scalars, *range(SCALARS, block.shape[1])]] = found
    return block, at + len(rows) * size
