"""Any image file is either read as upright 8-bit RGB or refused with its name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.errors import UserError
from bench.images import UnreadableImage, content_hash, crop, decode, read_bytes, shrink

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


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_every_known_format_is_read(form: str) -> None:
    assert decode(encoded(Image.fromarray(COLOURS), form), HERE).shape == COLOURS.shape


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


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="DecompressionBomb"):
        decode(encoded(Image.fromarray(COLOURS)), HERE)


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


@given(st.integers(1, 90), st.integers(1, 90), st.integers(32, 64))
@settings(max_examples=30)
def test_shrinking_keeps_the_shape_and_never_enlarges(width: int, height: int, side: int) -> None:
    found = shrink(np.zeros((height, width, 3), np.uint8), side)
    assert max(found.shape[:2]) == min(max(width, height), side) and min(found.shape[:2]) >= 1
    if max(width, height) <= side:
        assert found.shape == (height, width, 3)


def test_real_views_survive_a_round_trip(view: Callable[[int, int], np.ndarray]) -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(view(0, 0))), HERE), view(0, 0))
