"""Reading image files: any mode and orientation in, 8-bit RGB out, or an error that names the file."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bench.datasets import Box
from bench.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})


class UnreadableImage(UserError):
    """The file is missing, empty, truncated, too large or not an image."""


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: cannot be read ({error.strerror or error})") from error


def content_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, path: Path) -> np.ndarray:
    """(height, width, 3) uint8 RGB, upright by its EXIF orientation. `path` is for the error message only.

    16-bit greys are scaled by their type's range, transparency is laid on white, CMYK and palettes are converted.
    """
    if not data:
        raise UnreadableImage(f"{path}: the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise many kinds (OSError, SyntaxError, ValueError, struct.error, …)
        raise UnreadableImage(f"{path}: not a readable image ({type(error).__name__}: {error})") from error
    if upright.mode.startswith("I;16") or upright.mode == "I":
        grey = np.asarray(upright).astype(np.float64) / 65535.0
        return np.repeat((grey.clip(0, 1) * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    if upright.mode == "F":
        raise UnreadableImage(f"{path}: floating-point pixels have no agreed range", hint="save it as 8 or 16 bits")
    if "A" in upright.getbands() or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(upright.convert("RGB"))


def crop(image: np.ndarray, box: Box | None, path: Path) -> tuple[np.ndarray, float]:
    """The image inside `box` and the ratio of the crop's longer side to the image's.

    Rounded as DELG does (docs/protocols.md, Crops and sizes): round(b); the caller scales its size limit by the ratio.
    """
    if box is None:
        return image, 1.0
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (round(b) for b in box)
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if x1 >= x2 or y1 >= y2:
        raise UserError(
            f"{path}: the query box {box} lies outside the image of {width}x{height} pixels",
            hint="boxes are x1, y1, x2, y2 in pixels of the upright image",
        )
    part = image[y1:y2, x1:x2]
    return part, max(part.shape[:2]) / max(height, width)


def shrink(image: np.ndarray, longer_side: float) -> np.ndarray:
    """The image with its longer side at most `longer_side` pixels (never enlarged)."""
    height, width = image.shape[:2]
    ratio = longer_side / max(height, width)
    if ratio >= 1:
        return image
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
