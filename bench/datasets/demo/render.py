"""The camera of the `demo` data set: light, passers-by, lens and sensor, and what of the building is to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from bench.datasets.demo.scene import RECESS, RELIEF, Building, Panel

Role = Literal["query", "easy", "hard", "junk"]
GRID = 20  # visibility is measured at GRID x GRID points of the facade
LONG, SHORT = 480, 360  # image sides, pixels
RAMP = np.arange(256)[None]
NEAR = 0.3  # metres in front of the camera where the picture begins


@dataclass(frozen=True)
class View:
    """One picture and what was measured on it.

    `image` RGB before JPEG; `quality` 1..95; `box` x1, y1, x2, y2 of the building in the frame, pixels; `seen`
    (GRID * GRID,) bool: facade points inside the frame and not hidden; `direction` (3,) unit vector from the facade's
    centre to the camera; `scale`: pixels per metre at the centre; `area`: fraction of the frame that is facade.
    """

    image: Image.Image
    quality: int
    box: tuple[float, float, float, float]
    seen: np.ndarray
    direction: np.ndarray
    scale: float
    area: float


@dataclass(frozen=True)
class Taste:
    """Ranges a view of one role is drawn from; pairs are (low, high)."""

    turn: tuple[float, float]  # degrees away from the base azimuth, either side
    zoom: tuple[float, float]  # 1: the building fills three quarters of the frame
    off: float  # how far the aim may be off centre, fraction of the building's size
    roll: float  # degrees
    crowd: float  # mean number of passers-by and vehicles
    screen: float  # probability of something large near the camera
    gloom: float  # probability of dusk, night or glare
    blur: tuple[float, float]  # pixels
    quality: tuple[int, int]


TASTES: dict[str, Taste] = {
    "query": Taste((0, 12), (0.85, 1.15), 0.1, 3, 2, 0.0, 0.1, (0.4, 0.8), (75, 92)),
    "easy": Taste((3, 20), (0.75, 1.3), 0.15, 4, 2, 0.05, 0.1, (0.4, 1.0), (65, 92)),
    "hard": Taste((20, 50), (0.55, 1.8), 0.2, 6, 2, 0.2, 0.14, (0.5, 1.4), (50, 88)),
    "junk": Taste((30, 75), (0.12, 0.3), 1.2, 8, 4, 0.6, 0.4, (0.6, 1.8), (40, 85)),
}


@dataclass(frozen=True)
class _Light:
    sun: np.ndarray  # (3,) unit vector to the sun
    direct: np.ndarray  # (3,) RGB
    ambient: np.ndarray  # (3,) RGB
    sky: tuple[tuple[int, int, int], tuple[int, int, int]]  # top, horizon

    def on(self, normal: np.ndarray | None) -> np.ndarray:
        """(3,) factor for a surface; None: lit from everywhere."""
        facing = 0.6 if normal is None else max(0.0, float(normal @ self.sun))
        return self.ambient + self.direct * facing


@dataclass(frozen=True)
class _Camera:
    position: np.ndarray  # (3,)
    matrix: np.ndarray  # (3, 3): world direction from the position -> homogeneous pixel
    size: tuple[int, int]  # width, height

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 2) pixels and (n,) depth of (n, 3) points."""
        rays = (points - self.position) @ self.matrix.T
        return rays[:, :2] / np.maximum(rays[:, 2:], 1e-6), rays[:, 2]


def _camera(rng: np.random.Generator, building: Building, taste: Taste, azimuth: float) -> _Camera:
    lying = rng.random() < (0.75 if building.width > building.height else 0.4)
    width, height = (LONG, SHORT) if lying else (SHORT, LONG)
    zoom = float(np.exp(rng.uniform(*np.log(taste.zoom))))
    focal = rng.uniform(0.85, 1.25) * LONG * (rng.uniform(1.0, 1.5) if zoom > 1.3 else 1.0)
    turn = np.radians(azimuth)
    middle = np.asarray((0, building.height * 0.5, 0))
    distance = (
        focal
        / zoom
        * max(building.width * max(np.cos(turn), 0.5) / (0.75 * width), building.height * 1.15 / (0.75 * height))
    )
    distance = max(distance, 7.0, 0.75 * building.width * abs(np.sin(turn)) + 3)
    eye = rng.uniform(1.5, 2.2) if rng.random() < 0.7 else rng.uniform(2.5, building.height * 0.9)
    position = np.asarray((np.sin(turn) * distance, eye, np.cos(turn) * distance))
    reach = taste.off * max(1.0, zoom)
    aside, above = rng.uniform(-0.5, 0.5) * reach, rng.uniform(-0.5, 0.6) * reach
    aim = middle + (aside * building.width, above * building.height, 0)
    ahead = (aim - position) / np.linalg.norm(aim - position)
    right = np.cross(ahead, (0, 1, 0))
    right /= np.linalg.norm(right)
    roll = np.radians(rng.normal(0, taste.roll / 2))
    down = np.cross(ahead, right)
    axes = np.stack((np.cos(roll) * right + np.sin(roll) * down, -np.sin(roll) * right + np.cos(roll) * down, ahead))
    lens = np.asarray(((focal, 0, width / 2), (0, focal, height / 2), (0, 0, 1)))
    return _Camera(position, lens @ axes, (width, height))


def _light(rng: np.random.Generator, gloom: float) -> _Light:
    bearing, rise = np.radians(rng.uniform(-75, 75)), np.radians(rng.uniform(20, 60))
    sun = np.asarray((np.sin(bearing) * np.cos(rise), np.sin(rise), np.cos(bearing) * np.cos(rise)))
    warm = rng.normal(0, 0.06)
    tint = np.asarray((1 + warm, 1.0, 1 - warm))
    exposure = rng.uniform(0.85, 1.15)
    if rng.random() < gloom:
        kind = int(rng.integers(3))
        if kind == 0:  # dusk or night
            tint = np.asarray((1.1, 0.95, 0.75)) if rng.random() < 0.5 else np.asarray((0.75, 0.9, 1.2))
            dark = rng.uniform(0.5, 0.8)
            return _Light(sun, tint * 0.2 * dark, tint * 0.75 * dark, ((18, 22, 44), (70, 62, 78)))
        if kind == 1:  # against the light, or glare
            tint *= rng.choice((0.6, 1.5))
        else:  # low, golden, hard shadows
            low = sun * (1, 0.5, 1)
            return _Light(
                low / np.linalg.norm(low),
                np.asarray((1.1, 0.8, 0.5)) * exposure,
                np.asarray((0.3, 0.32, 0.42)) * exposure,
                ((120, 140, 180), (240, 200, 150)),
            )
    if rng.random() < 0.4:  # overcast
        return _Light(sun, 0.15 * tint * exposure, 0.8 * tint * exposure, ((190, 196, 204), (222, 224, 226)))
    tint *= exposure
    return _Light(sun, 0.75 * tint, 0.45 * tint * (0.95, 1, 1.08), ((86, 136, 206), (196, 214, 232)))


@lru_cache(maxsize=64)
def _sprite(kind: str, variant: int) -> Image.Image:
    """RGBX cut-out of something that stands about; the same vocabulary for all seeds."""
    rng = np.random.default_rng([7003, variant, len(kind)])
    w, h = {"tree": (200, 280), "lamp": (40, 240), "person": (50, 130), "car": (220, 90), "van": (240, 150)}[kind]
    image = Image.new("RGBX", (w, h), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)

    def colour(low: int = 30, high: int = 220) -> tuple[int, ...]:
        tone, grey = rng.uniform(low, high, 3), rng.uniform(low, high)
        return (*(int(c) for c in 0.35 * tone + 0.65 * grey), 255)

    if kind == "tree":
        draw.polygon([(92, h), (97, 120), (104, 120), (112, h)], fill=(74, 56, 42, 255))
        green = np.asarray((70, 100, 46)) * rng.uniform(0.6, 1.1) + rng.uniform(-12, 25) * np.asarray((1, 0.3, 0))
        for _ in range(520):
            angle, far = rng.uniform(0, 6.28), rng.random() ** 0.6
            x, y = 100 + np.cos(angle) * far * 82, 100 + np.sin(angle) * far * 88
            tone = green * (1.25 - 0.75 * y / 200) * rng.uniform(0.7, 1.25)
            r = rng.uniform(3, 9)
            draw.ellipse((x - r, y - r * 0.8, x + r, y + r * 0.8), fill=(*(int(c) for c in tone.clip(0, 255)), 255))
    elif kind == "lamp":
        draw.rectangle((18, 20, 21, h), fill=(42, 44, 46, 255))
        draw.ellipse((8, 2, 32, 26), fill=(226, 222, 200, 255), outline=(42, 44, 46, 255))
    elif kind == "person":
        coat, legs = colour(), colour(20, 110)
        draw.polygon([(12, 60), (20, h), (26, h), (27, 75), (32, h), (38, h), (38, 60)], fill=legs)
        draw.polygon([(10, 30), (40, 30), (44, 75), (8, 75)], fill=coat)
        draw.ellipse((17, 4, 33, 28), fill=(196, 150, 122, 255))
        draw.ellipse((16, 2, 34, 14), fill=colour(20, 110))
    else:
        body, glass = colour(), (58, 70, 84, 255)
        if kind == "car":
            draw.polygon([(4, 70), (6, 44), (50, 36), (80, 8), (150, 8), (184, 38), (216, 46), (216, 72)], fill=body)
            draw.polygon([(60, 36), (84, 14), (112, 14), (112, 36)], fill=glass)
            draw.polygon([(120, 36), (120, 14), (146, 14), (170, 36)], fill=glass)
        else:
            draw.rectangle((2, 6, 236, 130), fill=body)
            for x in range(10, 220, 44):
                draw.rectangle((x, 20, x + 36, 62), fill=glass)
            draw.rectangle((2, 80, 236, 88), fill=colour())
        for x in (50, 178):
            draw.ellipse((x - 19, h - 38, x + 19, h), fill=(24, 24, 26, 255))
            draw.ellipse((x - 9, h - 28, x + 9, h - 10), fill=(150, 150, 152, 255))
    return image


SIZES = {"tree": (5.0, 7.0), "lamp": (0.8, 4.8), "person": (0.68, 1.75), "car": (4.2, 1.7), "van": (5.2, 3.2)}


def _billboard(
    camera: _Camera, x: float, z: float, size: tuple[float, float], texture: Image.Image, **kind: bool
) -> Panel:
    """An upright cut-out at (x, 0, z) that faces the camera."""
    aside = np.asarray((camera.position[2] - z, 0, x - camera.position[0]))
    aside *= size[0] / max(float(np.linalg.norm(aside)), 1e-6)
    foot = np.asarray((x, 0.0, z))
    return Panel(foot - aside / 2 + (0, size[1], 0), aside, np.asarray((0.0, -size[1], 0.0)), texture, **kind)


class _Canvas:
    """The picture while it is being painted."""

    def __init__(self, camera: _Camera, light: _Light):
        self.camera, self.light = camera, light
        self.image = Image.new("RGBX", camera.size, (*light.sky[1], 0))

    def sky(self, rng: np.random.Generator, ground: Sequence[int]) -> None:
        """Clouds above the horizon, bare ground below it."""
        width, height = self.camera.size
        slope = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] ** 0.8
        top, low = (np.asarray(c, np.float32) for c in self.light.sky)
        grid = rng.random((7, 6), dtype=np.float32) + 0.0
        cloud = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
        cloud = (cloud - rng.uniform(0.3, 0.9)).clip(0, 0.5)[..., None]
        rgb = (top * (1 - slope) + low * slope) * (1 - cloud) + (low * 1.1) * cloud
        pixels = np.zeros((height, width, 4), np.uint8)
        up = np.linalg.inv(self.camera.matrix)[1]  # height gained along the ray through a pixel
        below = up[0] * np.arange(width)[None] + up[1] * np.arange(height)[:, None] + up[2] < 0
        rgb[below] = np.asarray(ground) * self.light.on(np.asarray((0, 1, 0)))
        pixels[..., :3] = rgb.clip(0, 255)
        self.image = Image.frombuffer("RGBX", (width, height), pixels.tobytes(), "raw", "RGBX", 0, 1)

    def paint(self, panel: Panel, shadow: Image.Image | None = None) -> None:
        """Lay a panel over what is there. `shadow` (L, any size, over the whole panel): 255 where no sun comes."""
        normal = np.cross(panel.down, panel.across)
        normal /= np.linalg.norm(normal)
        if normal @ (self.camera.position - panel.corner) <= 0:
            return  # its back
        corners = panel.corner + np.outer((0, 1, 1, 0), panel.across) + np.outer((0, 0, 1, 1), panel.down)
        rays = (corners - self.camera.position) @ self.camera.matrix.T
        ahead = rays[:, 2] > NEAR
        if not ahead.any():
            return
        shape = []  # the part in front of the camera
        for a, b, a_ahead, b_ahead in zip(rays, np.roll(rays, -1, 0), ahead, np.roll(ahead, -1), strict=True):
            if a_ahead:
                shape.append(a)
            if a_ahead != b_ahead:
                shape.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
        outline = np.asarray([p[:2] / p[2] for p in shape])
        low = np.maximum(np.floor(outline.min(0)), 0).astype(int)
        high = np.minimum(np.ceil(outline.max(0)), self.camera.size).astype(int)
        if (high <= low).any():
            return
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        texture = panel.texture
        fine = [1, 1]
        if ahead.all():  # prefilter along each side by how much the picture shrinks it
            pixel = rays[:, :2] / rays[:, 2:]
            edges = np.linalg.norm(np.roll(pixel, -1, 0) - pixel, axis=1)
            fine = [max(1, int(texture.size[i] / max(edges[i], edges[i + 2], 1) + 0.35)) for i in (0, 1)]
        elif panel.down[1] == 0:
            fine = [2, 3]  # the ground under one's feet
        if fine != [1, 1]:
            texture = texture.reduce((min(fine[0], texture.width), min(fine[1], texture.height)))
        if shadow is not None:
            texture = texture.copy()
            share = self.light.ambient / np.maximum(self.light.on(normal), 1e-6)
            dark = texture.point((RAMP * np.append(share, 1.0)[:, None] + 0.5).astype(np.uint8).ravel().tolist())
            texture.paste(dark, (0, 0), shadow.resize(texture.size, Image.Resampling.BILINEAR))
        to_pixel = np.stack(
            (panel.across / texture.width, panel.down / texture.height, panel.corner - self.camera.position), 1
        )
        back = np.linalg.inv(self.camera.matrix @ to_pixel)
        back[:, 2] += back[:, :2] @ low
        nearness = back[2]  # (3,): 1 / depth as a linear function of the pixel
        back = back / back[2, 2]
        patch = texture.transform(
            size, Image.Transform.PERSPECTIVE, back.ravel()[:8].tolist(), Image.Resampling.BILINEAR
        )
        cover = patch.getchannel(3)
        if not ahead.all():  # behind the camera the same formula paints a ghost
            x, y = np.arange(size[0])[None], np.arange(size[1])[:, None]
            clip = (nearness[0] * x + nearness[1] * y + nearness[2] > 0).astype(np.uint8) * 255
            cover = ImageChops.multiply(cover, Image.fromarray(clip))
        factor = self.light.on(None if panel.glow else normal)
        table = np.minimum(RAMP * np.append(factor, 0)[:, None] + 0.5, 255).astype(np.uint8)
        table[3] = 255 if panel.own else 0
        patch = patch.point(table.ravel().tolist())
        self.image.paste(patch, (int(low[0]), int(low[1])), cover)


def _shifted(mask: Image.Image, dx: float, dy: float) -> Image.Image:
    """The mask (L) moved by (dx, dy) pixels, empty where nothing moved in."""
    out = Image.new("L", mask.size, 0)
    out.paste(mask, (round(dx), round(dy)))
    return out


def _main_facade(canvas: _Canvas, building: Building, rng: np.random.Generator) -> None:
    """The three layers of the main facade with the shadows they throw on each other, and the loose parts."""
    width, height, facade, sun = building.width, building.height, building.facade, canvas.light.sun
    across, down = np.asarray((width, 0, 0.0)), np.asarray((0, -height, 0.0))
    ppm = facade.wall.width / width / 2
    holes = facade.wall.getchannel(3).reduce(2)
    slant = sun[:2] / max(sun[2], 0.3) * ppm

    def cast(mask: Image.Image, depth: float) -> Image.Image:
        return _shifted(mask, -slant[0] * depth, slant[1] * depth)

    on_glass = cast(holes, -RECESS)
    on_wall = cast(facade.relief.getchannel(3).reduce(2), RELIEF)
    for x, y, w, h, z, part in facade.parts:
        stamp = part.getchannel(3).resize((max(1, round(w * ppm)), max(1, round(h * ppm))))
        on_wall.paste(255, (round(x * ppm - slant[0] * z), round(y * ppm + slant[1] * z)), stamp)
    if rng.random() < 0.35:  # the shadow of a house across the street
        draw = ImageDraw.Draw(on_wall)
        start, w, h = rng.uniform(0.2, 0.9), *on_wall.size
        draw.polygon(
            [
                (0, h),
                (0, h * start),
                (w * rng.uniform(0.2, 0.8), h * (start + rng.uniform(-0.3, 0.3))),
                (w, h * rng.uniform(0.6, 1.2)),
                (w, h),
            ],
            fill=255,
        )
    top = np.asarray((-width / 2, height, 0.0))
    canvas.paint(Panel(top + (0, 0, RECESS), across, down, facade.recess, own=True), on_glass)
    canvas.paint(Panel(top, across, down, facade.wall, own=True), on_wall)
    canvas.paint(Panel(top + (0, 0, RELIEF), across, down, facade.relief, own=True))
    for x, y, w, h, z, part in facade.parts:
        canvas.paint(Panel(top + (x, -y, z), np.asarray((w, 0, 0.0)), np.asarray((0, -h, 0.0)), part, own=True))


def _passers_by(rng: np.random.Generator, camera: _Camera, building: Building, taste: Taste) -> list[Panel]:
    """Who and what stands between camera and facade, from far to near."""
    things = list(building.standing)
    reach = camera.position[2]
    for _ in range(rng.poisson(taste.crowd)):
        kind = ("person", "person", "person", "person", "car", "car", "van")[int(rng.integers(7))]
        along = rng.uniform(0.05, {"person": 0.7, "car": 0.5, "van": 0.3}[kind])  # of the way to the camera
        x = rng.uniform(-0.7, 0.7) * building.width * (1 - along) + camera.position[0] * along
        things.append((kind, int(rng.integers(8)), x, max(1.0, reach * along)))
    if rng.random() < taste.screen:  # something large in the way
        kind = ("tree", "van", "person", "tree")[int(rng.integers(4))]
        along = {"tree": rng.uniform(0.45, 0.65), "van": rng.uniform(0.5, 0.7), "person": rng.uniform(0.82, 0.9)}[kind]
        x = rng.uniform(-0.35, 0.35) * building.width * (1 - along) + camera.position[0] * along
        things.append((kind, int(rng.integers(8)), x, max(2.0, reach * along)))
    things.sort(key=lambda t: -float(np.hypot(t[2] - camera.position[0], t[3] - camera.position[2])))
    return [_billboard(camera, x, z, SIZES[kind], _sprite(kind, variant), glow=True) for kind, variant, x, z in things]


def _develop(rng: np.random.Generator, image: Image.Image, taste: Taste) -> Image.Image:
    """Lens and sensor: blur, camera shake, vignette, contrast, noise."""
    blur = rng.uniform(*taste.blur)
    if rng.random() < 0.15 * (taste.blur[1] > 1.2):
        turn, kernel = rng.uniform(0, 3.14), np.zeros((5, 5))
        for step in (-2, -1, 0, 1, 2):
            kernel[round(2 + step * np.sin(turn)), round(2 + step * np.cos(turn))] = 1
        image = image.filter(ImageFilter.Kernel((5, 5), kernel.ravel().tolist()))
    image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    y, x = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    gain = rng.uniform(0.85, 1.15) * (1 - rng.uniform(0, 0.12) * (y[:, None] ** 2 + x[None] ** 2))
    grain = rng.uniform(1.5, 6.0)
    noise = grain * rng.standard_normal((height, width, 1), dtype=np.float32)
    pixels = (pixels - 118) * gain[..., None] + 118 + rng.uniform(-12, 12) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def render_view(building: Building, rng: np.random.Generator, role: Role = "query", azimuth: float = 0.0) -> View:
    """A photograph of the building. `azimuth`: degrees off the facade's normal, -60..60; the role's turn is added."""
    taste = TASTES[role]
    side = 1.0 if rng.random() < 0.5 - azimuth / 120 else -1.0  # rather across the normal than out to the side
    angle = azimuth + side * rng.uniform(*taste.turn)
    camera = _camera(rng, building, taste, float(np.clip(angle, -66, 66)))
    light = _light(rng, taste.gloom)
    canvas = _Canvas(camera, light)
    canvas.sky(rng, building.ground)
    for panel in building.around:
        canvas.paint(panel)
    towards = np.sign(camera.position[0])
    for x, faces in building.wings:  # the wing on the far side is hidden by the building, the other one hides it
        if np.sign(x) != towards:
            for panel in faces:
                canvas.paint(panel)
    for panel in building.body:
        canvas.paint(panel)
    _main_facade(canvas, building, rng)
    for x, faces in building.wings:
        if np.sign(x) == towards:
            for panel in faces:
                canvas.paint(panel)
    for panel in building.front:
        canvas.paint(panel)
    for x, radius, height, texture in sorted(building.columns, key=lambda c: -abs(c[0] - camera.position[0])):
        canvas.paint(_billboard(camera, x, 2.0, (2 * radius, height), texture, own=True))
    if building.portico is not None:
        canvas.paint(building.portico)
    for panel in _passers_by(rng, camera, building, taste):
        canvas.paint(panel)
    return _measure(rng, building, camera, canvas.image, taste)


def _measure(rng: np.random.Generator, building: Building, camera: _Camera, painted: Image.Image, taste: Taste) -> View:
    own = np.asarray(painted)[..., 3] > 127
    width, height = camera.size
    grid = (np.arange(GRID) + 0.5) / GRID
    x, y = np.meshgrid((grid - 0.5) * building.width, grid * building.height)
    points, depth = camera.project(np.stack((x.ravel(), y.ravel(), np.zeros(GRID * GRID)), 1))
    column, row = np.floor(points).astype(int).T
    seen = (depth > NEAR) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    seen[seen] = own[row[seen], column[seen]]
    outline, _ = camera.project(building.outline)
    low, high = outline.min(0).clip(0, (width - 9, height - 9)), outline.max(0).clip(0, camera.size)
    high = np.maximum(high, low + 8)
    middle = np.asarray((0, building.height / 2, 0))
    direction = camera.position - middle
    far = float(np.linalg.norm(direction))
    scale = float(np.cbrt(abs(np.linalg.det(camera.matrix)))) ** 1.5 / far
    image = _develop(rng, painted.convert("RGB"), taste)
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return View(image, int(rng.integers(*taste.quality)), box, seen, direction / far, scale, float(own.mean()))
