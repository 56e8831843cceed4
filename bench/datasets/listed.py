"""Instances that a file names: a CSV or JSON-lines file with a row an image, or a JSON file of groups of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from bench.columns import Row, read_table
from bench.errors import UserError
from bench.files import read_text
from bench.images import suffixes
from bench.names import Names, encodable, shown

INSTANCES = ("instances.csv", "instances.tsv", "instances.jsonl")  # in a folder of images
GROUPS = "groups.json"
COLUMNS, SPLIT = ("image", "instance"), "split"
ROLES = {"query": "query", "queries": "query", **dict.fromkeys(("gallery", "database", "index"), "gallery")}
GROUPS_FORM = '{"mug": ["a.jpg", "b/c.jpg"], "lamp": ["d.jpg", "e.jpg"]}, or a list of such lists'
NAMED = 5  # images at most in a message


@dataclass(frozen=True)
class Listed:
    """What a file says: the instance of each image, by id, in its order, and which of them are queries alone.

    `queries` is None where every image queries the others; ids are paths without suffix.
    """

    files: Mapping[str, Path]
    instance: Mapping[str, str]
    queries: frozenset[str] | None = None
    notes: tuple[str, ...] = ()

    def members(self) -> list[list[str]]:
        """The images of each instance."""
        found: dict[str, list[str]] = {}
        for image, instance in self.instance.items():
            found.setdefault(instance, []).append(image)
        return list(found.values())


@dataclass(frozen=True)
class Finder:
    """Images that a file names by their paths below a folder, with their suffix or without.

    `look` gives all images below the folder by id; it is asked where a path is no file as it stands.
    """

    root: Path
    look: Callable[[], Mapping[str, Path]]
    unknown: list[str] = field(default_factory=list)

    @cached_property
    def _all(self) -> Mapping[str, Path]:
        return self.look()

    @cached_property
    def _names(self) -> Names:
        return Names(self._all)

    def find(self, text: str) -> tuple[str, Path] | None:
        """Id and file of an image, or None for one that is not there; it is remembered as unknown."""
        path = PurePosixPath(text)
        if path.name and not path.is_absolute() and ".." not in path.parts and encodable(text):
            file = self.root / path
            if path.suffix.lower() in suffixes() and file.is_file():
                return path.with_suffix("").as_posix(), file
            known = self._names.find(path.as_posix()) or self._names.find(path.with_suffix("").as_posix())
            if known is not None and path.suffix.lower() in ("", self._all[known].suffix.lower()):
                return known, self._all[known]
            if known is not None and known == path.as_posix():  # a point in a name without its suffix
                return known, self._all[known]
        self.unknown.append(text)
        return None

    def require_all(self, file: Path) -> None:
        """UserError that names the images that were not found."""
        if not self.unknown:
            return
        some = ", ".join(shown(repr(name)) for name in self.unknown[:NAMED])
        parted = any("\\" in name for name in self.unknown)
        raise UserError(
            f"{file} names {len(self.unknown)} images that are not below {self.root}: {some}"
            + (", …" if len(self.unknown) > NAMED else ""),
            hint="folders are parted by /, not by \\" if parted else f"paths are from {self.root} on",
        )


def read_instances(file: Path, finder: Finder, split: str = "") -> Listed:
    """The images of a table with the columns image, instance and perhaps split.

    A split of query and gallery says which images are queries alone. Of other splits one must be named, and its images
    are read. UserError naming the line for anything else.
    """
    table = read_table(file, COLUMNS, (SPLIT,))
    rows, queries = _of_split(file, table.rows, split)
    files: dict[str, Path] = {}
    instance: dict[str, str] = {}
    where: dict[str, str] = {}
    for row in rows:
        found = finder.find(row["image"])
        if found is None:
            continue
        image, path = found
        if image in where:
            what = "listed before" if files[image] == path else f"an image of the id {image!r}, as {files[image].name}"
            raise UserError(f"{row.where}: {row['image']!r} is {what}, in {where[image]}", hint="list each image once")
        files[image], instance[image], where[image] = path, row["instance"], row.where
    finder.require_all(file)
    asked = {row.where for row in queries}
    notes = [f"Columns of {file.name} that were not read: {', '.join(table.others)}."] if table.others else []
    if len(rows) < len(table.rows):
        notes.append(f"Images of {file.name} of other splits, left out: {len(table.rows) - len(rows)}.")
    roles = frozenset(image for image, at in where.items() if at in asked) if queries else None
    return Listed(files, instance, roles, tuple(notes))


def _of_split(file: Path, rows: Sequence[Row], split: str) -> tuple[Sequence[Row], Sequence[Row]]:
    """The rows to be read, and those of them that are queries alone; none where every image is a query."""
    if not any(SPLIT in row.values for row in rows):
        if split:
            raise UserError(f"{file}: no column {SPLIT!r}, so there is no split {split!r}", hint="leave the option out")
        return rows, ()
    empty = next((row for row in rows if not row.values.get(SPLIT)), None)
    if empty is not None:
        raise UserError(f"{empty.where}: {SPLIT} is empty", hint="fill it in, or remove the column")
    values = list(dict.fromkeys(row[SPLIT] for row in rows))
    if split:
        if split not in values:
            raise UserError(f"{file}: no image of the split {split!r}", hint=f"there are {', '.join(values)}")
        return [row for row in rows if row[SPLIT] == split], ()
    if all(value.lower() in ROLES for value in values):
        queries = [row for row in rows if ROLES[row[SPLIT].lower()] == "query"]
        if not queries or len(queries) == len(rows):
            raise UserError(
                f"{file}: every image is of the split {values[0]!r}", hint="one needs queries and a gallery"
            )
        return rows, queries
    raise UserError(
        f"{file}: images of the splits {', '.join(values)[:200]}",
        hint=f"name one, as in folder:PATH:split={values[-1]}; query and gallery are read together",
    )


def read_groups(file: Path, finder: Finder, others: Mapping[str, Path]) -> Listed:
    """The images that a file of groups names, and `others` of the folder, which are nobody's and only to be told apart.

    UserError for what is no such file, and for an image that is named twice.
    """
    files: dict[str, Path] = {}
    instance: dict[str, str] = {}
    for group, name in _named(file):
        found = finder.find(name)
        if found is None:
            continue
        image, path = found
        if image in instance:
            same = instance[image] == group
            raise UserError(
                f"{file}: {name!r} is named twice, in the group {instance[image]!r}"
                + ("" if same else f" and in {group!r}"),
                hint="an image shows one thing",
            )
        files[image], instance[image] = path, group
    finder.require_all(file)
    rest = {image: path for image, path in others.items() if image not in files}
    alone = {image: f"/{image}" for image in rest}  # no group begins so: each is an instance of its own
    notes = [f"Images that {file.name} does not name, to be told from the others: {len(rest)}."] if rest else []
    return Listed({**files, **rest}, {**instance, **alone}, None, tuple(notes))


def _named(file: Path) -> Iterator[tuple[str, str]]:
    """Group and image of every name in a file. UserError for a file of another form."""
    try:
        content = json.loads(read_text(file), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})", hint=GROUPS_FORM) from error
    groups: Iterable[tuple[object, Any]]
    if isinstance(content, dict):
        groups = content.items()
    elif isinstance(content, list):
        groups = ((number, group) for number, group in enumerate(content, 1))
    else:
        raise UserError(f"{file}: expected groups of images", hint=GROUPS_FORM)
    for group, images in groups:
        if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
            raise UserError(
                f"{file}: the group {group!r} is {images!r:.80}, expected a list of images", hint=GROUPS_FORM
            )
        yield from ((f"group {group}", image) for image in images)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a group is there twice")
    return found
