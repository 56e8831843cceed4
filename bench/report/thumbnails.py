"""Small pictures of image files as text, for pages that hold all that they show."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bench.errors import UserError
from bench.images import read_bytes, read_picture, shrink

SIDE = 140  # pixels of the longer side
QUALITY = 70  # of the JPEG


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG in base64, and the width and height of the upright image in its file."""

    jpeg: str
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if not self.jpeg or min(self.size) < 1:
            raise ValueError(f"a thumbnail of {len(self.jpeg)} characters of an image of {self.size} pixels")


def thumbnail(file: Path) -> Thumbnail | None:
    """Of one file; None where it cannot be read."""
    try:
        picture = read_picture(read_bytes(file), file, longer_side=SIDE, whole=SIDE**2)
    except UserError:
        return None
    kept = io.BytesIO()
    Image.fromarray(shrink(picture.pixels, SIDE)).save(kept, "JPEG", quality=QUALITY, optimize=True)
    return Thumbnail(base64.b64encode(kept.getvalue()).decode("ascii"), picture.size)


def thumbnails(files: Iterable[Path], most: int) -> dict[Path, Thumbnail | None]:
    """Of each file once, in this order; None for one that cannot be read.

    The first that would make them more than `most` characters together ends them: it and those behind it are not there.
    """
    found: dict[Path, Thumbnail | None] = {}
    held = 0
    for file in dict.fromkeys(files):
        small = thumbnail(file)
        held += 0 if small is None else len(small.jpeg)
        if held > most:
            break
        found[file] = small
    return found
