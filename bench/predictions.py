"""Ranked lists as VPR-methods-evaluation writes them: a folder with a text file of paths for each query.

preds/000.txt has the line `Query path:`, the query, a blank line, `Predictions paths:`, the images, best first, a blank
line, `Positives paths:` and the right images. Paths are those of the machine that wrote them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.files import file_hash
from bench.names import shown

QUERY, PREDICTIONS, POSITIVES = "Query path:", "Predictions paths:", "Positives paths:"
FOLDER = "preds"  # in the folder of a run
LARGEST = 2**26  # bytes of a file
FORM = f"`{QUERY}`, a path, `{PREDICTIONS}`, paths, best first, and perhaps `{POSITIVES}`, paths"


@dataclass(frozen=True)
class Prediction:
    """The list of one query, best first, and the number of each image's line in its file."""

    query: str
    images: tuple[str, ...]
    lines: tuple[int, ...]
    file: Path


def files_of(folder: Path) -> list[Path]:
    """The text files in a folder, or in `preds` below it, in the order of their numbers. UserError where none is."""
    place = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    try:
        found = [file for file in place.iterdir() if file.suffix == ".txt" and not file.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{place}: cannot be listed ({error.strerror or error})") from error
    if not found:
        raise UserError(
            f"{place}: no files of predictions, NNN.txt",
            hint="VPR-methods-evaluation writes them with --num_preds_to_save",
        )
    return sorted(found, key=lambda file: ([int(n) for n in re.findall(r"[0-9]+", file.stem)], file.name))


def content_of(folder: Path) -> str:
    """sha256 over the names and bytes of the files."""
    digest = hashlib.sha256()
    for file in files_of(folder):
        digest.update(f"{file.name}\0{file_hash(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_folder(folder: Path) -> list[Prediction]:
    """The lists of every file. UserError naming file and line for anything else."""
    return [read_file(file) for file in files_of(folder)]


def read_file(file: Path) -> Prediction:
    """The list in one file; what it says is right is not read. UserError naming the line for anything else."""
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{shown(file)}: {file.stat().st_size} bytes, expected under {LARGEST}")
        # names that are not UTF-8 are kept as Python keeps those of files
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(file)}: cannot be read ({error})") from error
    found: dict[str, list[tuple[int, str]]] = {}
    section: list[tuple[int, str]] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip() in (QUERY, PREDICTIONS, POSITIVES):
            if line.strip() in found:
                raise UserError(f"{shown(file)}, line {number}: {line.strip()!r} for the second time")
            section = found.setdefault(line.strip(), [])
        elif line.strip():
            if section is None or "\0" in line:
                raise UserError(f"{shown(file)}, line {number}: found {shown(line)[:80]!r}", hint=f"expected {FORM}")
            section.append((number, line))
    for name in (QUERY, PREDICTIONS):
        if not found.get(name):
            raise UserError(f"{shown(file)}: no path below {name!r}", hint=f"expected {FORM}")
    if len(found[QUERY]) > 1:
        number, line = found[QUERY][1]
        raise UserError(f"{shown(file)}, line {number}: a second query, {shown(line)[:80]!r}", hint="one query a file")
    lines, images = zip(*found[PREDICTIONS], strict=True)
    return Prediction(found[QUERY][0][1], images, lines, file)


def text_of(query: Path, predictions: Sequence[Path], positives: Iterable[Path]) -> str:
    """The content of the file of one query. UserError for a path that no line can hold."""

    def lines() -> Iterator[str]:
        for title, paths in ((QUERY, [query]), (PREDICTIONS, predictions), (POSITIVES, positives)):
            yield title
            for path in paths:
                if "\n" in str(path):
                    raise UserError(f"{str(path)!r}: a line holds no path with a line break", hint="rename the file")
                yield str(path)
            yield ""

    return "\n".join(lines())
