"""The weighted sum of two first stages, each query's similarities put on one scale.

A query's similarities become how many standard deviations they lie above the mean of the gallery, without the query's
own image. Mean and deviation are rounded to three digits: machines that differ in the last bit then agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch

from bench.errors import UserError
from bench.features.sets import SetName
from bench.first_stages.stage import Context, FirstStage, Opened
from bench.search import BLOCK, QUERIES, Similarities

DIGITS = 3
EQUAL = 1e-6  # relative spread up to which similarities count as equal: single precision tells no smaller one


@dataclass(frozen=True)
class Sum:
    """Two or more first stages and their weights."""

    stages: tuple[FirstStage, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.stages) < 2 or len(self.weights) != len(self.stages):
            raise UserError(f"a sum of {len(self.stages)} first stages", hint="sum:A*WEIGHT,B adds two")
        if not all(np.isfinite(weight) and weight > 0 for weight in self.weights):
            raise UserError(f"weights {', '.join(map(str, self.weights))}: expected numbers above 0")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise UserError(f"a sum of {' and '.join(names)}: one first stage is there twice")

    @property
    def name(self) -> str:
        return "sum:" + ",".join(map(_weighted, (stage.name for stage in self.stages), self.weights))

    @property
    def sets(self) -> tuple[SetName, ...]:
        return tuple(dict.fromkeys(features for stage in self.stages for features in stage.sets))

    def open(self, context: Context) -> Opened:
        opened = [stage.open(context) for stage in self.stages]
        told = [None if context.progress is None else partial(context.progress, f"scaling {s.name}") for s in opened]
        scaled = [Scaled(each.similarities, context.own, tell) for each, tell in zip(opened, told, strict=True)]
        contents = json.dumps([each.content for each in opened])
        return Opened(
            name="sum:" + ",".join(map(_weighted, (each.name for each in opened), self.weights)),
            content=hashlib.sha256(contents.encode()).hexdigest(),
            similarities=Summed(tuple(scaled), self.weights),
            parts=tuple({part.key: part for each in opened for part in each.parts}.values()),
            bytes_per_image=sum(each.bytes_per_image for each in opened),
            unranked=frozenset.intersection(*(each.unranked for each in opened)),
        )


def _weighted(name: str, weight: float) -> str:
    if weight == 1:
        return name
    return f"{name}*{str(float(weight)).removesuffix('.0')}"  # every digit: equal names mean equal first stages


@dataclass(frozen=True, eq=False)
class Scaled:
    """Similarities in standard deviations above the mean of the gallery, by query; 0 where all are equal."""

    source: Similarities
    own: np.ndarray  # (nq,) gallery index of the query's own image, which is left out of mean and deviation, or -1
    progress: Callable[[int, int], None] | None = None  # told of how many queries the moments are known, of how many

    @property
    def count(self) -> int:
        return self.source.count

    @property
    def queries(self) -> int:
        return self.source.queries

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """(nq,) means and standard deviations, float64, to DIGITS digits."""
        sums, squares = np.zeros(self.queries), np.zeros(self.queries)
        for begin in range(0, self.queries, QUERIES):
            these = slice(begin, min(begin + QUERIES, self.queries))
            for start, block in self.source.blocks(these, BLOCK):
                values, own = block.double(), self.own[these] - start
                inside = np.flatnonzero((own >= 0) & (own < values.shape[1]))
                values[inside, own[inside]] = 0
                if self.progress is not None:
                    share = (start + values.shape[1]) / self.count
                    self.progress(begin + int(share * (these.stop - begin)), self.queries)
                sums[these] += values.sum(dim=1).numpy()
                squares[these] += values.square().sum(dim=1).numpy()
        images = np.maximum(self.count - (self.own >= 0), 1)
        means, squares = sums / images, squares / images
        deviations = np.sqrt(np.maximum(squares - means**2, 0))
        # of equal values rounding leaves a spread, by which their offset from the rounded mean would be multiplied
        return _rounded(means), _rounded(np.where(deviations > EQUAL * np.sqrt(squares), deviations, 0))

    def blocks(self, queries: slice, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        means, scales = (torch.from_numpy(values[queries, None]) for values in self._affine)
        for start, block in self.source.blocks(queries, size):
            yield start, ((block.double() - means) * scales).float()

    def exact(self, query: int, images: np.ndarray) -> np.ndarray:
        means, scales = self._affine
        scaled: np.ndarray = (self.source.exact(query, images) - means[query]) * scales[query]
        return scaled

    @cached_property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """What is taken away from a query's similarities, and what they are then multiplied with."""
        means, deviations = self.moments
        return means, np.divide(1, deviations, out=np.zeros_like(deviations), where=deviations > 0)


@dataclass(frozen=True, eq=False)
class Summed:
    """The weighted sum of similarities."""

    sources: tuple[Scaled, ...]
    weights: tuple[float, ...]

    @property
    def count(self) -> int:
        return self.sources[0].count

    @property
    def queries(self) -> int:
        return self.sources[0].queries

    def blocks(self, queries: slice, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        for start, blocks in aligned([source.blocks(queries, size) for source in self.sources]):
            yield start, sum(weight * block for weight, block in zip(self.weights, blocks, strict=True))  # type: ignore[misc]

    def exact(self, query: int, images: np.ndarray) -> np.ndarray:
        weighted = [w * source.exact(query, images) for w, source in zip(self.weights, self.sources, strict=True)]
        return np.sum(weighted, axis=0)


def aligned(sources: Sequence[Iterator[tuple[int, torch.Tensor]]]) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Blocks of several sources cut at the same images: where each begins, and the block of each source."""
    held = [next(source, None) for source in sources]
    while all(block is not None for block in held):
        blocks = [block for block in held if block is not None]
        start, width = blocks[0][0], min(block.shape[1] for _, block in blocks)
        yield start, [block[:, :width] for _, block in blocks]
        held = [
            (start + width, block[:, width:]) if block.shape[1] > width else next(source, None)
            for (_, block), source in zip(blocks, sources, strict=True)
        ]


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.array([float(f"{value:.{DIGITS - 1}e}") for value in values])
