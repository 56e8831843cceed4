"""What a kind of imported features declares, and the files that a user gives of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.errors import UserError
from bench.names import shown
from third_party.foreign_features import Foreign


@dataclass(frozen=True)
class Import:
    """One kind of features that other programs make."""

    name: str
    summary: str
    place: str  # what PLACE of `features import` is
    read: Callable[[Source], Foreign] | None  # opens the files; None where the kind has an importer of its own
    takes: tuple[str, ...] = ()  # options that name more files: globals, queries, query-globals
    expects: Literal["file", "folder", "either"] = "file"  # what PLACE must be
    always: tuple[str, ...] = ()  # what is so of every file of the kind
    gives: Literal["both", "global"] = "both"  # what of local and global descriptors its files may hold
    licence: str = "of the features' maker"
    dims: tuple[int | None, int | None] = (None, None)  # values of a local and a global descriptor, where all have them

    @property
    def key(self) -> str:
        return self.name

    def skip(self) -> str:
        """Why it cannot be extracted here."""
        return f"import only: python cli.py features import {self.name} PLACE --dataset NAME"


@dataclass(frozen=True)
class Source:
    """What is imported: the command's arguments. UserError for files that are not there or that the kind has not."""

    kind: Import
    place: Path
    globals_: Path | None = None
    queries: Path | None = None
    query_globals: Path | None = None
    ordered: bool = False  # the user says that the files' order is that of quality
    local: str | None = None  # the extractor that made the local descriptors, where the user says so

    def __post_init__(self) -> None:
        given = {"globals": self.globals_, "queries": self.queries, "query-globals": self.query_globals}
        for option, path in given.items():
            if path is not None and option not in self.kind.takes:
                takes = ", ".join(f"--{name}" for name in self.kind.takes) or "no files but PLACE"
                raise UserError(
                    f"--{option}: {self.kind.name} does not take it", hint=f"{self.kind.name} takes {takes}"
                )
        for option, said in {"ordered": self.ordered, "local": self.local}.items():
            if said and self.kind.gives == "global":
                raise UserError(f"--{option}: {self.kind.name} has no local descriptors", hint=f"leave --{option} out")
        for path in (self.place, *given.values()):
            if path is not None and not path.exists():
                raise UserError(f"{shown(path)}: no such file or folder")
        if self.kind.expects not in ("either", "folder" if self.place.is_dir() else "file"):
            expected = f"PLACE is {self.kind.place}"
            raise UserError(f"{shown(self.place)}: {self.kind.name} expects a {self.kind.expects}", hint=expected)

    def command(self, dataset: str) -> str:
        """The command that imports it."""
        options = {"globals": self.globals_, "queries": self.queries, "query-globals": self.query_globals}
        return " ".join(
            [
                f"python cli.py features import {self.kind.name} {shlex.quote(shown(self.place))}",
                *(f"--{name} {shlex.quote(shown(path))}" for name, path in options.items() if path is not None),
                *(["--ordered"] if self.ordered else []),
                *([f"--local {self.local}"] if self.local else []),
                f"--dataset {shlex.quote(dataset)}",
            ]
        )
