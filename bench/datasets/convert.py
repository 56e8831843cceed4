"""A place-recognition folder, as `vpr:PATH` reads it, from a list of photographs with latitudes and longitudes."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.columns import Row, read_table
from bench.datasets.utm import NORTHERN, NORTHERNMOST, SOUTHERNMOST, band_of, from_central, project, zone_of
from bench.datasets.vpr import BELOW, DATABASE
from bench.errors import UserError
from bench.files import writing
from bench.images import suffixes

QUERIES = "queries"
ROLES = {"query": QUERIES, "queries": QUERIES, "database": DATABASE, "gallery": DATABASE}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
WIDEST = 6.0  # degrees from a central meridian; distances on the grid are 0.5 percent too long there
COLUMNS, ROLE = ("image", "latitude", "longitude"), "role"


@dataclass(frozen=True)
class Photograph:
    """A photograph of the list: its file, where it was taken in degrees, and which folder it goes to."""

    where: str
    file: Path
    label: str  # what its new name keeps of its path
    latitude: float
    longitude: float
    folder: str


@dataclass(frozen=True)
class Converted:
    """What was made: images in each folder, and the grid that all are named on."""

    database: int
    queries: int
    zone: int
    north: bool
    linked: bool  # links to the photographs, not copies


def convert(
    listed: Path, to: Path, *, zone: int | None = None, query_every: int | None = None, copy: bool = False
) -> Converted:
    """Make the folder `to`, whole or not at all, of the photographs that a CSV or JSON-lines file lists.

    Columns are image, a path from the file's folder on, latitude and longitude in degrees of WGS 84, and role, query or
    database. Without roles every `query_every`-th image is a query. All are named in one zone, the one that most are in
    unless `zone`, 1 to 60, says another, so that distances over its border are right.

    UserError for what is no such list, for photographs that are not there or lie far from the zone, and for a folder
    that is there.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to}: it is there already", hint="name another folder, or remove it")
    found = _photographs(listed, query_every)
    counts = Counter(photograph.folder for photograph in found)
    if not counts[DATABASE] or not counts[QUERIES]:
        raise UserError(
            f"{listed}: {counts[QUERIES]} queries and {counts[DATABASE]} images of the database",
            hint="a data set needs at least one of each",
        )
    latitudes, longitudes = (np.array([getattr(p, axis) for p in found]) for axis in ("latitude", "longitude"))
    chosen = _zone(zone, found)
    north = 2 * int((latitudes < 0).sum()) <= len(found)
    away = np.abs(from_central(chosen, longitudes))
    if away.max() > WIDEST + 1e-9:
        far = found[int(away.argmax())]
        raise UserError(
            f"{far.where}: longitude {far.longitude:g} is {away.max():.1f} degrees from the middle of zone {chosen}, "
            f"expected at most {WIDEST:g}",
            hint="make a data set of each region, or name a zone between them with --zone",
        )
    names = _names(found, project(latitudes, longitudes, chosen, north), chosen, north)
    linked = _write(to, found, names, copy)
    return Converted(counts[DATABASE], counts[QUERIES], chosen, north, linked)


def _photographs(listed: Path, query_every: int | None) -> list[Photograph]:
    table = read_table(listed, COLUMNS, (ROLE,))
    roles = any(ROLE in row.values for row in table.rows)
    if roles == (query_every is not None):
        raise UserError(
            f"{listed}: {'a column role, and --query-every' if roles else 'no column role'}",
            hint="a column role has query or database, or --query-every N makes every N-th image a query",
        )
    if query_every is not None and query_every < 2:
        raise UserError(f"--query-every {query_every}: expected 2 or more")
    found: dict[Path, Photograph] = {}
    for number, row in enumerate(table.rows):
        folder = _role(row) if query_every is None else DATABASE if (number + 1) % query_every else QUERIES
        file = Path(os.path.abspath(listed.parent / row["image"]))
        if file in found:
            raise UserError(f"{row.where}: {row['image']!r} is listed before, in {found[file].where}")
        if not file.is_file():
            raise UserError(f"{row.where}: no file {file}", hint="paths are from the folder of the list on")
        if file.suffix.lower() not in suffixes():
            raise UserError(
                f"{row.where}: {row['image']!r} is no image", hint=f"read are {', '.join(sorted(suffixes()))}"
            )
        parts = [part for part in Path(row["image"]).with_suffix("").parts if part not in ("..", "/")]
        label = "_".join(parts[-3:]).replace("@", "_")
        latitude = _degrees(row, "latitude", SOUTHERNMOST, NORTHERNMOST)
        found[file] = Photograph(row.where, file, label, latitude, _degrees(row, "longitude", -180, 180), folder)
    return list(found.values())


def _role(row: Row) -> str:
    role = row.values.get(ROLE, "").lower()
    if role not in ROLES:
        raise UserError(f"{row.where}: role {role!r}, expected query or database")
    return ROLES[role]


def _degrees(row: Row, column: str, lowest: float, highest: float) -> float:
    text = row[column]
    if NUMBER.fullmatch(text) is None:
        hint = (
            "a point parts whole degrees from the rest, not a comma" if "," in text else "decimal degrees, as 48.8582"
        )
        raise UserError(f"{row.where}: {column} {text[:40]!r}, expected a number of degrees", hint=hint)
    if not lowest <= float(text) <= highest:
        raise UserError(
            f"{row.where}: {column} {text[:40]}, expected {lowest:g} to {highest:g}",
            hint="are latitude and longitude exchanged?",
        )
    return float(text)


def _zone(given: int | None, found: Sequence[Photograph]) -> int:
    if given is not None:
        if not 1 <= given <= 60:
            raise UserError(f"--zone {given}: expected 1 to 60")
        return given
    zones = Counter(zone_of(photograph.latitude, photograph.longitude) for photograph in found)
    return min(zones, key=lambda zone: (-zones[zone], zone))


def _names(found: Sequence[Photograph], points: np.ndarray, zone: int, north: bool) -> list[Path]:
    """Paths below the folder of the data set. UserError for two photographs that would have one name."""
    names: dict[Path, Photograph] = {}
    for photograph, (east, up) in zip(found, points.tolist(), strict=True):
        band = band_of(photograph.latitude)
        if (band >= NORTHERN) != north:  # over the equator, on the grid of the others
            band = NORTHERN if north else chr(ord(NORTHERN) - 1)
        fields = (
            *(f"{east:011.3f}", f"{up:011.3f}", f"{zone:02d}", band),
            *(f"{photograph.latitude:+.6f}", f"{photograph.longitude:+.6f}", *[""] * 7, photograph.label),
        )
        name = BELOW / photograph.folder / f"@{'@'.join(fields)}@{photograph.file.suffix.lower()}"
        if name in names:
            raise UserError(
                f"{photograph.where}: it would be named as that of {names[name].where}, {name.name}",
                hint="rename one of the files",
            )
        names[name] = photograph
    return list(names)


def _write(to: Path, found: Sequence[Photograph], names: Sequence[Path], copy: bool) -> bool:
    """Whether all are links to the photographs; they are copies where links cannot be made or are not wanted."""
    linked = not copy
    to = Path(os.path.abspath(to))
    temporary = to.with_name(f"{to.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    with writing(to):
        try:
            for folder in (DATABASE, QUERIES):
                (temporary / BELOW / folder).mkdir(parents=True)
            for photograph, name in zip(found, names, strict=True):
                linked = linked and _linked(photograph.file, temporary / name)
                if not linked and not (temporary / name).is_symlink():
                    shutil.copyfile(photograph.file, temporary / name)
            if to.is_dir():
                to.rmdir()  # empty
            temporary.rename(to)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return linked


def _linked(file: Path, link: Path) -> bool:
    try:
        link.symlink_to(file)
    except OSError:  # a file system or a system that has no links, or does not allow them
        return False
    return True
