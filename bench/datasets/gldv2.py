"""Google Landmarks v2 (Weyand et al., CVPR 2020): retrieval, and the lists that label its training images.

<data root>/gldv2/index/a/b/c/<abc…>.jpg   test/a/b/c/<abc…>.jpg   (the first three characters of the id)
<data root>/gldv2/metadata/index.csv   ground_truth/retrieval_solution_v2.1.csv

Queries are the test images that the solution marks Public or Private, not those marked Ignored (docs/protocols.md).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from bench.datasets.dataset import Dataset, File, Place, Query, Source, Unpack, dataset, grade
from bench.datasets.gallery import Gallery, Layout
from bench.datasets.official.local import NotHere, image_set, require_files, require_images
from bench.errors import UserError
from bench.files import read_text

FOLDER = "gldv2"
GET = "python cli.py datasets download gldv2"
SPLITS = {"gldv2": ("Public", "Private"), "gldv2-public": ("Public",), "gldv2-private": ("Private",)}
LICENCE = "annotations CC BY 4.0, photographs CC0 or public domain"
LARGEST_CSV = 2**30  # bytes; the official ones have under 20 MB


def read_list(path: Path) -> dict[str, str]:
    """Label by image name, in the list's order. UserError naming the line for what is neither of the two formats."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    header = lines[0].split(",") if lines else []
    if {"landmark_id", "images"} <= set(header):
        rows = [(name, row["landmark_id"]) for row in csv.DictReader(lines) for name in (row["images"] or "").split()]
    else:
        rows = []
        for number, line in enumerate(lines, 1):
            parts = [part.strip() for part in line.rsplit(",", 3)]
            if len(parts) != 4 or not all(parts[:2]) or not (parts[2].isdigit() and parts[3].isdigit()):
                raise UserError(
                    f"{path}, line {number}: found {line[:80]!r}, expected jpg/NAME.jpg,LABEL,WIDTH,HEIGHT",
                    hint="or GLDv2's train_clean.csv, with the header landmark_id,images",
                )
            rows.append((parts[0], parts[1]))
    found: dict[str, str] = {}
    for name, label in rows:
        if found.setdefault(name, label) != label:
            raise UserError(f"{path}: {name!r} has the labels {found[name]!r} and {label!r}")
    return found


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, values by column) of a csv file with these columns, one at a time. UserError for anything else."""
    try:
        if path.stat().st_size > LARGEST_CSV:
            raise UserError(f"{path}: {path.stat().st_size} bytes, the official file has under 20 MB")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ())[: len(columns)] != columns:
                raise UserError(f"{path}: found the columns {reader.fieldnames}, expected {', '.join(columns)}")
            for row in reader:
                if any(not isinstance(row[name], str) for name in columns):
                    raise UserError(f"{path}, line {reader.line_num}: expected the columns {', '.join(columns)}")
                yield reader.line_num, {name: row[name] for name in columns}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})", hint=GET) from error


def _id(text: str, path: Path, line: int) -> str:
    if len(text) < 3 or not text.isalnum():
        raise UserError(f"{path}, line {line}: {text[:40]!r} is no id of an image")
    return text


def read_index(path: Path) -> Iterator[str]:
    """Ids of the index images (`index.csv`), in its order, read as they are asked for.

    UserError naming the line for anything else.
    """
    return (_id(row["id"], path, line) for line, row in _rows(path, ("id",)))


def read_solution(path: Path, usages: tuple[str, ...] = SPLITS["gldv2"]) -> dict[str, list[str]]:
    """Test id -> ids of its index images, for these usages. UserError for a repeated id or an unknown usage."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for line, row in _rows(path, ("id", "images", "Usage")):
        if row["Usage"] not in ("Public", "Private", "Ignored"):
            raise UserError(f"{path}, line {line}: usage {row['Usage'][:40]!r}, expected Public, Private or Ignored")
        if row["Usage"] == "Ignored":
            continue
        query = _id(row["id"], path, line)
        if query in seen:
            raise UserError(f"{path}, line {line}: the test image {query!r} appears twice")
        seen.add(query)
        if row["Usage"] in usages:
            found[query] = [_id(image, path, line) for image in row["images"].split()]
    return found


def load(name: str, root: Path, images: bool = True) -> Dataset:
    """`gldv2`, or the part `gldv2-public` or `gldv2-private`; UserError naming what is missing and how to get it."""
    base = root / FOLDER
    index_csv, solution_csv = base / "metadata" / "index.csv", base / "ground_truth" / "retrieval_solution_v2.1.csv"
    for path in (index_csv, solution_csv):
        if not path.is_file():
            raise NotHere(f"data set {name!r} is not in {root}: missing {path}", hint=GET)
    gallery = Gallery(read_index(index_csv), [Layout(base / "index", spread=3)], str(index_csv))
    solution = read_solution(solution_csv, SPLITS[name])
    file = Layout(base / "test", spread=3)
    queries = tuple(Query(query, file(query)) for query in solution)
    grades = {query: grade(query, easy=found) for query, found in solution.items()}
    if images:
        require_files(name, [*(q.image for q in queries)], base / "missing.txt", GET)
        require_images(name, gallery, base / "missing.txt", GET)
    return Dataset(name, "gldv2", image_set(base, "v2 as found"), queries, gallery, grades)


def _landmarks() -> Source:
    base = "https://s3.amazonaws.com/google-landmark"
    tables = ("metadata/index.csv", "metadata/test.csv", "ground_truth/retrieval_solution_v2.1.csv")
    return Source(
        "gldv2",
        (
            *(File(f"gldv2/{name}", (f"{base}/{name}",)) for name in tables),
            *(
                File(
                    f"gldv2/{split}_images_{number:03d}.tar",
                    (f"{base}/{split}/images_{number:03d}.tar",),
                    digest_url=f"{base}/md5sum/{split}/md5.images_{number:03d}.txt",
                    unpack=Unpack(f"gldv2/{split}", strip=f"{split}/"),
                )
                for split, parts in (("index", 100), ("test", 20))
                for number in range(parts)
            ),
        ),
        "v2, solution v2.1",
        LICENCE,
    )


def _read(place: Place) -> Dataset:
    return load(place.name, place.data, place.images)


LANDMARKS = _landmarks()
WHOLE = dataset(
    "gldv2",
    summary="Google Landmarks v2 retrieval: 1,129 queries, 761,757 photographs",
    licence=LICENCE,
    needs="gldv2/ below the data root",
    source=LANDMARKS,
    many=True,
)(_read)
PUBLIC = dataset(
    "gldv2-public",
    summary="its 379 public queries, to choose options on",
    licence="as gldv2",
    needs="as gldv2",
    source=LANDMARKS,
    many=True,
)(_read)
PRIVATE = dataset(
    "gldv2-private",
    summary="its 750 private queries",
    licence="as gldv2",
    needs="as gldv2",
    source=LANDMARKS,
    many=True,
)(_read)
