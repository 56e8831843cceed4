"""MATLAB files of version 5 to 7 with cells, structures, numbers and text: read by scipy, once sizes are checked.

A file of a few bytes can declare arrays of any size, which scipy would make room for. Here every part must fit its
whole, and an array may have no more elements than there are bytes. The format is MathWorks' "MAT-File Format".
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from bench.errors import UserError

HEADER = 128  # bytes
MATRIX, COMPRESSED, UINT32, INT32 = 14, 15, 6, 5  # types of elements
CELL, STRUCTURE = 1, 2  # classes of arrays that have others inside
PLAIN = frozenset({4, *range(6, 16)})  # text, and numbers of any size
DEEPEST = 8  # arrays in arrays
ORDERS = {b"IM": "<", b"MI": ">"}


def load(path: Path, names: Sequence[str], largest: int, hint: str) -> dict[str, Any]:
    """The variables of these names that a file has, as scipy gives them.

    UserError for another file, for one of more than `largest` bytes, packed or unpacked, and for parts that do not fit.
    """
    from scipy.io import loadmat  # half a second that not every command should wait for

    try:
        if path.stat().st_size > largest:
            raise UserError(f"{path}: {path.stat().st_size} bytes, expected at most {largest}", hint=hint)
        return loadmat(io.BytesIO(checked(path.read_bytes(), largest)), variable_names=list(names))
    except UserError:
        raise
    except Exception as error:  # scipy raises many kinds
        raise UserError(
            f"{path}: not readable as a MATLAB file of version 5 to 7 ({type(error).__name__}: {error})", hint=hint
        ) from error


def checked(content: bytes, largest: int) -> bytes:
    """The same file with its variables unpacked. ValueError for parts that do not fit their whole."""
    order = ORDERS.get(content[126:HEADER])
    if order is None or struct.unpack(f"{order}H", content[124:126])[0] != 0x0100:
        raise ValueError("no header of version 5")
    parts = [content[:HEADER]]
    for kind, whole, inside in _elements(content[HEADER:], order):
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            whole = unpacker.decompress(inside, largest - sum(map(len, parts)) + 1)
            if not unpacker.eof:
                raise ValueError("a variable is cut off, or too large")
            ((kind, _, inside),) = _elements(whole, order)
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind}, expected an array")
        _check(inside, order, 0)
        parts.append(whole + bytes(-len(whole) % 8))
    if sum(map(len, parts)) > largest:
        raise ValueError(f"more than {largest} bytes unpacked")
    return b"".join(parts)


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Type, all bytes and payload of each element. ValueError for one that ends behind its whole."""
    at = 0
    while at < len(content):
        if at + 8 > len(content):
            raise ValueError("an element is cut off")
        kind, size = struct.unpack_from(f"{order}2I", content, at)
        if kind >> 16:  # a small element: its size and its payload are in the same eight bytes
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = at + 4, at + 8
            if size > 4:
                raise ValueError("a small element is too large")
        else:
            start = at + 8
            end = start + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > len(content):
            raise ValueError("an element is cut off")
        yield kind, content[at:end], content[start : start + size]
        at = end


def _check(content: bytes, order: str, depth: int) -> None:
    """ValueError for an array that declares more elements than it has."""
    if depth > DEEPEST:
        raise ValueError(f"arrays more than {DEEPEST} deep in others")
    if not content:  # an empty array
        return
    parts = list(_elements(content, order))
    if len(parts) < 3 or parts[0][0] != UINT32 or len(parts[0][2]) != 8 or parts[1][0] != INT32:
        raise ValueError("an array without class and size")
    kind = struct.unpack_from(f"{order}I", parts[0][2])[0] & 0xFF
    size = len(parts[1][2]) // 4
    sides = struct.unpack_from(f"{order}{size}i", parts[1][2])
    if size < 2 or min(sides) < 0:
        raise ValueError(f"an array of the size {sides}")
    count, rest = prod(sides), parts[3:]
    if kind in (CELL, STRUCTURE):
        if kind == STRUCTURE:
            if len(rest) < 2 or rest[0][0] != INT32 or len(rest[0][2]) != 4:
                raise ValueError("a structure without names")
            longest = struct.unpack(f"{order}i", rest[0][2])[0]
            if longest < 1 or len(rest[1][2]) % longest:
                raise ValueError("a structure whose names are cut off")
            count, rest = count * (len(rest[1][2]) // longest), rest[2:]
        if count != len(rest) or max(sides) > max(count, 1) or any(part[0] != MATRIX for part in rest):
            raise ValueError(f"{len(rest)} arrays inside, expected {count}")
        for _, _, inside in rest:
            _check(inside, order, depth + 1)
    elif kind not in PLAIN:
        raise ValueError(f"an array of class {kind}, expected cells, structures, numbers or text")
    elif count > sum(len(part[2]) for part in rest):
        raise ValueError(f"{sides} numbers in {sum(len(part[2]) for part in rest)} bytes")
