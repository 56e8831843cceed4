"""The core of ILIAS (Kordopatis-Zilos et al., CVPR 2025): objects among objects (docs/protocols.md, ILIAS).

PATH/{name}_{object}/query/Q{object}_{number}.jpg with Q…_bbox.txt beside it: x y width height, a line a box
PATH/{name}_{object}/pos/P{object}_{number}.jpg                            (or both below PATH/ilias_core)
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.datasets.boxes import check_boxes
from bench.datasets.dataset import Dataset, Place, Query, dataset
from bench.datasets.folder import require_folder
from bench.datasets.gallery import version_of
from bench.datasets.official.sources import File, Source, Unpack
from bench.errors import UserError
from bench.files import read_text
from bench.images import Box

CORE = "ilias_core"
LICENCE = "CC BY 4.0 and, of some images, others"
OBJECT, QUERY, POSITIVE = (re.compile(form) for form in (r".+_([0-9]+)", r"Q([0-9]+)_.+\.jpg", r"P([0-9]+)_.+\.jpg"))
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?")
LARGEST = 2**20  # bytes of a file of boxes
ALONE = "The core of ILIAS alone: published values are among 100 million distractors, and lower."


def read_box(file: Path) -> Box:
    """x1, y1, x2, y2 around every box of a file whose lines are x y width height in pixels, from 0 on.

    UserError naming the line for anything else.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file}: {file.stat().st_size} bytes, expected some lines")
        lines = read_text(file).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})", hint="unpack ilias_core.tar again") from error
    corners = []
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 4 or not all(map(NUMBER.fullmatch, cells)):
            raise UserError(f"{file}, line {number}: found {line[:80]!r}, expected x y width height")
        x, y, width, height = map(float, cells)
        corners.append((x, y, x + width, y + height))
    if not corners:
        raise UserError(f"{file}: no box", hint="expected lines x y width height")
    low, high = (list(map(choose, zip(*corners, strict=True))) for choose in (min, max))
    return (max(low[0], 0.0), max(low[1], 0.0), high[2], high[3])


def _images(folder: Path, form: re.Pattern[str], number: str) -> list[str]:
    """Names of the images of an object, sorted. UserError for one of another object."""
    found = []
    for file in folder.iterdir() if folder.is_dir() else ():
        match = form.fullmatch(file.name)
        if match is not None and match[1] != number:
            raise UserError(f"{file}: an image of the object {match[1]}, in the folder of the object {number}")
        found += [file.name] if match is not None else []
    return sorted(found)


def _core() -> Source:
    base = "https://vrg.fel.cvut.cz/ilias_data"
    archive = File(
        f"ilias/{CORE}.tar",
        (f"{base}/{CORE}.tar",),
        digest_url=f"{base}/checksums.txt",
        unpack=Unpack("ilias", most_bytes=64 * 2**30),
    )
    return Source("ilias", (archive,), "core", LICENCE)


@dataset(
    "ilias",
    summary="ILIAS, its core: 1,232 queries and 4,715 positives of 1,000 objects",
    licence=LICENCE,
    needs="the unpacked ilias_core.tar",
    takes="PATH",
    source=_core(),
)
def read(place: Place) -> Dataset:
    """Ids are paths below the core's folder, as its lists of images have them.

    UserError for a folder without objects, for boxes that cannot be read, and for objects without a positive.
    """
    assert place.path is not None
    require_folder(place.path)
    root = place.path / CORE if (place.path / CORE).is_dir() else place.path
    gallery: dict[str, Path] = {}
    queries: list[Query] = []
    grades: dict[str, dict[str, str]] = {}
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        match = OBJECT.fullmatch(folder.name)
        if match is None:
            continue
        positives = [f"{folder.name}/pos/{name}" for name in _images(folder / "pos", POSITIVE, match[1])]
        asked = _images(folder / "query", QUERY, match[1])
        if asked and not positives:
            raise UserError(
                f"{folder}: queries without an image P{match[1]}_….jpg in pos/", hint="unpack the tar again"
            )
        gallery |= {image: root / image for image in positives}
        for name in asked:
            query = f"{folder.name}/query/{name}"
            box = read_box(root / f"{query.removesuffix('.jpg')}_bbox.txt")
            queries.append(Query(query, root / query, box))
            grades[query] = dict.fromkeys(positives, "easy")
    if not queries:
        raise UserError(
            f"{root}: no queries found, expected NAME_OBJECT/query/QOBJECT_NUMBER.jpg and NAME_OBJECT/pos/",
            hint="python cli.py datasets download ilias; or unpack ilias_core.tar there",
        )
    notes = (*(check_boxes(queries, str(root)) if place.images else ()), ALONE)
    version = version_of(root, [*gallery, *(query.id for query in queries)])
    return Dataset(place.name, "ilias", version, tuple(queries), gallery, grades, notes)
