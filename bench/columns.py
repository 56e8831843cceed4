"""Tables that people write: CSV, parted by commas, semicolons or tabs, and JSON lines. UTF-8, in bounded memory.

The first line of a CSV file names the columns; an object in JSON lines has them as keys. Columns that nobody asks for
are passed over.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.files import read_text

LARGEST = 2**30  # bytes
PARTED = ",;\t"  # by what, the first one where a line has none
# what other programs call these, in lower case
SYNONYMS: Mapping[str, str] = {
    **dict.fromkeys(("file", "filename", "file_name", "path", "image_path", "img", "name", "photo"), "image"),
    **dict.fromkeys(("label", "class", "class_id", "object", "landmark_id", "category", "group", "target"), "instance"),
    **dict.fromkeys(("set", "subset", "fold", "partition"), "split"),
    **dict.fromkeys(("lat", "gps_lat", "y"), "latitude"),
    **dict.fromkeys(("lon", "lng", "long", "gps_lon", "x"), "longitude"),
    **dict.fromkeys(("kind", "type", "usage"), "role"),
}


@dataclass(frozen=True)
class Row:
    """One line of a table: `values` has every column asked for that is there; text without blanks at its ends."""

    where: str  # for messages: the file and the number of the line
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]


@dataclass(frozen=True)
class Table:
    """A table's rows, and the columns that were passed over."""

    rows: tuple[Row, ...]
    others: tuple[str, ...]


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """The rows of a file that is not empty. A required column is there and has a value in every row.

    An optional column is in every row of a CSV file or in none, and may lack values; in JSON lines it may be left out.
    UserError naming the line, what was found and what was expected for anything else.
    """
    text = _text(path)
    first = text.lstrip()[:1]
    if first == "[":
        raise UserError(f"{path}: found a list, expected JSON lines", hint="write one object a line")
    lines = list(_json_lines(path, text) if first == "{" else _csv_lines(path, text, required, optional))
    if not lines:
        raise UserError(f"{path}: no rows", hint=f"the columns are {_listed(required, optional)}")
    rows = []
    known, others = {*required, *optional}, dict[str, None]()
    for where, values in lines:
        _require(where, list(values), required, optional)
        if empty := next((column for column in required if not values[column]), None):
            raise UserError(f"{where}: {empty} is empty", hint="fill it in, or remove the line")
        others |= dict.fromkeys(column for column in values if column not in known)
        rows.append(Row(where, {column: value for column, value in values.items() if column in known}))
    return Table(tuple(rows), tuple(others))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: {path.stat().st_size} bytes, expected under {LARGEST}")
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start})", hint="iconv -f UTF-16 -t UTF-8 FILE > NEW"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if "\0" in text:
        raise UserError(f"{path}: NUL characters, expected text", hint="iconv -f UTF-16 -t UTF-8 FILE > NEW")
    return text


def _csv_lines(
    path: Path, text: str, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    columns = (*required, *optional)
    head = text.split("\n", 1)[0]
    parted = max(PARTED, key=lambda mark: (_names(head, mark, columns), head.count(mark)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=parted, strict=True)
    names: list[str] | None = None
    try:
        for cells in reader:
            where, cells = f"{path}, line {reader.line_num}", [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if names is None:
                names = _header(where, cells, columns)
                _require(where, names, required, optional)
            elif len(cells) != len(names):
                raise UserError(
                    f"{where}: {len(cells)} cells, expected the {len(names)} of the first line",
                    hint='cells that have a comma are written in quotes, "a,b"',
                )
            else:
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not readable as CSV ({error})") from error


def _names(head: str, parted: str, columns: Sequence[str]) -> int:
    return len({name.strip(' "\r').lower() for name in head.split(parted)} & {*columns})


def _header(where: str, cells: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Names of columns; those asked for may be written in capitals."""
    names = [cell.lower() if cell.lower() in columns else cell for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the column {twice!r} is there twice", hint="remove or rename one")
    return names


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:  # numbers stay as they are written
            content = json.loads(line, object_pairs_hook=_once, parse_float=str, parse_int=str)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not readable as JSON ({error})", hint="write one object a line") from error
        if not isinstance(content, dict):
            raise UserError(f"{where}: found {line[:80]!r}, expected an object", hint="write one object a line")
        values = {}
        for key, value in content.items():
            if value is not None and not isinstance(value, str):
                value = ""  # what no column holds: it is empty where one was asked for
            values[key] = (value or "").strip()
        yield where, values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _listed(required: Sequence[str], optional: Sequence[str]) -> str:
    return ", ".join([*required, *(f"{name} (may be left out)" for name in optional)])


def _require(where: str, found: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> None:
    """UserError for a column that is not there, with what is to be renamed, or what columns there should be."""
    column = next((name for name in required if name not in found), None)
    if column is None:
        return
    near = [name for name in found if SYNONYMS.get(name.lower()) == column]
    near += difflib.get_close_matches(column, list(found), n=1)
    asked = f"did you mean {column!r} by {near[0]!r}? " if near else f"found {', '.join(map(repr, found))[:200]}. "
    raise UserError(f"{where}: no column {column!r}", hint=f"{asked}columns are {_listed(required, optional)}")
