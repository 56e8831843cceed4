"""INSTRE (Wang and Jiang, TOMM 2015) in the split of Iscen et al., CVPR 2017 (docs/protocols.md, INSTRE).

PATH/gnd_instre.mat   and   PATH/<image> or PATH/images/<image>, as its lists name them: INSTRE-S1/01a_x/001.jpg
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bench.datasets.boxes import check_boxes
from bench.datasets.dataset import Dataset, Place, Query, dataset
from bench.datasets.folder import require_folder
from bench.datasets.gallery import Gallery, Layout, version_of
from bench.datasets.official.local import require_files
from bench.errors import UserError
from bench.images import Box
from bench.names import encodable
from third_party import matlab

TRUTH = "gnd_instre.mat"
LARGEST = 64 * 2**20  # bytes; the official file has about 200 kB
GET = (
    "ftp://ftp.irisa.fr/local/texmex/corpus/instre has gnd_instre.mat and instre.tar.gz, which is unpacked beside it; "
    "the address was read in public code and not tried"
)


@dataclass(frozen=True)
class Truth:
    """What gnd_instre.mat holds: images of the database, queries, and of each query its positives and box.

    `right[q]` are 0-based places in `images`. `corners` says whether boxes stood there as corners.
    """

    images: tuple[str, ...]
    queries: tuple[str, ...]
    right: tuple[tuple[int, ...], ...]
    boxes: tuple[Box, ...]
    corners: bool


def read_truth(path: Path) -> Truth:
    """The content of a MATLAB file, of which numbers and text are read and nothing is run. UserError for another."""
    content = matlab.load(path, ("imlist", "qimlist", "gnd"), LARGEST, GET)
    try:
        images, queries = (tuple(_name(cell) for cell in _flat(content[name])) for name in ("imlist", "qimlist"))
        entries = [_entry(entry) for entry in _flat(content["gnd"])]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: expected imlist and qimlist of names and gnd of ok and box ({type(error).__name__}: {error})",
            hint=GET,
        ) from error
    if len(entries) != len(queries) or not queries:
        raise UserError(f"{path}: {len(queries)} queries and {len(entries)} entries of gnd, expected as many")
    for query, (right, box) in zip(queries, entries, strict=True):
        wrong = next((number for number in right if not 1 <= number <= len(images)), None)
        if wrong is not None or len(set(right)) != len(right):
            what = "one twice" if wrong is None else str(wrong)
            raise UserError(f"{path}: ok of {query!r} has {what}, expected distinct numbers from 1 to {len(images)}")
        if not np.isfinite(box).all():
            raise UserError(f"{path}: the box of {query!r} is {box}, expected four numbers")
    corners = all(box[0] < box[2] and box[1] < box[3] for _, box in entries)
    boxes = [box if corners else (box[0], box[1], box[0] + box[2], box[1] + box[3]) for _, box in entries]
    return Truth(images, queries, tuple(tuple(n - 1 for n in right) for right, _ in entries), tuple(boxes), corners)


def _flat(array: Any) -> Sequence[Any]:
    return list(np.asarray(array).ravel())


def _name(cell: Any) -> str:
    """Text of a cell, a path below the folder of images. ValueError or TypeError for anything else."""
    (text,) = _flat(cell)
    if not isinstance(text, str):
        raise TypeError(f"{text!r:.80} is no name")
    name = str(text)
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or not encodable(name):
        raise ValueError(f"{name[:80]!r} is no path of an image")
    return name


def _entry(entry: Any) -> tuple[list[int], Box]:
    """Positives, from 1 on, and the box as it stands. ValueError for anything else."""
    ok, box = ([float(value) for value in _flat(entry[at])] for at in (0, 1))
    if any(not value.is_integer() for value in ok):
        raise ValueError("ok has numbers that are not whole")
    x, y, right, lower = box
    return [int(value) for value in ok], (x, y, right, lower)


@dataset(
    "instre",
    summary="INSTRE: 1,250 queries of 250 objects, 27,293 images",
    licence="research",
    needs="gnd_instre.mat and the images beside it",
    takes="PATH",
)
def read(place: Place) -> Dataset:
    """Ids are paths as the ground truth names them. UserError naming what is missing."""
    assert place.path is not None
    require_folder(place.path, GET)
    file = place.path / TRUTH
    if not file.is_file():
        raise UserError(f"{place.path}: missing {TRUTH}", hint=GET)
    truth = read_truth(file)
    root = place.path / "images" if (place.path / "images" / truth.queries[0]).is_file() else place.path
    gallery = Gallery(truth.images, [Layout(root, suffix="")], f"{file}: imlist")
    queries = tuple(Query(name, root / name, box) for name, box in zip(truth.queries, truth.boxes, strict=True))
    if place.images:
        require_files("instre", [*gallery.values(), *(query.image for query in queries)], root / "missing.txt", GET)
    grades = {
        query: dict.fromkeys((truth.images[i] for i in right), "easy")
        for query, right in zip(truth.queries, truth.right, strict=True)
    }
    form = "corners, x1 y1 x2 y2" if truth.corners else "x, y, width and height"
    notes = (f"Boxes of {TRUTH} are read as {form}.", *(check_boxes(queries, str(file)) if place.images else ()))
    version = version_of(root, [*truth.images, *truth.queries])
    return Dataset(place.name, "instance", version, queries, gallery, grades, notes)
