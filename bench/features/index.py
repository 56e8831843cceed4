"""Where each image of a feature store lies: a database beside the shards, made from their lists when it is not fresh.

It is looked up, never loaded: opening a store and reading from it cost the same whatever the number of images.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from bench.files import read_json, whole
from bench.images import Box

NAME = "index.sqlite"
FORMAT = 1
TRIES = 10  # openings that another process's merging may disturb
COLUMNS = "number, key, shard, row, sha256, stat, box, error"
SCHEMA = """
CREATE TABLE shards (number INTEGER PRIMARY KEY, name TEXT, listed TEXT, files TEXT);
CREATE TABLE images (number INTEGER PRIMARY KEY, key TEXT UNIQUE ON CONFLICT REPLACE,
                     shard INTEGER, row INTEGER, sha256 TEXT, stat TEXT, box TEXT, error TEXT);
CREATE TABLE about (format INTEGER, images INTEGER);
"""


class Row(NamedTuple):
    """Where an image lies, and what it was made from."""

    number: int  # ascending by shard and row
    key: str
    shard: int  # which of the index's shards
    row: int
    sha256: str
    stat: tuple[int, ...]  # size in bytes and mtime in ns of each of its files when they were read
    box: Box | None
    error: str | None


@dataclass(frozen=True)
class Shard:
    """A folder of arrays. A merged one, named FIRST-LAST, stands for the shards it was made from."""

    path: Path

    @property
    def first(self) -> int:
        return int(self.path.name.partition("-")[0])

    @property
    def last(self) -> int:
        return int(self.path.name.rpartition("-")[2])


def shards(folder: Path) -> tuple[list[Shard], list[Path]]:
    """The shards of a store in the order in which they were written, and the folders that a merged one replaces."""
    names = os.listdir(folder) if folder.is_dir() else []
    named = [Shard(folder / name) for name in names if name.replace("-", "", 1).isdigit()]
    kept: list[Shard] = []
    replaced = []
    for shard in sorted(named, key=lambda s: (s.first, -s.last)):
        if kept and shard.last <= kept[-1].last:
            replaced.append(shard.path)
        else:
            kept.append(shard)
    return kept, replaced


class Index:
    """The images of a store's shards. `damaged` are the shards that are not what their own list says, and why."""

    def __init__(self, folder: Path):
        self._parts: dict[Path, Mapping[str, int]] = {}  # of shards that others merged since
        for left in reversed(range(TRIES)):
            found, _ = shards(folder / "shards")
            try:
                self._open(folder, found)
            except FileNotFoundError:
                if not left:
                    raise
            else:
                if not self.damaged or shards(folder / "shards")[0] == found:
                    break  # else what seems damaged may have been merged into another shard meanwhile

    def _open(self, folder: Path, found: Sequence[Shard]) -> None:
        before = _read(folder / NAME)
        known = {} if before is None else _known(before)
        self.damaged: list[tuple[Path, str]] = []
        self.shards: list[Path] = []
        listed = []
        for shard in found:
            name = shard.path.name
            files, at = known.get(name, (None, ""))
            listing = _stamp(shard.path / "shard.json")
            wrong = _sizes_wrong(shard.path, files if at == listing else None)
            if wrong:
                self.damaged.append((shard.path, wrong))
            else:
                self.shards.append(shard.path)
                listed.append((name, listing))
        fresh = before is not None and [(name, at) for name, (_, at) in known.items()] == listed
        self._database = before if fresh and before is not None else _made(folder, self.shards, listed)
        ((self._images,),) = self._database.execute("SELECT images FROM about")

    def __len__(self) -> int:
        return int(self._images)

    def find(self, key: str) -> Row | None:
        found = self._database.execute(f"SELECT {COLUMNS} FROM images WHERE key = ?", (key,)).fetchone()
        return None if found is None else _row(found)

    def place(self, key: str) -> tuple[int, int]:
        """Shard and row. KeyError for an image that is not here."""
        found = self._database.execute("SELECT shard, row FROM images WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        """Every key, in the order in which reading is fastest."""
        return (key for (key,) in self._database.execute("SELECT key FROM images ORDER BY number"))

    def rows(self, keys: Iterable[str]) -> Iterator[Row | None]:
        """The row of each key, None where there is none; keys in the order of the store need no search."""
        return (None if found is None else _row(found) for _, found in self._of(keys, COLUMNS))

    def places(self, keys: Iterable[str]) -> Iterator[tuple[int, int]]:
        """Shard and row of each key, as `rows` finds them. KeyError for an image that is not here."""
        return (found[2:] for found in self._found(keys, "number, key, shard, row"))

    def contents(self, keys: Iterable[str]) -> Iterator[tuple[str, str, Box | None]]:
        """Each key, with the sha256 and the box of what it was made from. KeyError for an image that is not here."""
        for _, key, sha256, box in self._found(keys, "number, key, sha256, box"):
            yield key, sha256, None if box is None else tuple(json.loads(box))

    def _found(self, keys: Iterable[str], columns: str) -> Iterator[tuple]:
        for key, found in self._of(keys, columns):
            if found is None:
                raise KeyError(key)
            yield found

    def _of(self, keys: Iterable[str], columns: str) -> Iterator[tuple[str, tuple | None]]:
        """Each key and the columns of its row, of which the first two are number and key."""
        after = f"SELECT {columns} FROM images WHERE number > ? ORDER BY number"
        following = self._database.execute(after, (-1,))
        for key in keys:
            row = following.fetchone()
            if row is None or row[1] != key:
                row = self._database.execute(f"SELECT {columns} FROM images WHERE key = ?", (key,)).fetchone()
                following = self._database.execute(after, (-1 if row is None else row[0],))
            yield key, row

    def all(self) -> Iterator[Row]:
        """Every row, in the order in which reading is fastest."""
        return map(_row, self._database.execute(f"SELECT {COLUMNS} FROM images ORDER BY number"))

    def arrays(self, shard: int) -> list[str]:
        """The names of a shard's arrays."""
        ((files,),) = self._database.execute("SELECT files FROM shards WHERE number = ?", (shard,))
        return [name.removesuffix(".npy") for name in json.loads(files)]

    def merged(self, shard: int) -> tuple[Path, int] | None:
        """The shard that another process has merged this one into meanwhile, and the row there that is its first; None
        where there is none."""
        gone = Shard(self.shards[shard])
        for found in shards(gone.path.parent)[0]:
            if found != gone and found.first <= gone.first and gone.last <= found.last:
                if found.path not in self._parts:
                    self._parts[found.path] = read_json(found.path / "shard.json").get("parts", {})
                first = self._parts[found.path].get(gone.path.name)
                return None if first is None else (found.path, first)
        return None

    def errors(self) -> dict[str, str]:
        """key -> why the image has no features."""
        return dict(self._database.execute("SELECT key, error FROM images WHERE error IS NOT NULL"))


def _row(found: tuple) -> Row:
    number, key, shard, row, sha256, stat, box, error = found
    numbers = tuple(map(int, stat[1:-1].split(","))) if len(stat) > 2 else ()  # JSON takes three times as long
    return Row(number, key, shard, row, sha256, numbers, None if box is None else tuple(json.loads(box)), error)


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _sizes_wrong(shard: Path, files: dict[str, int] | None) -> str:
    """What is wrong with a shard's files, or nothing; `files` are those it lists, where that is known."""
    try:
        if files is None:
            content = read_json(shard / "shard.json")
            files = content["files"]
            for entry in content["images"]:
                _ = [entry[name] for name in ("key", "sha256", "stat", "box", "error")]
        for name, size in files.items():
            found = (shard / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, expected {size}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _read(path: Path) -> sqlite3.Connection | None:
    """The database in a file, or None if there is none that can be used."""
    if not path.is_file():
        return None
    try:
        # immutable: it is only ever replaced as a whole, and a folder that cannot be written to needs no lock
        database = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        ((form, _),) = database.execute("SELECT format, images FROM about").fetchall()
        return database if form == FORMAT else None
    except (sqlite3.Error, ValueError):
        return None


def _known(database: sqlite3.Connection) -> dict[str, tuple[dict[str, int] | None, str]]:
    """Shard name -> the sizes of its files, and the stamp of its list."""
    try:
        found = database.execute("SELECT name, listed, files FROM shards ORDER BY number").fetchall()
        return {name: (json.loads(files), listed) for name, listed, files in found}
    except (sqlite3.Error, ValueError, TypeError):
        return {}


def _made(folder: Path, paths: Sequence[Path], listed: Sequence[tuple[str, str]]) -> sqlite3.Connection:
    """A new index in the store's folder; in memory where there is nothing to keep or it cannot be written."""
    if paths and os.access(folder, os.W_OK):
        try:
            with whole(folder / NAME) as temporary, closing(sqlite3.connect(temporary)) as database:
                _fill(database, paths, listed)
            if (kept := _read(folder / NAME)) is not None:
                return kept
        except (OSError, sqlite3.Error):
            pass  # a full disk
    database = sqlite3.connect(":memory:", check_same_thread=False)
    _fill(database, paths, listed)
    return database


def _fill(database: sqlite3.Connection, paths: Sequence[Path], listed: Sequence[tuple[str, str]]) -> None:
    database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + SCHEMA)
    for number, (path, (name, stamp)) in enumerate(zip(paths, listed, strict=True)):
        content = read_json(path / "shard.json")
        database.execute("INSERT INTO shards VALUES (?, ?, ?, ?)", (number, name, stamp, json.dumps(content["files"])))
        entries = (
            (
                entry["key"],
                number,
                row,
                entry["sha256"],
                json.dumps(entry["stat"]),
                None if entry["box"] is None else json.dumps(entry["box"]),
                entry["error"],
            )
            for row, entry in enumerate(content["images"])
        )
        while chunk := list(islice(entries, 4096)):
            database.executemany(
                "INSERT INTO images (key, shard, row, sha256, stat, box, error) VALUES (?, ?, ?, ?, ?, ?, ?)", chunk
            )
    database.execute("INSERT INTO about SELECT ?, count(*) FROM images", (FORMAT,))
    database.commit()
