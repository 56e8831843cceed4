"""The first stage's search: the most similar of a gallery of any size, block by block, whatever the similarity.

Memory follows the block, the queries and the depth, never the gallery. The best of each query are found in single
precision and their similarities then computed anew in double precision, so that neither the blocks nor the machine's
matrix product decide their order: two machines seal the same lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from bench.errors import UserError

BLOCK = 4_096  # gallery rows compared at a time
READ = 512  # rows that are held as they are stored, on their way to a block in single precision
QUERIES = 1_024  # queries compared at a time
MARGIN = 16  # more than asked for are kept, since single precision may swap near equals at the end of the list

S = TypeVar("S", bound="Similarities")


@dataclass(frozen=True, eq=False)
class Vectors:
    """Global descriptors of a gallery: `block(start, stop)` gives rows (b, D), `rows(indices)` any of them.

    `blocks` asks for `read` rows at a time.
    """

    count: int
    block: Callable[[int, int], np.ndarray]
    rows: Callable[[np.ndarray], np.ndarray]
    read: int = READ

    @staticmethod
    def of(array: np.ndarray) -> Vectors:
        """(n, D) of any float type, in memory or memory-mapped."""
        return Vectors(len(array), lambda start, stop: array[start:stop], lambda indices: array[indices])

    def through(self, change: Callable[[np.ndarray], np.ndarray]) -> Vectors:
        """The same images with each row changed, for example whitened."""
        return Vectors(
            self.count,
            lambda start, stop: change(self.block(start, stop).astype(np.float32)),
            lambda indices: change(self.rows(indices).astype(np.float32)),
            BLOCK,  # a matrix product may be another in its last digits with other rows beside
        )

    def blocks(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Where each block starts, and its rows (b, D) in float32, which the next block overwrites."""
        kept = torch.zeros(0, 0)
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)
            for at in range(start, stop, self.read):
                stored = np.require(self.block(at, min(at + self.read, stop)), requirements=["C", "W"])
                if at == 0:  # memory that is asked for anew for every block is not all given back
                    kept = torch.empty((stop, *stored.shape[1:]))
                # torch converts half precision in threads
                kept[at - start : at - start + len(stored)].copy_(torch.from_numpy(stored))
            yield start, kept[: stop - start]


class NotFinite(UserError):
    """The global descriptor of the `number`-th "query" or "gallery image" gives similarities that are not finite."""

    def __init__(self, kind: str, number: int, name: str | None = None, features: str | None = None):
        whose = f"{kind} {number if name is None else repr(name)}"
        source = "" if features is None else f" of the features {features}"
        super().__init__(
            f"the global descriptor of {whose}{source} gives similarities that are not finite",
            hint="extract or import the features of that image again",
        )
        self.kind, self.number = kind, number


@dataclass(frozen=True, eq=False)
class Found:
    """The best of the gallery for each query, and where the images asked about stand.

    `order` (nq, depth) gallery indices, best first; `similarities` (nq, depth) float32; `ranks[q]` (p,) the 0-based
    place of each of the query's probes in its whole ranking. Equal similarities are in gallery order.
    """

    order: np.ndarray
    similarities: np.ndarray
    ranks: tuple[np.ndarray, ...]


class Similarities(Protocol):
    """Similarities of some queries to the images of a gallery: of all of them in blocks, and exactly of a few."""

    @property
    def count(self) -> int:
        """Gallery images."""

    @property
    def queries(self) -> int:
        """How many queries there are."""

    def blocks(self, queries: slice, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Where each block starts, and its similarities (q, b) float32, which the search may overwrite.

        Blocks cover the gallery in its order. `size` images are best for the search, but a block may have any number.
        """

    def exact(self, query: int, images: np.ndarray) -> np.ndarray:
        """(m,) float64, to the images at these gallery indices. Rounded to float32, they are alike on any machine."""


@dataclass(frozen=True, eq=False)
class Dense:
    """Inner products of global descriptors (nq, D) with those of a gallery."""

    rows: np.ndarray
    gallery: Vectors

    @property
    def count(self) -> int:
        return self.gallery.count

    @property
    def queries(self) -> int:
        return len(self.rows)

    def blocks(self, queries: slice, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        left = torch.from_numpy(np.ascontiguousarray(self.rows[queries], dtype=np.float32))
        for start, right in self.gallery.blocks(size):
            yield start, left @ right.T

    def exact(self, query: int, images: np.ndarray) -> np.ndarray:
        return self.gallery.rows(images).astype(np.float64) @ self.rows[query].astype(np.float64)


def search(
    queries: np.ndarray,
    gallery: Vectors,
    depth: int,
    *,
    probes: Sequence[np.ndarray] | None = None,
    own: np.ndarray | None = None,
    block: int = BLOCK,
    engine: str = "blocks",
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """The `depth` nearest of each query (nq, D) by inner product, without its own image.

    `probes[q]` are gallery indices whose ranks are wanted, `own[q]` the query's own index or -1. A probe below `depth`
    is ranked in single precision: near equals may stand one place off. `progress` is told how many queries are done, of
    how many.

    >>> found = search(np.eye(2), Vectors.of(np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])), 2, probes=[[0], [2]])
    >>> found.order, [rank.tolist() for rank in found.ranks]
    (array([[2, 1],
           [0, 1]]), [[2], [2]])
    """
    given = {"probes": probes, "own": own, "block": block, "engine": engine, "progress": progress}
    return search_by(Dense(queries, gallery), depth, **given)  # type: ignore[arg-type]


def search_by(
    source: Similarities,
    depth: int,
    *,
    probes: Sequence[np.ndarray] | None = None,
    own: np.ndarray | None = None,
    block: int = BLOCK,
    engine: str = "blocks",
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """As `search`, by any similarity. NotFinite where one is not a finite number.

    UserError for an engine other than blocks that searches by another similarity than inner products.
    """
    if isinstance(source, Dense):
        finite = np.isfinite(source.rows).all(axis=1)
        if not finite.all():
            raise NotFinite("query", int(finite.argmin()))
        return _in_passes(source, depth, probes, own, block, ENGINES[engine], progress)
    if engine != "blocks":
        raise UserError(f"--search {engine}: it searches global descriptors alone", hint="--search blocks")
    return _in_passes(source, depth, probes, own, block, _Blocks, progress)


def _in_passes(
    source: S,
    depth: int,
    probes: Sequence[np.ndarray] | None,
    own: np.ndarray | None,
    block: int,
    engine: Callable[[S, slice, np.ndarray, int], _Blocks | _Faiss],
    progress: Callable[[int, int], None] | None,
) -> Found:
    own = np.full(source.queries, -1) if own is None else own
    asked = [np.zeros(0, np.int64)] * source.queries if probes is None else [np.asarray(p, np.int64) for p in probes]
    found = []
    for at in range(0, source.queries, QUERIES):
        these = slice(at, min(at + QUERIES, source.queries))

        def told(share: float, these: slice = these) -> None:
            if progress is not None:
                progress(these.start + int(share * (these.stop - these.start)), source.queries)

        found.append(_search(source, these, depth, asked[these], own[these], block, engine, told))
    return Found(
        np.concatenate([part.order for part in found]),
        np.concatenate([part.similarities for part in found]),
        tuple(rank for part in found for rank in part.ranks),
    )


def _search(
    source: S,
    queries: slice,
    depth: int,
    probes: Sequence[np.ndarray],
    own: np.ndarray,
    block: int,
    engine: Callable[[S, slice, np.ndarray, int], _Blocks | _Faiss],
    told: Callable[[float], None],
) -> Found:
    wanted = min(depth + MARGIN, source.count - int((own >= 0).any()))
    nearest, counts = engine(source, queries, own, wanted), _Counts(source, queries, probes)
    for start, similarities in source.blocks(queries, max(block, wanted + 1)):
        if not (finite := torch.isfinite(similarities)).all():
            raise NotFinite("gallery image", start + int(finite.all(dim=0).int().argmin()))
        inside = np.flatnonzero((own >= start) & (own < start + similarities.shape[1]))
        similarities[inside, own[inside] - start] = -torch.inf
        nearest.add(similarities, start)
        counts.add(similarities, start)
        told((start + similarities.shape[1]) / source.count)
    order, values = _exactly(source, queries, nearest.indices(), depth)
    return Found(order, values, tuple(map(_places, order, probes, counts.ranks())))


class _Rows:
    """Columns of one length that grow at their end, in memory that is asked for seldom.

    Small arrays that were kept between large ones, which come and go with every block, would keep the room of these.
    """

    def __init__(self, *kinds: type):
        self._columns: list[np.ndarray] = [np.empty(0, kind) for kind in kinds]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, *parts: np.ndarray) -> None:
        """One part (m,) a column."""
        before, self._count = self._count, self._count + len(parts[0])
        if self._count > len(self._columns[0]):
            self._columns = [np.resize(column, max(1_024, 2 * self._count)) for column in self._columns]
        for column, part in zip(self._columns, parts, strict=True):
            column[before : self._count] = part

    def columns(self) -> tuple[np.ndarray, ...]:
        """Each (n,), which `add` after `clear` overwrites."""
        return tuple(column[: self._count] for column in self._columns)

    def clear(self) -> None:
        self._count = 0


class _Blocks:
    """The `wanted` nearest of every query so far. Only what beats the worst of them is looked at."""

    def __init__(self, source: Similarities, queries: slice, own: np.ndarray, wanted: int):
        self.wanted = wanted
        self.values = np.zeros((len(own), 0), np.float32)
        self.order = np.zeros((len(own), 0), np.int64)
        self.waiting = _Rows(np.int64, np.int64, np.float32)  # queries, gallery indices, similarities
        self.worst = torch.full((len(own), 1), -torch.inf)

    def add(self, similarities: torch.Tensor, start: int) -> None:
        if start == 0 and similarities.shape[1] > self.wanted:
            # what is kept of the first block: its best, and those that tie with the last of them
            self.worst = similarities.topk(self.wanted, dim=1).values[:, -1:].nextafter(torch.tensor(-torch.inf))
        rows, columns = torch.nonzero(similarities > self.worst, as_tuple=True)
        self.waiting.add(rows.numpy(), columns.numpy() + start, similarities[rows, columns].numpy())
        # one image more than are wanted, since a query's own is not looked at
        enough = start + similarities.shape[1] > self.wanted
        if enough and len(self.waiting) > self.order.size:
            self._merge()

    def _merge(self) -> None:
        n, kept = self.order.shape
        queries, images, similarities = self.waiting.columns()
        rows = np.concatenate([np.repeat(np.arange(n), kept), queries])
        order = np.concatenate([self.order.ravel(), images])
        values = np.concatenate([self.values.ravel(), similarities])
        best = np.lexsort((order, -values, rows))
        at = best[np.searchsorted(rows[best], np.arange(n))[:, None] + np.arange(self.wanted)]
        self.order, self.values = order[at], values[at]
        self.waiting.clear()
        self.worst = torch.from_numpy(self.values[:, -1:].copy())

    def indices(self) -> np.ndarray:
        """(nq, wanted) gallery indices."""
        self._merge()
        return self.order


class _Faiss:
    """The same by FAISS's flat index, on the GPUs where faiss-gpu finds any; it holds the whole gallery.

    Of images that are exactly as similar as the last of the list, it keeps any.
    """

    def __init__(self, source: Dense, queries: slice, own: np.ndarray, wanted: int):
        from bench.doctor import require_faiss

        require_faiss()
        import faiss

        self.queries = np.ascontiguousarray(source.rows[queries], dtype=np.float32)
        self.gallery, self.own, self.wanted = source.gallery, own, wanted
        index = faiss.IndexFlatIP(self.queries.shape[1])
        gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
        self.index = faiss.index_cpu_to_all_gpus(index) if gpus else index

    def add(self, similarities: torch.Tensor, start: int) -> None:
        rows = self.gallery.block(start, start + similarities.shape[1])
        self.index.add(np.ascontiguousarray(rows, dtype=np.float32))

    def indices(self) -> np.ndarray:
        order = self.index.search(self.queries, min(self.wanted + 1, self.index.ntotal))[1]
        last = np.argsort(order == self.own[:, None], axis=1, kind="stable")  # the query's own image
        return np.take_along_axis(order, last, axis=1)[:, : self.wanted]


ENGINES: Mapping[str, type[_Blocks] | type[_Faiss]] = {"blocks": _Blocks, "faiss": _Faiss}


class _Counts:
    """How many gallery images stand before each probe: those more similar, and those before it that are as similar."""

    def __init__(self, source: Similarities, queries: slice, probes: Sequence[np.ndarray]):
        self.sorts, self.probes = [], []  # of each query, by ascending similarity
        self.values = np.full((len(probes), max(map(len, probes))), np.inf, np.float32)
        for q, asked in enumerate(probes):
            values = np.zeros(0, np.float32)
            if len(asked):
                values = source.exact(queries.start + q, asked).astype(np.float32)
            sort = np.argsort(values, kind="stable")
            self.values[q, : len(asked)] = values[sort]
            self.sorts.append(sort)
            self.probes.append(asked[sort])
        n, most = self.values.shape
        self.between = np.zeros((n, most + 1), np.int64)  # images that are more similar than the probes before i alone
        # of each probe, the first one that is as similar; ties are counted there
        self.firsts = [np.searchsorted(row, row[: len(asked)]) for row, asked in zip(self.values, probes, strict=True)]
        self.equal = np.zeros(n * most, np.int64)  # images so far that are as similar as a first one
        self.before = np.zeros((n, most), np.int64)  # of them, those before the probe

    def add(self, similarities: torch.Tensor, start: int) -> None:
        n, most = self.values.shape
        if not most:
            return
        for q, asked in enumerate(self.probes):  # a probe equals itself, whatever the matrix product made of it
            inside = (asked >= start) & (asked < start + similarities.shape[1])
            similarities[q, asked[inside] - start] = torch.from_numpy(self.values[q, : len(asked)][inside])
        values = torch.from_numpy(self.values)
        below = torch.searchsorted(values, similarities)  # the probes that are less similar
        flat = (below + torch.arange(n)[:, None] * (most + 1)).ravel()
        self.between += torch.bincount(flat, minlength=n * (most + 1)).view(n, most + 1).numpy()
        at = below.clamp_(max=most - 1)
        rows, columns = torch.nonzero(values.gather(1, at) == similarities, as_tuple=True)
        self._add_equal(rows.numpy() * most + at[rows, columns].numpy(), columns.numpy(), start, similarities.shape[1])

    def _add_equal(self, groups: np.ndarray, columns: np.ndarray, start: int, width: int) -> None:
        """Images (m,) of a block that are as similar as a probe: their columns, and at which place of which query.

        They are counted and not kept: however many images are alike, memory does not grow with them.
        """
        keys = np.sort(groups * width + columns)
        for q, (asked, firsts) in enumerate(zip(self.probes, self.firsts, strict=True)):
            inside = np.flatnonzero((asked >= start) & (asked < start + width))
            group = q * self.values.shape[1] + firsts[inside]
            here = np.searchsorted(keys, group * width + asked[inside] - start) - np.searchsorted(keys, group * width)
            self.before[q, inside] = self.equal[group] + here
        self.equal += np.bincount(groups, minlength=len(self.equal))

    def ranks(self) -> list[np.ndarray]:
        """(p,) places of each query's probes in its whole ranking."""
        greater = self.between.sum(axis=1, keepdims=True) - self.between.cumsum(axis=1)
        found = []
        for q, (asked, sort) in enumerate(zip(self.probes, self.sorts, strict=True)):
            ranks = np.empty(len(asked), np.int64)
            ranks[sort] = greater[q, : len(asked)] + self.before[q, : len(asked)]
            found.append(ranks)
        return found


def _exactly(source: Similarities, queries: slice, chosen: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `depth` of the chosen (nq, m) in order of their similarities in double precision."""
    depth = min(depth, chosen.shape[1])
    order = np.empty((len(chosen), depth), np.int64)
    values = np.empty((len(chosen), depth), np.float32)
    for q, images in enumerate(np.sort(chosen, axis=1)):
        exact = source.exact(queries.start + q, images).astype(np.float32)
        sort = np.argsort(-exact, kind="stable")[:depth]
        order[q], values[q] = images[sort], exact[sort]
        if not (finite := np.isfinite(values[q])).all():
            raise NotFinite("gallery image", int(order[q][finite.argmin()]))
    return order, values


def _places(order: np.ndarray, probes: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Ranks of the probes: exact where they are in `order`, else as counted, but behind it and one after another."""
    if not len(probes):
        return counted
    inside = {int(image): place for place, image in enumerate(order)}
    ranks = np.array([inside.get(int(probe), -1) for probe in probes])
    tail = np.flatnonzero(ranks < 0)
    tail = tail[np.argsort(counted[tail], kind="stable")]
    step = np.arange(len(tail))
    ranks[tail] = np.maximum(np.maximum.accumulate(counted[tail] - step), len(order)) + step
    return ranks
