"""Place recognition: folders of database and query images whose names hold where they were taken, in metres.

PATH/images/test/database/**/@UTM_east@UTM_north@….jpg   and   PATH/images/test/queries/**   (or both directly in PATH)

The layout of the Deep Visual Geo-localization Benchmark (Berton et al., CVPR 2022), which Pitts30k, Tokyo 24/7, MSLS,
Nordland, SF-XL, AmsterTime and others are converted to (docs/protocols.md, Place recognition).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from bench.datasets.dataset import Dataset, Place, Query, dataset
from bench.datasets.folder import look, require_folder
from bench.datasets.gallery import Gallery, Layout, version_of
from bench.datasets.utm import NORTHERN, on_earth, unproject
from bench.errors import UserError
from bench.files import read_text
from bench.names import encodable, shown

DATABASE = "database"
BELOW = Path("images") / "test"  # where the official layout has both folders
LISTED = "_images_paths.txt"  # behind a folder's name: a file beside it that lists its images
ZONE, BAND = re.compile(r"0?[1-9]|[1-5]\d|60"), re.compile(r"[C-HJ-NP-Xc-hj-np-x]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FORM = "@UTM_east@UTM_north@zone@letter@…@.jpg, of which the first two are needed"
CONVERT = "python cli.py datasets convert CSV PATH makes such a folder from latitudes and longitudes"
NAMED = 5  # images at most in a message
MANY = 500_000  # images from which on they are kept compactly, and looked up more slowly


@dataclass(frozen=True)
class Options:
    radius: float = 25.0  # metres from a query within which an image of the database is right
    queries: str = "queries"  # the folder of the queries, beside database

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"radius={self.radius:g}, expected more than 0 metres")
        parts = PurePosixPath(self.queries).parts
        if not parts or self.queries.startswith("/") or ".." in parts or parts[0] == DATABASE:
            raise ValueError(f"queries={self.queries}, expected the name of a folder beside {DATABASE}")


@dataclass(frozen=True)
class Grid:
    """Which plane coordinates are on: a zone of UTM, 1 to 60, and a hemisphere."""

    zone: str
    north: bool

    def __str__(self) -> str:
        return f"{self.zone} {'north' if self.north else 'south'}"


@dataclass(frozen=True)
class Placed:
    """Where an image was taken: metres east and north on a grid, None where the name does not say on which."""

    east: float
    north: float
    grid: Grid | None


def placed(image: str) -> Placed:
    """What the base name of an image says; an @ in a folder says nothing. UserError for a name without coordinates.

    >>> placed("old@home/@0584844.09@4477316.41@17@T@+40.44@-079.99@@@@@@@@.jpg")
    Placed(east=584844.09, north=4477316.41, grid=Grid(zone='17', north=True))
    """
    parts = image.rpartition("/")[2].split("@")
    if len(parts) < 4:
        raise UserError(f"{shown(image)}: its name has no coordinates", hint=f"expected {FORM}. {CONVERT}")
    for axis, text in zip(("east", "north"), parts[1:3], strict=True):
        if NUMBER.fullmatch(text) is None or not math.isfinite(float(text)):
            hint = "a point parts whole metres from the rest, not a comma" if "," in text else f"expected {FORM}"
            raise UserError(f"{shown(image)}: found {text!r} as UTM {axis}, expected a number of metres", hint=hint)
    zone, letter = parts[3], parts[4] if len(parts) > 5 else ""
    known = ZONE.fullmatch(zone) and BAND.fullmatch(letter)
    grid = Grid(zone.lstrip("0"), letter.upper() >= NORTHERN) if known else None
    return Placed(float(parts[1]), float(parts[2]), grid)


@dataclass(frozen=True)
class Side:
    """The images of a folder by their paths below it, in the benchmark's order: sorted, or as a file lists them."""

    folder: Path
    images: tuple[str, ...]
    places: tuple[Placed, ...]
    notes: tuple[str, ...]

    @property
    def points(self) -> np.ndarray:
        """(n, 2) metres east and north, float64: in single precision north has steps of half a metre."""
        return np.array([(place.east, place.north) for place in self.places], np.float64).reshape(-1, 2)

    @staticmethod
    def of(folder: Path, photographs: bool) -> Side:
        """UserError for a folder without images, and for images whose names have no coordinates or are no text."""
        images, notes = _found(folder, photographs)
        if not images:
            raise UserError(". ".join([f"{folder}: no images found", *notes]), hint=f"expected files {FORM}")
        return Side(folder, images, tuple(_placed(folder, image) for image in images), notes)


def _placed(folder: Path, image: str) -> Placed:
    try:
        return placed(image)
    except UserError as error:
        raise UserError(f"{folder}/{error.message}", hint=error.hint) from error


def _found(folder: Path, photographs: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths of images below a folder, and notes on what is left out there."""
    listed = folder.with_name(folder.name + LISTED)
    if not listed.is_file():
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder", hint=_beside(folder))
        found = look(folder)
        return (
            tuple(sorted(path.relative_to(folder).as_posix() for path in found.images.values())),
            found.notes(folder, f" below {folder.name}/"),
        )
    try:
        lines = [line for line in read_text(listed).splitlines() if line]
    except (OSError, ValueError) as error:
        raise UserError(f"{listed}: cannot be read ({error})") from error
    images: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{listed}, line {number}"
        parts = PurePosixPath(line).parts
        if line.startswith("/") or ".." in parts or "\0" in line or not encodable(line) or "/".join(parts) != line:
            raise UserError(f"{where}: found {shown(line)[:80]!r}, expected a path below {folder.name}/")
        if line in images:
            raise UserError(f"{where}: {line[:80]!r} stands there twice, first in line {images[line]}")
        images[line] = number
    if photographs and (missing := [image for image in images if not (folder / image).is_file()]):
        raise UserError(
            f"{listed}: {len(missing)} of {len(images)} images are not in {folder}: {', '.join(missing[:NAMED])}",
            hint="delete the list, and the folder is looked through",
        )
    return tuple(images), ()


def _beside(folder: Path) -> str:
    """What there is instead of a folder."""
    others = sorted(entry.name for entry in folder.parent.iterdir() if entry.is_dir()) if folder.parent.is_dir() else []
    options = [f":queries={name}" for name in others if name != DATABASE]
    if folder.name != DATABASE and options:
        return f"other queries are named as in vpr:PATH{options[0]}; there are {', '.join(others)}"
    return f"expected {BELOW}/{DATABASE} and {BELOW}/queries in PATH, or both directly in it"


def _root(path: Path) -> Path:
    """The folder of both folders. UserError where there are none."""
    require_folder(path)
    for root in (path / BELOW, path):
        if (root / DATABASE).is_dir() or (root / (DATABASE + LISTED)).is_file():
            return root
    below = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    splits = [split for split in ("train", "val") if (path / "images" / split / DATABASE).is_dir()]
    raise UserError(
        f"{path}: neither {BELOW}/{DATABASE} nor {DATABASE} is there; found the folders {', '.join(below) or 'none'}",
        hint=f"the split {splits[0]} is named as vpr:{path / 'images' / splits[0]}"
        if splits
        else f"expected images {DATABASE}/{FORM}. {CONVERT}",
    )


def within(points: np.ndarray, others: np.ndarray, radius: float) -> list[np.ndarray]:
    """Of each of the points (n, 2), ascending places in `others` (m, 2) of those no farther than the radius.

    >>> [near.tolist() for near in within(np.array([[0.0, 0.0]]), np.array([[15, 20], [15, 20.001], [0, -25]]), 25)]
    [[0, 2]]
    """
    from scipy.spatial import cKDTree  # half a second, which no list of data sets should cost

    if not len(others):
        return [np.zeros(0, np.int64) for _ in points]
    found = []
    for point, near in zip(points, cKDTree(others).query_ball_point(points, radius * (1 + 1e-9)), strict=True):
        places = np.sort(np.array(near, np.int64))
        found.append(places[((others[places] - point) ** 2).sum(axis=1) <= radius * radius])
    return found


def grids_of(*sides: Side) -> tuple[Grid, ...]:
    """The grids that names speak of, sorted; images that name none are on the only one."""
    return tuple(sorted({place.grid for side in sides for place in side.places if place.grid is not None}, key=str))


def positives(queries: Side, database: Side, radius: float) -> list[np.ndarray]:
    """Of each query, ascending places of the images of the database within the radius, on the query's own grid.

    UserError where images of different grids are so near each other that the border between zones hides positives.
    """
    grids = grids_of(queries, database)
    if len(grids) < 2:
        return within(queries.points, database.points, radius)
    _refuse_border(queries, database, grids, radius)
    found = [np.zeros(0, np.int64) for _ in queries.images]
    for grid in grids:
        asked, known = (np.flatnonzero([place.grid == grid for place in side.places]) for side in (queries, database))
        for query, places in zip(asked, within(queries.points[asked], database.points[known], radius), strict=True):
            found[query] = known[places]
    return found


def _refuse_border(queries: Side, database: Side, grids: Sequence[Grid], radius: float) -> None:
    names = ", ".join(map(str, grids))
    hint = f"name all of them in one zone. {CONVERT}, in one zone"
    for side in (queries, database):
        lacking = next((i for i, place in zip(side.images, side.places, strict=True) if place.grid is None), None)
        if lacking is not None:
            raise UserError(
                f"{side.folder.parent}: images are in the UTM zones {names}, and {shown(lacking)} names none", hint=hint
            )
    # chords and distances on a grid differ by less than a hundredth, even at the edge of a zone
    for query, near in enumerate(within(_on_earth(queries), _on_earth(database), 1.01 * radius)):
        grid = queries.places[query].grid
        other = next((int(i) for i in near if database.places[i].grid != grid), None)
        if other is not None:
            raise UserError(
                f"{queries.folder.parent}: images of different UTM zones ({names}) within {radius:g} m of each other: "
                f"{shown(queries.images[query])} and {shown(database.images[other])}",
                hint=hint,
            )


def _on_earth(side: Side) -> np.ndarray:
    """(n, 3) metres from the Earth's centre, of images that all name their grid."""
    found = np.zeros((len(side.places), 3))
    for grid in grids_of(side):
        at = np.flatnonzero([place.grid == grid for place in side.places])
        found[at] = on_earth(*unproject(side.points[at], int(grid.zone), grid.north))
    return found


@dataset(
    "vpr",
    summary="place recognition: database/ and queries/, names @UTM_east@UTM_north@…@.jpg",
    licence="that of the images",
    needs="the folder",
    takes="PATH",
    many=True,
    options=Options,
)
def read(place: Place) -> Dataset:
    """Ids are paths below the folder of both folders, so no image of the database is taken for the query itself."""
    assert place.path is not None
    options: Options = place.options
    root = _root(place.path)
    database, queries = (Side.of(root / name, place.images) for name in (DATABASE, options.queries))
    gallery = [f"{DATABASE}/{image}" for image in database.images]
    asked = [f"{options.queries}/{image}" for image in queries.images]
    found = positives(queries, database, options.radius)
    grades = {
        query: dict.fromkeys((gallery[i] for i in near), "easy") for query, near in zip(asked, found, strict=True)
    }
    missed = [query for query, near in zip(asked, found, strict=True) if not len(near)]
    grids = grids_of(queries, database)
    notes = [*database.notes, *queries.notes]
    if missed:
        notes.append(
            f"{len(missed)} of {len(asked)} queries have no image of the database within {options.radius:g} m; "
            "they count as missed."
        )
    if len(grids) > 1:
        notes.append(f"Images are in the UTM zones {', '.join(map(str, grids))}; none is near one of another zone.")
    return Dataset(
        place.name,
        "vpr",
        version_of(root, [*gallery, *asked]),
        tuple(Query(query, root / query) for query in asked),
        {image: root / image for image in gallery}
        if len(gallery) < MANY
        else Gallery(gallery, [Layout(root, suffix="")], f"{root / DATABASE}"),
        grades,
        tuple(notes),
    )
