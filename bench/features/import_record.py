"""`source.json` in a store of imported features: which files they were, how they were read, and what is so of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.features.imported import Import, Source
from bench.files import file_hash, read_json, write_whole
from bench.names import shown


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was imported."""

    path: str
    size: int
    mtime: int  # ns
    sha256: str

    @staticmethod
    def of(path: Path, known: Sequence[Stamp] = ()) -> Stamp:
        """The file as it is; not read where its size and time are known."""
        path = path.resolve()
        status = path.stat()
        for stamp in known:
            if (stamp.path, stamp.size, stamp.mtime) == (str(path), status.st_size, status.st_mtime_ns):
                return stamp
        return Stamp(str(path), status.st_size, status.st_mtime_ns, file_hash(path))


@dataclass(frozen=True)
class Record:
    """What `source.json` says: the source, the files as they were, and facts about them once the import is whole."""

    source: Mapping[str, Any]
    files: tuple[Stamp, ...]
    caveats: tuple[str, ...] | None = None  # None: interrupted

    @staticmethod
    def of(source: Source, files: Sequence[Path], known: Sequence[Stamp]) -> Record:
        given = {**vars(source), "kind": source.kind.name}
        paths = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in given.items()}
        try:
            return Record(paths, tuple(Stamp.of(path, known) for path in files))
        except OSError as error:
            raise UserError(f"{shown(error.filename)}: cannot be read ({error.strerror})") from error

    @staticmethod
    def read(folder: Path) -> Record | None:
        """The record of a store; None where there is none that can be read."""
        try:
            found = read_json(folder / "source.json")
            caveats = found["caveats"]
            stamps = tuple(Stamp(*map(_plain, stamp)) for stamp in found["files"])
            return Record(dict(found["source"]), stamps, None if caveats is None else tuple(map(str, caveats)))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, folder: Path) -> None:
        files = [list(asdict(stamp).values()) for stamp in self.files]
        text = json.dumps({"source": dict(self.source), "files": files, "caveats": self.caveats}, indent=1)
        write_whole(folder / "source.json", text)

    def original(self, kind: Import) -> Source | None:
        """The source, if its files are all there and of that kind."""
        plain = ("kind", "ordered", "local")
        paths = {name: Path(path) for name, path in self.source.items() if name not in plain and path}
        try:
            return Source(
                kind,
                paths["place"],
                paths.get("globals_"),
                paths.get("queries"),
                paths.get("query_globals"),
                bool(self.source["ordered"]),
                self.source.get("local"),
            )
        except (UserError, TypeError, KeyError):
            return None

    def differs(self, other: Record) -> str:
        """In what the other import is another one, or nothing. Where its files lie does not matter."""
        if any(self.source.get(option) != other.source.get(option) for option in ("ordered", "local")):
            return "other options"
        return "other files" if [f.sha256 for f in self.files] != [f.sha256 for f in other.files] else ""


def _plain(value: object) -> Any:
    if not isinstance(value, int | str):
        raise TypeError(value)
    return value
