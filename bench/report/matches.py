"""A picture of one pair: query and candidate side by side, and the descriptors that a method matches or leans on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.errors import UserError
from bench.images import Box, read_bytes, read_picture
from bench.names import shown
from bench.pair import Pair
from bench.places import slug
from bench.report.plots import saved
from bench.reranker import Explanation, Saliency

WIDTH, HIGHEST = 1200, 800  # pixels of the picture's width, and of the images at most
GAP, HEAD, FOOT, MARGIN = 16, 84, 62, 12  # pixels between the images, above, below and beside them
DPI = 100
LINES = 200  # drawn at most
CHARACTERS = 44  # of a name
# told apart by hue, lightness and style, on any photograph
COUNTS, OTHERS = "#56b4e9", "#d55e00"
LIGHTNESS = "plasma"  # the colours of weights: evenly from dark to light, none of them grey as stones are
BIGGEST, COVERED = 400, 0.2  # pixels of a disc, and the share of an image that all its discs may cover
OPAQUE = 0.75  # of a disc
STRONGEST = 0.1  # share of the descriptors that are outlined
COLOURS = {"easy": "#0072b2", "hard": "#0072b2", "junk": "0.5", "negative": "#d55e00"}


@dataclass(frozen=True, eq=False)
class _Placed:
    """An image on the picture."""

    pixels: np.ndarray  # (h, w, 3) uint8, of the size in which it is drawn
    left: float
    zoom: tuple[float, float]  # pixels of the picture per pixel of the file, across and down

    def at(self, points: np.ndarray) -> np.ndarray:
        """(m, 2) places on the picture of (m, 2) keypoints."""
        return points * self.zoom + (self.left, 0)


Images = tuple[_Placed, _Placed]


def file_name(pair: Pair, method: str) -> str:
    """A name for the picture that is safe on every system."""
    parts = (slug(part) for part in ("show", pair.query.id, pair.candidate, method))
    return "-".join(part for part in parts if part) + ".png"


def draw(pair: Pair, path: Path) -> Path:
    """Write the picture of a pair. UserError for images that are gone, and where it cannot be written."""
    if path.suffix != ".png":
        raise UserError(f"--out {path}: a picture is a .png", hint=f"--out {path.with_suffix('.png')}")
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    one, other, height = _placed(_read(pair.query.image, pair.query.box), _read(pair.image, pair.box))
    size = (WIDTH, HEAD + height + FOOT)
    figure = plt.figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, FOOT / size[1], 1, height / size[1]))
    _text(figure, pair, size)
    handles, notes = _panel(axes, pair, (one, other), WIDTH, height)
    _foot(figure, handles, [*pair.notes, *notes], size)
    return saved(figure, path.parent, path.stem, DPI)


def panel(figure: Any, pair: Pair, left: float, top: float, width: int, highest: int) -> tuple[list[Any], int]:
    """Draw a pair's images into a figure, with what is found in them: the legend's entries, and the height in pixels.

    `left` and `top` are pixels from the figure's left and upper edge, `width` and `highest` the room there is.
    """
    images = _read(pair.query.image, pair.query.box), _read(pair.image, pair.box)
    one, other, height = _placed(*images, width=width, highest=highest)
    across, down = (float(side) * DPI for side in figure.get_size_inches())
    where = (left / across, 1 - (top + height) / down, width / across, height / down)
    handles, _ = _panel(figure.add_axes(where), pair, (one, other), width, height)
    return handles, height


def _panel(axes: Any, pair: Pair, images: Images, width: int, height: int) -> tuple[list[Any], list[str]]:
    """Draw both images and what is found in them: the legend's entries, and notes."""
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for image, box, hidden in zip(images, (pair.query.box, pair.box), pair.hidden, strict=True):
        edges = (image.left, image.left + image.pixels.shape[1], height, 0)
        axes.imshow(image.pixels, extent=edges, aspect="auto")
        for x1, y1, x2, y2 in hidden:
            corners = image.at(np.array([[x1, y1], [x2, y2]]) - (box or (0, 0))[:2])
            low, high = np.clip(corners, (edges[0], 0), (edges[1], height))
            axes.fill_between([low[0], high[0]], low[1], high[1], facecolor="0.5", edgecolor="black", alpha=0.5)
    if isinstance(pair.explanation, Saliency):
        return _discs(axes, pair, pair.explanation, images)
    return _lines(axes, pair, pair.explanation, images)


def _read(file: Path, box: Box | None) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of an image or of its box, and how many there are across and down in the file."""
    pixels, size, _ = read_picture(read_bytes(file), file, longer_side=WIDTH).crop(box, file)
    return pixels, size


def _placed(
    *images: tuple[np.ndarray, tuple[int, int]], width: int = WIDTH, highest: int = HIGHEST
) -> tuple[_Placed, _Placed, int]:
    """Both images at one height, and that height in pixels: as wide as the picture, unless that makes them too high."""
    shapes = [across / down for _, (across, down) in images]
    height = max(1, round(min((width - 2 * MARGIN - GAP) / sum(shapes), highest)))
    widths = [max(1, round(height * shape)) for shape in shapes]
    left, placed = (width - sum(widths) - GAP) / 2, []
    for (pixels, size), wide in zip(images, widths, strict=True):
        drawn = np.asarray(Image.fromarray(pixels).resize((wide, height), Image.Resampling.LANCZOS))
        placed.append(_Placed(drawn, left, (wide / size[0], height / size[1])))
        left += wide + GAP
    return placed[0], placed[1], height


def chosen(adds: np.ndarray, most: int = LINES) -> np.ndarray:
    """(n,) which of the pairs are drawn, n at most `most`: those that add most, of equal ones evenly many.

    >>> chosen(np.array([1.0, 0.0, 3.0, 2.0]), 2).tolist()
    [2, 3]
    >>> chosen(np.ones(6), 3).tolist()
    [0, 2, 4]
    """
    order = np.argsort(-np.abs(adds), kind="stable")
    if len(order) <= most:
        return np.sort(order)
    least = np.abs(adds[order[most - 1]])
    above = order[np.abs(adds[order]) > least]
    equal = order[np.abs(adds[order]) == least]
    room = most - len(above)
    return np.sort(np.concatenate([above, equal[np.arange(room) * len(equal) // room]]))


def _lines(axes: Any, pair: Pair, found: Explanation | None, images: Images) -> tuple[list[Any], list[str]]:
    """Draw the pairs: the legend's entries, and notes."""
    from matplotlib.lines import Line2D

    if found is None:
        return [], []
    counts = int((found.adds != 0).sum())
    handles = [Line2D([], [], color=COUNTS, label=f"{counts} {found.what if found.inliers is None else 'inliers'}")]
    if len(found) > counts:
        text = f"{len(found) - counts} other {found.what}"
        handles.append(Line2D([], [], color=OTHERS, linestyle=(0, (4, 3)), label=text))
    left_out = len(found) - _drawn(axes, pair, found, images)
    return handles, [f"{left_out} of {len(found)} {found.what} are not drawn."] if left_out else []


def _drawn(axes: Any, pair: Pair, found: Explanation, images: Images) -> int:
    """Draw the pairs that there is room for: how many."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    if pair.features is None or not len(found) or not pair.placed:
        return 0
    adds = found.adds.double().numpy(force=True)
    kept = chosen(adds)
    starts, ends = (
        image.at(features.keypoints[rows.to(features.keypoints.device)].numpy(force=True)[kept])
        for image, features, rows in zip(images, pair.features, (found.query, found.candidate), strict=True)
    )
    segments, weights = np.stack([starts, ends], axis=1), np.abs(adds[kept])
    counts = weights > 0
    share = weights / weights.max() if counts.any() else weights
    fine = 1 - 0.45 * len(kept) / LINES  # many lines would hide the images
    for which, colour, style, alpha in (
        (~counts, OTHERS, (0, (4, 3)), np.full(len(kept), 0.5 * fine)),
        (counts, COUNTS, "solid", fine * (0.3 + 0.55 * share)),
    ):
        if which.any():
            lines = LineCollection(
                list(segments[which]), colors=colour, linewidths=0.9, linestyles=[style], alpha=alpha[which]
            )
            edge = withStroke(linewidth=1.6, foreground=(0, 0, 0, 0.35 * fine**2))  # seen on a sky, too
            lines.set_path_effects([edge])
            axes.add_collection(lines)
            for points in (starts[which], ends[which]):
                axes.scatter(*points.T, s=9, color=colour, edgecolors="black", linewidths=0.4, zorder=3)
    return len(kept)


def areas(weights: Sequence[np.ndarray], rooms: Sequence[float]) -> list[np.ndarray]:
    """Pixels of each disc, in proportion to the weights of several images, which are at least 0 and not all 0.

    The largest disc has `BIGGEST`, or less so that the discs of no image cover more than `COVERED` of its room.

    >>> [few.tolist() for few in areas([np.array([1.0, 0.5]), np.array([0.0])], [1e5, 1e5])]
    [[400.0, 200.0], [0.0]]
    >>> [many.tolist() for many in areas([np.ones(2), np.ones(1)], [1000, 1000])]
    [[100.0, 100.0], [100.0]]
    """
    largest = max(each.max(initial=0) for each in weights)
    sizes = [each / largest * BIGGEST for each in weights]
    shrink = max(1.0, *(size.sum() / (COVERED * room) for size, room in zip(sizes, rooms, strict=True)))
    return [size / shrink for size in sizes]


def _discs(axes: Any, pair: Pair, found: Saliency, images: Images) -> tuple[list[Any], list[str]]:
    """Draw a disc at each descriptor, larger and lighter where it weighs more: the legend's entries, and notes."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    weights = [of.double().numpy(force=True) for of in (found.query, found.candidate)]
    every = np.concatenate(weights)
    if not every.any():
        return [], [f"No descriptor has any {found.what}."]
    if pair.features is None or not pair.placed:
        return [], []
    strong = np.zeros(len(every), dtype=bool)
    strong[chosen(every, math.ceil(STRONGEST * len(every)))] = True
    strong &= every > 0
    sizes = areas(weights, [image.pixels.shape[0] * image.pixels.shape[1] for image in images])
    colour, largest = colormaps[LIGHTNESS], float(every.max())
    outline = [withStroke(linewidth=2.6, foreground="white")]
    for image, features, of, size, ringed in zip(
        images, pair.features, weights, sizes, np.split(strong, [len(weights[0])]), strict=True
    ):
        points = image.at(features.keypoints[: len(of)].numpy(force=True))
        for which, edge in ((~ringed, {"linewidths": 0}), (ringed, {"edgecolors": "black", "path_effects": outline})):
            rows = np.flatnonzero(which)[np.argsort(of[which], kind="stable")]  # the strongest on top
            style = {"s": _marker(size[rows]), "facecolors": colour(of[rows] / largest, alpha=OPAQUE), "linewidths": 1}
            if len(rows):
                axes.scatter(*points[rows].T, zorder=3, **{**style, **edge})

    def disc(share: float, label: str, **edge: Any) -> Any:
        size = float(np.sqrt(_marker(share * max(each.max(initial=0) for each in sizes))))
        return Line2D([], [], ls="", marker="o", ms=size, mfc=colour(share), label=label, **{"mew": 0, **edge})

    many = f"the strongest {int(strong.sum())} of {len(every)}: {every[strong].sum():.3g} of {every.sum():.3g}"
    handles = [
        disc(1.0, f"{found.what} {largest:.3g}"),
        disc(0.25, f"{largest / 4:.3g}"),
        disc(0.5, many, mew=1, mec="black", path_effects=outline),
    ]
    return handles, []


def _marker(pixels: np.ndarray | float) -> Any:
    """The size that the library has for a disc of so many pixels: the square of its diameter in points."""
    return 4 / math.pi * pixels * (72 / DPI) ** 2


def said(pair: Pair) -> str:
    """Score and counts, or weights, in a sentence."""
    score, found = "not scored" if pair.score is None else f"score {pair.score:.6g}", pair.explanation
    if pair.changed is not None:
        score = f"{score}, {pair.changed.score:.6g} with {pair.changed.by}"
    if found is None:
        return score
    if isinstance(found, Saliency):
        weights = {"query": found.totals[0], "candidate": found.totals[1]}
        if found.elsewhere:
            weights["elsewhere"] = sum(found.elsewhere.values())
        sums = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
        return f"{score}, {'the sum of ' if found.adds_up else ''}{found.what}: {sums}"
    inliers = "" if found.inliers is None else f", {int(found.inliers.sum())} inliers"
    return f"{score}, {len(found)} {found.what}{inliers}"


def places_of(pair: Pair) -> str:
    """Where the candidate stood, in a sentence."""
    if pair.before is None:
        return f"not among the query's {pair.of} candidates"
    first = f"place {pair.before} of {pair.of} in the first stage"
    reranked = f"{first}, {pair.after} after reranking" if pair.after is not None else first
    return f"{reranked}, {pair.changed.after} with the change" if pair.changed is not None else reranked


def _text(figure: Any, pair: Pair, size: tuple[int, int]) -> None:
    def at(x: float, y: float, text: str, points: float, **more: Any) -> None:
        figure.text(x / size[0], 1 - y / size[1], text.replace("$", r"\$"), fontsize=points, va="center", **more)

    at(MARGIN, 20, f"{shown(pair.row)}: {said(pair)}", 13 if pair.changed is None else 10, weight="bold")
    at(MARGIN, 44, places_of(pair), 11)
    crop = " (its box)" if pair.query.box is not None else ""
    at(MARGIN, 68, f"query {_short(pair.query.id)}{crop}", 10, color="0.25")
    label = f"candidate {_short(pair.candidate)}: {pair.kind}"
    at(size[0] - MARGIN, 68, label, 10, color=COLOURS[pair.kind], weight="bold", ha="right")


def _short(name: str) -> str:
    """The end of a long name, which tells images of one folder apart."""
    text = shown(name)
    return text if len(text) <= CHARACTERS else f"…{text[1 - CHARACTERS :]}"


def _foot(figure: Any, handles: list[Any], notes: list[str], size: tuple[int, int]) -> None:
    """The legend, and notes below it."""
    if handles:
        figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 24 / size[1]),
            ncols=len(handles),
            frameon=False,
            fontsize=10,
        )
    if notes:
        text = " ".join(notes).replace("$", r"\$")
        figure.text(MARGIN / size[0], 14 / size[1], text, fontsize=9, va="center", color="0.35")
