"""Any image file is either read as upright 8-bit RGB or refused with its name."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from bench import images
from bench.errors import UserError
from bench.images import (
    UnreadableImage,
    content_hash,
    crop,
    cut,
    decode,
    read_bytes,
    read_picture,
    shrink,
    size_of,
)

HERE = Path("some/picture.png")
COLOURS = np.zeros((40, 60, 3), dtype=np.uint8)
COLOURS[:20, :30] = (250, 20, 30)
COLOURS[20:, 30:] = (20, 40, 240)


def encoded(image: Image.Image, form: str = "PNG", **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **more)
    return stream.getvalue()


def test_colours_are_kept() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(COLOURS)), HERE), COLOURS)


def test_grey_becomes_three_equal_channels() -> None:
    grey = Image.fromarray(COLOURS).convert("L")
    found = decode(encoded(grey), HERE)
    assert found.shape == (40, 60, 3) and np.array_equal(found[..., 0], np.asarray(grey))
    assert np.array_equal(found[..., 0], found[..., 2])


def test_black_and_white_becomes_0_and_255() -> None:
    found = decode(encoded(Image.fromarray(COLOURS).convert("1")), HERE)
    assert found.shape == (40, 60, 3) and set(np.unique(found)) <= {0, 255}


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([COLOURS, np.full((40, 60), 255, np.uint8)])
    rgba[:20, :30, 3] = 0
    found = decode(encoded(Image.fromarray(rgba)), HERE)
    assert (found[:20, :30] == 255).all() and np.array_equal(found[20:], COLOURS[20:])


def test_grey_with_transparency_is_laid_on_white() -> None:
    la = np.zeros((4, 4, 2), np.uint8)
    assert (decode(encoded(Image.fromarray(la, "LA")), HERE) == 255).all()


def test_a_palette_becomes_its_colours() -> None:
    palette = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.abs(decode(encoded(palette), HERE).astype(int) - COLOURS).max() <= 2
    seen_through = encoded(palette, "PNG", transparency=int(np.asarray(palette)[0, 0]))
    assert (decode(seen_through, HERE)[0, 0] == 255).all()


def test_cmyk_becomes_rgb() -> None:
    found = decode(encoded(Image.fromarray(COLOURS).convert("CMYK"), "JPEG", quality=95), HERE)
    assert found.shape == (40, 60, 3) and np.abs(found[5:15, 5:25].astype(int) - COLOURS[10, 10]).mean() < 12


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(form: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 60).astype(np.uint16), (40, 1))
    found = decode(encoded(Image.fromarray(ramp), form), HERE)
    assert found.dtype == np.uint8 and np.abs(found[0, :, 0] - np.linspace(0, 255, 60)).max() <= 1


WRITTEN = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "PPM", "GIF", "JPEG2000", "PCX", "SGI", "TGA", "QOI")


@pytest.mark.parametrize("form", [*WRITTEN, *(["AVIF"] if features.check("avif") else [])])
def test_every_known_format_is_read(form: str) -> None:
    found = decode(encoded(Image.fromarray(COLOURS), form), HERE)
    assert found.shape == COLOURS.shape and np.abs(found.astype(int) - COLOURS).mean() < 12


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK"])
def test_every_kind_of_tiff_that_pillow_writes_is_read(compression: str, mode: str) -> None:
    if compression == "jpeg" and mode in ("1", "P", "RGBA"):
        pytest.skip("TIFF has no such kind")
    found = decode(encoded(Image.fromarray(COLOURS).convert(mode), "TIFF", compression=compression), HERE)
    assert found.shape == COLOURS.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_turned_upright(orientation: int) -> None:
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }  # how a camera stores the upright picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(turns[orientation](COLOURS))), "PNG", exif=exif)
    assert np.array_equal(decode(data, HERE), COLOURS)


def test_a_single_pixel_is_an_image() -> None:
    assert decode(encoded(Image.new("RGB", (1, 1), "red")), HERE).tolist() == [[[255, 0, 0]]]


WHOLE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)), "JPEG")
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "text": b"this is not an image",
    "zeros": b"\0" * 500,
    "html": b"<html><body>404</body></html>" * 9,
    "truncated jpeg": WHOLE[: len(WHOLE) // 2],
    "header only": WHOLE[:24],
    "truncated png": encoded(Image.fromarray(COLOURS))[:-40],
    "32 bits": encoded(Image.fromarray(np.full((5, 5), 200, np.int32)), "TIFF"),
    "float": encoded(Image.fromarray(np.ones((5, 5), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_broken_file_is_refused_with_its_name(kind: str) -> None:
    with pytest.raises(UnreadableImage, match=r"some/picture.png"):
        decode(BROKEN[kind], HERE)


def test_other_colour_spaces_become_rgb_and_their_bands_are_no_transparency() -> None:
    wide = decode(encoded(Image.fromarray(COLOURS).convert("YCbCr"), "TIFF"), HERE)
    assert np.abs(wide.astype(int) - COLOURS).max() <= 3
    lab = decode(encoded(Image.new("LAB", (5, 5), (200, 128, 128)), "TIFF"), HERE)  # L, A and B; A is not alpha
    assert lab.shape == (5, 5, 3) and 180 < lab.mean() < 210


def declared(width: int, height: int) -> bytes:
    """A PNG of some dozens of bytes that declares this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_an_image_of_more_megapixels_than_the_limit_is_refused_before_its_pixels_are_read() -> None:
    tracemalloc.start()
    with pytest.raises(
        UnreadableImage, match=r"picture.png: 900 megapixels \(30000x30000\), the limit is 300 \(--max-"
    ):
        decode(declared(30_000, 30_000), HERE)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    with pytest.raises(UnreadableImage, match=r"1.08 megapixels \(1200x900\), the limit is 1 "):
        read_picture(encoded(Image.new("L", (1200, 900))), HERE, megapixels=1)


def test_pillows_own_limit_decides_nothing_and_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert np.array_equal(decode(encoded(Image.fromarray(COLOURS)), HERE), COLOURS)
    with pytest.raises(UnreadableImage):
        decode(b"this is not an image", HERE)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_threads_that_read_at_once_leave_pillows_limit_to_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    both = Barrier(2, timeout=60)

    def first() -> object:
        with images._opened(io.BytesIO(encoded(Image.fromarray(COLOURS))), HERE, 1):
            both.wait()  # now the other comes in, and stays when this one leaves
            both.wait()
        limit = Image.MAX_IMAGE_PIXELS
        both.wait()
        return limit

    def second() -> np.ndarray:
        both.wait()
        with images._opened(io.BytesIO(encoded(Image.fromarray(COLOURS))), HERE, 1) as image:
            both.wait()
            both.wait()
            return np.asarray(image)

    with ThreadPoolExecutor(2) as pool:
        limit, pixels = pool.submit(first), pool.submit(second)
        assert limit.result() is None and np.array_equal(pixels.result(), COLOURS)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("form", ["JPEG", "MPO"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photograph_above_pillows_limit_is_decoded_at_half_its_size(
    form: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "WHOLE", 300 * 200)
    photo = Image.fromarray(COLOURS).resize((420, 280), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"save_all": True, "append_images": [photo]} if form == "MPO" else {}
    data = encoded(photo, form, quality=95, exif=exif, **more)
    upright = (420, 280) if orientation == 1 else (280, 420)
    whole, half = decode(data, HERE), read_picture(data, HERE, longer_side=160)
    assert half.size == upright and half.pixels.shape[1::-1] == (upright[0] // 2, upright[1] // 2)
    assert np.abs(half.pixels.astype(int) - whole[::2, ::2]).mean() < 4
    # the box is in pixels of the file
    part, size, ratio = half.crop((20.0, 40.0, 120.0, 240.0), HERE)
    assert part.shape == (100, 50, 3) and size == (100, 200) and ratio == 200 / 420
    # what is asked for is never fewer pixels than the features are made of
    assert read_picture(data, HERE, longer_side=300).pixels.shape[1::-1] == upright
    ordinary = encoded(photo.resize((240, 160)), form, quality=95)
    assert np.array_equal(read_picture(ordinary, HERE, longer_side=32).pixels, decode(ordinary, HERE))


def test_the_size_of_an_image_is_that_of_the_upright_image(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for form in ("JPEG", "PNG", "WEBP", "TIFF"):
            (tmp_path / "a").write_bytes(encoded(Image.fromarray(COLOURS), form, exif=exif))
            height, width = decode((tmp_path / "a").read_bytes(), tmp_path / "a").shape[:2]
            assert size_of(tmp_path / "a") == (width, height), (form, orientation)
    with pytest.raises(UnreadableImage, match="nothing"):
        size_of(tmp_path / "nothing")


def test_of_several_frames_the_first_is_read() -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        lossless = {"lossless": True} if form == "WEBP" else {}
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **lossless)
        assert (decode(data, HERE) == (255, 0, 0)).all(), form


def test_what_is_a_program_or_no_picture_is_not_opened_whatever_its_suffix_says() -> None:
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"\x89HDF\r\n\x1a\n" + b"\0" * 99):
        with pytest.raises(UnreadableImage, match="its content is of no format that is read here"):
            decode(content, HERE)


def test_messages_name_the_file_and_no_object_in_memory() -> None:
    for data in BROKEN.values():
        with pytest.raises(UnreadableImage) as caught:
            decode(data, HERE)
        assert "BytesIO" not in str(caught.value) and "0x" not in str(caught.value)


HEIF_FILE = b"\0\0\0\x18ftypheic" + encoded(Image.fromarray(COLOURS))
OPENER = """
import io
from PIL import Image, PngImagePlugin
def factory(file, name):
    file.seek(12)
    return PngImagePlugin.PngImageFile(io.BytesIO(file.read()))
def register_heif_opener():
    Image.register_open("HEIF", factory, lambda prefix: prefix[4:12] == b"ftypheic")
"""


def test_heif_names_the_package_it_needs_and_is_read_where_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "heif_here", lambda: False)
    with pytest.raises(UnreadableImage, match=r"picture.png: not a readable image .*HEIF, which needs .* pillow-heif"):
        decode(HEIF_FILE, HERE)
    assert ".heic" not in images.suffixes()
    monkeypatch.undo()
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    (tmp_path / "pillow_heif.py").write_text(OPENER)
    monkeypatch.syspath_prepend(tmp_path)
    Image.OPEN.pop("HEIF", None)
    assert np.array_equal(decode(HEIF_FILE, HERE), COLOURS) and ".heic" in images.suffixes()
    sys.modules.pop("pillow_heif", None)


@given(st.binary(max_size=60), st.integers(0, len(WHOLE) - 1))
@settings(max_examples=60)
def test_damage_anywhere_is_read_or_refused_and_nothing_else(damage: bytes, at: int) -> None:
    try:
        found = decode(WHOLE[:at] + damage + WHOLE[at + len(damage) :], HERE)
    except UnreadableImage:
        return
    assert found.ndim == 3 and found.shape[2] == 3 and found.dtype == np.uint8


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(UnreadableImage, match="cannot be read"):
            read_bytes(path)
    assert content_hash(b"a") != content_hash(b"b")


def test_a_box_is_cropped_with_rounding_and_clipped_to_the_image() -> None:
    image = np.arange(40 * 60 * 3, dtype=np.int64).reshape(40, 60, 3)
    part, ratio = crop(image, (9.6, 4.4, 30.5, 20.0), HERE)
    assert np.array_equal(part, image[4:20, 10:30]) and ratio == 20 / 60
    part, ratio = crop(image, (-5, -5, 1000, 1000), HERE)
    assert np.array_equal(part, image) and ratio == 1
    assert crop(image, None, HERE) == (image, 1.0) or np.array_equal(crop(image, None, HERE)[0], image)


@pytest.mark.parametrize(
    "box", [(60.0, 0.0, 90.0, 20.0), (0.0, 40.0, 9.0, 50.0), (-9.0, -9.0, 0.0, 0.0), (3.1, 3.1, 3.3, 9.0)]
)
def test_a_box_outside_the_image_or_thinner_than_a_pixel_is_the_users_error(box: tuple) -> None:
    with pytest.raises(UserError, match="outside the image of 60x40"):
        crop(COLOURS, box, HERE)


@given(*(st.floats(-100, 160) for _ in range(4)))
def test_a_box_is_cut_to_at_least_four_pixels_of_the_image_or_refused(
    x1: float, y1: float, x2: float, y2: float
) -> None:
    try:
        part, ratio = crop(COLOURS, (x1, y1, x2, y2), HERE)
    except UserError as refusal:
        assert "60x40" in str(refusal) and "not fractions" in str(refusal)
        inside = [round(min(max(v, 0), most)) for v, most in ((x1, 60), (y1, 40), (x2, 60), (y2, 40))]
        assert inside[2] - inside[0] < 4 or inside[3] - inside[1] < 4
        return
    assert min(part.shape[:2]) >= 4 and ratio == max(part.shape[:2]) / 60


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(4, 9000), st.integers(4, 9000))
def test_a_box_in_fractions_is_refused_in_any_image(
    x1: float, y1: float, x2: float, y2: float, width: int, height: int
) -> None:
    with pytest.raises(UserError, match="not fractions"):
        cut((x1, y1, x2, y2), (width, height), HERE)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(32, 64))
@settings(max_examples=30)
def test_shrinking_keeps_the_shape_and_never_enlarges(width: int, height: int, side: int) -> None:
    found = shrink(np.zeros((height, width, 3), np.uint8), side)
    assert max(found.shape[:2]) == min(max(width, height), side) and min(found.shape[:2]) >= 1
    if max(width, height) <= side:
        assert found.shape == (height, width, 3)


def test_real_views_survive_a_round_trip(view: Callable[[int, int], np.ndarray]) -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(view(0, 0))), HERE), view(0, 0))
