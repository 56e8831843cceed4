"""Reading pickles of plain values and integer arrays without running what they ask for.

Pickle is a program; this reader runs it with nothing but stand-ins. Opcodes are read first, so that a few bytes cannot
make it allocate much (a memo index of two thousand million, a string longer than the file); no class or function of a
library is ever called: arrays and their types are stand-ins here, made into numpy arrays afterwards.

The official ground truth of Revisited Oxford and Paris holds lists, dicts, strings and numbers only. The lists of
nearest neighbours `nn_inds_*.pkl` of the RRT repository are numpy integer arrays. AMES' `nn_*.pkl` hold torch storages,
which only torch's own unpickler can read, and that runs any code they hold: refused, with the way to convert them.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import UserError

LARGEST_LISTS = 2**30  # bytes; the official lists have at most 49 MB
INTEGERS = frozenset({"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"})


class _Refused(Exception):
    pass


@dataclass
class _Kind:
    """Stands for numpy.dtype: its name and byte order."""

    name: str
    order: str = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise _Refused(f"byte order {order!r}")
        self.order = order


def _said(kind: object) -> str:
    """What an array holds, from numpy's letter for it, where that is no whole number."""
    name = kind.name if isinstance(kind, _Kind) else ""
    return {"f": "fractions", "U": "names", "S": "bytes", "O": "objects"}.get(name[:1], "no whole numbers")


class _Array:
    """Stands for numpy.ndarray: what numpy's own `__setstate__` would be given."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state)

    def value(self) -> np.ndarray:
        """The array. _Refused for what is no array of whole numbers."""
        _, shape, kind, fortran, raw = self.state if len(self.state) == 5 else (0, (), None, False, b"")
        if not isinstance(kind, _Kind) or kind.name not in INTEGERS or not isinstance(raw, bytes):
            raise _Refused(f"an array of {_said(kind)}")
        if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise _Refused(f"an array of shape {shape!r:.80}")
        if math.prod(shape) * int(kind.name[1:]) != len(raw):
            raise _Refused(f"an array of shape {shape} in {len(raw)} bytes")
        flat = np.frombuffer(raw, np.dtype(kind.order.replace("|", "=") + kind.name))
        return flat.reshape(shape, order="F" if fortran else "C").astype(np.int64)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(raw: Any, kind: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.state = (1, shape, kind, order == "F", bytes(raw) if isinstance(raw, bytes | bytearray) else raw)
    return array


def _kind(name: object, *_: object) -> _Kind:
    return _Kind(str(name).lstrip("<>|="))


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"text in {encoding!r:.40}")
    return text.encode("latin1")


ARRAYS: Mapping[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
    "numpy.ndarray": _Array,
    "numpy.dtype": _kind,
    "_codecs.encode": _encode,
}
HERE = "in the environment that wrote it: "
LISTS = "np.savez('lists.npz', queries=names, candidates=names_or_gallery_indices), of shapes (nq,) and (nq, k)"
CONVERT = {  # by the library of a class that an array file would not need
    "torch": "import pickle, numpy as np; s, i = pickle.load(open({file!r}, 'rb')); "
    "np.savez('lists.npz', similarities=s.numpy(), candidates=i.long().numpy()); "
    "of a single tensor of indices: np.save('lists.npy', i.long().numpy())",
    "pandas": "import numpy as np, pandas as pd; t = pd.read_pickle({file!r}); " + LISTS,
}


def _not_official(path: Path, name: str) -> str:
    return "it is not the official file"


def _conversion(path: Path, name: str) -> str:
    """How lists in a pickle that wants to run `name` are made a file that is read."""
    return HERE + CONVERT.get(name.partition(".")[0], LISTS).format(file=path.name)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, allowed: Mapping[str, Callable[..., Any]]):
        super().__init__(io.BytesIO(data))
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        known = self.allowed.get(f"{module}.{name}")
        if known is None:
            raise _Refused(f"wants to run {module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("refers to objects outside itself")


def load(
    path: Path,
    largest: int,
    allowed: Mapping[str, Callable[..., Any]] | None = None,
    advice: Callable[[Path, str], str] = _not_official,
) -> Any:
    """The content of a pickle of lists, dicts, strings and numbers, and of what is `allowed` by name.

    UserError for a file that is larger than `largest` bytes, damaged, or names anything else; `advice` of the file and
    that name says what to do about it.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise UserError(f"{path}: {size} bytes, expected at most {largest}")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        _check(data)
        return _Unpickler(data, allowed or {}).load()
    except _Refused as error:
        name = str(error).removeprefix("wants to run ")
        raise UserError(f"{path}: the file {error}: refused", hint=advice(path, name)) from error
    except Exception as error:  # a damaged pickle fails in many ways
        raise UserError(f"{path}: not a readable pickle ({type(error).__name__}: {error})") from error


def _check(data: bytes) -> None:
    """_Refused for opcodes that the files in question do not have and that could cost memory or time."""
    for opcode, argument, _ in pickletools.genops(data):  # raises ValueError for arguments longer than the file
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
            raise _Refused(f"has a memo of {argument} entries")
        if opcode.name in ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "OBJ", "INST", "NEWOBJ_EX"):
            raise _Refused(f"has the opcode {opcode.name}")


def read_index_lists(path: Path) -> np.ndarray:
    """(nq, n) int64 of a pickled array of indices (`nn_inds_*.pkl`). UserError for anything else."""
    content = load(path, LARGEST_LISTS, ARRAYS, _conversion)
    expected = "expected one array of whole numbers in two dimensions"
    try:
        found = content.value() if isinstance(content, _Array) else None
    except (_Refused, TypeError, ValueError) as error:
        raise UserError(f"{path}: holds {error}, {expected}", hint=_conversion(path, "numpy")) from error
    if found is None or found.ndim != 2:
        shape = f"a {type(content).__name__}" if found is None else f"an array of shape {found.shape}"
        raise UserError(f"{path}: holds {shape}, {expected}", hint=_conversion(path, "numpy"))
    return found
