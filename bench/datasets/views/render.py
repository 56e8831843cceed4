"""Warped, partly hidden and re-lit views of still photographs: material to train on and to tune on.

Two views of one photograph are a positive pair wherever they show enough of the same cells of it (`overlap`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

GRID = 8  # cells per side of a photograph in which a view's coverage is recorded


@dataclass(frozen=True)
class ViewOptions:
    """Ranges from which a view is drawn; all are uniform or log-uniform."""

    longer_side: tuple[int, int] = (320, 512)  # pixels of the view
    window: tuple[float, float] = (0.35, 1.7)  # side of the part shown over the photograph's side (above 1: zoomed out)
    rotation: float = 20.0  # degrees either way
    perspective: float = 0.18  # corner shift over the window's side
    hidden: float = 0.5  # probability of an occluder
    photometric: float = 1.0  # strength of light, blur, noise and JPEG changes

    def __post_init__(self) -> None:
        if not 32 <= self.longer_side[0] <= self.longer_side[1]:
            raise ValueError(f"longer_side {self.longer_side}: expected 32 <= low <= high pixels")
        if not 0 < self.window[0] <= self.window[1]:
            raise ValueError(f"window {self.window}: expected 0 < low <= high")
        if not (0 <= self.perspective < 0.5 and 0 <= self.hidden <= 1 and self.photometric >= 0):
            raise ValueError("expected perspective in [0, 0.5), hidden in [0, 1] and photometric >= 0")


@dataclass(frozen=True)
class View:
    image: np.ndarray  # (h, w, 3) uint8
    coverage: np.ndarray  # (GRID * GRID,) bool: cells of the photograph that are visible
    visible: np.ndarray  # (h, w) bool: pixels that show the photograph, not a filler
    to_photo: np.ndarray  # (3, 3) homography from the view's pixels to the photograph's, in units of its longer side


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Shared cells over the smaller view's cells; (..., GRID * GRID) bool each, broadcast, to (...)."""
    smaller = np.minimum(first.sum(-1), second.sum(-1))
    return (first & second).sum(-1) / np.maximum(smaller, 1)


def make_view(
    photo: Image.Image, fillers: Sequence[Image.Image], rng: np.random.Generator, options: ViewOptions = ViewOptions()
) -> View:
    """One random view of `photo`; `fillers` are other photographs, seen behind and in front of it."""
    longer = int(rng.integers(options.longer_side[0], options.longer_side[1] + 1))
    aspect = float(np.exp(rng.uniform(np.log(0.67), np.log(1.5))))
    width, height = (longer, round(longer / aspect)) if aspect > 1 else (round(longer * aspect), longer)
    corners = _window(photo.size, width / height, rng, options)
    to_photo = _homography(np.array([[0, 0], [width, 0], [width, height], [0, height]], float), corners)

    # Shrink first where the warp would skip pixels: PIL's transform does not filter.
    step = np.sqrt(abs(_area(corners)) / (width * height))
    ratio = min(1.0, 1.0 / step)
    source = (
        photo
        if ratio > 0.9
        else photo.resize(
            (max(8, round(photo.width * ratio)), max(8, round(photo.height * ratio))), Image.Resampling.LANCZOS
        )
    )
    zoom = np.diag([source.width / photo.width, source.height / photo.height, 1.0])
    coefficients = tuple((zoom @ to_photo / (zoom @ to_photo)[2, 2]).ravel()[:8])
    warped = source.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    inside = Image.new("L", source.size, 255).transform((width, height), Image.Transform.PERSPECTIVE, coefficients)
    canvas = _filler(fillers, rng, width, height)
    canvas.paste(warped, (0, 0), inside)

    visible = np.array(inside)
    if rng.random() < options.hidden:
        mask = _occluder(width, height, rng)
        canvas.paste(_filler(fillers, rng, width, height), (0, 0), mask)
        visible[np.asarray(mask) > 127] = 0
    unit = np.diag([1 / max(photo.size), 1 / max(photo.size), 1.0])
    return View(
        _relight(canvas, rng, options.photometric),
        _coverage(visible, to_photo, photo.size),
        visible > 127,
        unit @ to_photo,
    )


def _window(size: tuple[int, int], aspect: float, rng: np.random.Generator, options: ViewOptions) -> np.ndarray:
    """(4, 2) corners, in photograph pixels, of what the view shows."""
    side = np.sqrt(size[0] * size[1]) * np.exp(rng.uniform(*np.log(options.window)))
    w, h = side * np.sqrt(aspect), side / np.sqrt(aspect)
    slack = np.array([abs(size[0] - w), abs(size[1] - h)]) / 2
    centre = np.array(size) / 2 + slack * rng.uniform(-1, 1, 2)
    square = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
    square = square * (1 + options.perspective * rng.uniform(-1, 1, (4, 2)))
    angle = np.deg2rad(options.rotation) * rng.uniform(-1, 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return square @ turn.T + centre


def _area(corners: np.ndarray) -> float:
    x, y = corners.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(3, 3) taking four points to four points."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), target.ravel()), 1).reshape(3, 3)


def _filler(fillers: Sequence[Image.Image], rng: np.random.Generator, width: int, height: int) -> Image.Image:
    if not fillers:
        return Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(0, 256, 3)))
    filler = fillers[int(rng.integers(len(fillers)))]
    part = rng.uniform(0.5, 1.0)
    w, h = int(filler.width * part), int(filler.height * part)
    x, y = int(rng.integers(filler.width - w + 1)), int(rng.integers(filler.height - h + 1))
    return filler.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))


def _occluder(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    area, aspect = rng.uniform(0.08, 0.4), np.exp(rng.uniform(-1, 1))
    w, h = min(0.95, np.sqrt(area * aspect)) * width, min(0.95, np.sqrt(area / aspect)) * height
    x, y = rng.uniform(-0.2 * w, width - 0.8 * w), rng.uniform(-0.2 * h, height - 0.8 * h)
    mask = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(mask)
    shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
    shape((x, y, x + w, y + h), fill=255)
    return mask


def _relight(image: Image.Image, rng: np.random.Generator, strength: float) -> np.ndarray:
    if strength == 0:
        return np.asarray(image)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.6) * strength))
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels ** np.exp(strength * rng.uniform(-0.7, 0.7))
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * rng.uniform(1 - strength, 1 + 0.5 * strength)
    pixels = (pixels - 0.5) * np.exp(strength * rng.uniform(-0.5, 0.4)) + 0.5 + strength * rng.uniform(-0.12, 0.12)
    pixels = pixels * (1 + strength * rng.uniform(-0.12, 0.12, 3).astype(np.float32))
    if rng.random() < 0.3:  # a shadow or a vignette: light that changes across the picture
        ramp = np.linspace(rng.uniform(0.4, 1), rng.uniform(0.4, 1), pixels.shape[1], dtype=np.float32)
        pixels = pixels * ramp[None, :, None]
    pixels = pixels + rng.normal(0, strength * rng.uniform(0, 0.04), pixels.shape).astype(np.float32)
    noisy = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    packed = io.BytesIO()
    noisy.save(packed, "JPEG", quality=int(rng.integers(30, 96)))
    return np.asarray(Image.open(packed).convert("RGB"))


def _coverage(visible: np.ndarray, to_photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cells of the photograph whose centre is seen in the view."""
    height, width = visible.shape
    step = (np.arange(GRID) + 0.5) / GRID
    x, y = (a.ravel() for a in np.meshgrid(step * size[0], step * size[1]))
    there = np.linalg.inv(to_photo) @ np.stack([x, y, np.ones_like(x)])
    front = there[2] > 1e-6
    u, v = (np.floor(there[i] / np.where(front, there[2], 1)).astype(int) for i in (0, 1))
    seen = front & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    return seen & (visible[v.clip(0, height - 1), u.clip(0, width - 1)] > 127)
