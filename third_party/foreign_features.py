"""Other programs' files of features, read as plain arrays by image name; nothing in them is run.

hloc (cvg/Hierarchical-Localization, Apache-2.0): an HDF5 file of groups /<image>/ with `keypoints` (n, 2),
`descriptors` (d, n), `scores` (n,), `image_size` (2,); global descriptors in a second file, `global_descriptor` (D,).
AMES (pavelsuma/ames, Apache-2.0): an HDF5 file whose `features` (N, m, 5 + d) hold x, y, scale, mask (1: padding),
weight and descriptor, images in the order of the data set's lists; global descriptors in a `.npy` (N, D).
COLMAP (BSD-3-Clause): an SQLite database with the tables images, keypoints and descriptors.
arrays: an `.npz` or `.safetensors` an image, named as the image, with the arrays of `bench.features.Features`.
docs/protocols.md has these formats.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from bench.errors import UserError
from bench.files import read_npz

LARGEST = 2**30  # bytes of one array; the largest of an official image has 8 MB
Arrays = dict[str, np.ndarray]  # named as the fields of Features; what a file does not have is left out


class Foreign(Protocol):
    """One place of features: the names in it, and what it has of each."""

    def names(self) -> Sequence[str]: ...

    def read(self, name: str) -> Arrays: ...


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    """The open file. UserError for anything that its reading makes of a damaged one."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, KeyError, … on damaged files
        raise UserError(f"{path}: not a readable HDF5 file ({type(error).__name__}: {error})") from error


def _dataset(group: Any, name: str, path: Path) -> Any:
    """A plain array of numbers inside this very file; UserError for links, other storage and anything too large."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise UserError(f"{path}: {group.name}/{name} is missing or a link: refused")
    found = group[name]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu" or found.external or found.is_virtual:
        raise UserError(f"{path}: {group.name}/{name} is no array of numbers kept in the file: refused")
    if found.size * found.dtype.itemsize > LARGEST and name != "features":
        raise UserError(f"{path}: {group.name}/{name} declares {found.shape}, more than {LARGEST} bytes: refused")
    return found


class Hloc:
    def __init__(self, path: Path, globals_: Path | None = None):
        self.path, self.globals = path, globals_

    def names(self) -> list[str]:
        import h5py

        found: list[str] = []
        with _hdf5(self.path) as file:

            def walk(group: Any, prefix: str, depth: int) -> None:
                for name in group:
                    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                        raise UserError(f"{self.path}: {prefix}{name} is a link: refused")
                    below = group[name]
                    if isinstance(below, h5py.Group) and "keypoints" in below:
                        found.append(prefix + name)
                    elif isinstance(below, h5py.Group) and depth < 16:
                        walk(below, f"{prefix}{name}/", depth + 1)

            walk(file, "", 0)
        return found

    def read(self, name: str) -> Arrays:
        with _hdf5(self.path) as file:
            group = file[name]
            keys = ("keypoints", "descriptors", "scores", "image_size")
            found = {key: _dataset(group, key, self.path)[()] for key in keys if key in group}
        if found["keypoints"].ndim != 2 or "descriptors" not in found or found["descriptors"].ndim != 2:
            raise UserError(f"{self.path}: {name} has no keypoints (n, 2) and descriptors (d, n)")
        found["descriptors"] = found["descriptors"].T
        if self.globals is not None:
            with _hdf5(self.globals) as file:
                if name not in file:
                    raise UserError(f"{self.globals}: no image {name!r}")
                found["global_descriptor"] = _dataset(file[name], "global_descriptor", self.globals)[()]
        return found


class Ames:
    """Images are named by their places, `0`, `1`, …"""

    def __init__(self, path: Path, globals_: Path | None = None):
        self.path = path
        self.globals = None if globals_ is None else _npy(globals_)
        with _hdf5(path) as file:
            shape = _dataset(file, "features", path).shape
        if len(shape) != 3 or shape[2] < 6:
            raise UserError(f"{path}: features {shape}, expected (images, descriptors, 5 + d)")
        if self.globals is not None and len(self.globals) != shape[0]:
            raise UserError(f"{globals_}: {len(self.globals)} global descriptors for {shape[0]} images of {path}")
        self.count = int(shape[0])

    def names(self) -> list[str]:
        return [str(number) for number in range(self.count)]

    def read(self, name: str) -> Arrays:
        with _hdf5(self.path) as file:
            rows = np.asarray(_dataset(file, "features", self.path)[int(name)], np.float32)
        rows = rows[rows[:, 3] != 1]
        found = {"keypoints": rows[:, :2], "scales": rows[:, 2] + 1, "scores": rows[:, 4], "descriptors": rows[:, 5:]}
        return found if self.globals is None else {**found, "global_descriptor": self.globals[int(name)]}


class Colmap:
    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro&immutable=1", uri=True)) as database:
                yield database
        except (sqlite3.Error, ValueError, TypeError, OverflowError, MemoryError) as error:  # as a size in it says
            raise UserError(f"{self.path}: not a readable COLMAP database ({error})") from error

    def names(self) -> list[str]:
        with self._open() as database:
            return [str(name) for (name,) in database.execute("SELECT name FROM images ORDER BY image_id")]

    def read(self, name: str) -> Arrays:
        with self._open() as database:
            (number,) = database.execute("SELECT image_id FROM images WHERE name = ?", (name,)).fetchone()
            tables = {}
            for table, kind in (("keypoints", np.float32), ("descriptors", np.uint8)):
                found = database.execute(
                    f"SELECT rows, cols, data FROM {table} WHERE image_id = ?", (number,)
                ).fetchone()
                rows, columns, data = found or (0, 128 if table == "descriptors" else 2, b"")
                tables[table] = np.frombuffer(data or b"", kind).reshape(rows, columns)
        points = tables["keypoints"]
        root = np.sqrt(tables["descriptors"] / np.maximum(tables["descriptors"].sum(1, keepdims=True), 1e-12))
        return {
            "keypoints": points[:, :2],
            "descriptors": root.astype(np.float32),
            **({"scales": points[:, 2], "orientations": points[:, 3]} if points.shape[1] == 4 else {}),
        }


class ImageFiles:
    """A folder with one `.npz` or `.safetensors` an image."""

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> list[str]:
        found = (p for p in sorted(self.folder.rglob("*")) if p.suffix in (".npz", ".safetensors") and p.is_file())
        return [path.relative_to(self.folder).as_posix() for path in found]

    def read(self, name: str) -> Arrays:
        path = self.folder / name
        try:
            return dict(read_npz(path, LARGEST) if path.suffix == ".npz" else _safetensors(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not readable ({error})") from error


def _safetensors(path: Path) -> Mapping[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(str(error)) from error


def _npy(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises several kinds
        raise UserError(
            f"{path}: not a readable .npy file ({error})", hint="a .pt is not read: save it as .npy"
        ) from error
    if found.ndim != 2 or found.dtype.kind != "f":
        raise UserError(f"{path}: {found.dtype} {found.shape}, expected floating-point numbers (images, D)")
    return found
