"""Reading image files: any mode and orientation in, 8-bit RGB out, or an error that names the file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bench.errors import UserError

# Pillow's names of the formats that are read, and their suffixes; the content decides, whatever a file's suffix says.
# Pixels alone: no format that is a program (EPS), a drawing (WMF), an editor's layers (PSD) or data (FITS, HDF5).
FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PCX": (".pcx",),
    "QOI": (".qoi",),
    "SGI": (".sgi",),
    "SUN": (".ras",),
    "TGA": (".tga",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
HEIF = frozenset({".heic", ".heif", ".hif"})  # read where the package is installed
HEIF_PACKAGE = "pillow-heif"
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})  # ISO/IEC 23008-12

LARGEST = 300  # megapixels of an image, unless another limit is given; phones make 108 and 200
WHOLE = 89_478_485  # pixels up to which an image is decoded at its full size, unless told otherwise; Pillow's own limit
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose width is the upright image's height
NARROWEST = 4  # pixels of a box; fractions of an image, taken as pixels, have one

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the upright image


class UnreadableImage(UserError):
    """The file is missing, empty, truncated, too large or not an image."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright image, of fewer pixels than the file has where it was decoded at a reduced size."""

    pixels: np.ndarray  # (height, width, 3) uint8 RGB
    size: tuple[int, int]  # width and height in the file, upright

    def crop(self, box: Box | None, path: Path) -> tuple[np.ndarray, tuple[int, int], float]:
        """Pixels inside `box`, width and height of that part in the file, and its longer side over the image's.

        The box is in pixels of the file. UserError as of `cut`.
        """
        if box is None:
            return self.pixels, self.size, 1.0
        x1, y1, x2, y2 = cut(box, self.size, path)
        height, width = self.pixels.shape[:2]
        across, down = width / self.size[0], height / self.size[1]
        part = self.pixels[round(y1 * down) : round(y2 * down), round(x1 * across) : round(x2 * across)]
        return part, (x2 - x1, y2 - y1), max(x2 - x1, y2 - y1) / max(self.size)


def heif_here() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the files that are read here."""
    return SUFFIXES | HEIF if heif_here() else SUFFIXES


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: cannot be read ({error.strerror or error})") from error


def content_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, path: Path) -> np.ndarray:
    """(height, width, 3) uint8 RGB, upright by its EXIF orientation; the first frame of several.

    `path` is for the error message only. 16-bit greys are scaled by their type's range, transparency is laid on white,
    CMYK and palettes are converted.
    """
    return read_picture(data, path).pixels


def read_picture(
    data: bytes, path: Path, megapixels: int = LARGEST, longer_side: int | None = None, whole: int | None = None
) -> Picture:
    """As `decode`; of an image of more than `whole` pixels (WHOLE), every second, fourth or eighth each way.

    That is so for JPEG, and as long as its longer side keeps `longer_side` pixels; without that, all pixels are read.
    UnreadableImage for an image of more than `megapixels`, before any pixel is.
    """
    if not data:
        raise UnreadableImage(f"{path}: the file is empty (0 bytes)")
    with _opened(io.BytesIO(data), path, megapixels) as image:
        by = 1 if longer_side is None else _reduction(image, longer_side, WHOLE if whole is None else whole)
        size = None if by == 1 else upright_size(image)
        if by > 1:
            image.draft(None, (image.width // by, image.height // by))
        image.load()
        if image.format == "TIFF" and image.mode == "I":
            raise UnreadableImage(
                f"{path}: 32-bit or signed pixels have no agreed range", hint="save it as 8 or 16 bits"
            )
        upright = ImageOps.exif_transpose(image)
    pixels = _rgb(upright, path)
    return Picture(pixels, size or (pixels.shape[1], pixels.shape[0]))


def _reduction(image: Image.Image, longer_side: int, whole: int) -> int:
    """1, 2, 4 or 8: the least that leaves at most `whole` pixels, as far as the longer side allows."""
    by = 1
    if image.format in ("JPEG", "MPO"):
        while by < 8 and image.width * image.height > whole * by**2 and max(image.size) // (2 * by) >= longer_side:
            by *= 2
    return by


def size_of(path: Path, megapixels: int = LARGEST) -> tuple[int, int]:
    """Width and height of the upright image, from its header. UnreadableImage as of `decode`."""
    with _opened(path, path, megapixels) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once the image is turned by its EXIF orientation."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) not in SIDEWAYS:
        return image.size
    if image.format == "TIFF":  # Pillow turns these itself, and may say so in the size before it has
        image.load()
        return ImageOps.exif_transpose(image).size
    return image.size[::-1]


class _WithoutPillowsLimit:
    """Pillow's limit is lifted while any thread is inside: it would refuse photographs that phones make."""

    def __init__(self) -> None:
        self._lock, self._inside, self._pillows = Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                Image.MAX_IMAGE_PIXELS = self._pillows


_LIMIT = _WithoutPillowsLimit()  # one, as the limit is one for all of Pillow


@contextmanager
def _opened(source: io.BytesIO | Path, path: Path, megapixels: int) -> Iterator[Image.Image]:
    """The image, its size known and its pixels not read; whatever goes wrong inside is an UnreadableImage."""
    try:
        with _LIMIT, Image.open(source, formats=_known()) as image:
            if image.width * image.height > megapixels * 1_000_000:
                raise UnreadableImage(
                    f"{path}: {image.width * image.height / 1e6:.4g} megapixels ({image.width}x{image.height}), "
                    f"the limit is {megapixels} (--max-megapixels)"
                )
            yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        heif = _is_heif(source) and not heif_here()
        what = f"HEIF, which needs the package {HEIF_PACKAGE}" if heif else "of no format that is read here"
        raise UnreadableImage(f"{path}: not a readable image (its content is {what})") from error
    except Exception as error:  # Pillow's decoders raise many kinds (OSError, SyntaxError, ValueError, struct.error, …)
        raise UnreadableImage(f"{path}: not a readable image ({type(error).__name__}: {error})") from error


def _known() -> list[str]:
    """Names of the formats that this Pillow reads."""
    if heif_here() and "HEIF" not in Image.OPEN:
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return [name for name in (*FORMATS, "HEIF") if name in Image.OPEN]


def _is_heif(source: io.BytesIO | Path) -> bool:
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source.getvalue()[:12]) as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:] in HEIF_BRANDS


def _rgb(upright: Image.Image, path: Path) -> np.ndarray:
    """(height, width, 3) uint8 of an image of any mode."""
    if upright.mode.startswith("I;16") or upright.mode == "I":
        grey = np.asarray(upright).astype(np.float64) / 65535.0
        return np.repeat((grey.clip(0, 1) * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    if upright.mode == "F":
        raise UnreadableImage(f"{path}: floating-point pixels have no agreed range", hint="save it as 8 or 16 bits")
    if "A" in upright.getbands() or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(upright.convert("RGB"))


def cut(box: Box, size: tuple[int, int], path: Path) -> tuple[int, int, int, int]:
    """The box in whole pixels, cut to an image of that width and height; rounded as DELG does (docs/protocols.md).

    UserError for a box outside the image, and for one that is too narrow to be meant in pixels.
    """
    width, height = size
    x1, y1, x2, y2 = (round(b) for b in box)
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    wrong = "lies outside" if x1 >= x2 or y1 >= y2 else f"has {x2 - x1}x{y2 - y1} pixels in"
    if min(x2 - x1, y2 - y1) < NARROWEST:
        raise UserError(
            f"{path}: the query box {box} {wrong} the image of {width}x{height} pixels",
            hint="boxes are x1, y1, x2, y2 in pixels of the upright image, not fractions and not x, y, width, height",
        )
    return x1, y1, x2, y2


def crop(image: np.ndarray, box: Box | None, path: Path) -> tuple[np.ndarray, float]:
    """The image inside `box` and the ratio of the crop's longer side to the image's, by which a size limit scales.

    UserError as of `cut`.
    """
    part, _, ratio = Picture(image, (image.shape[1], image.shape[0])).crop(box, path)
    return part, ratio


def shrink(image: np.ndarray, longer_side: float) -> np.ndarray:
    """The image with its longer side at most `longer_side` pixels (never enlarged)."""
    height, width = image.shape[:2]
    ratio = longer_side / max(height, width)
    if ratio >= 1:
        return image
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
