"""Changes to a query or a candidate before a method reads it: what the score is without a part, or at another size.

A box that is hidden takes its local descriptors away, and the next best ones are read instead. A box that is kept cuts
the image, as a query's box does, and a scale makes it smaller or larger; both are extracted again. Of several scales
the highest score counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.errors import UserError
from bench.features import Features
from bench.features.extract import ExtractOptions
from bench.images import Box, cut, read_bytes, read_picture, shrink

SIDES = ("query", "candidate")
SCALES = (1 / 16, 16.0)  # the smallest and the largest factor
SMALLEST = 32  # pixels that no extractor makes an image smaller than


@dataclass(frozen=True)
class Area:
    """A box in pixels of the upright file, or in percent of the part that is read: of a query's box, if it has one."""

    x: float
    y: float
    width: float
    height: float
    percent: bool = False

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.x, self.y, self.width, self.height))) or min(self.width, self.height) <= 0:
            raise ValueError(f"box {self}: expected finite numbers, width and height above 0")

    @staticmethod
    def parse(text: str, option: str = "--hide") -> Area:
        """From `x,y,width,height`, all of them in pixels or all in percent.

        >>> Area.parse("0,0,30,40.5"), Area.parse("0%,0%,100%,40%").percent
        (Area(x=0.0, y=0.0, width=30.0, height=40.5, percent=False), True)
        """
        parts = [part.strip() for part in text.split(",")]
        marked = {part.endswith("%") for part in parts}
        try:
            if len(parts) != 4 or len(marked) != 1:
                raise ValueError("four numbers of one unit")
            x, y, width, height = (float(part.removesuffix("%")) for part in parts)
            return Area(x, y, width, height, percent=marked == {True})
        except ValueError as error:
            raise UserError(
                f"{option} …:{text}: expected x,y,width,height, all in pixels or all in percent, with a size above 0",
                hint="for example query:10,20,300,100 or query:0%,0%,100%,40%",
            ) from error

    def on(self, read: Box) -> Box:
        """x1, y1, x2, y2 in pixels of the file, of which `read` is the part that is read.

        >>> Area(0, 0, 50, 100, percent=True).on((100, 20, 300, 60))
        (100.0, 20.0, 200.0, 60.0)
        """
        if not self.percent:
            return self.x, self.y, self.x + self.width, self.y + self.height
        across, down = (read[2] - read[0]) / 100, (read[3] - read[1]) / 100
        x, y = read[0] + self.x * across, read[1] + self.y * down
        return x, y, x + self.width * across, y + self.height * down


@dataclass(frozen=True)
class Change:
    """What is done to one image. ValueError for no factor, and for one outside of `SCALES`."""

    hide: tuple[Area, ...] = ()
    keep: Area | None = None
    scales: tuple[float, ...] = (1.0,)  # of both sides, after the size limit of the extraction

    def __post_init__(self) -> None:
        if not self.scales or not all(SCALES[0] <= scale <= SCALES[1] for scale in self.scales):
            raise ValueError(f"scales {self.scales}: expected some, from {SCALES[0]} to {SCALES[1]}")

    def __bool__(self) -> bool:
        return bool(self.hide) or self.redraws

    @property
    def redraws(self) -> bool:
        """Whether the image is another one, and not only what is read of it."""
        return self.keep is not None or self.scales != (1.0,)

    @property
    def each(self) -> tuple[Change, ...]:
        """The same with one scale, for each of them."""
        return tuple(replace(self, scales=(scale,)) for scale in self.scales)

    def read(self, box: Box | None, size: tuple[int, int], file: Path) -> Box:
        """The part of an image of that width and height that is read, in pixels of the file.

        UserError where nothing, or next to nothing, is left of the image or of its box.
        """
        whole = (0.0, 0.0, float(size[0]), float(size[1]))
        before = whole if box is None else tuple(map(float, cut(box, size, file)))
        if self.keep is None:
            return before  # type: ignore[return-value]
        x1, y1, x2, y2 = self.keep.on(before)  # type: ignore[arg-type]
        kept = max(x1, before[0]), max(y1, before[1]), min(x2, before[2]), min(y2, before[3])
        try:
            return tuple(map(float, cut(kept, size, file)))  # type: ignore[return-value]
        except UserError as error:
            raise UserError(
                f"{file}: --keep leaves nothing of it: {self.keep.on(before)} of {before}",  # type: ignore[arg-type]
                hint="name a box inside the image, and inside the query's box if it has one",
            ) from error


@dataclass(frozen=True)
class Changes:
    """What is done to the query and to the candidate."""

    query: Change = Change()
    candidate: Change = Change()
    said: str = ""  # as the command line has it

    def __bool__(self) -> bool:
        return bool(self.query) or bool(self.candidate)

    @property
    def each(self) -> tuple[Changes, ...]:
        """The same with one scale of each image, for all of their scales; the highest score of a pair counts."""
        both = product(self.query.each, self.candidate.each)
        return tuple(replace(self, query=query, candidate=candidate) for query, candidate in both)

    @staticmethod
    def parse(hide: Sequence[str] = (), keep: Sequence[str] = (), scale: Sequence[str] = ()) -> Changes:
        """From texts `query:VALUE` and `candidate:VALUE`. UserError for one that cannot be read or is given twice.

        >>> Changes.parse(scale=["query:0.5,1"]).query.scales
        (0.5, 1.0)
        """
        found, said = dict.fromkeys(SIDES, Change()), []
        for option, texts in (("--hide", hide), ("--keep", keep), ("--scale", scale)):
            for text in texts:
                side, colon, value = text.partition(":")
                if side not in found or not colon:
                    raise UserError(
                        f"{option} {text}: expected query:VALUE or candidate:VALUE",
                        hint=f"for example {option} query:{'0.5' if option == '--scale' else '0%,0%,100%,40%'}",
                    )
                found[side] = _with(found[side], option, text, value)
                said.append(f"{option} {text}")
        return Changes(found["query"], found["candidate"], " ".join(said))


def _with(change: Change, option: str, text: str, value: str) -> Change:
    if option == "--hide":
        return replace(change, hide=(*change.hide, Area.parse(value, option)))
    before = change.keep if option == "--keep" else None if change.scales == (1.0,) else change.scales
    if before is not None:
        raise UserError(f"{option} {text}: given twice for one image", hint="give it once")
    if option == "--keep":
        return replace(change, keep=Area.parse(value, option))
    try:
        return replace(change, scales=tuple(float(part) for part in value.split(",")))
    except ValueError as error:
        raise UserError(
            f"{option} {text}: expected factors from {SCALES[0]:g} to {SCALES[1]:g}",
            hint="for example query:0.5, or query:0.7,1,1.4",
        ) from error


def redrawn(file: Path, read: Box, scale: float, options: ExtractOptions, to: Path) -> tuple[int, int]:
    """Write the part of an image that is read, at `scale` times the size it is extracted at: its width and height.

    An extractor that makes images smaller itself is given no more than that either.
    """
    picture = read_picture(read_bytes(file), file, options.max_megapixels, options.max_side)
    part, _, ratio = picture.crop(read, file)
    part = shrink(part, max(float(SMALLEST), options.max_side * ratio))
    height, width = part.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(np.ascontiguousarray(part))
    (image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)).save(to, compress_level=1)
    return size


def seen(keypoints: Tensor, hidden: Sequence[Box], read: Box) -> Tensor:
    """(n,) which descriptors lie in no hidden box, of (n, 2) keypoints in pixels of the part that is read.

    Boxes are in pixels of the file, `read` is the part of it.

    >>> seen(torch.tensor([[2.0, 1.0], [18.0, 1.0]]), [(10, 0, 15, 20)], (10, 0, 30, 20)).tolist()
    [False, True]
    """
    x, y = (keypoints + torch.tensor([read[0], read[1]])).unbind(-1)
    kept = torch.ones(len(keypoints), dtype=torch.bool)
    for x1, y1, x2, y2 in hidden:
        kept &= ~((x >= x1) & (x < x2) & (y >= y1) & (y < y2))
    return kept


def rows(image: Features, kept: Tensor) -> Features:
    """The image with some of its local descriptors, in their order."""
    local = ("descriptors", "keypoints", "scales", "orientations", "scores")
    return replace(image, **{name: getattr(image, name)[kept] for name in local})
