"""A picture of one pair: query and candidate side by side, and the descriptors that a method finds in both."""

from __future__ import annotations

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

WIDTH, HIGHEST = 1200, 800  # pixels of the picture's width, and of the images at most
GAP, HEAD, FOOT, MARGIN = 16, 84, 62, 12  # pixels between the images, above, below and beside them
DPI = 100
LINES = 200  # drawn at most
CHARACTERS = 44  # of a name
# told apart by hue, lightness and style, on any photograph
COUNTS, OTHERS = "#56b4e9", "#d55e00"
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

    one, other, height = _placed(_read(pair.query.image, pair.query.box), _read(pair.image, None))
    size = (WIDTH, HEAD + height + FOOT)
    figure = plt.figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, FOOT / size[1], 1, height / size[1]))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    for image in (one, other):
        axes.imshow(image.pixels, extent=(image.left, image.left + image.pixels.shape[1], height, 0), aspect="auto")
    count = _lines(axes, pair, one, other)
    _text(figure, pair, size)
    _legend(figure, pair, count, size)
    return saved(figure, path.parent, path.stem, DPI)


def _read(file: Path, box: Box | None) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of an image or of its box, and how many there are across and down in the file."""
    pixels, size, _ = read_picture(read_bytes(file), file, longer_side=WIDTH).crop(box, file)
    return pixels, size


def _placed(*images: tuple[np.ndarray, tuple[int, int]]) -> tuple[_Placed, _Placed, int]:
    """Both images at one height, and that height in pixels: as wide as the picture, unless that makes them too high."""
    shapes = [width / height for _, (width, height) in images]
    height = max(1, round(min((WIDTH - 2 * MARGIN - GAP) / sum(shapes), HIGHEST)))
    widths = [max(1, round(height * shape)) for shape in shapes]
    left, placed = (WIDTH - sum(widths) - GAP) / 2, []
    for (pixels, size), width in zip(images, widths, strict=True):
        drawn = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
        placed.append(_Placed(drawn, left, (width / size[0], height / size[1])))
        left += width + GAP
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


def _lines(axes: Any, pair: Pair, one: _Placed, other: _Placed) -> int:
    """Draw the pairs; how many are left out."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    if pair.explanation is None or pair.features is None or not len(pair.explanation):
        return 0
    if not pair.placed:
        return len(pair.explanation)
    found = pair.explanation
    adds = found.adds.double().numpy(force=True)
    kept = chosen(adds)
    starts, ends = (
        image.at(features.keypoints[rows.to(features.keypoints.device)].numpy(force=True)[kept])
        for image, features, rows in zip((one, other), pair.features, (found.query, found.candidate), strict=True)
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
    return len(found) - len(kept)


def said(pair: Pair) -> str:
    """Score and counts in a sentence."""
    score = "not scored" if pair.score is None else f"score {pair.score:.6g}"
    if pair.explanation is None:
        return score
    many, inliers = len(pair.explanation), pair.explanation.inliers
    if inliers is None:
        return f"{score}, {many} {pair.explanation.what}"
    return f"{score}, {many} {pair.explanation.what}, {int(inliers.sum())} inliers"


def places_of(pair: Pair) -> str:
    """Where the candidate stood, in a sentence."""
    if pair.before is None:
        return f"not among the query's {pair.of} candidates"
    first = f"place {pair.before} of {pair.of} in the first stage"
    return f"{first}, {pair.after} after reranking" if pair.after is not None else first


def _text(figure: Any, pair: Pair, size: tuple[int, int]) -> None:
    def at(x: float, y: float, text: str, points: float, **more: Any) -> None:
        figure.text(x / size[0], 1 - y / size[1], text.replace("$", r"\$"), fontsize=points, va="center", **more)

    at(MARGIN, 20, f"{shown(pair.row)}: {said(pair)}", 13, weight="bold")
    at(MARGIN, 44, places_of(pair), 11)
    crop = " (its box)" if pair.query.box is not None else ""
    at(MARGIN, 68, f"query {_short(pair.query.id)}{crop}", 10, color="0.25")
    label = f"candidate {_short(pair.candidate)}: {pair.kind}"
    at(size[0] - MARGIN, 68, label, 10, color=COLOURS[pair.kind], weight="bold", ha="right")


def _short(name: str) -> str:
    """The end of a long name, which tells images of one folder apart."""
    text = shown(name)
    return text if len(text) <= CHARACTERS else f"…{text[1 - CHARACTERS :]}"


def _legend(figure: Any, pair: Pair, left_out: int, size: tuple[int, int]) -> None:
    from matplotlib.lines import Line2D

    handles, found = [], pair.explanation
    if found is not None:
        counts = int((found.adds != 0).sum())
        name = found.what if found.inliers is None else "inliers"
        handles.append(Line2D([], [], color=COUNTS, label=f"{counts} {name}"))
        if len(found) > counts:
            others = Line2D(
                [], [], color=OTHERS, linestyle=(0, (4, 3)), label=f"{len(found) - counts} other {found.what}"
            )
            handles.append(others)
    many = 0 if found is None else len(found)
    notes = [*pair.notes, *([f"{left_out} of {many} {found.what} are not drawn."] if found and left_out else [])]
    if handles:
        figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 24 / size[1]), ncols=2, frameon=False, fontsize=10
        )
    if notes:
        text = " ".join(notes).replace("$", r"\$")
        figure.text(MARGIN / size[0], 14 / size[1], text, fontsize=9, va="center", color="0.35")
