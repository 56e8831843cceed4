"""The aggregated selective match kernel over a whole gallery; similarities are those that the reranker `asmk` gives.

Aggregates of the gallery are in an inverted file, in half precision or as bits (ASMK*). The kernel and its sources are
in `methods.asmk`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UserError
from bench.features import Features
from bench.files import file_hash
from bench.first_stages.inverted_file import IMAGES, Block, InvertedFile, Layout, Postings, built
from methods.asmk import Aggregates, Asmk, aggregate
from methods.asmk.codebook import Codebook

READ = 64  # gallery images read and aggregated together
COMPARED = 512  # descriptors compared with all words together: their products stay in the processor's cache
LOOKED_UP = 256  # images looked up together in the postings of all of a query's words
MAPPED = 64  # blocks, a million images, that stay open for looking images up: two files each
WAITING = 2**20  # selectivities that are computed before they are added to their sums
NEEDS = frozenset({"local"})


class Store(Protocol):
    """Where local descriptors are read from, such as `bench.features.sets.FeatureSet`."""

    def read_all(
        self, keys: Sequence[str], needs: frozenset[str], top: Callable[[int], int] | None
    ) -> tuple[Features, ...]: ...


class Packing(Protocol):
    """How the vectors of aggregates are stored, and what of the kernel is computed from that."""

    kind: str  # numpy's name of the type of a stored value
    sums: torch.dtype  # of sums over words

    def __init__(self, dim: int, options: Asmk.Options): ...

    @property
    def width(self) -> int:
        """Stored values of one vector."""

    def stored(self, vectors: Tensor) -> np.ndarray:
        """(n, width) of the gallery's (n, d) vectors."""

    def asked(self, vectors: Tensor) -> np.ndarray:
        """The same of a query's, which are not stored."""

    def selected(self, asked: np.ndarray, stored: np.ndarray) -> Tensor:
        """(q, p) selectivity of every pair of a query's vector and a stored one, of the type `sums`."""

    def exactly(self, asked: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """(n,) float64, of each vector of a query and the stored one of the same row."""


class Halves:
    """Half precision."""

    kind, sums = "float16", torch.float32

    def __init__(self, dim: int, options: Asmk.Options):
        self.width, self._options = dim, options
        # the last value that does not count; with it, one pass over the products does what comparing and choosing do
        self._below = float(np.nextafter(np.float32(options.threshold), np.float32(-1)))

    def stored(self, vectors: Tensor) -> np.ndarray:
        return vectors.half().numpy()

    def asked(self, vectors: Tensor) -> np.ndarray:
        return vectors.float().numpy()

    def selected(self, asked: np.ndarray, stored: np.ndarray) -> Tensor:
        products = torch.from_numpy(asked) @ torch.from_numpy(stored).float().T
        return F.threshold(products, self._below, 0.0, inplace=True).pow_(self._options.alpha)

    def exactly(self, asked: np.ndarray, stored: np.ndarray) -> np.ndarray:
        products = np.einsum("nd,nd->n", asked.astype(np.float64), stored.astype(np.float64))
        return _selectivity(products, self._options)


class Bits:
    """A bit a value. Sums are the exact ones, in the same order: equal images stay equal, however many there are."""

    kind, sums = "uint8", torch.float64

    def __init__(self, dim: int, options: Asmk.Options):
        self.width = -(-dim // 8)
        self._table = _selectivity((dim - 2 * np.arange(dim + 1)) / dim, options)  # by number of differing bits
        self._word = np.dtype(f"u{math.gcd(self.width, 8)}")  # the largest integers that a row is made of

    def stored(self, vectors: Tensor) -> np.ndarray:
        return np.packbits(vectors.numpy() > 0, axis=1)

    def asked(self, vectors: Tensor) -> np.ndarray:
        return self.stored(vectors)

    def selected(self, asked: np.ndarray, stored: np.ndarray) -> Tensor:
        one, other = asked.view(self._word), stored.view(self._word)
        differing = np.bitwise_count(one[:, :1] ^ other[:, 0])
        if one.shape[1] > 1:
            differing = differing.astype(np.uint32)
            for at in range(1, one.shape[1]):
                differing += np.bitwise_count(one[:, at, None] ^ other[:, at])
        return torch.from_numpy(self._table[differing])

    def exactly(self, asked: np.ndarray, stored: np.ndarray) -> np.ndarray:
        return self._table[np.bitwise_count(asked ^ stored).sum(axis=1, dtype=np.int64)]


def _selectivity(products: np.ndarray, options: Asmk.Options) -> np.ndarray:
    return np.where(products >= options.threshold, np.maximum(products, 0.0) ** options.alpha, 0.0)


PACKINGS: Mapping[bool, type[Packing]] = {False: Halves, True: Bits}  # by the option `binary`


def build(
    store: Store,
    keys: Collection[str],
    folder: Path,
    content: str,
    options: Asmk.Options,
    progress: Callable[[int, int], None] | None = None,
    *,
    block: int = IMAGES,
) -> InvertedFile:
    """The inverted file of the images `keys` in their order, built in `folder` as far as it is not there.

    `content` says what the features of these images are: of others, of another codebook or other options that
    aggregates depend on, it is built anew. An image without local descriptors has no postings. `progress` is told how
    many images are done, of how many.

    UserError for a codebook of another size than the descriptors have, for a file that is no codebook, and where the
    folder cannot be written.
    """
    codebook = Codebook.load(options.codebook).centroids
    packing = PACKINGS[options.binary](codebook.shape[1], options)
    identity = {
        "content": content,
        "codebook": file_hash(options.codebook),
        "descriptors": options.descriptors,
        "binary": options.binary,
        "assignments": 1,
    }
    layout, total = Layout(len(codebook), packing.width, packing.kind, block), len(keys)
    rest, place = iter(keys), 0

    def read(start: int, stop: int) -> Iterator[Postings]:
        nonlocal place
        wanted = islice(rest, start - place, stop - place)
        place = stop
        for at in range(start, stop, READ):
            images = store.read_all(list(islice(wanted, READ)), NEEDS, lambda _: options.descriptors)
            yield _postings([image.descriptors for image in images], codebook, packing, at - start, options)
            if progress is not None:
                progress(min(at + READ, stop), total)

    return built(folder, identity, layout, total, read, progress)


def query_aggregates(store: Store, keys: Sequence[str], options: Asmk.Options) -> list[Aggregates]:
    """What each query image asks for. UserError as `build`."""
    codebook = Codebook.load(options.codebook).centroids
    found = []
    for key in keys:
        rows = store.read_all([key], NEEDS, lambda _: options.descriptors)[0].descriptors
        _check(rows, codebook, options)
        rows = rows if len(rows) else codebook.new_zeros((0, codebook.shape[1]))
        found.append(aggregate(rows, codebook, options.assignments, options.binary))
    return found


def _check(descriptors: Tensor, codebook: Tensor, options: Asmk.Options) -> None:
    if len(descriptors) and descriptors.shape[1] != codebook.shape[1]:
        raise UserError(
            f"{options.codebook}: a codebook of {codebook.shape[1]}-d descriptors, "
            f"but the features have {descriptors.shape[1]}-d ones",
            hint="give a codebook made of the same features",
        )


def _postings(
    images: Sequence[Tensor], codebook: Tensor, packing: Packing, first: int, options: Asmk.Options
) -> Postings:
    """As `aggregate` has them for one assignment, of many images together; the first of them has the number `first`."""
    for rows in images:
        _check(rows, codebook, options)
    sizes = [len(rows) for rows in images]
    if not sum(sizes):
        nothing = np.zeros(0, np.int64)
        return Postings(nothing, nothing, np.zeros((0, packing.width), packing.kind))
    descriptors = torch.cat([rows for rows in images if len(rows)])
    bias = -codebook.square().sum(dim=1) / 2
    # numpy finds the greatest of a row faster than torch
    products = (F.linear(some, codebook, bias).numpy() for some in descriptors.split(COMPARED))
    nearest = np.concatenate([each.argmax(axis=1) for each in products])
    residuals = (descriptors - codebook[torch.from_numpy(nearest)]).numpy()
    pairs = np.repeat(np.arange(len(images)), sizes) * len(codebook) + nearest
    order = np.argsort(pairs, kind="stable")
    starts = np.flatnonzero(np.diff(pairs[order], prepend=-1))
    # a product with the membership matrix, as the reranker has it
    members = csr_matrix((np.ones(len(order), np.float32), order, np.r_[starts, len(order)]), (len(starts), len(order)))
    sums = torch.from_numpy(members @ residuals)
    numbers, words = np.divmod(pairs[order][starts], len(codebook))
    return Postings(words, numbers + first, packing.stored(F.normalize(sums, dim=1)))


class _Asked(NamedTuple):
    """The vectors of some queries by word: of `words[i]`, those in rows `ends[i]` to `ends[i + 1]`."""

    words: np.ndarray  # (w,) ascending
    ends: np.ndarray  # (w + 1,)
    queries: list[int]  # of every row, counted within the pass
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class AsmkSimilarities:
    """Similarities of queries to the images of an inverted file, as `bench.search.search_by` takes them.

    Of several queries, a block's postings of a word are read once. A query without local descriptors has similarity 0
    to every image. ValueError where the aggregates or the options are not those of the file.
    """

    file: InvertedFile
    aggregates: Sequence[Aggregates]
    options: Asmk.Options

    def __post_init__(self) -> None:
        found, layout = (self._packing.kind, self._packing.width), self.file.layout
        if found != (layout.kind, layout.width):
            raise ValueError(f"vectors of {found[1]} {found[0]}, the inverted file has {layout.width} {layout.kind}")
        if any(len(one.words) and int(one.words[-1]) >= layout.words for one in self.aggregates):
            raise ValueError(f"a query has a word that is none of the inverted file's {layout.words}")

    @property
    def count(self) -> int:
        return self.file.count

    @property
    def queries(self) -> int:
        return len(self.aggregates)

    @property
    def empty_queries(self) -> list[int]:
        """Numbers of the queries without local descriptors."""
        return [number for number, one in enumerate(self.aggregates) if not len(one.words)]

    @cached_property
    def _packing(self) -> Packing:
        dims = {one.vectors.shape[1] for one in self.aggregates}
        if len(dims) != 1:
            raise ValueError(f"expected queries of one codebook, not of descriptors of {sorted(dims)} values")
        return PACKINGS[self.options.binary](dims.pop(), self.options)

    def blocks(self, queries: slice, size: int) -> Iterator[tuple[int, Tensor]]:
        """Blocks of the inverted file, whatever `size`."""
        chosen = self.aggregates[queries]
        asked = _by_word(chosen, self._packing)
        for number in range(self.file.blocks):
            block = self.file.block(number)
            sums = torch.zeros((len(chosen), len(block)), dtype=self._packing.sums)
            self._add(block, asked, sums)
            for one, row in zip(chosen, sums, strict=True):
                row.div_(torch.from_numpy(_norms(len(one.words), block.words_of)))
            yield number * self.file.layout.block, sums.float()

    def _add(self, block: Block, asked: _Asked, sums: Tensor) -> None:
        """Add the selectivities of a block's postings to (q, b) sums, word by word.

        They wait until there are WAITING, then are added query by query: a row of sums is in the processor's cache for
        many words, and not fetched anew for each.
        """
        waiting: list[list[tuple[Tensor, Tensor]]] = [[] for _ in sums]
        count = 0
        spans = zip(block.starts[asked.words].tolist(), block.starts[asked.words + 1].tolist(), strict=True)
        for (start, stop), (first, last) in zip(spans, pairwise(asked.ends.tolist()), strict=True):
            if start == stop:
                continue
            selected = self._packing.selected(asked.rows[first:last], block.vectors[start:stop])
            images = torch.from_numpy(block.images[start:stop].astype(np.int64))
            for query, values in zip(asked.queries[first:last], selected.unbind(), strict=True):
                waiting[query].append((images, values))
            count += selected.numel()
            if count > WAITING:
                _add_all(waiting, sums)
                count = 0
        _add_all(waiting, sums)

    def exact(self, query: int, images: np.ndarray) -> np.ndarray:
        """(m,) float64, from the same stored vectors."""
        one = self.aggregates[query]
        words, asked = one.words.numpy(), self._packing.asked(one.vectors)
        numbers, places = np.divmod(np.asarray(images, np.int64), self.file.layout.block)
        found = np.zeros(len(numbers))
        for number in np.unique(numbers) if len(words) else ():
            block, at = self._block(int(number)), np.flatnonzero(numbers == number)
            for some in np.split(at, range(LOOKED_UP, len(at), LOOKED_UP)):
                rows, columns, postings = _common(block, words, places[some])
                values = self._packing.exactly(asked[rows], block.vectors[postings])
                sums = np.bincount(columns, values, minlength=len(some))  # by ascending words, as blocks have them
                found[some] = sums / _norms(len(words), block.words_of[places[some]])
        return found

    @cached_property
    def _maps(self) -> dict[int, Block]:
        return {}

    def _block(self, number: int) -> Block:
        """A block that stays open: few of its pages are read for one query, and the next query wants it too."""
        if number not in self._maps:
            if len(self._maps) >= MAPPED:
                self._maps.pop(next(iter(self._maps)))
            self._maps[number] = self.file.block(number)
        return self._maps[number]


def _add_all(waiting: Sequence[list[tuple[Tensor, Tensor]]], sums: Tensor) -> None:
    for parts, row in zip(waiting, sums, strict=True):
        for images, values in parts:
            row.index_add_(0, images, values)  # an image is in a word's postings once
        parts.clear()


def _by_word(aggregates: Sequence[Aggregates], packing: Packing) -> _Asked:
    words = torch.cat([one.words for one in aggregates]).numpy()
    queries = np.repeat(np.arange(len(aggregates)), [len(one.words) for one in aggregates])
    order = np.argsort(words, kind="stable")
    distinct, starts = np.unique(words[order], return_index=True)
    rows = packing.asked(torch.cat([one.vectors for one in aggregates]))[order]
    return _Asked(distinct, np.r_[starts, len(order)], queries[order].tolist(), rows)


def _norms(words: int, words_of: np.ndarray) -> np.ndarray:
    """(b,) float64 roots of both images' numbers of words; 1 where either has none."""
    return np.sqrt(np.maximum(words * words_of.astype(np.float64), 1.0))


def _common(block: Block, words: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where images have a word: its place in `words`, the image's in `images`, and the posting; by ascending word.

    All are looked up at once: halving steps lead from before a word's postings to the last one of an earlier image.
    """
    if not len(block.images):
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, nothing
    wanted = images.astype(block.images.dtype)
    starts, ends = block.starts[words, None], block.starts[words + 1, None]
    place = np.repeat(starts - 1, len(images), axis=1)
    step = 1 << int((ends - starts).max()).bit_length() >> 1
    while step:
        ahead = place + step
        earlier = ahead < ends
        earlier &= block.images.take(ahead, mode="clip") < wanted
        place += earlier * step
        step //= 2
    place += 1
    rows, columns = np.nonzero((place < ends) & (block.images.take(place, mode="clip") == wanted))
    return rows, columns, place[rows, columns]
