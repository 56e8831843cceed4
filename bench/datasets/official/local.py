"""What of an official data set is here: the record of its downloads, and its photographs. No network is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets.gallery import MISSING, Gallery
from bench.errors import UserError
from bench.files import read_json

RECORD = "downloads.json"


class NotHere(UserError):
    """The data set is not below the data root."""


class MissingImages(UserError):
    """Some of the photographs are not here, or all."""

    def __init__(self, message: str, hint: str, missing: int, total: int):
        super().__init__(message, hint)
        self.missing, self.total = missing, total


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """What was fetched into a data set's folder, by path; empty where nothing was."""
    try:
        content = read_json(folder / RECORD)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RECORD}: cannot be read ({error})", hint="delete it to fetch anew") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise UserError(f"{folder / RECORD}: expected an object of objects", hint="delete it to fetch anew")
    return content


def image_set(folder: Path, otherwise: str) -> str:
    """Which version of the images is in a data set's folder: that of the archives fetched, or `otherwise`."""
    found = sorted({str(entry.get("image_set")) for entry in read_record(folder).values() if "unpacked" in entry})
    return " and ".join(found) or otherwise


def require_files(name: str, paths: Iterable[Path], listed: Path, hint: str) -> None:
    """MissingImages that names those that are missing; all of them in the file `listed` where there are many."""
    missing, total = [], 0
    for path in paths:
        total += 1
        if not path.is_file():
            missing.append(path)
    _require(name, missing, total, listed, hint)


def require_images(name: str, gallery: Gallery, listed: Path, hint: str, first: int = 0) -> None:
    """As `require_files`, of the gallery's images from number `first` on, whose files are asked for once."""
    absent = (first + np.flatnonzero(gallery.stamps[first:, 0] == MISSING[0])).tolist()
    missing = [gallery[gallery.id_at(number)] for number in absent]
    _require(name, missing, len(gallery) - first, listed, hint)


def _require(name: str, missing: Sequence[Path], total: int, listed: Path, hint: str) -> None:
    if not missing:
        return
    names = sorted(path.name for path in missing)
    shown = ", ".join(names) if len(names) <= 20 else ", ".join(names[:20]) + ", …"
    try:
        listed.write_text("\n".join(map(str, sorted(missing))) + "\n", encoding="utf-8", errors="surrogateescape")
        where = f" (all of them are named in {listed})" if len(names) > 20 else ""
    except OSError:
        where, shown = "", ", ".join(names)
    raise MissingImages(
        f"data set {name!r}: {len(names)} of {total} photographs are missing from {missing[0].parent}: {shown}{where}",
        hint,
        len(missing),
        total,
    )
