"""What is measured of two feature sets of one data set: numbers alone, of A, of B, and of B against A."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

TAIL = 0.05  # share of the images below `low`, and above `high`


@dataclass(frozen=True)
class Spread:
    """A number that every image has: its median, what 5 % of the images are below and above, and the extremes."""

    least: float
    low: float
    median: float
    high: float
    most: float
    count: int

    def __post_init__(self) -> None:
        if not self.least <= self.low <= self.median <= self.high <= self.most or self.count < 1:
            raise ValueError(f"{self}: expected ascending numbers of at least one image")

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        """None where there is no value.

        >>> Spread.of([3.0, 1.0, 2.0]).median
        2.0
        """
        found = np.asarray(list(values), np.float64)
        if not len(found):
            return None
        least, low, median, high, most = np.sort(np.quantile(found, [0, TAIL, 0.5, 1 - TAIL, 1])).tolist()
        return Spread(least, low, median, high, most, len(found))

    @staticmethod
    def of_factors(values: Iterable[float]) -> Spread | None:
        """Of factors above 0, so that those of A over B are the inverse of those of B over A."""
        logs = Spread.of(np.log(np.asarray(list(values), np.float64)))
        if logs is None:
            return None
        least, low, median, high, most = np.exp([logs.least, logs.low, logs.median, logs.high, logs.most]).tolist()
        return Spread(least, low, median, high, most, logs.count)

    @property
    def inverse(self) -> Spread:
        """Of the inverse numbers."""
        return Spread(1 / self.most, 1 / self.high, 1 / self.median, 1 / self.low, 1 / self.least, self.count)


@dataclass(frozen=True)
class Side:
    """One of the two feature sets, by itself."""

    name: str
    places: tuple[str, ...]  # folders of its stores
    absent: tuple[str, ...]  # the data set's images that have no features in it
    beyond: int  # images in its stores that the data set does not have
    local_dim: int  # values of a descriptor; 0 where there is none
    global_dim: int
    counts: Spread | None = None  # local descriptors of an image
    most: int = 0  # local descriptors of the image that has most
    at_most: float = 0.0  # share of images that have as many
    norms: Spread | None = None  # mean norm of an image's local descriptors
    bits: bool = False  # every value of a local descriptor has the same size
    global_norms: Spread | None = None
    zero_globals: int = 0  # images whose global descriptor is all zero
    sized: bool = True  # the size of images is known; False where the extent of keypoints stands for it
    parts: bool = False  # keypoints lie within 0..1
    cropped: int = 0  # boxed queries of the sample whose features have the size of the box
    uncropped: int = 0  # and those that reach beyond it
    made: Mapping[str, object] = field(default_factory=dict)  # how, where that is recorded
    said: tuple[str, ...] = ()  # what an import said of it


@dataclass(frozen=True)
class Sizes:
    """Image sizes of B over those of A: width and height."""

    equal: float  # share of images whose sizes are equal within a pixel
    swapped: float  # share of the images that are not square and have width and height swapped
    factor: Spread  # of the geometric mean of width and height

    @property
    def swap(self) -> Sizes:
        return replace(self, factor=self.factor.inverse)


@dataclass(frozen=True)
class Geometry:
    """How keypoints of A become those of B: the simplest change under which they lie at one place."""

    plain: Spread  # share of the keypoints of the image with fewer that have one of the other within RADIUS, unchanged
    overlap: Spread  # the same after the change
    swapped: bool = False  # x and y
    factor: Spread | None = None  # B over A, where a scale is part of the change
    stretch: float = 1.0  # the factor in x over that in y
    corner: int = 0  # 1: B counts from the corner of the whole image and A from that of the box; -1: the reverse
    moved: bool = False  # by more than RADIUS, in each image by its own offset
    offset: tuple[float, float] | None = None  # x, y in pixels of the larger of both; None: none that images agree on

    @property
    def swap(self) -> Geometry:
        turned = 1 / self.stretch
        return replace(
            self,
            factor=None if self.factor is None else self.factor.inverse,
            stretch=1 / turned if self.swapped else turned,
            corner=-self.corner,
            offset=None if self.offset is None else _turned(self.offset, self.swapped),
        )


def _turned(offset: tuple[float, float], swapped: bool) -> tuple[float, float]:
    x, y = offset
    return (-y, -x) if swapped else (-x, -y)


@dataclass(frozen=True)
class Local:
    """Local descriptors of the sampled images of both; of those that are no crop, where there are any."""

    whole: Geometry | None  # of images that are no crop; None where there are none with keypoints in both
    crops: Geometry | None  # of queries with a box
    cosine: Spread | None  # by image, the median over overlapping keypoints; None where none can be compared
    change: str  # of one side's descriptors that makes `cosine` what it is; empty: none
    changed: str  # "a" or "b": whose descriptors are so already; empty where `change` is
    order: float | None  # rank correlation of the places of overlapping keypoints in the order of scores
    chance: float = 0.0  # mean cosine of keypoints that are not at one place
    elsewhere: float = 0.0  # share of the sampled gallery images that are like another image's
    shift: int | None = None  # A's row i is B's row i + shift, in the gallery's order

    @property
    def swap(self) -> Local:
        return replace(
            self,
            shift=None if self.shift is None else -self.shift,
            whole=None if self.whole is None else self.whole.swap,
            crops=None if self.crops is None else self.crops.swap,
            changed={"a": "b", "b": "a"}.get(self.changed, ""),
        )


@dataclass(frozen=True)
class Globals:
    """Global descriptors of all images of both."""

    whole: Spread | None  # cosines of images that are no crop; None where lengths differ
    crops: Spread | None  # cosines of queries with a box
    change: str  # what makes those of A those of B; empty: nothing, or nothing that was tried
    aligned: Spread | None  # cosines of images that are no crop after it
    recognised: float  # share of images whose nearest in the other set is their own, where cosines are low
    untried: str  # what could not be tested, and why
    elsewhere: float  # share of the sampled gallery images that are like another image's
    shift: int | None  # A's row i is B's row i + shift, in the gallery's order

    @property
    def swap(self) -> Globals:
        return replace(self, shift=None if self.shift is None else -self.shift)


@dataclass(frozen=True)
class Lists:
    """The best k of the gallery by global descriptors."""

    k: int
    queries: int
    jaccard: float  # mean over queries: images in both lists over images in any
    moved: float  # mean over queries: places between the two ranks of an image that is in both

    def __post_init__(self) -> None:
        if not 0 <= self.jaccard <= 1 or self.moved < 0:
            raise ValueError(f"jaccard {self.jaccard}, moved {self.moved}")


@dataclass(frozen=True)
class Numbers:
    """All that is measured; `swap` is what the comparison of B with A measures."""

    dataset: str
    images: int  # of the data set
    shared: int  # with features in both
    sampled: int  # compared keypoint by keypoint
    seed: int  # of the sample
    boxed: int  # sampled queries with a box
    a: Side
    b: Side
    sizes: Sizes | None = None  # of images that are no crop; None where a side does not know them
    crop_sizes: Sizes | None = None
    recut: int = 0  # sampled queries with a box whose crops have another shape or size, other than the images'
    local: Local | None = None
    globals_: Globals | None = None
    lists: Lists | None = None

    @property
    def swap(self) -> Numbers:
        return replace(
            self,
            a=self.b,
            b=self.a,
            sizes=None if self.sizes is None else self.sizes.swap,
            crop_sizes=None if self.crop_sizes is None else self.crop_sizes.swap,
            local=None if self.local is None else self.local.swap,
            globals_=None if self.globals_ is None else self.globals_.swap,
        )
