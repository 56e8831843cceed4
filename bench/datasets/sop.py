"""Stanford Online Products (Song et al., CVPR 2016): every test image queries all the others (docs/protocols.md).

<data root>/sop/Stanford_Online_Products/Ebay_test.txt   image_id class_id super_class_id path
<data root>/sop/Stanford_Online_Products/<category>_final/<image>.JPG

A query is left out of its own list by its id, not by its place: an exact copy of it stays a candidate. A query that has
no other image of its class (the official files have none) has no value and is left out of the means.
"""

from __future__ import annotations

from pathlib import Path

from bench.datasets.dataset import Dataset, File, Instances, Place, Query, Source, Unpack, dataset
from bench.datasets.gallery import Gallery, Layout
from bench.datasets.official.local import NotHere, image_set, require_images
from bench.errors import UserError
from bench.files import read_text

FOLDER = Path("sop") / "Stanford_Online_Products"
SUFFIX = ".JPG"
HEADER = ["image_id", "class_id", "super_class_id", "path"]
GET = "python cli.py datasets download sop"
LICENCE = "none stated; research"
LARGEST_LIST = 64 * 2**20  # bytes; the official lists have under 4 MB


def read_list(path: Path) -> dict[str, str]:
    """Class by image id (its path without suffix), in the list's order. UserError naming the line for anything else."""
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise UserError(f"{path}: {path.stat().st_size} bytes, the official list has under 4 MB")
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})", hint=GET) from error
    if not lines or lines[0].split() != HEADER:
        raise UserError(f"{path}, line 1: found {lines[0][:80] if lines else ''!r}, expected {' '.join(HEADER)}")
    found: dict[str, str] = {}
    for number, line in enumerate(lines[1:], 2):
        parts = line.split()
        if len(parts) != 4 or not all(part.isdigit() for part in parts[:3]):
            raise UserError(f"{path}, line {number}: found {line[:80]!r}, expected {' '.join(HEADER)}")
        name = Path(parts[3])
        if name.suffix != SUFFIX or name.is_absolute() or ".." in name.parts:
            raise UserError(f"{path}, line {number}: {parts[3]!r} is no path of an image {SUFFIX} below that folder")
        image = parts[3].removesuffix(SUFFIX)
        if image in found:
            raise UserError(f"{path}, line {number}: {parts[3]!r} appears twice")
        found[image] = parts[1]
    return found


def load(root: Path, images: bool = True) -> Dataset:
    """The test images; UserError naming what is missing and how to get it."""
    folder = root / FOLDER
    if not (folder / "Ebay_test.txt").is_file():
        raise NotHere(f"data set 'sop' is not in {root}: missing {folder / 'Ebay_test.txt'}", hint=GET)
    classes = read_list(folder / "Ebay_test.txt")
    members: dict[str, list[str]] = {}
    for image, label in classes.items():
        members.setdefault(label, []).append(image)
    gallery = Gallery(classes, [Layout(folder, SUFFIX)], str(folder / "Ebay_test.txt"))
    queries = tuple(Query(image, folder / f"{image}{SUFFIX}") for image in classes)
    if images:
        require_images("sop", gallery, folder / "missing.txt", GET)
    return Dataset("sop", "sop", image_set(root / "sop", "as found"), queries, gallery, Instances(members.values()))


def _products() -> Source:
    name = "Stanford_Online_Products.zip"
    return Source(
        "sop",
        (
            File(
                f"sop/{name}",
                (f"http://ftp.cs.stanford.edu/cs/cvgl/{name}",),
                digest="md5:7f73d41a2f44250d4779881525aea32e",
                unpack=Unpack("sop"),
            ),
        ),
        name,
        LICENCE,
    )


@dataset(
    "sop",
    summary="Stanford Online Products: 60,502 test images, each a query",
    licence=LICENCE,
    needs="sop/ below the data root",
    source=_products(),
)
def read(place: Place) -> Dataset:
    return load(place.data, place.images)
