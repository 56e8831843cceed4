"""The embedded data set `demo`: invented buildings from one shared vocabulary, seen from many sides.

Every building is a set of textured planes (`bench.datasets.scene`). A `Style` (walls, palette, windows, doors, ornaments) and a
massing (bays, floors, roof, towers, wings) are drawn from a vocabulary that all buildings share; the details (signs,
reliefs, stains, odd windows, odd stones) are each building's own. A distractor is another building; every third one is
a near-twin: a landmark's style with a layout and details of its own.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bench.datasets.scene import Camera, Light, Plane, Rendered, Vector, develop, draw, jpeg, silhouette

LONGER_SIDE = 480
PIXELS_PER_METRE = 30  # of wall textures
_VOCABULARY = 7  # seed of what all buildings share: trees, skylines, paving
_FIRST_DISTRACTOR = 1_000_000  # landmark numbers from here on are distractors
_MIP = 0.25  # size at which a view is tried before it is painted

Colour = tuple[int, int, int]
WALLS = ("brick", "blocks", "ashlar", "plaster", "tiles", "rubble", "bands", "timber")
ARCHES = ("flat", "flat", "round", "pointed", "segment")
SURROUNDS = ("none", "frame", "keystone", "pediment", "hood", "shutters", "quoined")
TOPS = ("parapet", "balustrade", "hip", "gable", "steps", "curved", "battlement", "mansard")
TOWERS = ("none", "none", "none", "left", "right", "middle", "both")
WALL_COLOURS: tuple[Colour, ...] = (
    (168, 88, 66), (140, 72, 58), (190, 122, 90), (205, 186, 150), (186, 170, 140), (222, 208, 176), (170, 166, 158),
    (146, 142, 138), (226, 196, 130), (218, 160, 130), (196, 208, 206), (232, 228, 218), (150, 160, 140), (120, 108, 100))
TRIM_COLOURS: tuple[Colour, ...] = ((235, 230, 215), (210, 196, 165), (180, 172, 160), (150, 120, 95), (120, 60, 48))
FRAME_COLOURS: tuple[Colour, ...] = ((240, 240, 235), (70, 52, 40), (40, 70, 60), (40, 50, 80), (130, 40, 36), (30, 30, 32))
ROOF_COLOURS: tuple[Colour, ...] = ((150, 72, 52), (92, 94, 104), (120, 86, 66), (84, 128, 112), (70, 66, 66))
ACCENTS: tuple[Colour, ...] = ((170, 40, 40), (30, 80, 140), (30, 100, 60), (220, 170, 40), (90, 50, 110), (230, 230, 230))


@dataclass(frozen=True)
class DemoSpec:
    """What to generate. `views` counts a landmark's gallery images; its query comes on top."""

    seed: int = 0
    landmarks: int = 40
    views: int = 9
    distractors: int = 400

    def __post_init__(self) -> None:
        for name, low, high in (("seed", 0, 2**31), ("landmarks", 1, 100_000), ("views", 5, 1000),
                                ("distractors", 0, 1_000_000)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


@dataclass(frozen=True)
class Style:
    """What near-twins share."""

    wall: str
    wall_colour: Colour
    trim: Colour
    frame: Colour
    roof: Colour
    accent: Colour
    arch: str
    surround: str
    panes: tuple[int, int]
    course: tuple[float, float]  # stone width and height, metres
    depth: float  # of the window recesses, metres
    quoins: bool
    string_course: bool
    pilasters: bool


@dataclass(frozen=True)
class Massing:
    """The building's proportions."""

    bays: int
    floors: int
    bay: float  # metres
    floor: float  # metres
    top: str
    tower: str
    wings: tuple[float, float]  # offset of the left and right wing's front from the main front, metres; 0 is no wing
    portico: int  # columns before the door, 0 for none

    @property
    def width(self) -> float:
        return self.bays * self.bay

    @property
    def height(self) -> float:
        return self.floors * self.floor + 0.8


@dataclass(frozen=True)
class Landmark:
    """A building and its surroundings: planes, and its middle and size (width, height) in metres."""

    planes: tuple[Plane, ...]
    middle: Vector
    size: tuple[float, float]
    style: Style
    massing: Massing


@dataclass(frozen=True)
class View:
    """The geometry of one picture of a landmark."""

    direction: Vector  # unit, from the landmark's middle to the camera
    scale: float  # pixels per metre at the landmark's middle
    visible: float  # share of the landmark's pixels that are inside the frame and not occluded, 0..1
    box: tuple[float, float, float, float] | None  # around what is visible; x1, y1, x2, y2 in pixels
    dim: bool = False  # dark or blurred


def _pick(rng: np.random.Generator, options: tuple) -> object:
    return options[int(rng.integers(len(options)))]


def _shift(colour: Colour, rng: np.random.Generator, by: float) -> Colour:
    values = np.clip(np.array(colour) * rng.uniform(1 - by, 1 + by) + rng.normal(0, 60 * by, 3), 10, 245)
    return int(values[0]), int(values[1]), int(values[2])


def _times(colour: Colour, by: float) -> Colour:
    return tuple(int(min(255, c * by)) for c in colour)  # type: ignore[return-value]


def sample_style(rng: np.random.Generator) -> Style:
    width = rng.uniform(0.45, 1.3)
    return Style(
        wall=_pick(rng, WALLS), wall_colour=_shift(_pick(rng, WALL_COLOURS), rng, 0.08), trim=_pick(rng, TRIM_COLOURS),
        frame=_pick(rng, FRAME_COLOURS), roof=_shift(_pick(rng, ROOF_COLOURS), rng, 0.08), accent=_pick(rng, ACCENTS),
        arch=_pick(rng, ARCHES), surround=_pick(rng, SURROUNDS),
        panes=(int(rng.integers(1, 4)), int(rng.integers(1, 5))), course=(width, width * rng.uniform(0.35, 0.6)),
        depth=rng.uniform(0.25, 0.6), quoins=rng.random() < 0.4, string_course=rng.random() < 0.6,
        pilasters=rng.random() < 0.25)


def sample_massing(rng: np.random.Generator) -> Massing:
    sides = [0.0 if rng.random() < 0.5 else float(rng.choice([-3.0, -1.5, 1.2, 2.5])) for _ in range(2)]
    return Massing(bays=int(rng.integers(3, 8)), floors=int(rng.integers(2, 6)), bay=rng.uniform(2.3, 3.4),
                   floor=rng.uniform(2.8, 3.8), top=_pick(rng, TOPS), tower=_pick(rng, TOWERS), wings=(sides[0], sides[1]),
                   portico=int(rng.choice([0, 0, 0, 2, 4, 6])))


# ---- textures ----------------------------------------------------------------------------------------------------------

def _noise(rng: np.random.Generator, h: int, w: int, cell: float, octaves: int = 3) -> np.ndarray:
    """(h, w) float32, about zero mean and unit deviation; `cell` is the largest feature in pixels."""
    total = np.zeros((h, w), dtype=np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        grid = rng.standard_normal((int(h / step) + 3, int(w / step) + 3), dtype=np.float32)
        total += np.asarray(Image.fromarray(grid).resize((w, h), Image.Resampling.BICUBIC)) / 2**octave
    return total


def _wall(style: Style, rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """(h, w, 3) uint8 masonry, stone by stone; no two buildings have the same stones."""
    ppm = PIXELS_PER_METRE
    colour = np.array(style.wall_colour, dtype=np.float32)
    y, x = np.arange(h), np.arange(w)
    shade = np.ones((h, w), dtype=np.float32)
    tint = np.zeros((h, w), dtype=np.float32)
    if style.wall not in ("plaster", "timber"):
        cw, ch = max(6, int(style.course[0] * ppm)), max(4, int(style.course[1] * ppm))
        if style.wall == "brick":
            cw, ch = 14, 6
        if style.wall == "tiles":
            ch = cw
        row = y // ch
        rows = int(row[-1]) + 1
        shift = rng.integers(0, cw, rows) if style.wall in ("rubble", "blocks") else (np.arange(rows) % 2) * (cw // 2)
        if style.wall == "tiles":
            shift = np.zeros(rows, dtype=int)
        column = (x[None] + shift[:, None]) // cw  # (rows, w)
        spread = {"brick": 0.10, "ashlar": 0.05, "rubble": 0.16, "tiles": 0.07, "bands": 0.05}.get(style.wall, 0.08)
        values = rng.normal(1, spread, (rows, int(column.max()) + 1)).astype(np.float32)
        hues = rng.normal(0, spread * 60, values.shape).astype(np.float32)
        odd = rng.random(values.shape) < 0.02  # a few stones have been replaced
        values[odd] *= rng.choice([0.6, 0.75, 1.25], odd.sum()).astype(np.float32)
        if style.wall == "bands":
            values *= np.where((np.arange(rows) // 2) % 2, 0.78, 1.0)[:, None].astype(np.float32)
        pick = np.arange(rows)[:, None]
        shade, tint = values[pick, column][row], hues[pick, column][row]
        joint = ((x[None] + shift[:, None]) % cw < (1 if cw < 20 else 2))[row] | (y % ch < (1 if ch < 9 else 2))[:, None]
        shade = np.where(joint, 0.72 if style.wall != "brick" else 1.18, shade)
    shade = shade * (1 + 0.035 * _noise(rng, h, w, 60, 3)) + rng.normal(0, 0.025, (h, w)).astype(np.float32)
    out = colour * shade[..., None]
    out[..., 0] += tint
    out[..., 2] -= tint
    return np.clip(out, 0, 255).astype(np.uint8)


def _arch(x: float, y: float, w: float, h: float, kind: str) -> list[tuple[float, float]]:
    """The opening's outline in pixels; (x, y) is its top left."""
    if kind == "flat":
        return [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    rise = {"round": w / 2, "pointed": w * 0.75, "segment": w * 0.2}[kind]
    t = np.linspace(0, np.pi, 13)
    if kind == "pointed":
        left = [(x + w / 2 * (1 - np.sin(a)), y + rise * (1 - np.cos(a))) for a in np.linspace(np.pi / 2, 0, 7)]
        left = [(x + w / 2 * u**1.6, y + rise * (1 - u)) for u in np.linspace(0, 1, 7)]
        top = left + [(2 * x + w - px, py) for px, py in left[::-1]]
    else:
        top = [(x + w / 2 - w / 2 * np.cos(a), y + rise * (1 - np.sin(a))) for a in t]
    return [(float(a), float(b)) for a, b in [(x, y + h), *top, (x + w, y + h)]]


class _Elevation:
    """A wall being drawn: `front` with holes, and `back`, the plane of glass and doors behind the holes. Metres, y up."""

    def __init__(self, style: Style, rng: np.random.Generator, width: float, height: float):
        self.style, self.rng, self.width, self.height = style, rng, width, height
        self.ppm = PIXELS_PER_METRE
        w, h = max(8, round(width * self.ppm)), max(8, round(height * self.ppm))
        self.front = Image.fromarray(_wall(style, rng, h, w))
        self.alpha = Image.new("L", (w, h), 255)
        self.back = Image.new("RGB", (w, h), _times(style.wall_colour, 0.55))
        self.pen, self.cut, self.inner = (ImageDraw.Draw(i) for i in (self.front, self.alpha, self.back))

    def box(self, x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        p = self.ppm
        return x * p, (self.height - y - h) * p, (x + w) * p, (self.height - y) * p

    def block(self, x: float, y: float, w: float, h: float, colour: Colour) -> None:
        """A raised stone: lit edge above, dark edge below."""
        x1, y1, x2, y2 = self.box(x, y, w, h)
        if x2 - x1 < 1 or y2 - y1 < 1:
            return
        self.pen.rectangle((x1, y1, x2, y2), fill=colour)
        self.pen.line((x1, y1, x2, y1), fill=_times(colour, 1.18))
        self.pen.line((x1, y2, x2, y2), fill=_times(colour, 0.6), width=2)
        self.pen.line((x2, y1, x2, y2), fill=_times(colour, 0.75))

    def opening(self, x: float, y: float, w: float, h: float, arch: str, door: bool = False) -> None:
        """A window or a door; (x, y) is its bottom left."""
        s, p, rng = self.style, self.ppm, self.rng
        x1, y1, x2, y2 = self.box(x, y, w, h)
        if s.surround != "none":
            m = 0.16 * p
            edge = _arch(x1 - m, y1 - m, x2 - x1 + 2 * m, y2 - y1 + m, arch)
            if s.surround == "quoined":
                for k in range(int(h / 0.4)):
                    self.block(x - (0.3 if k % 2 else 0.18), y + k * 0.4, w + (0.6 if k % 2 else 0.36), 0.36, s.trim)
            elif s.surround != "shutters":
                self.pen.polygon(edge, fill=s.trim, outline=_times(s.trim, 0.65))
            if s.surround == "keystone":
                mid = (x1 + x2) / 2
                self.pen.polygon([(mid - 4, y1 - m - 5), (mid + 4, y1 - m - 5), (mid + 3, y1 + 2), (mid - 3, y1 + 2)],
                                 fill=_times(s.trim, 1.1), outline=_times(s.trim, 0.6))
            if s.surround == "pediment":
                mid = (x1 + x2) / 2
                self.pen.polygon([(x1 - 8, y1 - m), (mid, y1 - m - 12), (x2 + 8, y1 - m)], fill=_times(s.trim, 0.95),
                                 outline=_times(s.trim, 0.55))
            if s.surround == "hood":
                self.block(x - 0.3, y + h + 0.12, w + 0.6, 0.16, s.trim)
            if s.surround == "shutters" and not door:
                for sx in (x - w * 0.5 - 0.03, x + w + 0.03):
                    self.block(sx, y, w * 0.5, h, s.accent)
                    for k in range(2, int(h * p) - 2, 4):
                        a, b, c, d = self.box(sx + 0.08, y + h - k / p, w * 0.5 - 0.16, 0)
                        self.pen.line((a, b, c, d), fill=_times(s.accent, 0.6))
        if not door:
            self.block(x - 0.12, y - 0.14, w + 0.24, 0.14, _times(s.trim, 0.95))
        outline = _arch(x1, y1, x2 - x1, y2 - y1, arch)
        self.cut.polygon(outline, fill=0)
        if door:
            colour = _times(s.accent if rng.random() < 0.5 else s.frame, 0.8)
            self.inner.polygon(outline, fill=colour)
            for k in range(1, 4):
                a = x1 + (x2 - x1) * k / 4
                self.inner.line((a, y1, a, y2), fill=_times(colour, 0.5))
            for k in range(int(rng.integers(1, 4))):
                a = y1 + (y2 - y1) * (0.2 + 0.25 * k)
                self.inner.rectangle((x1 + 5, a, (x1 + x2) / 2 - 3, a + 12), outline=_times(colour, 1.5))
                self.inner.rectangle(((x1 + x2) / 2 + 3, a, x2 - 5, a + 12), outline=_times(colour, 1.5))
            return
        glass = int(rng.integers(35, 85))
        self.inner.polygon(outline, fill=(glass - 10, glass, glass + 12))
        if rng.random() < 0.45:  # curtains and blinds
            tone = _times((225, 215, 195), rng.uniform(0.45, 1.0))
            if rng.random() < 0.5:
                self.inner.rectangle((x1, y1, x2, y1 + (y2 - y1) * rng.uniform(0.2, 0.8)), fill=tone)
            else:
                share = rng.uniform(0.15, 0.4) * (x2 - x1)
                self.inner.rectangle((x1, y1, x1 + share, y2), fill=tone)
                self.inner.rectangle((x2 - share, y1, x2, y2), fill=tone)
        nx, ny = s.panes
        for k in range(nx + 1):
            a = x1 + (x2 - x1) * k / nx
            self.inner.line((a, y1, a, y2), fill=s.frame, width=2)
        for k in range(ny + 1):
            a = y1 + (y2 - y1) * k / ny
            self.inner.line((x1, a, x2, a), fill=s.frame, width=2)

    # -- what only this building has

    def sign(self, x: float, y: float, w: float, h: float, ground: Colour, ink: Colour) -> None:
        x1, y1, x2, y2 = self.box(x, y, w, h)
        self.front.paste(_glyphs(self.rng, max(6, int(x2 - x1)), max(5, int(y2 - y1)), ground, ink), (int(x1), int(y1)))

    def relief(self, x: float, y: float, w: float, h: float) -> None:
        """A carved panel: random polygons in the trim's stone, each with its shadow."""
        self.block(x, y, w, h, _times(self.style.trim, 0.85))
        x1, y1, x2, y2 = self.box(x, y, w, h)
        for _ in range(int(self.rng.integers(5, 10))):
            cx, cy = self.rng.uniform(x1 + 3, x2 - 3), self.rng.uniform(y1 + 3, y2 - 3)
            size = self.rng.uniform(3, max(4, min(x2 - x1, y2 - y1) / 3))
            angles = np.sort(self.rng.uniform(0, 2 * np.pi, int(self.rng.integers(3, 7))))
            shape = [(min(max(cx + size * np.cos(a), x1 + 1), x2 - 1), min(max(cy + size * np.sin(a), y1 + 1), y2 - 1))
                     for a in angles]
            self.pen.polygon([(a + 1.5, b + 1.5) for a, b in shape], fill=_times(self.style.trim, 0.45))
            self.pen.polygon(shape, fill=_times(self.style.trim, self.rng.uniform(0.85, 1.2)))

    def stains(self) -> None:
        rng, (w, h) = self.rng, self.front.size
        pixels = np.asarray(self.front).astype(np.float32)
        streaks = _noise(rng, max(h // 40, 2), w, 14, 2)[:, :w]
        streaks = np.asarray(Image.fromarray(streaks).resize((w, h), Image.Resampling.BICUBIC))
        patches = _noise(rng, h, w, 90, 3)
        gain = 1 - 0.10 * np.clip(streaks - 0.6, 0, 1.5) - 0.09 * np.clip(patches - 0.7, 0, 1.5)
        gain *= 1 - 0.2 * np.exp(-np.arange(h)[::-1, None] / (0.5 * self.ppm))  # splashed foot
        self.front.paste(Image.fromarray(np.clip(pixels * gain[..., None], 0, 255).astype(np.uint8)))
        if rng.random() < 0.25:  # ivy
            ivy = _noise(rng, h, w, 70, 4) + np.linspace(-1.5, 1.2, h)[:, None] + 1.4 * np.cos(
                np.linspace(0, 3, w) + rng.uniform(0, 6))[None] - 0.9
            leaves = np.array([60, 92, 44]) * (0.8 + 0.35 * rng.random((h, w, 1)))
            mask = Image.fromarray(np.where(ivy > 0.5, 255, 0).astype(np.uint8))
            self.front.paste(Image.fromarray(leaves.astype(np.uint8)), mask=mask)

    def textures(self, outline: list[tuple[float, float]] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Front and back, (h, w, 4) uint8, both cut to `outline` (texture units) where one is given."""
        back_alpha = Image.new("L", self.front.size, 255)
        if outline is not None:
            w, h = self.front.size
            shape = Image.new("L", self.front.size, 0)
            ImageDraw.Draw(shape).polygon([(a * w, b * h) for a, b in outline], fill=255)
            self.alpha = Image.fromarray(np.minimum(np.asarray(self.alpha), np.asarray(shape)))
            back_alpha = shape.filter(ImageFilter.MinFilter(5))
        # The wall's upper reveal throws a shade on the glass: darken the back plane just below the top of each hole.
        back = np.asarray(self.back).astype(np.float32)
        solid = np.asarray(self.alpha) > 0
        reach = max(3, int(self.style.depth * 0.5 * self.ppm))
        shaded = np.zeros_like(solid)
        shaded[reach:] = solid[:-reach]
        back *= np.where(shaded & ~solid, 0.6, 1.0)[..., None]
        return (np.dstack([np.asarray(self.front), np.asarray(self.alpha)]),
                np.dstack([back.astype(np.uint8), np.asarray(back_alpha)]))


def _glyphs(rng: np.random.Generator, w: int, h: int, ground: Colour, ink: Colour) -> Image.Image:
    """A board with invented letters."""
    image = Image.new("RGB", (w, h), ground)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, w - 1, h - 1), outline=_times(ink, 0.8))
    size = h * 0.6
    x = h * 0.3
    while x + size * 0.6 < w - 2:
        if rng.random() < 0.12:
            x += size * 0.5
            continue
        knots = [(x + a * size * 0.3, h * 0.2 + b * size * 0.5) for a in range(3) for b in range(3)]
        path = [knots[int(k)] for k in rng.permutation(9)[: int(rng.integers(3, 6))]]
        pen.line(path, fill=ink, width=max(2, int(size / 7)))
        x += size * 0.85
    return image


def _plain(colour: np.ndarray | Colour, h: int, w: int) -> np.ndarray:
    out = np.empty((h, w, 4), dtype=np.uint8)
    out[..., :3] = colour
    out[..., 3] = 255
    return out


def _opaque(rgb: np.ndarray) -> np.ndarray:
    return np.dstack([rgb, np.full(rgb.shape[:2], 255, dtype=np.uint8)])


def _roof(style: Style, rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    y, x = np.arange(h)[:, None], np.arange(w)[None]
    shade = 0.8 + 0.25 * ((y % 7) / 7) + 0.06 * rng.standard_normal((h // 7 + 1, w // 9 + 1))[y // 7, x // 9]
    shade = shade * (1 + 0.06 * _noise(rng, h, w, 60, 2))
    return np.clip(np.array(style.roof) * shade[..., None], 0, 255).astype(np.uint8)


def _cut(texture: np.ndarray, outline: list[tuple[float, float]]) -> np.ndarray:
    h, w = texture.shape[:2]
    shape = Image.new("L", (w, h), 0)
    ImageDraw.Draw(shape).polygon([(a * w, b * h) for a, b in outline], fill=255)
    out = texture.copy()
    out[..., 3] = np.minimum(out[..., 3], np.asarray(shape))
    return out


# ---- buildings ---------------------------------------------------------------------------------------------------------

def _gable(top: str, eaves: float) -> list[tuple[float, float]] | None:
    """The front's outline in texture units, its eaves at `eaves` (0 top .. 1 bottom); None for a plain rectangle."""
    e = eaves
    if top == "gable":
        return [(0, e), (0.5, 0), (1, e), (1, 1), (0, 1)]
    if top == "steps":
        left = [(0, e)]
        for k in range(1, 5):
            left += [(0.1 * k, e * (1 - (k - 1) / 4)), (0.1 * k, e * (1 - k / 4))]
        return left + [(1 - a, b) for a, b in left[::-1]] + [(1, 1), (0, 1)]
    if top == "curved":
        u = np.linspace(0, 0.5, 12)
        left = [(float(a), float(e * (1 - np.sin(np.pi * a) ** 2.2))) for a in u]
        return left + [(1 - a, b) for a, b in left[::-1]] + [(1, 1), (0, 1)]
    if top == "battlement":
        out: list[tuple[float, float]] = []
        for k in range(15):
            level = 0.0 if k % 2 == 0 else e * 0.6
            out += [(k / 15, level), ((k + 1) / 15, level)]
        return [*out, (1, 1), (0, 1)]
    return None


def _front(style: Style, rng: np.random.Generator, width: float, bays: int, floors: int, bay: float, floor: float,
           above: float, main: bool) -> _Elevation:
    """An elevation with its windows, doors, courses and own details."""
    wall = _Elevation(style, rng, width, floors * floor + 0.8 + above)
    height = floors * floor + 0.8
    margin = (width - bays * bay) / 2
    wall.stains()
    if style.wall == "timber":
        beam = (72, 52, 40)
        for f in range(floors + 1):
            wall.block(0, f * floor + 0.5, width, 0.2, beam)
        for x in np.arange(0.05, width, bay / 2):
            wall.block(x, 0.5, 0.16, height - 0.5, beam)
        for _ in range(int(rng.integers(3, 9))):
            x, f = rng.integers(0, max(1, bays)) * bay + margin, rng.integers(0, floors)
            a, b, c, d = wall.box(x, f * floor + 0.6, bay / 2, floor - 0.2)
            wall.pen.line((a, d, c, b) if rng.random() < 0.5 else (a, b, c, d), fill=beam, width=5)
    base = rng.uniform(0.4, 1.0)
    wall.block(0, 0, width, base, _times(style.trim, 0.7))
    if style.string_course:
        for f in range(1, floors + 1):
            wall.block(0, f * floor + 0.25, width, 0.22, style.trim)
    if style.quoins:
        for k in range(int(height / 0.5)):
            for x in (0.0, width - (0.7 if k % 2 else 0.45)):
                wall.block(x, k * 0.5, 0.7 if k % 2 else 0.45, 0.46, _times(style.trim, rng.uniform(0.9, 1.08)))
    if style.pilasters:
        for k in range(bays + 1):
            wall.block(margin + k * bay - 0.2, base, 0.4, height - base - 0.3, style.trim)
    widths = rng.uniform(0.38, 0.5) * bay
    door = int(rng.integers(bays)) if main else -1
    shop = main and rng.random() < 0.35
    for f in range(floors):
        tall = floor * rng.uniform(0.5, 0.68)
        arch = style.arch if f < floors - 1 or rng.random() < 0.6 else str(_pick(rng, ARCHES))
        for b in range(bays):
            x, y = margin + (b + 0.5) * bay + rng.normal(0, 0.05), f * floor + 0.95
            odd = rng.random()
            if f == 0 and b == door:
                w = widths * rng.uniform(1.1, 1.5)
                wall.opening(x - w / 2, 0.05, w, floor * 0.78, style.arch, door=True)
            elif odd < 0.06:  # walled up
                wall.block(x - widths / 2, y, widths, tall, _times(style.wall_colour, rng.uniform(0.7, 1.2)))
            elif odd < 0.11:
                wall.relief(x - widths * 0.6, y + 0.1, widths * 1.2, tall * 0.8)
            elif odd < 0.17:  # another size
                w, h = widths * rng.uniform(0.5, 1.35), tall * rng.uniform(0.5, 1.0)
                wall.opening(x - w / 2, y + rng.uniform(0, 0.4), w, h, str(_pick(rng, ARCHES)))
            elif f == 0 and shop:
                wall.opening(x - bay * 0.38, 0.5, bay * 0.76, floor * 0.62, "flat")
            else:
                wall.opening(x - widths / 2, y, widths, tall, arch)
    if above > 1.5:  # something in the gable
        x, y = width / 2, height + above * 0.15
        if rng.random() < 0.5:
            wall.opening(x - 0.5, y, 1.0, above * 0.4, "round")
        else:
            _clock(wall, x, y + above * 0.2, min(0.9, above * 0.22))
    for _ in range(int(rng.integers(2, 6) if main else rng.integers(1, 3))):
        x, f = rng.uniform(0.2, max(0.3, width - 2)), int(rng.integers(0, floors))
        kind = rng.random()
        if kind < 0.5:
            wall.sign(x, f * floor + floor * 0.9 - 0.1, rng.uniform(1.2, 3.0), rng.uniform(0.45, 0.8), *_sign_colours(style, rng))
        elif kind < 0.8:
            wall.relief(x, f * floor + 0.9, rng.uniform(0.5, 0.9), rng.uniform(0.6, 1.6))
        else:
            _clock(wall, x + 0.5, f * floor + floor * 0.8, rng.uniform(0.3, 0.6))
    pipe = rng.uniform(0, width)
    if rng.random() < 0.5:
        wall.block(pipe, 0, 0.1, height, (80, 80, 82))
    return wall


def _sign_colours(style: Style, rng: np.random.Generator) -> tuple[Colour, Colour]:
    ground = _pick(rng, (*ACCENTS, (245, 240, 225), (30, 30, 34)))
    return ground, (245, 240, 225) if sum(ground) < 380 else (40, 30, 30)  # type: ignore[arg-type,return-value]


def _clock(wall: _Elevation, x: float, y: float, r: float) -> None:
    """A clock, rosette or coat of arms: a disc of sectors."""
    x1, y1, x2, y2 = wall.box(x - r, y - r, 2 * r, 2 * r)
    wall.pen.ellipse((x1 - 2, y1 - 2, x2 + 2, y2 + 2), fill=_times(wall.style.trim, 0.6))
    wall.pen.ellipse((x1, y1, x2, y2), fill=(235, 230, 215))
    start = 0.0
    while start < 360:
        step = float(wall.rng.uniform(20, 90))
        wall.pen.pieslice((x1, y1, x2, y2), start, min(360, start + step),
                          fill=_times(_pick(wall.rng, (*ACCENTS, *TRIM_COLOURS)), 0.9))  # type: ignore[arg-type]
        start += step
    m = r * wall.ppm * 0.45
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    wall.pen.ellipse((cx - m, cy - m, cx + m, cy + m), fill=wall.style.trim, outline=(40, 36, 34))


def _mass(style: Style, rng: np.random.Generator, x: float, z: float, width: float, bays: int, floors: int, bay: float,
          floor: float, top: str, depth: float, layer: float, main: bool) -> list[Plane]:
    """A block with its front at `z`, its left edge at `x`: front, recesses, sides, roof, cornice."""
    height = floors * floor + 0.8
    above = {"gable": width * 0.42, "steps": width * 0.4, "curved": width * 0.38, "battlement": 0.9}.get(top, 0.0)
    above = min(above, 6.0)
    wall = _front(style, rng, width, bays, floors, bay, floor, above, main)
    total = height + above
    outline = _gable(top, above / total)
    front, back = wall.textures(outline)
    shape = tuple(outline) if outline else ((0, 0), (1, 0), (1, 1), (0, 1))
    planes = [
        Plane(back, (x, total, z - style.depth), (width, 0, 0), (0, -total, 0), layer, True, glow=True, outline=shape),
        Plane(front, (x, total, z), (width, 0, 0), (0, -total, 0), layer + 0.1, True, outline=shape)]
    ppm = PIXELS_PER_METRE
    side = _wall(style, rng, round(height * ppm), round(depth * ppm))
    if main or rng.random() < 0.5:
        flank = _Elevation(style, rng, depth, height)
        flank.front.paste(Image.fromarray(side))
        n = max(1, int(depth / bay))
        for f in range(floors):
            for b in range(n):
                if rng.random() < 0.75:
                    flank.opening((b + 0.5) * depth / n - bay * 0.2, f * floor + 0.95, bay * 0.4, floor * 0.55, style.arch)
        a, b2 = flank.textures()
        flat = a[..., :3] * (a[..., 3:] > 0) + (b2[..., :3] * 0.85).astype(np.uint8) * (a[..., 3:] == 0)
        side = flat.astype(np.uint8)
    planes.append(Plane(_opaque(side), (x + width, height, z), (0, 0, -depth), (0, -height, 0), layer + 0.2, True))
    planes.append(Plane(_opaque(side), (x, height, z - depth), (0, 0, depth), (0, -height, 0), layer + 0.2, True))
    if top in ("gable", "steps", "curved"):
        rise = above * 0.92
        slope = _opaque(_roof(style, rng, 160, round(depth * ppm)))
        middle = (x + width / 2, height + rise, z - 0.05)
        planes.append(Plane(slope, middle, (0, 0, -depth), (width / 2, -rise, 0), layer + 0.05, True))
        planes.append(Plane(slope, (middle[0], middle[1], z - depth), (0, 0, depth), (-width / 2, -rise, 0), layer + 0.05, True))
    elif top in ("hip", "mansard"):
        rise, lean = (2.6, depth * 0.4) if top == "hip" else (2.2, 0.8)
        inset = min(0.3, lean / width)
        roof = _roof(style, rng, 110, round(width * ppm * 0.8))
        image = Image.fromarray(roof)
        pen = ImageDraw.Draw(image)
        for k in range(bays):  # skylights and dormers, each at its own place
            if rng.random() < 0.6:
                cx = (k + 0.5 + rng.normal(0, 0.1)) / bays * roof.shape[1]
                pen.rectangle((cx - 12, 40, cx + 12, 85), fill=_times(style.trim, 0.9), outline=(50, 46, 44))
                pen.rectangle((cx - 8, 48, cx + 8, 82), fill=(50, 58, 70), outline=style.frame)
                pen.line((cx, 48, cx, 82), fill=style.frame, width=2)
        trapezoid = [(inset, 0), (1 - inset, 0), (1, 1), (0, 1)]
        planes.append(Plane(_cut(_opaque(np.asarray(image)), trapezoid), (x, height + rise, z - lean), (width, 0, 0),
                            (0, -rise, lean), layer + 0.05, True, outline=tuple(trapezoid)))
        hip = _cut(_opaque(_roof(style, rng, 110, round(depth * ppm))), [(lean / depth, 0), (1, 0), (1, 1), (0, 1)])
        run = inset * width
        planes.append(Plane(hip, (x + width - run, height + rise, z), (0, 0, -depth), (run, -rise, 0), layer + 0.05, True,
                            outline=((lean / depth, 0), (1, 0), (1, 1), (0, 1))))
        planes.append(Plane(hip[:, ::-1].copy(), (x + run, height + rise, z - depth), (0, 0, depth), (-run, -rise, 0),
                            layer + 0.05, True, outline=((0, 0), (1 - lean / depth, 0), (1, 1), (0, 1))))
        for _ in range(int(rng.integers(0, 3))):
            cx, cw = x + rng.uniform(0.15, 0.8) * width, rng.uniform(0.6, 1.1)
            brick = _wall(replace(style, wall="brick", wall_colour=(140, 76, 60)), rng, 80, round(cw * ppm))
            planes.append(Plane(_opaque(brick), (cx, height + rise + 1.2, z - lean - 0.5), (cw, 0, 0), (0, -2.7, 0),
                                layer + 0.04, True))
    elif top in ("parapet", "balustrade"):
        h, w = round(0.9 * ppm), round(width * ppm)
        rail = _wall(style, rng, h, w)
        image = Image.fromarray(_opaque(rail))
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, 0, w, 5), fill=(*style.trim, 255))
        if top == "balustrade":
            for k in range(0, w, 10):
                if (k // 10) % 9:
                    pen.rectangle((k, 6, k + 4, h - 5), fill=(0, 0, 0, 0))
        planes.append(Plane(np.asarray(image).copy(), (x, height + 0.9, z + 0.15), (width, 0, 0), (0, -0.9, 0), layer + 0.3, True))
    cornice = _plain(style.trim, 12, max(8, round(width * ppm)))
    cornice[0:2, :, :3] = _times(style.trim, 1.15)
    cornice[8:, :, :3] = _times(style.trim, 0.5)
    if rng.random() < 0.6:  # dentils
        cornice[5:9, (np.arange(cornice.shape[1]) // 5) % 2 == 0, :3] = _times(style.trim, 0.55)
    planes.append(Plane(cornice, (x - 0.2, height + 0.1, z + 0.4), (width + 0.4, 0, 0), (0, -0.45, 0), layer + 0.4, True))
    return planes


def _column(style: Style, rng: np.random.Generator, w: int, h: int) -> np.ndarray:
    u = np.linspace(-1, 1, w)
    shade = 0.55 + 0.5 * np.sqrt(1 - 0.95 * u**2) + (0.08 * np.sin(u * 14) if style.pilasters else 0)
    out = _plain(style.trim, h, w)
    out[..., :3] = np.clip(out[..., :3] * shade[None, :, None] * (1 + 0.03 * _noise(rng, h, w, 20))[..., None], 0, 255)
    out[int(h * 0.06):int(h * 0.94), : max(1, w // 7), 3] = 0
    out[int(h * 0.06):int(h * 0.94), -max(1, w // 7):, 3] = 0
    return out


def build(style: Style, massing: Massing, rng: np.random.Generator) -> Landmark:
    """The building, standing on z <= 0 with the middle of its front at x = 0. `rng` draws everything that is its own."""
    m, s = massing, style
    width, height = m.width, m.height
    depth = rng.uniform(5, 9)
    ppm = PIXELS_PER_METRE
    planes: list[Plane] = []
    left, right = -width / 2, width / 2
    for sign, offset in zip((-1, 1), m.wings, strict=True):
        if offset:
            bays = int(rng.integers(1, 4))
            floors = max(1, m.floors - int(rng.integers(0, 3)))
            wide = bays * m.bay + 0.4
            x = left - wide if sign < 0 else right
            planes += _mass(s, rng, x, offset, wide, bays, floors, m.bay, m.floor, str(_pick(rng, TOPS)), depth,
                            6 if offset < 0 else 14, False)
            left, right = (left - wide, right) if sign < 0 else (left, right + wide)
    planes += _mass(s, rng, -width / 2, 0.0, width, m.bays, m.floors, m.bay, m.floor, m.top, depth, 10, True)
    tall = height
    for where in {"none": (), "both": ("left", "right")}.get(m.tower, (m.tower,)):
        wide = rng.uniform(2.6, 3.6)
        x = {"left": -width / 2 - 0.3, "right": width / 2 - wide + 0.3, "middle": -wide / 2}[where]
        floors = m.floors + int(rng.integers(1, 3))
        z = rng.uniform(0.5, 1.2)
        planes += _mass(s, rng, x, z, wide, 1, floors, wide, m.floor, "battlement" if rng.random() < 0.4 else "parapet",
                        wide, 18, False)
        top = floors * m.floor + 0.8
        if rng.random() < 0.7:
            rise = rng.uniform(2, 5)
            spire = _opaque(_roof(s, rng, 100, 80))
            triangle = [(0.5, 0), (1, 1), (0, 1)]
            for corner, across, down in (
                    ((x, top + rise, z - wide / 2), (wide, 0, 0), (0, -rise, wide / 2)),
                    ((x + wide / 2, top + rise, z), (0, 0, -wide), (wide / 2, -rise, 0)),
                    ((x + wide / 2, top + rise, z - wide), (0, 0, wide), (-wide / 2, -rise, 0))):
                planes.append(Plane(_cut(spire, triangle), corner, across, down, 17.9, True, outline=tuple(triangle)))
            tall = max(tall, top + rise * 0.5)
        tall = max(tall, top)
    if m.portico:
        z, span = rng.uniform(1.0, 1.8), min(width * 0.8, m.portico * 1.7)
        x0 = rng.uniform(-0.2, 0.2) * (width - span) - span / 2
        high = min(m.floor * (2 if m.floors > 2 and rng.random() < 0.5 else 1) + 0.3, height - 0.5)
        column = _column(s, rng, 17, round(high * ppm))
        for k in range(m.portico):
            cx = x0 + (k + 0.5) * span / m.portico
            planes.append(Plane(column, (cx - 0.28, high, z), (0.56, 0, 0), (0, -high, 0), 22, True, solid=False))
        beam = _Elevation(replace(s, wall="plaster", wall_colour=s.trim), rng, span + 0.6, 0.9)
        beam.sign(0.4, 0.15, span - 0.2, 0.6, _times(s.trim, 0.92), _times(s.frame, 0.7))
        planes.append(Plane(beam.textures()[0], (x0 - 0.3, high + 0.9, z + 0.1), (span + 0.6, 0, 0), (0, -0.9, 0), 22.2, True))
        if rng.random() < 0.6:
            rise = span * 0.2
            tympanum = _Elevation(s, rng, span + 0.6, rise)
            tympanum.relief(span * 0.3, rise * 0.08, span * 0.45, rise * 0.5)
            triangle = [(0.5, 0), (1, 1), (0, 1)]
            planes.append(Plane(tympanum.textures(triangle)[0], (x0 - 0.3, high + 0.9 + rise, z + 0.1), (span + 0.6, 0, 0),
                                (0, -rise, 0), 22.1, True, outline=tuple(triangle)))
    for _ in range(int(rng.integers(0, 4))):  # balconies
        b, f = int(rng.integers(m.bays)), int(rng.integers(1, m.floors)) if m.floors > 1 else 0
        if f == 0:
            continue
        rail = np.zeros((36, 80, 4), dtype=np.uint8)
        rail[:, :, :3] = s.frame
        rail[:3, :, 3] = rail[28:, :, 3] = 255
        rail[28:, :, :3] = _times(s.trim, 0.8)
        pitch = int(rng.integers(5, 10))
        rail[:, (np.arange(80) % pitch) < 2, 3] = 255
        cx, wide = -width / 2 + (b + 0.5) * m.bay, m.bay * rng.uniform(0.7, 0.95)
        planes.append(Plane(rail, (cx - wide / 2, f * m.floor + 1.7, 0.9), (wide, 0, 0), (0, -1.2, 0), 21, True))
        planes.append(Plane(rail[:, :40].copy(), (cx + wide / 2, f * m.floor + 1.7, 0.9), (0, 0, -0.9), (0, -1.2, 0), 20.9, True,
                            solid=False))
    for _ in range(int(rng.integers(1, 4))):  # signs and flags standing out from the wall
        board, ink = _sign_colours(s, rng)
        w, h = rng.uniform(0.8, 2.4), rng.uniform(0.5, 1.2)
        x, y = rng.uniform(-width / 2, width / 2 - w), rng.uniform(2.4, max(2.6, height - 1))
        face = _opaque(np.asarray(_glyphs(rng, round(w * ppm), round(h * ppm), board, ink)))
        planes.append(Plane(face, (x, y + h, rng.uniform(0.3, 0.7)), (w, 0, 0), (0, -h, 0), 20.5, True))
    if rng.random() < 0.3:  # awning
        w, b = m.bay * 0.9, int(rng.integers(m.bays))
        cloth = _plain((238, 232, 220), 40, 90)
        cloth[:, (np.arange(90) // int(rng.integers(6, 14))) % 2 == 0, :3] = s.accent
        planes.append(Plane(cloth, (-width / 2 + (b + 0.05) * m.bay, m.floor * 0.95, 0.05), (w, 0, 0), (0, -0.6, 1.2), 20.7, True,
                            solid=False))
    pave = int(rng.integers(3))
    planes.append(Plane(_paving(pave), (-60, 0, -50), (120, 0, 0), (0, 0, 120), 0, solid=False))
    line = int(rng.integers(4))
    planes.append(Plane(_skyline(line), (-75, 18, -32), (150, 0, 0), (0, -18, 0), 1, solid=False))
    return Landmark(tuple(planes), ((left + right) / 2, tall * 0.48, 0.0), (right - left, tall), s, m)


def landmark(seed: int, number: int) -> Landmark:
    """The landmark `number` of the world `seed`; the same one every time."""
    return build(sample_style(np.random.default_rng([seed, number, 1])),
                 sample_massing(np.random.default_rng([seed, number, 2])), np.random.default_rng([seed, number, 3]))


def distractor(seed: int, number: int, landmarks: int) -> Landmark:
    """Another building; every third has the style of one of the `landmarks`, and half of those its massing too."""
    own = _FIRST_DISTRACTOR + number
    rng = np.random.default_rng([seed, own, 3])
    style, massing = own, own
    if number % 3 == 0:
        style = (number // 3) % landmarks
        massing = style if (number // 3 // landmarks) % 2 == 0 else own
    return build(sample_style(np.random.default_rng([seed, style, 1])),
                 sample_massing(np.random.default_rng([seed, massing, 2])), rng)


# ---- surroundings that all pictures share ------------------------------------------------------------------------------

@functools.cache
def _paving(kind: int) -> np.ndarray:
    rng = np.random.default_rng([_VOCABULARY, 1, kind])
    style = replace(sample_style(rng), wall=("blocks", "plaster", "tiles")[kind], course=(0.7, 0.45),
                    wall_colour=((128, 122, 116), (104, 104, 106), (150, 140, 128))[kind])
    tile = _wall(style, rng, 480, 480)
    return _opaque(np.tile(tile, (2, 2, 1)))


@functools.cache
def _skyline(kind: int) -> np.ndarray:
    """(180, 1500, 4): far houses, hazy."""
    rng = np.random.default_rng([_VOCABULARY, 2, kind])
    image = Image.new("RGBA", (1500, 180), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    x = 0
    while x < 1500:
        w, h = int(rng.integers(40, 140)), int(rng.integers(50, 150))
        colour = _times(_shift(_pick(rng, WALL_COLOURS), rng, 0.1), 0.9)  # type: ignore[arg-type]
        pen.rectangle((x, 180 - h, x + w, 180), fill=(*colour, 255))
        if rng.random() < 0.5:
            pen.polygon([(x, 180 - h), (x + w / 2, 180 - h - w // 4), (x + w, 180 - h)],
                        fill=(*_pick(rng, ROOF_COLOURS), 255))  # type: ignore[misc]
        for wy in range(180 - h + 8, 172, 20):
            for wx in range(x + 6, x + w - 8, 16):
                pen.rectangle((wx, wy, wx + 7, wy + 11), fill=(*_times(colour, 0.5), 255))
        x += w
    pixels = np.array(image.filter(ImageFilter.GaussianBlur(0.8)))
    pixels[..., :3] = (pixels[..., :3] * 0.7 + 0.3 * 190).astype(np.uint8)
    return pixels


@functools.cache
def _tree(kind: int) -> np.ndarray:
    rng = np.random.default_rng([_VOCABULARY, 3, kind])
    h, w = 320, 240
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    crown = 1.3 - ((x - w / 2) / (w * 0.42)) ** 2 - ((y - h * 0.36) / (h * 0.36)) ** 2 + 0.28 * _noise(rng, h, w, 60, 4)
    leaves = crown > 0.42
    gaps = _noise(rng, h, w, 22, 3) > 1.1
    shade = 0.75 + 0.22 * _noise(rng, h, w, 26, 4) - 0.25 * (y / h) + 0.2
    colour = np.array([(72, 104, 48), (96, 116, 50), (60, 88, 52), (150, 110, 48), (84, 110, 70)][kind])
    out = np.zeros((h, w, 4), dtype=np.uint8)
    trunk = (np.abs(x - w / 2 + 6 * np.sin(y / 40)) < 7 + (y / h) * 5) & (y > h * 0.4)
    out[trunk] = (78, 62, 50, 255)
    out[..., :3] = np.where((leaves & ~gaps)[..., None], np.clip(colour * shade[..., None], 0, 255), out[..., :3]).astype(np.uint8)
    out[..., 3] = np.where((leaves & ~gaps) | trunk, 255, 0)
    return out


@functools.cache
def _thing(kind: str, variant: int) -> np.ndarray:
    """A lamp post, a person, a car, a van or a hoarding, (h, w, 4) uint8."""
    rng = np.random.default_rng([_VOCABULARY, 4, sum(map(ord, kind)), variant])
    colour: Colour = _shift(_pick(rng, (*ACCENTS, *WALL_COLOURS)), rng, 0.2)  # type: ignore[arg-type]
    w, h = {"lamp": (40, 240), "person": (50, 120), "car": (240, 90), "van": (260, 130), "hoarding": (300, 160)}[kind]
    image = Image.new("RGBA", (w * 2, h * 2), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    w, h = w * 2, h * 2
    if kind == "lamp":
        pen.rectangle((w * 0.45, h * 0.12, w * 0.55, h), fill=(46, 50, 50, 255))
        pen.polygon([(w * 0.25, h * 0.02), (w * 0.75, h * 0.02), (w * 0.62, h * 0.14), (w * 0.38, h * 0.14)], fill=(225, 220, 190, 255))
    elif kind == "person":
        pen.ellipse((w * 0.36, 0, w * 0.64, h * 0.16), fill=(190, 150, 125, 255))
        pen.rounded_rectangle((w * 0.22, h * 0.15, w * 0.78, h * 0.58), 16, fill=(*colour, 255))
        pen.rectangle((w * 0.28, h * 0.5, w * 0.47, h), fill=(*_times(colour, 0.45), 255))
        pen.rectangle((w * 0.53, h * 0.5, w * 0.72, h), fill=(*_times(colour, 0.4), 255))
    elif kind in ("car", "van"):
        roof = 0.08 if kind == "van" else 0.1
        body = [(0, 0.75), (0.02, 0.5), (0.2, 0.45), (0.32, roof), (0.78, roof), (0.92, 0.45), (1, 0.52), (1, 0.8), (0, 0.8)]
        if kind == "van":
            body = [(0, 0.8), (0, 0.5), (0.14, 0.1), (0.99, 0.04), (1, 0.82)]
        pen.polygon([(a * w, b * h) for a, b in body], fill=(*colour, 255))
        glass = [(0.24, 0.45), (0.34, 0.16), (0.76, 0.16), (0.87, 0.45)] if kind == "car" else [(0.05, 0.45), (0.15, 0.16), (0.33, 0.15), (0.33, 0.45)]
        pen.polygon([(a * w, b * h) for a, b in glass], fill=(50, 60, 70, 255))
        for a in (0.2, 0.8):
            pen.ellipse((a * w - h * 0.14, h * 0.68, a * w + h * 0.14, h * 0.96), fill=(30, 30, 32, 255))
    else:
        board = _glyphs(rng, w, int(h * 0.85), colour, (240, 236, 225) if sum(colour) < 380 else (40, 34, 34))
        image.paste(board, (0, 0))
        for a in (0.1, 0.85):
            pen.rectangle((a * w, h * 0.85, a * w + 12, h), fill=(70, 66, 60, 255))
    return np.array(image.reduce(2))


# ---- views -------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Shot:
    """A picture before it is painted."""

    camera: Camera
    light: Light
    things: tuple[Plane, ...]
    view: View


def _light(rng: np.random.Generator, harsh: bool) -> Light:
    side = rng.uniform(-1, 1)
    sun = np.array([side, rng.uniform(0.4, 1.0), rng.uniform(0.2, 0.9)])
    warm = rng.normal(0, 0.12 if harsh else 0.05)
    night = float(rng.uniform(0.5, 1.0)) if harsh and rng.random() < 0.3 else 0.0
    skies: tuple[tuple[Vector, Vector], ...] = (
        ((110, 155, 215), (205, 220, 235)), ((170, 178, 188), (215, 218, 220)), ((140, 170, 205), (240, 225, 200)),
        ((80, 125, 195), (170, 200, 230)), ((190, 165, 150), (245, 205, 160)))
    return Light(sun=tuple(sun / np.linalg.norm(sun)), strength=float(rng.uniform(0.1, 0.75 if harsh else 0.5)),
                 colour=(1 + warm, 1.0, 1 - warm), exposure=float(np.exp(rng.normal(0, 0.28 if harsh else 0.12))),
                 gamma=float(rng.uniform(0.75, 1.4) if harsh else rng.uniform(0.9, 1.12)), night=night,
                 haze=float(rng.uniform(0, 0.3)) if harsh and rng.random() < 0.3 else 0.0,
                 blur=float(rng.uniform(0.5, 1.5) if harsh and rng.random() < 0.4 else rng.uniform(0.2, 0.6)),
                 noise=float(rng.uniform(2, 9) if harsh else rng.uniform(1, 4)),
                 quality=int(rng.integers(40, 80) if harsh else rng.integers(70, 93)), sky=_pick(rng, skies))  # type: ignore[arg-type]


def _billboard(texture: np.ndarray, foot: np.ndarray, width: float, height: float, camera: Camera, layer: float) -> Plane:
    across = camera.rotation[0] * np.array([1, 0, 1])
    across = across / np.linalg.norm(across) * width
    corner = foot - across / 2 + np.array([0, height, 0])
    return Plane(texture, tuple(corner), tuple(across), (0, -height, 0), layer, solid=False)


def _things(rng: np.random.Generator, place: Landmark, camera: Camera, crowd: float) -> tuple[Plane, ...]:
    """What stands between the camera and the building; more and larger with `crowd` (0 .. 1)."""
    out: list[Plane] = []
    eye = camera.position
    for k in range(int(rng.poisson(0.8 + 4.5 * crowd))):
        kind = str(rng.choice(["tree", "lamp", "person", "person", "car", "van", "hoarding"],
                              p=[0.22 + 0.2 * crowd, 0.16 - 0.08 * crowd, 0.2 - 0.08 * crowd, 0.2 - 0.12 * crowd, 0.12,
                                 0.06 + 0.04 * crowd, 0.04 + 0.04 * crowd]))
        t = rng.uniform(0.25, 0.85)
        aim = np.array([place.middle[0] + rng.uniform(-0.55, 0.55) * place.size[0], 0, 0.5])
        foot = eye * (1 - t) + aim * t
        foot[1] = 0
        grow = 1 + 0.5 * crowd * rng.random()
        texture, w, h = {
            "tree": lambda: (_tree(int(rng.integers(5))), 4.2 * grow, 5.6 * grow),
            "lamp": lambda: (_thing("lamp", 0), 0.75, 4.5),
            "person": lambda: (_thing("person", int(rng.integers(6))), 0.75, 1.75),
            "car": lambda: (_thing("car", int(rng.integers(5))), 4.2, 1.6),
            "van": lambda: (_thing("van", int(rng.integers(4))), 5.0, 2.5),
            "hoarding": lambda: (_thing("hoarding", int(rng.integers(4))), 3.6, 2.4)}[kind]()
        out.append(_billboard(texture, foot, w, h, camera, 40 + t * -5))
    if rng.random() < 0.5:  # a band of shade across the front
        shade = np.zeros((64, 64, 4), dtype=np.uint8)
        y, x = np.mgrid[0:64, 0:64] / 63.0
        a, b = rng.uniform(-1.2, 1.2), rng.uniform(0.1, 0.9)
        shade[..., 3] = 115 / (1 + np.exp(-60 * (y - b - a * (x - 0.5))))
        w, h = place.size
        out.append(Plane(shade, (place.middle[0] - w, h * 1.6, 0.02), (2 * w, 0, 0), (0, -h * 1.6, 0), 19, shadow=True))
    return tuple(out)


def _aim(rng: np.random.Generator, place: Landmark, kind: str) -> Shot:
    """A shot of one kind: `query`, `easy`, `hard` or `junk`. The kind is an intention; what it is is measured."""
    w, h = place.size
    wide = rng.random() < (0.75 if w > h * 0.9 else 0.3)
    size = (LONGER_SIDE, LONGER_SIDE * 3 // 4) if wide else (LONGER_SIDE * 3 // 4, LONGER_SIDE)
    yaw, fill, off, crowd = {
        "query": (rng.uniform(-18, 18), rng.uniform(0.75, 0.95), 0.04, 0.1),
        "easy": (rng.uniform(-24, 24), rng.uniform(0.7, 1.1), 0.10, 0.25),
        "hard": (float(rng.choice([-1, 1])) * rng.uniform(20, 62), rng.uniform(0.5, 1.2), 0.18, 0.6),
        "junk": (rng.uniform(-70, 70), rng.uniform(0.3, 1.2), 0.2, 1.0)}[kind]
    if kind == "hard":
        trick = rng.random()
        if trick < 0.3:  # a detail
            fill, off, yaw = rng.uniform(1.5, 2.6), 0.3, yaw * 0.6
        elif trick < 0.5:  # far away
            fill = rng.uniform(0.3, 0.45)
    if kind == "junk" and rng.random() < 0.5:
        fill, off = rng.uniform(2.0, 4.0), 0.75
    fov = np.radians(rng.uniform(38, 62))
    focal = max(size) / 2 / np.tan(fov / 2)
    turn = np.radians(yaw)
    seen = w * np.cos(turn) + 5 * abs(np.sin(turn))
    distance = max(focal * max(seen / size[0], h / size[1]) / fill, 5.0) + abs(np.sin(turn)) * w * 0.35
    up = rng.uniform(1.5, 2.2) if rng.random() < 0.7 else rng.uniform(3, 9)
    middle = np.array(place.middle)
    eye = np.array([middle[0] + distance * np.sin(turn), up, 1.0 + distance * np.cos(turn)])
    eye[2] = max(eye[2], 3.5)
    target = middle + np.array([rng.uniform(-off, off) * w, rng.uniform(-off, off) * h * 0.7, 0])
    camera = Camera.looking(eye, target, np.radians(rng.normal(0, 1.5 if kind != "hard" else 4)), float(focal), size)
    things = _things(rng, place, camera, crowd)
    if kind == "junk":  # something large, close by
        t = rng.uniform(0.15, 0.3)
        foot = eye * (1 - t) + target * t
        foot[1] = -0.2
        big = (_thing("van", int(rng.integers(4))), 7.5, 4.6) if rng.random() < 0.4 else (_tree(int(rng.integers(5))), 7.0, 9.0)
        things += (_billboard(big[0], foot, big[1] * distance / 25, big[2] * distance / 25, camera, 60),)
    light = _light(rng, kind in ("hard", "junk"))
    shot = Shot(camera, light, things, View((0, 0, 1), 1, 0, None))
    small = camera.scaled(_MIP)
    mask = draw((*place.planes, *things), small, light, np.zeros((small.height, small.width), np.float32)).landmark
    return replace(shot, view=_measure(place, camera, mask, _MIP, light))


def _measure(place: Landmark, camera: Camera, mask: np.ndarray, ratio: float, light: Light) -> View:
    away = camera.position - np.array(place.middle)
    distance = float(np.linalg.norm(away))
    whole = silhouette(place.planes, camera)
    box = None
    sure = mask > 0.5
    if sure.sum() > 4:
        xs, ys = np.nonzero(sure.sum(0) > 1)[0], np.nonzero(sure.sum(1) > 1)[0]
        if len(xs) and len(ys):
            box = (float(xs[0] / ratio), float(ys[0] / ratio), float((xs[-1] + 1) / ratio), float((ys[-1] + 1) / ratio))
    return View(tuple(away / distance), camera.focal / distance, min(1.0, float(mask.sum()) / ratio**2 / max(whole, 1.0)), box,
                light.night > 0 or light.blur > 0.8)


def label(query: View, view: View) -> str:
    """`easy`, `hard` or `junk`, by angle between the viewing directions, ratio of scales and visible share."""
    angle = np.degrees(np.arccos(np.clip(np.dot(query.direction, view.direction), -1, 1)))
    ratio = max(query.scale / view.scale, view.scale / query.scale)
    if view.visible < 0.15 or angle > 75 or ratio > 4.5:
        return "junk"
    if angle < 25 and ratio < 1.5 and view.visible > 0.65 and not view.dim:
        return "easy"
    return "hard"


def _paint(place: Landmark, shot: Shot, rng: np.random.Generator) -> np.ndarray:
    h, w = shot.camera.height, shot.camera.width
    clouds = np.clip(_noise(rng, h, w, 150, 4) * 0.5, 0, 1.5)
    return develop(draw((*place.planes, *shot.things), shot.camera, shot.light, clouds), shot.light, rng)


def render(place: Landmark, rng: np.random.Generator, kind: str | None = None) -> tuple[np.ndarray, View]:
    """A picture (h, w, 3) uint8 of `place`, longer side 480, and its geometry. `kind`: query, easy, hard, junk or any."""
    shot = _aim(rng, place, kind or str(rng.choice(["query", "easy", "hard", "hard"])))
    return _paint(place, shot, rng), shot.view


def _kinds(views: int) -> list[str]:
    """Three easy of nine, one junk, the rest hard."""
    easy, junk = max(2, views // 3), views // 8
    return ["easy"] * easy + ["hard"] * (views - easy - junk) + ["junk"] * junk


def _shoot(spec: DemoSpec, number: int) -> Iterator[tuple[str, int, str, Shot, np.ndarray]]:
    """The query and the gallery views of one landmark: (kind, view, label, shot, pixels); view 0 is the query."""
    place = landmark(spec.seed, number)
    query: View | None = None
    for view, kind in enumerate(["query", *_kinds(spec.views)]):
        rng = np.random.default_rng([spec.seed, number, 10 + view])
        for _ in range(40):
            shot = _aim(rng, place, kind)
            if query is None:
                found = "query" if shot.view.visible > 0.75 and shot.view.box is not None else "no"
            else:
                found = label(query, shot.view)
            if found == kind and (kind != "hard" or shot.view.visible > 0.25):
                break
        query = query or shot.view
        yield kind, view, found, shot, _paint(place, shot, rng)


def _make(job: tuple[str, DemoSpec, int, bool, list[str]]) -> list[tuple[str, str, list[float]]]:
    """One landmark or one distractor, written to disk; returns (id, label, box) of each image, the query first."""
    folder, spec, number, is_landmark, ids = job
    made: list[tuple[str, str, list[float]]] = []
    if not is_landmark:
        rng = np.random.default_rng([spec.seed, _FIRST_DISTRACTOR + number, 10])
        place = distractor(spec.seed, number, spec.landmarks)
        kind = str(rng.choice(["query", "easy", "hard"], p=[0.3, 0.4, 0.3]))
        shot = _aim(rng, place, kind)
        (Path(folder) / "gallery" / f"{ids[0]}.jpg").write_bytes(jpeg(_paint(place, shot, rng), shot.light.quality))
        return [(ids[0], "distractor", [])]
    for kind, view, found, shot, pixels in _shoot(spec, number):
        where = "queries" if kind == "query" else "gallery"
        (Path(folder) / where / f"{ids[view]}.jpg").write_bytes(jpeg(pixels, shot.light.quality))
        made.append((ids[view], found, list(shot.view.box or ())))
    return made


def generate(folder: Path, spec: DemoSpec = DemoSpec(), workers: int = 1,
             progress: Callable[[int, int], None] | None = None) -> None:
    """Write `gallery/<id>.jpg`, `queries/<id>.jpg` and `gnd.json` into `folder`; the same bytes for any `workers`.

    `progress` is called with (images written, images in all). gnd.json is written last.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    for name in ("gallery", "queries"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    count = spec.landmarks * (spec.views + 1) + spec.distractors
    numbers = np.random.default_rng([spec.seed, 0, 0]).permutation(count)  # shuffled: an id says nothing
    ids = [f"demo_{n:06d}" for n in numbers]
    per = spec.views + 1
    jobs = [(str(folder), spec, n, True, ids[n * per:(n + 1) * per]) for n in range(spec.landmarks)]
    jobs += [(str(folder), spec, n, False, [ids[spec.landmarks * per + n]]) for n in range(spec.distractors)]
    results: list[list[tuple[str, str, list[float]]]] = []
    done = 0

    def take(stream: Iterator[list[tuple[str, str, list[float]]]]) -> None:
        nonlocal done
        for made in stream:
            results.append(made)
            done += len(made)
            if progress is not None:
                progress(done, count)

    if workers == 1:
        take(map(_make, jobs))
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            take(pool.map(_make, jobs, chunksize=1))
    queries, gallery = [], []
    for (_, _, _, is_landmark, _), made in zip(jobs, results, strict=True):
        gallery += [i for i, *_ in (made[1:] if is_landmark else made)]
        if is_landmark:
            grades = {g: sorted(i for i, found, _ in made[1:] if found == g) for g in ("easy", "hard", "junk")}
            queries.append({"query": made[0][0], "box": made[0][2], **grades})
    truth = {"gallery": sorted(gallery), "queries": sorted(queries, key=lambda q: str(q["query"]))}
    (folder / "gnd.json").write_text(json.dumps(truth, indent=1) + "\n")
