"""Other programs' files of features, read as plain arrays by image name; nothing in them is run.

hloc (cvg/Hierarchical-Localization, Apache-2.0): an HDF5 file of groups /<image>/ with `keypoints` (n, 2),
`descriptors` (d, n), scores (n,), `image_size` (2,); `global_descriptor` (D,) there too, or in a second file, which may
be an `.npz` of names and rows instead.
AMES (pavelsuma/ames, Apache-2.0): HDF5 files whose `features` (N, m, 5 + d) hold x, y, scale, mask (1: padding),
weight and descriptor, images in the order of the data set's lists: one file, or the gallery's and the queries'. Global
descriptors (N, D) in a `.npy`, in a tensor that torch saved, or as its extraction writes its `.pt`: bare float32.
VPR-methods-evaluation (gmberton/VPR-methods-evaluation, MIT): `database_descriptors.npy` and `queries_descriptors.npy`,
(images, D) in the order of the sorted files.
COLMAP (BSD-3-Clause): an SQLite database with the tables images, keypoints and descriptors.
arrays: an `.npz` or `.safetensors` an image, named as the image, with the arrays of `bench.features.Features`.
docs/protocols.md has these formats.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from bench.errors import UserError
from bench.files import read_npz
from bench.names import shown
from third_party import torch_file

LARGEST = 2**30  # bytes of one array; the largest of an official image has 8 MB
Arrays = dict[str, np.ndarray]  # named as the fields of Features; what a file does not have is left out

# field of Features -> its names in files of hloc, LightGlue, glue-factory, kornia, R2D2 and D2-Net; the first counts
NAMES: Mapping[str, tuple[str, ...]] = {
    "keypoints": ("keypoints",),
    "descriptors": ("descriptors",),
    "scores": (
        "scores",
        "keypoint_scores",
        "detection_scores",
        "score",
        "keypoint_score",
        "confidence",
        "confidences",
        "keypoint_confidence",
        "response",
        "responses",
    ),
    "image_size": ("image_size", "imsize"),
    "scales": ("scales",),
    "orientations": ("orientations", "oris"),
    "global_descriptor": ("global_descriptor",),
}
KNOWN = frozenset(name for names in NAMES.values() for name in names)
# COLMAP's FeatureExtractorType -> its name and how a value is stored (pycolmap 4.2)
COLMAP_TYPES: Mapping[int, tuple[str, type]] = {
    0: ("SIFT", np.uint8),
    1: ("ALIKED_N16ROT", np.float32),
    2: ("ALIKED_N32", np.float32),
    3: ("LOMA_B", np.float32),
    4: ("LOMA_B128", np.float32),
}
SIFT = 0


def fields(names: Iterable[str]) -> dict[str, str]:
    """Field of Features -> the name that it has among `names`."""
    there = set(names)
    return {key: found for key, known in NAMES.items() if (found := next((n for n in known if n in there), None))}


@dataclass(frozen=True)
class Contents:
    """Which arrays there are: of images (the names of an image's arrays -> images with these), and beside them."""

    images: Mapping[frozenset[str], int]
    beside: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()  # how arrays are read where that is not the usual way


class Foreign(Protocol):
    """One place of features: the files it is made of, the names of images in it, and what it has of each."""

    files: tuple[Path, ...]  # none where every image has a file of its own
    scored: str  # what its scores are: `given` by the files, or the `scale` of keypoints

    def names(self) -> Sequence[str]: ...

    def contents(self, names: Sequence[str]) -> Contents:
        """The arrays of these images by the names they have in the files, without reading the arrays."""
        ...

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


def _listed(group: Any) -> list[str]:
    """The names in a group; h5py gives those that are not UTF-8 as bytes."""
    return [name if isinstance(name, str) else name.decode("utf-8", "surrogateescape") for name in group]


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _kept(group: Any, name: str) -> bool:
    """Whether the name is there and no link to another place."""
    import h5py

    try:
        found = group.id.links.get_info(_bytes(name)).type
    except (KeyError, RuntimeError):
        return False
    return found == h5py.h5l.TYPE_HARD


def _group(file: Any, name: str, path: Path) -> Any:
    """The image's group in this very file; UserError if it is missing or behind a link."""
    import h5py

    found = file
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or not _kept(found, part):
            raise UserError(shown(f"{path}: no image '{name}'"))
        found = found[_bytes(part)]
    return found


def _dataset(group: Any, name: str, path: Path) -> Any:
    """A plain array of numbers inside this very file; UserError for links, other storage and anything too large."""
    import h5py

    place = shown(f"{path}: {group.name}/{name}")
    if not _kept(group, name):
        raise UserError(f"{place} is missing or a link: refused")
    found = group[_bytes(name)]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu" or found.external or found.is_virtual:
        raise UserError(f"{place} is no array of numbers kept in the file: refused")
    if found.size * found.dtype.itemsize > LARGEST and name != "features":
        raise UserError(f"{place} declares {found.shape}, more than {LARGEST} bytes: refused")
    return found


def _holds_features(group: Any) -> bool:
    """Whether an array of Features is in the group itself; a link, which is not followed, counts as one."""
    import h5py

    return any(not (_kept(group, n) and isinstance(group[n], h5py.Group)) for n in KNOWN.intersection(_listed(group)))


class Hloc:
    scored = "given"

    def __init__(self, path: Path, globals_: Path | None = None):
        self.path = path
        npz = globals_ is not None and globals_.suffix.lower() == ".npz"
        self.named = NamedRows(globals_) if globals_ is not None and npz else None
        self.globals = None if npz else globals_
        self.files: tuple[Path, ...] = (path,) if globals_ is None else (path, globals_)
        self._beside: Counter[str] = Counter()
        self._rows_first = False

    def names(self) -> list[str]:
        """Every group that holds an array of Features. UserError for a file without any."""
        import h5py

        found: list[str] = []
        self._beside.clear()
        with _hdf5(self.path) as file:

            def walk(group: Any, prefix: str, depth: int) -> None:
                for name in _listed(group):
                    if not _kept(group, name):
                        raise UserError(shown(f"{self.path}: {prefix}{name} is a link: refused"))
                    below = group[_bytes(name)]
                    if not isinstance(below, h5py.Group):
                        self._beside[name] += 1
                    elif _holds_features(below):
                        found.append(prefix + name)
                    elif depth < 16:
                        walk(below, f"{prefix}{name}/", depth + 1)

            walk(file, "", 0)
            if not found:
                keys = ", ".join(map(repr, _listed(file)[:5])) or "nothing"
                raise UserError(
                    shown(f"{self.path}: no group holds keypoints and descriptors; the file holds {keys}"),
                    hint="expected hloc's file of local features: a group an image",
                )
        return found

    def contents(self, names: Sequence[str]) -> Contents:
        images: Counter[frozenset[str]] = Counter()
        whole: Counter[str] = Counter()
        usual = rows_first = True  # (d, n) as hloc writes descriptors, (n, d) as LightGlue and glue-factory do
        with _hdf5(self.path) as file:
            for name in names:
                group = _group(file, name, self.path)
                there = set(_listed(group))
                if {"keypoints", "descriptors"} <= there:
                    points, rows = (_dataset(group, key, self.path).shape for key in ("keypoints", "descriptors"))
                    usual, rows_first = usual and points[:1] == rows[1:2], rows_first and points[:1] == rows[:1]
                if len(self.files) > 1:
                    whole["global_descriptor"] += "global_descriptor" in there
                    there = (there - {"global_descriptor"}) | {"global_descriptor"}
                images[frozenset(there)] += 1
        if self.globals is not None:
            with _hdf5(self.globals) as file:
                for name in names:
                    whole.update(set(_listed(_group(file, name, self.globals))) - {"global_descriptor"})
        if self.named is not None:
            for name in names:  # one that is not there is refused before anything is read
                self.named[name]
        self._rows_first = rows_first and not usual
        remarks = ("descriptors are (n, d) in every image, and are read so",) if self._rows_first else ()
        return Contents(images, +(self._beside + whole), remarks)

    def read(self, name: str) -> Arrays:
        with _hdf5(self.path) as file:
            group = _group(file, name, self.path)
            found = {key: _dataset(group, there, self.path)[()] for key, there in fields(_listed(group)).items()}
        for key in ("keypoints", "descriptors"):
            if key not in found or found[key].ndim != 2:
                shape = found[key].shape if key in found else "not there"
                expected = "(n, 2)" if key == "keypoints" else "(d, n)"
                raise UserError(shown(f"{self.path}: {key} of '{name}': {shape}, expected {expected}"))
        if not self._rows_first:
            found["descriptors"] = found["descriptors"].T
        if len(found["descriptors"]) != len(found["keypoints"]):
            raise UserError(
                shown(f"{self.path}: '{name}' has {len(found['keypoints'])} keypoints and ")
                + f"descriptors {found['descriptors'].T.shape}, expected (d, n)"
            )
        if self.globals is not None:
            with _hdf5(self.globals) as file:
                group = _group(file, name, self.globals)
                found["global_descriptor"] = _dataset(group, "global_descriptor", self.globals)[()]
        if self.named is not None:
            found["global_descriptor"] = self.named[name]
        return found


class NamedRows:
    """Global descriptors of an `.npz`: an array with the names of the images, and one (images, D) with a row each.

    The two may have any names of their own. UserError for anything else.
    """

    def __init__(self, path: Path):
        try:
            there = read_npz(path, LARGEST)
        except (OSError, ValueError) as error:
            raise UserError(shown(f"{path}: not readable ({error})")) from error
        names = [values for values in there.values() if values.ndim == 1 and values.dtype.kind in "US"]
        rows = [values for values in there.values() if values.ndim == 2 and values.dtype.kind == "f"]
        if len(names) != 1 or len(rows) != 1 or len(names[0]) != len(rows[0]):
            found = ", ".join(f"{name} {values.shape} of {values.dtype}" for name, values in there.items())
            raise UserError(
                shown(f"{path}: holds {found or 'nothing'}"),
                hint="expected an array of the images' names (images,), and one of floating-point numbers (images, D)",
            )
        self.path, self._rows = path, rows[0]
        plain = (name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name) for name in names[0])
        self._places = {name: place for place, name in enumerate(plain)}
        if len(self._places) < len(self._rows):
            twice = len(self._rows) - len(self._places)
            raise UserError(shown(f"{path}: {twice} names of images stand there twice"), hint="expected a row an image")

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._places:
            first = next(iter(self._places), "none")
            raise UserError(shown(f"{self.path}: no image '{name}'"), hint=shown(f"the first of its names is {first}"))
        row: np.ndarray = self._rows[self._places[name]]
        return row


class Ames:
    """Images are named by their places in the gallery's file or in the only one, `0/0`, `0/1`, …, and in the queries'
    file, `1/0`, …"""

    scored = "given"

    def __init__(
        self,
        path: Path,
        globals_: Path | None = None,
        queries: Path | None = None,
        query_globals: Path | None = None,
    ):
        if path.is_dir():
            if queries is not None:
                raise UserError(f"{path}: a folder has its own queries", hint="give the gallery's file with --queries")
            path, queries, own, query_own = _ames_folder(path)
            globals_, query_globals = globals_ or own, query_globals or query_own
        locals_ = [path] if queries is None else [path, queries]
        wholes = [globals_] if queries is None else [globals_, query_globals]
        if (query_globals is not None and queries is None) or len({whole is None for whole in wholes}) > 1:
            raise UserError(
                f"{path}: global descriptors of the gallery or of the queries alone",
                hint="give --globals and --query-globals together, with the --queries that they belong to",
            )
        self.counts: list[int] = []
        self._beside: Counter[str] = Counter()
        for file in locals_:
            with _hdf5(file) as content:
                shape = _dataset(content, "features", file).shape
                self._beside.update(set(_listed(content)) - {"features"})
            if len(shape) != 3 or shape[2] < 6:
                raise UserError(f"{file}: features {shape}, expected (images, descriptors, 5 + d)")
            self.counts.append(int(shape[0]))
        self._locals = locals_
        self._wholes = [
            None if whole is None else _matrix(whole, count, file)
            for whole, count, file in zip(wholes, self.counts, locals_, strict=True)
        ]
        self.files = tuple(file for file in (*locals_, *wholes) if file is not None)

    def names(self) -> list[str]:
        return [f"{part}/{row}" for part, count in enumerate(self.counts) for row in range(count)]

    def contents(self, names: Sequence[str]) -> Contents:
        there = {"keypoints", "scales", "scores", "descriptors"}
        whole = {"global_descriptor"} if self._wholes[0] is not None else set()
        return Contents({frozenset(there | whole): len(names)}, self._beside)

    def read(self, name: str) -> Arrays:
        part, row = map(int, name.split("/"))
        with _hdf5(self._locals[part]) as file, np.errstate(over="ignore"):
            rows = np.asarray(_dataset(file, "features", self._locals[part])[row], np.float32)
        rows = rows[rows[:, 3] != 1]
        found = {"keypoints": rows[:, :2], "scales": rows[:, 2] + 1, "scores": rows[:, 4], "descriptors": rows[:, 5:]}
        whole = self._wholes[part]
        return found if whole is None else {**found, "global_descriptor": np.asarray(whole[row])}


def _ames_folder(folder: Path) -> tuple[Path, Path, Path | None, Path | None]:
    """The files that AMES' extraction writes for one backbone: local of gallery and queries, and global of both."""
    found = sorted(folder.glob("*_gallery_local.hdf5"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise UserError(
            f"{folder}: {len(found)} files *_gallery_local.hdf5 ({shown(names)}), expected one",
            hint="give the gallery's file, and the queries' with --queries",
        )
    stem = found[0].name.removesuffix("_gallery_local.hdf5")
    queries = folder / f"{stem}_query_local.hdf5"
    if not queries.is_file():
        raise UserError(f"{queries}: no such file", hint="AMES' extraction writes the queries' with --split _query")
    wholes = [folder / f"{stem}_{split}_global.pt" for split in ("gallery", "query")]
    there = [path if path.is_file() else None for path in wholes]
    return found[0], queries, there[0], there[1]


def _matrix(path: Path, count: int, local: Path) -> np.ndarray:
    """(count, D) global descriptors: a `.npy`, a tensor that torch saved, or the bare float32 of AMES' extraction."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
        size = path.stat().st_size
        if start.startswith(b"\x93NUMPY"):
            found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        elif start.startswith((torch_file.ZIP, torch_file.LEGACY)):
            import torch

            found = torch_file.load(path)
            if not isinstance(found, torch.Tensor):
                raise ValueError(f"{type(found).__name__}, expected a tensor")
            found = found.detach().float().numpy()
        elif path.suffix == ".pt" and count and size and size % (4 * count) == 0:
            # the extraction maps torch.FloatStorage onto the file: values without any header
            found = np.memmap(path, np.float32, "r", shape=(count, size // (4 * count)))
        else:
            raise ValueError(f"{size} bytes, neither .npy nor torch's nor float32 rows of {count} images")
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and torch raise several kinds
        raise UserError(
            f"{path}: not readable as global descriptors ({str(error).splitlines()[0] if str(error) else error!r})",
            hint="expected a .npy, a tensor saved by torch, or the .pt of AMES' extraction",
        ) from error
    if found.ndim != 2 or found.dtype.kind != "f":
        raise UserError(f"{path}: {found.dtype} {found.shape}, expected floating-point numbers (images, D)")
    if len(found) != count:
        raise UserError(f"{path}: {len(found)} global descriptors for {count} images of {local}")
    return found


class Matrices:
    """Images are named by the row that they have: `database row 0`, `database row 1`, …, `queries row 0`, …"""

    scored = "given"
    PARTS = ("database", "queries")

    def __init__(self, path: Path, queries: Path | None = None):
        if path.is_dir():
            if queries is not None:
                raise UserError(f"{path}: a folder has its own queries", hint="give the database's file with --queries")
            path, queries = (path / f"{part}_descriptors.npy" for part in self.PARTS)
            if not path.is_file():
                raise UserError(
                    f"{path}: no such file", hint="VPR-methods-evaluation writes it with --save_descriptors"
                )
            queries = queries if queries.is_file() else None
        self.files: tuple[Path, ...] = (path,) if queries is None else (path, queries)
        self._rows = dict(zip(self.PARTS, map(_rows, self.files), strict=False))
        sizes = {part: rows.shape[1] for part, rows in self._rows.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(
                shown(f"{queries}: {sizes['queries']} values a descriptor, and {path.name} has {sizes['database']}"),
                hint="both must come from one model",
            )
        self.counts = [len(rows) for rows in self._rows.values()]

    def names(self) -> list[str]:
        return [f"{part} row {row}" for part, rows in self._rows.items() for row in range(len(rows))]

    def contents(self, names: Sequence[str]) -> Contents:
        return Contents({frozenset({"global_descriptor"}): len(names)})

    def read(self, name: str) -> Arrays:
        part, row = name.split(" row ")
        return {"global_descriptor": np.asarray(self._rows[part][int(row)])}


def _rows(path: Path) -> np.ndarray:
    """(n, D) of a `.npy`, memory-mapped. UserError for another file, and for anything but floating-point rows."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("an archive of several arrays")
    except Exception as error:  # numpy's header parser raises several kinds
        raise UserError(
            shown(f"{path}: not readable as a .npy ({str(error).splitlines()[0] if str(error) else error!r})"),
            hint="expected an array (images, D) that numpy saved",
        ) from error
    if found.ndim != 2 or found.dtype.kind != "f" or 0 in found.shape:
        raise UserError(
            shown(f"{path}: {found.dtype} {found.shape}, expected floating-point numbers (images, D)"),
            hint="a row is the global descriptor of an image",
        )
    return found


class Colmap:
    """Bytes are COLMAP's RootSIFT already, 512 times a unit vector: normalised, they are what COLMAP matches with."""

    scored = "scale"

    def __init__(self, path: Path):
        self.path = path
        logs = (path.with_name(path.name + end) for end in ("-wal", "-journal"))
        self._logs = [log for log in logs if log.is_file() and log.stat().st_size]
        self.files: tuple[Path, ...] = (path, *self._logs)
        self._copy: TemporaryDirectory | None = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The database with what its log holds. A log is merged in a copy: the user's files stay as they are."""
        try:
            if not self._logs:
                address = f"file:{quote(str(self.path))}?mode=ro&immutable=1"
            else:
                address = f"file:{quote(str(self._copied()))}?mode=rw"
            with closing(sqlite3.connect(address, uri=True)) as database:
                database.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
                yield database
        except (sqlite3.Error, ValueError, TypeError, OverflowError, MemoryError, OSError) as error:  # as a size says
            raise UserError(f"{self.path}: not a readable COLMAP database ({error})") from error

    def _copied(self) -> Path:
        if self._copy is None:
            before = [path.stat() for path in self.files]
            self._copy = TemporaryDirectory(prefix="colmap-")
            for path in self.files:
                shutil.copyfile(path, Path(self._copy.name) / ("db" + path.name.removeprefix(self.path.name)))
            after = [path.stat() for path in self.files]
            if any(
                (b.st_size, b.st_mtime_ns) != (a.st_size, a.st_mtime_ns) for b, a in zip(before, after, strict=True)
            ):
                raise UserError(f"{self.path}: is being written", hint="import it when COLMAP is done")
        return Path(self._copy.name) / "db"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        with self._open() as database:
            return {str(n): i for n, i in database.execute("SELECT name, image_id FROM images ORDER BY image_id")}

    @cached_property
    def _typed(self) -> bool:
        """Whether the database says what its descriptors are; those before COLMAP 4 hold SIFT alone."""
        with self._open() as database:
            return any(column[1] == "type" for column in database.execute("PRAGMA table_info(descriptors)"))

    @cached_property
    def _type(self) -> int:
        """The one type of descriptors. UserError for types that are not known, and for several."""
        if not self._typed:
            return SIFT
        with self._open() as database:
            found = dict(database.execute("SELECT type, count(*) FROM descriptors WHERE rows > 0 GROUP BY type"))
        kinds = ", ".join(f"{COLMAP_TYPES[t][0] if t in COLMAP_TYPES else t} ({n} images)" for t, n in found.items())
        if len(found) > 1:
            raise UserError(f"{self.path}: descriptors of several types: {kinds}", hint="a database has one type")
        kind = next(iter(found), SIFT)
        if kind not in COLMAP_TYPES:
            known = ", ".join(f"{number} {name}" for number, (name, _) in COLMAP_TYPES.items())
            raise UserError(f"{self.path}: descriptors of type {kind}, which is not known", hint=f"known: {known}")
        return kind

    @cached_property
    def _ranked(self) -> bool:
        """Whether keypoints have scales that differ: COLMAP itself keeps the largest."""
        if self._type != SIFT:
            return False
        with self._open() as database:
            for rows, columns, data in database.execute("SELECT rows, cols, data FROM keypoints WHERE rows > 1"):
                scales = _colmap_keypoints(rows, columns, data).get("scales", np.zeros(1))
                if np.ptp(scales) > 0:
                    return True
        return False

    def names(self) -> list[str]:
        return list(self._numbers)

    def contents(self, names: Sequence[str]) -> Contents:
        images: Counter[frozenset[str]] = Counter()
        known = {"image_id", "type", "rows", "cols", "data"}
        ranked = {"scores"} if self._ranked else set()
        with self._open() as database:
            beside = {
                f"{table}.{column[1]}": 1
                for table in ("keypoints", "descriptors")
                for column in database.execute(f"PRAGMA table_info({table})")
                if column[1] not in known
            }
            columns = dict(database.execute("SELECT image_id, cols FROM keypoints WHERE rows > 0"))
            for name in names:
                more = {"scales", "orientations"} if columns.get(self._numbers[name], 2) > 2 else set()
                images[frozenset({"keypoints", "descriptors", *more, *ranked})] += 1
        shapes = sum(columns.get(self._numbers[name]) == 6 for name in names)
        remark = f"affine shapes of keypoints in {shapes} images are reduced to a scale and an orientation"
        return Contents(images, beside, (remark,) if shapes else ())

    def read(self, name: str) -> Arrays:
        number = self._numbers[name]
        type_, kind = self._type, COLMAP_TYPES[self._type][1]
        with self._open() as database:
            select = "SELECT rows, cols, data FROM {} WHERE image_id = ?"
            keypoints = database.execute(select.format("keypoints"), (number,)).fetchone() or (0, 2, b"")
            rows, columns, data = database.execute(select.format("descriptors"), (number,)).fetchone() or (0, 0, b"")
            size = self._size(database, number)
            found = _colmap_keypoints(*keypoints)
            bytes_ = np.frombuffer(data or b"", np.uint8).reshape(rows, columns)
            if rows and columns % np.dtype(kind).itemsize:
                raise ValueError(f"{columns} bytes a descriptor of {COLMAP_TYPES[type_][0]}")
        if rows != len(found["keypoints"]):
            raise UserError(
                shown(f"{self.path}: '{name}' has {len(found['keypoints'])} keypoints and {rows} descriptors"),
                hint="descriptors that COLMAP did not extract are not in its database: import the files they are in",
            )
        values: np.ndarray = bytes_.view(kind) if rows else np.zeros((0, 0), kind)
        found["descriptors"] = values.astype(np.float32) / (512 if type_ == SIFT else 1)
        if self._ranked:
            found["scores"] = found.get("scales", np.ones(len(found["keypoints"])))
        return found if size is None else {**found, "image_size": np.array(size)}

    def _size(self, database: sqlite3.Connection, number: int) -> tuple[int, int] | None:
        """Width and height of the image's camera, where the database tells."""
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "cameras" not in tables:
            return None
        found = database.execute(
            "SELECT width, height FROM cameras JOIN images USING (camera_id) WHERE image_id = ?", (number,)
        ).fetchone()
        return found if found is not None and min(found) > 0 else None


def _colmap_keypoints(rows: int, columns: int, data: bytes | None) -> Arrays:
    """x, y; with scale and orientation in four columns; with an affine shape in six, of which both are taken.

    COLMAP's FeatureKeypoint::ComputeScale is the mean length of the shape's columns.
    """
    points = np.frombuffer(data or b"", np.float32).reshape(rows, columns)
    if columns == 2:
        return {"keypoints": points}
    if columns == 4:
        return {"keypoints": points[:, :2], "scales": points[:, 2], "orientations": points[:, 3]}
    if columns != 6:
        raise ValueError(f"keypoints of {columns} columns, expected 2, 4 or 6")
    a11, a12, a21, a22 = points[:, 2:].T.astype(np.float64)
    return {
        "keypoints": points[:, :2],
        "scales": (np.hypot(a11, a21) + np.hypot(a12, a22)) / 2,
        "orientations": np.arctan2(a21, a11),
    }


class ImageFiles:
    """A folder with one `.npz` or `.safetensors` an image."""

    scored = "given"
    files: tuple[Path, ...] = ()

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> list[str]:
        found = (
            p for p in sorted(self.folder.rglob("*")) if p.suffix.lower() in (".npz", ".safetensors") and p.is_file()
        )
        return [path.relative_to(self.folder).as_posix() for path in found]

    def contents(self, names: Sequence[str]) -> Contents:
        return Contents(Counter(frozenset(self._names(self.folder / name)) for name in names))

    def _names(self, path: Path) -> Iterable[str]:
        import zipfile

        from safetensors import SafetensorError, safe_open

        try:
            if path.suffix.lower() == ".npz":
                with zipfile.ZipFile(path) as archive:
                    return [entry.removesuffix(".npy") for entry in archive.namelist()]
            with safe_open(path, "np") as file:
                return list(file.keys())
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, SafetensorError) as error:
            raise UserError(shown(f"{path}: not readable ({error})")) from error

    def read(self, name: str) -> Arrays:
        path = self.folder / name
        try:
            there = read_npz(path, LARGEST) if path.suffix.lower() == ".npz" else _safetensors(path)
        except (OSError, ValueError) as error:
            raise UserError(shown(f"{path}: not readable ({error})")) from error
        found = {key: np.asarray(there[name]) for key, name in fields(there).items()}
        points = found.get("keypoints")
        if points is not None and points.ndim == 2 and points.shape[1] == 3 and "scales" not in found:
            found |= {"keypoints": points[:, :2], "scales": points[:, 2]}  # R2D2 and D2-Net: x, y, scale
        return found


def _safetensors(path: Path) -> Mapping[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(str(error)) from error
