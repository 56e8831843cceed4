"""The files below a folder: links are followed, no folder is read twice, and what systems and editors leave is none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.names import shown

# folders and files that a system or a program puts beside a user's own, in lower case
SYSTEM = frozenset(
    {"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini"}
)
COPIES = ("~", ".bak", ".orig", ".swp")  # how names of copies end that editors and people put aside


@dataclass(frozen=True)
class Walk:
    """What lies below a folder; every path begins with that folder."""

    files: tuple[Path, ...]  # sorted; hidden ones, the system's and editors' copies are not among them
    again: tuple[Path, ...] = ()  # linked folders that are read under another name
    broken: tuple[Path, ...] = ()  # links that lead to nothing
    copies: tuple[Path, ...] = ()  # folders that were put aside


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def walk(folder: Path) -> Walk:
    """Every file below `folder`. A folder reached by a link and without one is read without.

    UserError for a folder that cannot be listed.
    """
    top = Path(os.path.realpath(folder))
    files: list[Path] = []
    again: list[Path] = []
    broken: list[Path] = []
    copies: list[Path] = []
    read: set[Path] = set()
    ready: list[Path] = [folder]
    linked: list[Path] = []
    while ready or linked:
        if not ready:
            linked.sort()
            ready.append(linked.pop(0))
        here = ready.pop()
        real = Path(os.path.realpath(here))
        if real in read or (real != top and top.is_relative_to(real)):
            again.append(here)
            continue
        read.add(real)
        for entry in _listed(here):
            path = here / entry.name
            if _passed_over(entry.name):
                continue
            if entry.is_dir():
                (copies if entry.name.endswith(COPIES) else linked if entry.is_symlink() else ready).append(path)
            elif entry.is_file():
                files += [] if entry.name.endswith(COPIES) else [path]
            elif entry.is_symlink():
                broken.append(path)
    return Walk(*(tuple(sorted(paths)) for paths in (files, again, broken, copies)))


def _listed(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be listed ({error.strerror or error})") from error
