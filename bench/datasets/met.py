"""The Met data set (Ypsilantis et al., NeurIPS 2021 data sets track): artworks (docs/protocols.md, The Met).

PATH/ground_truth/MET_database.json, mini_MET_database.json, testset.json, valset.json       (or these in PATH)
PATH/images/<path>, as these files have it: MET/<exhibit>/<n>.jpg, test_met/<name>.jpg    (or below PATH itself)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from bench.datasets.dataset import Dataset, Place, Query, dataset
from bench.datasets.folder import require_folder
from bench.datasets.gallery import Gallery, Layout, version_of
from bench.datasets.official.local import require_files, require_images
from bench.datasets.official.sources import File, Source, Unpack
from bench.errors import UserError
from bench.files import read_json
from bench.names import encodable, shown

DATABASES = {"all": "MET_database.json", "mini": "mini_MET_database.json"}
SPLITS = {"test": "testset.json", "val": "valset.json"}
LARGEST = 2**30  # bytes of a list; the official database is 397,121 entries of a line each
LICENCE = "research; photographs of the museum mostly CC0"
NUMBER = re.compile(r"[0-9]{1,18}")
GET = "python cli.py datasets download met; or unpack what cmp.felk.cvut.cz/met has into one folder"


@dataclass(frozen=True)
class Options:
    split: Literal["test", "val"] = "test"  # whose queries are asked
    database: Literal["all", "mini"] = "all"  # which exhibits' images are searched


@dataclass(frozen=True)
class Listed:
    """An image of a list. `path` is below the folder of images; `exhibit` is None for a query of no exhibit."""

    path: str
    exhibit: int | None


def read_list(path: Path, key: str) -> tuple[Listed, ...]:
    """Every image of a list in its order, its exhibit being the number under `key`, which may be missing.

    UserError naming file and entry, from 0 on, for anything else.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: {path.stat().st_size} bytes, expected at most {LARGEST}", hint=GET)
        entries = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})", hint=GET) from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: expected a list of objects, one an image", hint=GET)
    return tuple(_entries(path, entries, key))


def _entries(path: Path, entries: list[Any], key: str) -> Iterator[Listed]:
    for number, entry in enumerate(entries):
        image = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(image, str) or not _is_below(image):
            raise UserError(
                f"{path}, entry {number}: found {shown(entry)[:80]!r}, expected an object with the path of an image",
                hint=GET,
            )
        exhibit = entry.get(key)
        if not (exhibit is None or type(exhibit) is int or (isinstance(exhibit, str) and NUMBER.fullmatch(exhibit))):
            raise UserError(f"{path}, entry {number}: {key} is {shown(exhibit)[:80]!r}, expected a number", hint=GET)
        yield Listed(image, None if exhibit is None else int(exhibit))


def _is_below(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name and encodable(name)


@dataclass(frozen=True)
class _Asked:
    """Queries of a split that have a positive, and how many others there are."""

    right: dict[str, list[str]]  # images of its exhibit, by query
    distractors: int  # queries of no exhibit
    elsewhere: int  # queries of an exhibit that the database lacks

    @staticmethod
    def of(listed: tuple[Listed, ...], gallery: tuple[Listed, ...], file: Path) -> _Asked:
        images: dict[int | None, list[str]] = {}
        for each in gallery:
            images.setdefault(each.exhibit, []).append(each.path)
        right: dict[str, list[str]] = {}
        distractors = elsewhere = 0
        for each in listed:
            if each.exhibit is None:
                distractors += 1
            elif each.exhibit not in images:
                elsewhere += 1
            elif each.path in right:
                raise UserError(f"{file} names the query {each.path!r} twice", hint=GET)
            else:
                right[each.path] = images[each.exhibit]
        return _Asked(right, distractors, elsewhere)

    def notes(self) -> Iterator[str]:
        if self.distractors:
            yield f"{self.distractors} queries that show no exhibit are left out; GAP counts them, and is not computed"
        if self.elsewhere:
            yield f"{self.elsewhere} queries of exhibits without an image in the database are left out"


def _everything() -> Source:
    """The ground truth, which is without a folder of its own, and the photographs, whose folders the lists name."""
    base = "http://ptak.felk.cvut.cz/met/dataset"
    photographs = Unpack("met/images", most_files=500_000, most_bytes=64 * 2**30)
    how = {"ground_truth": Unpack("met/ground_truth", flat=True)}
    names = ("ground_truth", "test_met", "test_other", "test_noart", "MET")
    files = (
        File(f"met/{name}.tar.gz", (f"{base}/{name}.tar.gz",), unpack=how.get(name, photographs)) for name in names
    )
    return Source("met", tuple(files), "The Met", LICENCE)


@dataset(
    "met",
    summary="The Met: 1,003 photographs of visitors, 397,121 images of 224,408 exhibits",
    licence=LICENCE,
    needs="the unpacked ground truth and images of cmp.felk.cvut.cz/met",
    takes="PATH",
    source=_everything(),
    options=Options,
    many=True,
)
def read(place: Place) -> Dataset:
    """Ids are paths as the ground truth has them. UserError naming what is missing."""
    assert place.path is not None
    require_folder(place.path, GET)
    truth = place.path / "ground_truth" if (place.path / "ground_truth").is_dir() else place.path
    root = place.path / "images" if (place.path / "images").is_dir() else place.path
    database, split = truth / DATABASES[place.options.database], truth / SPLITS[place.options.split]
    for file in (database, split):
        if not file.is_file():
            raise UserError(f"{truth}: missing {file.name}", hint=GET)
    listed = read_list(database, "id")
    if (number := next((n for n, each in enumerate(listed) if each.exhibit is None), None)) is not None:
        raise UserError(f"{database}, entry {number}: no id, expected the number of an exhibit", hint=GET)
    gallery = Gallery((each.path for each in listed), [Layout(root, suffix="")], str(database))
    asked = _Asked.of(read_list(split, "MET_id"), listed, split)
    if not asked.right:
        raise UserError(f"{split}: no query whose MET_id is an id of {database.name}", hint=GET)
    queries = tuple(Query(name, root / name) for name in asked.right)
    if place.images:
        require_files(place.name, [query.image for query in queries], root / "missing.txt", GET)
        require_images(place.name, gallery, root / "missing.txt", GET)
    grades = {query: dict.fromkeys(images, "easy") for query, images in asked.right.items()}
    version = version_of(root, [*gallery, *asked.right])
    return Dataset(place.name, "met", version, queries, gallery, grades, tuple(asked.notes()))
