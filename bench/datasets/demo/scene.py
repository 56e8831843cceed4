"""The scenes of the `demo` data set: buildings in three dimensions, generated from numbers.

World: metres, x right along the main facade, y up, z towards the viewer; the main facade lies in z = 0, centred on
x = 0, its foot at y = 0. Pictures are drawn back to front with Pillow's perspective transform, in eight-bit integers,
so the same numbers give the same pixels. Canvas and textures are "RGBX": X is coverage in a texture, and on the canvas
255 where the building's own facade is what one sees, which is what visibility is measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
PIXELS_PER_METRE = 40  # of the main facade's texture: 2 to 3 times what an ordinary view resolves
RECESS, RELIEF = -0.35, 0.18  # depth of the glass behind the wall, of mouldings in front of it, in metres

# The vocabulary every building of every seed is put together from.
WALLS: tuple[Colour, ...] = (
    (176, 96, 72),
    (202, 184, 150),
    (222, 212, 190),
    (150, 142, 134),
    (206, 160, 112),
    (190, 120, 96),
    (228, 200, 150),
    (168, 178, 172),
    (120, 140, 172),
    (132, 156, 110),
    (206, 136, 136),
    (98, 92, 96),
    (236, 232, 224),
    (212, 150, 60),
)
TRIMS: tuple[Colour, ...] = ((226, 218, 202), (196, 180, 152), (120, 112, 106), (236, 232, 226), (150, 96, 74))
FRAMES: tuple[Colour, ...] = ((240, 238, 232), (70, 52, 40), (46, 66, 58), (60, 66, 78), (130, 60, 48))
ROOFS: tuple[Colour, ...] = ((150, 74, 54), (78, 82, 92), (96, 132, 116), (110, 84, 66))
GROUNDS: tuple[Colour, ...] = (
    (128, 126, 122),
    (142, 132, 120),
    (108, 122, 84),
    (150, 146, 140),
    (120, 114, 112),
    (136, 130, 126),
)
SIGNS: tuple[Colour, ...] = ((176, 40, 40), (32, 70, 130), (30, 96, 66), (226, 180, 50), (40, 38, 42), (230, 226, 214))
MATERIALS = {
    "brick": (0.15, 0.42),
    "ashlar": (0.48, 0.9),
    "rubble": (0.34, 0.5),
    "panel": (1.2, 1.5),
    "plaster": (0, 0),
}
PATTERNS = ("none", "none", "stripes", "checks", "lozenges", "timber", "bands")
SHAPES = ("rect", "rect", "arch", "pointed")
MOTIFS = ("relief", "mosaic", "sign", "clock", "mural")
ROOF_KINDS = ("gable", "front", "flat", "mansard")


@dataclass(frozen=True)
class Style:
    """What buildings may share: materials, colours, kinds of parts. Says nothing of where the parts are."""

    material: str
    grain: float  # size of the stones, 1: usual
    pattern: str
    wall: Colour
    second: Colour  # of the pattern
    trim: Colour
    frame: Colour
    roof: Colour
    roof_kind: str
    shape: str
    panes: tuple[int, int]
    window: tuple[float, float]  # width, height in metres
    hood: str
    shutters: bool
    bay: float
    storey: float
    motif: str  # the ornament it likes best
    richness: float  # of ornament, 1: usual


class Panel(NamedTuple):
    """A textured parallelogram: top left corner, vectors along its top and down its left edge, in metres."""

    corner: np.ndarray
    across: np.ndarray
    down: np.ndarray
    texture: Image.Image
    own: bool = False  # part of the landmark's main facade
    glow: bool = False  # not shaded by its direction to the sun (foliage, people, far houses)


class Facade(NamedTuple):
    """Layers of one wall, equally large RGBX images: glass behind, wall with holes, mouldings in front; loose parts."""

    recess: Image.Image
    wall: Image.Image
    relief: Image.Image
    parts: list[tuple[float, float, float, float, float, Image.Image]]  # x, y (from the top), width, height, z; metres


@dataclass(frozen=True)
class Building:
    """A building with its surroundings. `outline` (n, 3): corners of the building, for the query box."""

    width: float
    height: float
    facade: Facade
    ground: Colour
    around: tuple[Panel, ...]  # paving, far houses, neighbours
    body: tuple[Panel, ...]  # faces beside the main facade
    front: tuple[Panel, ...]  # volumes drawn after it: roof edges, towers
    wings: tuple[tuple[float, tuple[Panel, ...]], ...]  # (x of the centre, faces): order depends on the camera
    standing: tuple[tuple[str, int, float, float], ...]  # fixed trees, lamps and columns: kind, variant, x, z
    columns: tuple[tuple[float, float, float, Image.Image], ...]  # x, radius, height, texture
    portico: Panel | None
    outline: np.ndarray


# ---------------------------------------------------------------------------------------------- textures


def _rgbx(rgb: np.ndarray, cover: np.ndarray | int = 255) -> Image.Image:
    pixels = np.empty((*rgb.shape[:2], 4), np.uint8)
    pixels[..., :3] = rgb
    pixels[..., 3] = cover
    return Image.frombuffer("RGBX", (rgb.shape[1], rgb.shape[0]), pixels.tobytes(), "raw", "RGBX", 0, 1)


def _cover(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The RGBX image with `mask` (L) as its coverage."""
    return Image.merge("RGBX", (*image.split()[:3], mask))


def _noise(rng: np.random.Generator, width: int, height: int, cell: float) -> np.ndarray:
    """(height, width) smooth noise in about 0..1 with bumps of `cell` pixels."""
    grid = rng.random((max(2, round(height / cell) + 1), max(2, round(width / cell) + 1)), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _tint(colour: Sequence[float] | np.ndarray, factor: float) -> Colour:
    r, g, b = (int(min(max(c * factor, 0), 255)) for c in colour[:3])
    return r, g, b


def _vary(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    return _tint([c * (1 + rng.normal(0, spread / 2)) for c in colour], 1 + rng.normal(0, spread))


def _stones(
    rng: np.random.Generator,
    width: int,
    height: int,
    stone: tuple[float, float],
    colour: Colour,
    spread: float,
    ragged: float,
) -> np.ndarray:
    """(height, width, 3) float32 courses of stones, each its own tone; `stone` height, width in pixels."""
    courses = np.cumsum(stone[0] * (1 + ragged * rng.uniform(-0.5, 0.5, int(height / stone[0] * 2) + 4)))
    y = np.arange(height)
    row = np.searchsorted(courses, y, side="right")
    long = stone[1] * (1 + ragged * rng.uniform(-0.45, 0.6, len(courses)))
    along = (np.arange(width)[None] + rng.uniform(0, stone[1] * 5, len(courses))[row][:, None]) / long[row][:, None]
    column = along.astype(np.int32)
    tones = (
        1
        + spread * rng.standard_normal((len(courses), int(along.max()) + 2, 1))
        + 0.35 * spread * rng.standard_normal((len(courses), int(along.max()) + 2, 3))
    )
    odd = rng.random(tones.shape[:2]) < 0.06  # a few repaired or burnt stones: landmarks of their own
    tones[odd] *= rng.choice((0.62, 1.3), (int(odd.sum()), 1))
    out = (tones * np.asarray(colour)).astype(np.float32)[row[:, None], column]
    joint = (along - column) * long[row][:, None] < 1.3
    joint |= (y - np.concatenate(([0.0], courses))[row] < 1.3)[:, None]
    out[joint] = np.asarray(colour, np.float32) * (0.72 if ragged else 0.8)
    return out


def wall_texture(rng: np.random.Generator, style: Style, width: int, height: int, ppm: float) -> np.ndarray:
    """(height, width, 3) uint8 of the style's wall, weathered in a way that is this wall's own."""
    stone = MATERIALS[style.material]
    if style.material == "plaster":
        rgb = np.broadcast_to(np.asarray(style.wall, np.float32), (height, width, 3)).copy()
        rgb *= 0.9 + 0.2 * _noise(rng, width, height, ppm * 0.12)[..., None]
        bare = _noise(rng, width, height, ppm * 1.6) + 0.25 * _noise(rng, width, height, ppm * 0.2) > 1.06
        bricks = _stones(rng, width, height, (0.15 * ppm, 0.42 * ppm), WALLS[0], 0.12, 0.0)
        rgb[bare] = bricks[bare]  # plaster fallen off
    else:
        rgb = _stones(
            rng,
            width,
            height,
            (stone[0] * ppm * style.grain, stone[1] * ppm * style.grain),
            style.wall,
            0.05 if style.material == "panel" else 0.11,
            0.9 if style.material == "rubble" else 0.0,
        )
        rgb *= 0.94 + 0.12 * _noise(rng, width, height, ppm * 0.07)[..., None]
    if style.pattern != "none":
        ratio = (np.asarray(style.second, np.float32) + 8) / (np.asarray(style.wall, np.float32) + 8)
        rgb[_pattern(style, width, height, ppm)] *= ratio
    dirt = 0.78 + 0.34 * _noise(rng, width, height, ppm * 2.2)
    for _ in range(rng.poisson(5)):  # dark streaks where water runs
        x, y = int(rng.integers(width)), int(rng.integers(height))
        w, h = int(ppm * rng.uniform(0.1, 0.5)) + 1, int(ppm * rng.uniform(0.8, 3)) + 1
        patch = dirt[y : y + h, x : x + w]
        patch *= 1 - rng.uniform(0.15, 0.4) * np.linspace(1, 0, h)[: len(patch), None]
    dirt[-int(ppm * 0.8) :] *= np.linspace(1, 0.75, int(ppm * 0.8))[:, None]
    return (rgb * dirt[..., None]).clip(0, 255).astype(np.uint8)


def _pattern(style: Style, width: int, height: int, ppm: float) -> np.ndarray:
    """(height, width) bool: where the wall has its second colour."""
    step = 1.1 * ppm * style.grain
    y, x = np.arange(height)[::-1, None] / step, np.arange(width)[None] / step
    if style.pattern == "stripes":
        return np.broadcast_to(y % 1 < 0.4, (height, width))
    if style.pattern == "bands":
        return np.broadcast_to(x % 2 < 0.5, (height, width))
    if style.pattern == "checks":
        return (np.floor(x) + np.floor(y)) % 2 == 0
    if style.pattern == "lozenges":
        return np.abs(x % 1 - 0.5) + np.abs(y % 1 - 0.5) < 0.3
    bar = 0.16
    return (x % 2 < bar) | (y % 2 < bar) | (np.abs(x % 2 - y % 2) < bar)  # timber frame with braces


def _opening(shape: str, width: int, height: int) -> Image.Image:
    """Mask (L) of a window or door opening."""
    mask = Image.new("L", (width * 2, height * 2), 0)
    draw, w, h = ImageDraw.Draw(mask), width * 2, height * 2
    if shape == "round":
        draw.ellipse((0, 0, w - 1, h - 1), fill=255)
    elif shape == "arch" and h > w / 2:
        draw.ellipse((0, 0, w - 1, w - 1), fill=255)
        draw.rectangle((0, w // 2, w, h), fill=255)
    elif shape == "pointed" and h > w / 2:
        arc = [(w / 2 * t**0.7, min(w * 0.8, h * 0.6) * t) for t in np.linspace(0, 1, 8)]
        left, right = [(w / 2 - x, y) for x, y in arc], [(w / 2 + x, y) for x, y in arc[::-1]]
        draw.polygon([*left, (0, h), (w, h), *right], fill=255)
    else:
        draw.rectangle((0, 0, w, h), fill=255)
    return mask.reduce(2)


def _glass(rng: np.random.Generator, style: Style, width: int, height: int) -> Image.Image:
    """A window's glass and frame: panes of differing reflection, and what its tenants did with it."""
    w, h = width * 2, height * 2
    image = Image.new("RGB", (w, h), style.frame)
    draw = ImageDraw.Draw(image)
    base = np.asarray((52, 62, 76)) * rng.uniform(0.7, 1.5)
    columns, rows = style.panes
    bar = max(2, min(w, h) // 18)
    for i in range(columns):
        for j in range(rows):
            box = (
                bar + i * (w - bar) // columns,
                bar + j * (h - bar) // rows,
                (i + 1) * (w - bar) // columns - 1,
                (j + 1) * (h - bar) // rows - 1,
            )
            if box[2] > box[0] and box[3] > box[1]:
                draw.rectangle(box, fill=_tint(base, rng.uniform(0.7, 1.4)))
    habit = rng.random()
    cloth = _vary(rng, (206, 196, 180), 0.15)
    if habit < 0.25:  # curtains
        for x in (bar, w - bar - w // 5):
            draw.rectangle((x, bar, x + w // 5, h - bar), fill=cloth)
    elif habit < 0.45:  # a blind let down so far
        draw.rectangle((bar, bar, w - bar, int(h * rng.uniform(0.2, 0.8))), fill=cloth)
    elif habit < 0.52:
        draw.rectangle((bar, bar, w - bar, h - bar), fill=_vary(rng, style.trim, 0.2))
    return image.reduce(2)


def ornament(rng: np.random.Generator, width: int, height: int, colour: Colour, motif: str) -> Image.Image:
    """RGBX `motif`, or another: relief, mosaic, sign, clock or mural: no two alike."""
    w, h = max(width, 12) * 2, max(height, 12) * 2
    image = Image.new("RGBX", (w, h), (*_tint(colour, 0.8), 255))
    draw = ImageDraw.Draw(image)
    kind = motif if rng.random() < 0.6 else MOTIFS[int(rng.integers(len(MOTIFS)))]
    if kind == "mosaic":
        n, m = int(rng.integers(4, 9)), int(rng.integers(4, 9))
        colours = [_vary(rng, SIGNS[int(rng.integers(len(SIGNS)))], 0.2) for _ in range(4)]
        for i in range(n):
            for j in range(m):
                draw.rectangle(
                    (i * w // n, j * h // m, (i + 1) * w // n - 2, (j + 1) * h // m - 2),
                    fill=(*colours[int(rng.integers(4))], 255),
                )
    elif kind == "sign":
        ground, ink = (SIGNS[int(i)] for i in rng.choice(len(SIGNS), 2, replace=False))
        draw.rectangle((0, 0, w, h), fill=(*ground, 255))
        letter = max(h * 0.5, 5)
        for k in range(max(1, int(w / letter / 1.1))):
            points = rng.uniform(0, 1, (4, 2)) * (letter * 0.7, h * 0.7) + (k * letter * 1.1 + 3, h * 0.15)
            draw.line([tuple(p) for p in points], fill=(*ink, 255), width=max(2, h // 10))
    elif kind == "clock":
        image.paste((*_tint(colour, 0.8), 0), (0, 0, w, h))
        r = min(w, h) // 2 - 1
        cx, cy = w // 2, h // 2
        draw.ellipse(
            (cx - r, cy - r, cx + r, cy + r),
            fill=(*_tint(colour, 1.15), 255),
            outline=(50, 44, 40, 255),
            width=max(2, r // 7),
        )
        for angle, length in zip(rng.uniform(0, 6.28, 9), (0.8, 0.6, *[0.5] * 7), strict=True):
            draw.line(
                (cx, cy, cx + r * length * np.cos(angle), cy + r * length * np.sin(angle)),
                fill=(60, 50, 60, 255),
                width=max(2, r // 9),
            )
    else:
        for _ in range(int(rng.integers(6, 13))):
            centre, size = rng.uniform(0.1, 0.9, 2) * (w, h), rng.uniform(0.08, 0.32) * min(w, h)
            tone = (
                _tint(colour, rng.uniform(0.45, 1.35))
                if kind == "relief"
                else _vary(rng, SIGNS[int(rng.integers(len(SIGNS)))], 0.25)
            )
            if rng.random() < 0.4:
                draw.ellipse((*(centre - size), *(centre + size)), fill=(*tone, 255), outline=(*_tint(tone, 0.6), 255))
            else:
                angles = np.sort(rng.uniform(0, 6.28, int(rng.integers(3, 6))))
                points = centre + size * rng.uniform(0.6, 1.5) * np.stack((np.cos(angles), np.sin(angles)), 1)
                draw.polygon([tuple(p) for p in points], fill=(*tone, 255), outline=(*_tint(tone, 0.6), 255))
    if kind != "clock":
        draw.rectangle((0, 0, w - 1, h - 1), outline=(*_tint(colour, 1.1), 255), width=3)
    return image.reduce(2)


# ---------------------------------------------------------------------------------------------- buildings


def make_style(rng: np.random.Generator) -> Style:
    """A draw from the vocabulary."""

    def one(options: Sequence[Any]) -> Any:
        return options[int(rng.integers(len(options)))]

    return Style(
        material=one(tuple(MATERIALS)),
        grain=float(np.exp(rng.uniform(-0.5, 0.6))),
        pattern=one(PATTERNS),
        wall=_vary(rng, one(WALLS), 0.1),
        second=_vary(rng, one(WALLS), 0.1),
        trim=_vary(rng, one(TRIMS), 0.1),
        frame=_vary(rng, one(FRAMES), 0.15),
        roof=_vary(rng, one(ROOFS), 0.15),
        roof_kind=one(ROOF_KINDS),
        shape=one(SHAPES),
        panes=one(((1, 1), (1, 2), (2, 2), (2, 3), (3, 5), (2, 1), (4, 3))),
        window=(rng.uniform(0.7, 2.0), rng.uniform(1.1, 2.7)),
        hood=one(("none", "flat", "gable")),
        shutters=bool(rng.random() < 0.25),
        bay=rng.uniform(1.8, 4.2),
        storey=rng.uniform(2.8, 4.3),
        motif=one(MOTIFS),
        richness=rng.uniform(0.3, 1.8),
    )


def _frame_of(draw: ImageDraw.ImageDraw, style: Style, box: tuple[int, int, int, int], border: int) -> None:
    """Moulding round an opening, lit above and dark below, with the style's hood over it."""
    x0, y0, x1, y1 = box
    light, plain, dark = ((*_tint(style.trim, f), 255) for f in (1.12, 0.98, 0.66))
    for side in ((x0 - border, y0, x0, y1), (x1, y0, x1 + border, y1)):
        draw.rectangle(side, fill=plain, outline=dark)
    draw.rectangle((x0 - border * 2, y1, x1 + border * 2, y1 + border), fill=light, outline=dark)
    if style.shape == "rect":
        draw.rectangle((x0 - border, y0 - border, x1 + border, y0), fill=light, outline=dark)
    if style.hood == "flat":
        draw.rectangle((x0 - border * 2, y0 - border * 3, x1 + border * 2, y0 - border * 2), fill=light, outline=dark)
    elif style.hood == "gable":
        draw.polygon(
            [(x0 - border * 2, y0 - border), ((x0 + x1) / 2, y0 - border * 4), (x1 + border * 2, y0 - border)],
            fill=plain,
            outline=dark,
        )


def make_facade(
    rng: np.random.Generator,
    style: Style,
    width: float,
    height: float,
    ppm: float,
    doors: bool = True,
    richness: float = 1.0,
) -> Facade:
    """A wall of `width` x `height` metres: an arrangement of the style's parts that is drawn from `rng`."""
    w, h, richness = round(width * ppm), round(height * ppm), richness * style.richness
    wall = _rgbx(wall_texture(rng, style, w, h, ppm))
    recess = Image.new("RGBX", (w, h), (*_tint(style.wall, 0.5), 255))
    relief = Image.new("RGBX", (w, h), (*style.trim, 0))
    draw = ImageDraw.Draw(relief)
    holes = Image.new("L", (w, h), 255)
    parts: list[tuple[float, float, float, float, float, Image.Image]] = []
    border = max(1, round(0.1 * ppm))

    bays = max(1, round(width / style.bay))
    share = 1 + rng.uniform(-0.3, 0.3, bays) * (rng.random() < 0.5)
    edges = np.concatenate(([0.0], np.cumsum(share / share.sum()))) * width
    storeys = max(1, round(height / style.storey))
    levels = np.linspace(height, 0, storeys + 1)  # y of the storeys' floors, from the top, ground floor first
    symmetric = rng.random() < 0.5
    door_bays = set(rng.choice(bays, min(bays, int(rng.integers(1, 3))), replace=False).tolist()) if doors else set()
    kinds = rng.choice(5, (storeys, bays), p=(0.74, 0.06, 0.09, 0.06, 0.05))  # window, none, ornament, wide, round
    wide = rng.uniform(0.85, 1.2, storeys)
    tall = rng.uniform(0.8, 1.15, storeys)

    for level in range(storeys):
        floor, room = levels[level], levels[level] - levels[level + 1]
        if rng.random() < 0.6 and level:  # a string course
            y = round(floor * ppm)
            draw.rectangle((0, y - border, w, y + border), fill=(*_tint(style.trim, 1.05), 255))
            draw.line((0, y + border, w, y + border), fill=(*_tint(style.trim, 0.6), 255), width=1)
        for bay in range(bays):
            mirror = bays - 1 - bay if symmetric and bay >= bays / 2 and rng.random() < 0.9 else bay
            kind, middle = int(kinds[level, mirror]), (edges[bay] + edges[bay + 1]) / 2
            span = edges[bay + 1] - edges[bay]
            door = level == 0 and bay in door_bays
            ww, hh = min(style.window[0] * wide[level], span * 0.62), min(style.window[1] * tall[level], room * 0.62)
            if door:
                ww, hh = min(ww * 1.4, span * 0.7), room * 0.74
            elif kind == 3:
                ww = span * 0.78
            elif kind == 4:
                ww = hh = min(ww, hh)
            bottom = floor - (0 if door else room * 0.22)
            x0, y0 = round((middle - ww / 2) * ppm), round((bottom - hh) * ppm)
            size = (round(ww * ppm), round(hh * ppm))
            if min(size) < 8 or (kind == 1 and not door):
                continue  # a blind bay, or no room
            if kind == 2 and not door:
                relief.paste(part := ornament(rng, *size, style.trim, style.motif), (x0, y0), part.getchannel(3))
                continue
            mask = _opening("round" if kind == 4 and not door else style.shape, *size)
            holes.paste(0, (x0, y0), mask)
            box = (x0, y0, x0 + size[0], y0 + size[1])
            if door:
                recess.paste(_tint(style.frame, 0.8), box)
                recess.paste(ornament(rng, size[0], max(3, size[1] // 4), style.trim, style.motif), box[:2])
                recess_draw = ImageDraw.Draw(recess)
                for k in range(1, 4):
                    y = y0 + size[1] * (k + 1) // 5
                    recess_draw.rectangle(
                        (x0 + border, y, x0 + size[0] - border, y + size[1] // 6),
                        outline=(*_tint(style.frame, 1.5), 255),
                        fill=(*_vary(rng, style.frame, 0.1), 255),
                    )
            else:
                recess.paste(_glass(rng, style, *size), box[:2])
            if kind != 4 or door:
                _frame_of(draw, style, box, border)
            if style.shutters and not door and kind == 0 and rng.random() < 0.85:
                leaf = max(2, size[0] // 2)
                for x in (x0 - leaf - border, x0 + size[0] + border):
                    draw.rectangle((x, y0, x + leaf, y0 + size[1]), fill=(*_vary(rng, style.frame, 0.08), 255))
                    for y in range(y0 + 2, y0 + size[1], max(3, border)):
                        draw.line((x + 1, y, x + leaf - 1, y), fill=(*_tint(style.frame, 0.6), 255))
            if level and kind in (0, 3) and rng.random() < 0.13 * richness:
                parts.append((middle - ww * 0.75, bottom - 0.75, ww * 1.5, 1.0, 0.75, _railing(rng, style)))
    for _ in range(rng.poisson(3.0 * richness)):  # what this house alone has
        ow, oh = rng.uniform(0.7, 2.6), rng.uniform(0.6, 1.6)
        x, y = rng.uniform(0, max(width - ow, 0.1)), rng.uniform(0.2, max(height - oh, 0.3))
        art = ornament(rng, round(ow * ppm), round(oh * ppm), _vary(rng, style.trim, 0.1), style.motif)
        if rng.random() < 0.5:
            parts.append((x, y, ow, oh, rng.uniform(0.3, 0.9), art))
        else:
            relief.paste(art, (round(x * ppm), round(y * ppm)), art.getchannel(3))
    top = round(0.45 * ppm)
    for k, factor in enumerate((1.1, 0.75, 1.0)):
        draw.rectangle((0, k * top // 3, w, (k + 1) * top // 3), fill=(*_tint(style.trim, factor), 255))
    for x in np.arange(rng.uniform(0, 0.3), width, rng.uniform(0.4, 0.9)):  # brackets under the cornice
        draw.rectangle((x * ppm, top, x * ppm + border * 1.5, top + border * 2), fill=(*_tint(style.trim, 0.9), 255))
    return Facade(recess, _cover(wall, holes), relief, parts)


def _railing(rng: np.random.Generator, style: Style) -> Image.Image:
    image = Image.new("RGBX", (60, 40), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    iron = (*_vary(rng, (48, 46, 50), 0.2), 255)
    for x in range(0, 60, int(rng.integers(4, 9))):
        draw.line((x, 2, x, 34), fill=iron, width=2)
    draw.rectangle((0, 0, 59, 3), fill=iron)
    draw.rectangle((0, 33, 59, 39), fill=(*_tint(style.trim, 0.8), 255))
    if rng.random() < 0.5:
        for x in rng.integers(0, 52, 7).tolist():
            draw.ellipse((x, 24, x + 9, 33), fill=(*_vary(rng, (170, 60, 70), 0.3), 255))
    return image


def flatten(facade: Facade) -> Image.Image:
    """The facade painted on one plane, for sides, towers and neighbours."""
    image = facade.recess.copy()
    for layer in (facade.wall, facade.relief):
        image.paste(layer, (0, 0), layer.getchannel(3))
    return _cover(image, Image.new("L", image.size, 255))


def _triangle(image: Image.Image) -> Image.Image:
    w, h = image.size
    mask = Image.new("L", (w, h), 0)
    ImageDraw.Draw(mask).polygon([(0, h), (w / 2, 0), (w, h)], fill=255)
    return _cover(image, mask)


def _v(*xyz: float) -> np.ndarray:
    return np.asarray(xyz, np.float64)


def _box(
    x0: float, x1: float, height: float, z: float, depth: float, front: Image.Image | None, side: Image.Image
) -> list[Panel]:
    """Left, right and front faces of an upright box."""
    down = _v(0, -height, 0)
    faces = [
        Panel(_v(x0, height, z - depth), _v(0, 0, depth), down, side),
        Panel(_v(x1, height, z), _v(0, 0, -depth), down, side),
    ]
    return faces + ([Panel(_v(x0, height, z), _v(x1 - x0, 0, 0), down, front)] if front else [])


def _roof(
    rng: np.random.Generator, style: Style, kind: str, x0: float, x1: float, base: float, z: float, depth: float
) -> list[Panel]:
    """Roof over a box, overhanging a little; faces from far to near."""
    wide, rise = x1 - x0 + 0.6, rng.uniform(0.5, 0.9) * min(depth, x1 - x0, 9) / (2.4 if kind == "flat" else 1.5)
    x0, x1, middle, z, back = x0 - 0.3, x1 + 0.3, (x0 + x1) / 2, z + 0.3, z - depth

    def tiles(w: float, h: float) -> Image.Image:
        ppm = 20
        return _rgbx(
            _stones(rng, max(4, round(w * ppm)), max(4, round(h * ppm)), (0.3 * ppm, 0.35 * ppm), style.roof, 0.1, 0.0)
            .clip(0, 255)
            .astype(np.uint8)
        )

    def gable(w: float, h: float) -> Image.Image:
        return _triangle(flatten(make_facade(rng, style, w, h, 24, doors=False)))

    if kind == "spire":
        rise = rng.uniform(0.8, 2.2) * (x1 - x0)
        mid = (z + back) / 2
        return [
            Panel(
                _v(middle, base + rise, back),
                _v(0, 0, z - back),
                _v(x0 - middle, -rise, 0),
                _triangle(tiles(z - back, rise)),
            ),
            Panel(
                _v(middle, base + rise, z),
                _v(0, 0, back - z),
                _v(x1 - middle, -rise, 0),
                _triangle(tiles(z - back, rise)),
            ),
            Panel(_v(x0, base + rise, mid), _v(wide, 0, 0), _v(0, -rise, z - mid), _triangle(tiles(wide, rise))),
        ]
    if kind == "front":
        along, slope = _v(0, 0, z - back), tiles(depth, wide / 2)
        return [
            Panel(_v(middle, base + rise, back), along, _v(x0 - middle, -rise, 0), slope),
            Panel(_v(middle, base + rise, z), -along, _v(x1 - middle, -rise, 0), slope),
            Panel(_v(x0, base + rise, z - 0.3), _v(wide, 0, 0), _v(0, -rise, 0), gable(wide, rise)),
        ]
    if kind == "flat":
        rail = Image.new("RGBX", (round(wide * 24), 24), (*style.trim, 0))
        draw = ImageDraw.Draw(rail)
        step, gap = int(rng.integers(10, 30)), int(rng.integers(3, 9))
        for x in range(0, rail.width, step):
            draw.rectangle((x, 0, x + step - gap, 24), fill=(*_vary(rng, style.trim, 0.05), 255))
        draw.rectangle((0, 12 if rng.random() < 0.5 else 0, rail.width, 15), fill=(*_tint(style.trim, 1.1), 255))
        return [Panel(_v(x0, base + 1, z - 0.2), _v(wide, 0, 0), _v(0, -1, 0), rail)]
    ridge = z - depth / 2 if kind == "gable" else z - 1.5
    faces = [Panel(_v(x0, base + rise, ridge), _v(wide, 0, 0), _v(0, -rise, z - ridge), tiles(wide, rise * 1.4))]
    if kind == "gable":
        for end, near, far in ((x0 + 0.3, back, z), (x1 - 0.3, z, back)):
            along = _v(0, 0, far - near)
            faces.insert(0, Panel(_v(end, base + rise, near), along, _v(0, -rise, 0), gable(depth, rise)))
    for _ in range(int(rng.integers(0, 5))):  # dormers and chimneys break the roof's line
        at, size = rng.uniform(x0 + 1, x1 - 2), rng.uniform(0.8, 1.5)
        faces.append(
            Panel(
                _v(at, base + rise * 0.2 + size * 1.2, z - 0.4),
                _v(size, 0, 0),
                _v(0, -size * 1.2, 0),
                flatten(make_facade(rng, style, size, size * 1.2, 24, doors=False, richness=0)),
            )
        )
    return faces


def make_building(style: Style, seed: Sequence[int]) -> Building:
    """One building with its surroundings; `style` says what its parts look like, `seed` how they are put together."""
    rng = np.random.default_rng(list(seed))
    width, storeys = rng.uniform(11, 19), int(rng.integers(2, 5))
    height, depth = storeys * style.storey, rng.uniform(8, 12)
    left, right = -width / 2, width / 2
    facade = make_facade(rng, style, width, height, PIXELS_PER_METRE)
    side = flatten(make_facade(rng, style, depth, height, 20, doors=False))
    kind = style.roof_kind if rng.random() < 0.7 else ROOF_KINDS[int(rng.integers(4))]
    ground = int(rng.integers(len(GROUNDS)))
    around, body = _surroundings(rng, width, ground), _box(left, right, height, 0, depth, None, side)
    roof = _roof(rng, style, kind, left, right, height, 0, depth)
    front: list[Panel] = []
    wings: list[tuple[float, tuple[Panel, ...]]] = []
    top = max(float(face.corner[1]) for face in roof)
    spots = [s for s, p in ((left, 0.35), (right, 0.35), (rng.uniform(-0.6, 0.6) * width / 2, 0.2)) if rng.random() < p]
    for x in spots[:2]:
        across, tall, out = rng.uniform(2.6, 4.2), height * rng.uniform(1.1, 1.7), rng.uniform(0.3, 1.2)
        wall = flatten(make_facade(rng, style, across, tall, 32, doors=False))
        flank = flatten(make_facade(rng, style, across, tall, 24, doors=False))
        front += _box(x - across / 2, x + across / 2, tall, out, across, wall, flank)
        cap = ("spire", "flat")[int(rng.integers(2))]
        front += _roof(rng, style, cap, x - across / 2, x + across / 2, tall, out, across)
        top = max(top, max(float(face.corner[1]) for face in front))
    extent = [left - 0.3, right + 0.3]
    for sign in (-1, 1):
        if rng.random() < 0.4:
            long, tall, back = rng.uniform(4, 8), height * rng.uniform(0.4, 0.8), rng.uniform(1, 4)
            x0 = right if sign > 0 else left - long
            wall = flatten(make_facade(rng, style, long, tall, 28))
            faces = _box(x0, x0 + long, tall, -back, depth - back, wall, side)
            faces += _roof(rng, style, "gable", x0, x0 + long, tall, -back, depth - back)
            wings.append((x0 + long / 2, tuple(faces)))
            extent = [min(extent[0], x0), max(extent[1], x0 + long)]
    columns: tuple[tuple[float, float, float, Image.Image], ...] = ()
    portico = None
    if rng.random() < 0.3:
        columns, portico = _portico(rng, style, rng.uniform(0.4, 0.8) * width, min(height * 0.7, style.storey * 1.6))
    standing = [
        ("tree", int(rng.integers(8)), rng.uniform(-1, 1) * width, rng.uniform(2.5, 7)) for _ in range(rng.poisson(0.9))
    ]
    standing += [
        ("lamp", int(rng.integers(4)), rng.uniform(-0.7, 0.7) * width, rng.uniform(2, 5))
        for _ in range(rng.poisson(0.8))
    ]
    outline = np.asarray([(x, y, z) for x in extent for y in (0, top) for z in (0, -3)], np.float64)
    return Building(
        width,
        height,
        facade,
        GROUNDS[ground],
        tuple(around),
        tuple(body),
        tuple(roof + front),
        tuple(wings),
        tuple(standing),
        columns,
        portico,
        outline,
    )


def _portico(
    rng: np.random.Generator, style: Style, width: float, height: float
) -> tuple[tuple[tuple[float, float, float, Image.Image], ...], Panel]:
    """Columns and a pediment 2 m in front of the wall."""
    count, radius = int(rng.integers(3, 7)), rng.uniform(0.22, 0.36)
    round_ = np.sin(np.linspace(0.25, 2.7, 16))[None, :, None].astype(np.float32)
    shaft = _stones(rng, 16, 120, (rng.uniform(12, 40), 99), style.trim, 0.07, 0.0) * (0.45 + 0.6 * round_)
    texture = _rgbx(shaft.clip(0, 255).astype(np.uint8))
    gable, ppm = rng.uniform(0.8, 1.8), 32
    image = flatten(make_facade(rng, style, width + 1, gable + 0.7, ppm, doors=False, richness=2))
    mask = Image.new("L", image.size, 0)
    w, h = image.size
    ImageDraw.Draw(mask).polygon([(0, h), (0, h - 0.7 * ppm), (w / 2, 0), (w, h - 0.7 * ppm), (w, h)], fill=255)
    panel = Panel(
        _v(-width / 2 - 0.5, height + gable + 0.7, 2.4),
        _v(width + 1, 0, 0),
        _v(0, -gable - 0.7, 0),
        _cover(image, mask),
        own=True,
    )
    xs = np.linspace(-width / 2, width / 2, count)
    return tuple((float(x), radius, height, texture) for x in xs), panel


@lru_cache(maxsize=16)
def _far_house(variant: int) -> Image.Image:
    rng = np.random.default_rng([7001, variant])
    return flatten(make_facade(rng, make_style(rng), 16, rng.uniform(8, 16), 6, doors=False, richness=0))


@lru_cache(maxsize=6)
def _ground(variant: int) -> Image.Image:
    rng = np.random.default_rng([7002, variant])
    size = ((8, 14), (12, 12), (6, 9), (20, 30), (5, 8), (14, 22))[variant]
    stones = _stones(rng, 1600, 1100, size, GROUNDS[variant], 0.08, float(variant % 2))
    stones *= 0.8 + 0.4 * _noise(rng, 1600, 1100, 60)[..., None]
    return _rgbx(stones.clip(0, 255).astype(np.uint8))


def _surroundings(rng: np.random.Generator, width: float, ground: int) -> list[Panel]:
    """Paving, far houses and neighbours: the same in every view of a place."""
    panels = [Panel(_v(-40, 0, -15), _v(80, 0, 0), _v(0, 0, 55), _ground(ground))]
    x = -80.0
    while x < 70:
        wide, tall = rng.uniform(10, 22), rng.uniform(5, 15)
        house = _far_house(int(rng.integers(16)))
        panels.append(Panel(_v(x, tall, -45), _v(wide, 0, 0), _v(0, -tall, 0), house, glow=True))
        x += wide + rng.uniform(0, 12)
    for sign in (-1, 1):
        if rng.random() < 0.6:
            style, wide, tall = make_style(rng), rng.uniform(7, 12), rng.uniform(6, 11)
            wall = flatten(make_facade(rng, style, wide, tall, 16, richness=0))
            gap, back = rng.uniform(8.5, 12), rng.uniform(4, 8)
            x0 = width / 2 + gap if sign > 0 else -width / 2 - gap - wide
            panels += _box(x0, x0 + wide, tall, -back, 8, wall, wall)
            panels += _roof(rng, style, "gable", x0, x0 + wide, tall, -back, 8)
    return panels
