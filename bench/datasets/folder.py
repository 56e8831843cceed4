"""A user's own images: `gallery/`, `queries/` and `gnd.json`, or one folder per instance."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from bench.datasets import Box, Dataset, Query, grade
from bench.errors import UserError
from bench.files import read_json
from bench.images import SUFFIXES


def load(path: Path, name: str | None = None) -> Dataset:
    """The data set in a folder, by its layout.

    With `gnd.json`: {"gallery": [ids], "queries": [{"query": id, "box": [x1, y1, x2, y2] or absent, "easy": [ids],
    "hard": [ids], "junk": [ids]}]}, scored as Revisited Oxford is. Otherwise every subfolder is one instance and every
    image queries all the others (leave one out), itself excluded by id.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    name = name or f"folder:{path}"
    if (path / "gnd.json").is_file():
        return _with_ground_truth(path, name)
    return _by_instance(path, name)


def images(folder: Path) -> dict[str, Path]:
    """id (path below `folder` without its suffix) -> file, sorted; hidden files are left out."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith(".") or not file.is_file():
            continue
        image = file.relative_to(folder).with_suffix("").as_posix()
        if image in found:
            raise UserError(
                f"{file} and {found[image]} have the same id {image!r}", hint="rename or remove one of them"
            )
        found[image] = file
    return found


def _image_set(paths: dict[str, Path]) -> str:
    """Which files these are, by name and size; their contents are under the seal through the features."""
    listed = "\n".join(f"{image} {path.stat().st_size}" for image, path in sorted(paths.items()))
    return "files " + hashlib.sha256(listed.encode()).hexdigest()[:12]


def _by_instance(path: Path, name: str) -> Dataset:
    gallery = images(path)
    members: dict[str, list[str]] = {}
    for image in gallery:
        members.setdefault(image.rpartition("/")[0], []).append(image)
    if not gallery:
        raise UserError(
            f"{path}: no images found",
            hint="expected gallery/, queries/ and gnd.json, or one folder per "
            f"instance; known suffixes: {', '.join(sorted(SUFFIXES))}",
        )
    if "" in members:
        raise UserError(
            f"{path}: {members[''][0]!r} lies outside any instance folder",
            hint="one folder per instance, or add gnd.json beside gallery/ and queries/",
        )
    queries = tuple(Query(image, gallery[image]) for group in members.values() if len(group) > 1 for image in group)
    if not queries:
        raise UserError(f"{path}: no instance folder holds two images, so nothing can be found")
    grades = {
        image: {other: "easy" for other in group if other != image} for group in members.values() for image in group
    }
    return Dataset(name, "instance", _image_set(gallery), queries, gallery, grades)


def _with_ground_truth(path: Path, name: str) -> Dataset:
    file = path / "gnd.json"
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("gallery", "queries")):
        raise UserError(f"{file}: expected an object with the lists 'gallery' and 'queries'")
    available = {folder: images(path / folder) if (path / folder).is_dir() else {} for folder in ("gallery", "queries")}
    gallery = {}
    for image in content["gallery"]:
        found = _file(available["gallery"], image, path / "gallery", file)
        if image in gallery:
            raise UserError(f"{file}: gallery id {image!r} appears more than once")
        gallery[image] = found
    queries, grades = [], {}
    for entry in content["queries"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("query"), str):
            raise UserError(f"{file}: every entry of 'queries' needs the string 'query', found {entry!r:.80}")
        query = entry["query"]
        queries.append(
            Query(
                query, _file(available["queries"], query, path / "queries", file), _box(entry.get("box"), query, file)
            )
        )
        grades[query] = grade(query, **{key: entry.get(key, []) for key in ("easy", "hard", "junk")})
    return Dataset(
        name,
        "revisited",
        _image_set(
            {**{f"gallery/{k}": v for k, v in gallery.items()}, **{f"queries/{q.id}": q.image for q in queries}}
        ),
        tuple(queries),
        gallery,
        grades,
    )


def _file(available: dict[str, Path], image: object, folder: Path, gnd: Path) -> Path:
    if not isinstance(image, str) or image not in available:
        raise UserError(
            f"{gnd} names {image!r}, but {folder} holds no image of that name",
            hint="ids are file names without their suffix",
        )
    return available[image]


def _box(value: object, query: str, file: Path) -> Box | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 4
        or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
    ):
        raise UserError(f"{file}: box of query {query!r} is {value!r}, expected [x1, y1, x2, y2] in pixels")
    x1, y1, x2, y2 = (float(v) for v in value)
    return (x1, y1, x2, y2)
