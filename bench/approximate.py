"""Approximate search of global descriptors by FAISS, for galleries that are too large to compare every image.

An index proposes images, and what it proposes is compared as an exact search compares it: similarities are exact, and
only which images are looked at is not. The share of the exact lists that is found is measured on some queries. Graded
images that it does not find have no rank: to know one, every image would have to be compared.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.errors import UserError, unknown
from bench.files import whole, writing
from bench.options import read_options
from bench.search import BLOCK, ENGINES, MARGIN, QUERIES, Dense, Found, NotFinite, Vectors, search_by

OPTION = "--search"
BY = " by "  # between a first stage's name and its index's
FOLDER = "indexes"  # below the cache
FEWEST = 39  # images that FAISS asks for to train one cell or one code
TRAINED_ON = 256  # images a cell or code at most; more train no better
MOST_CODES = 64  # bytes of an image, where it is not said
SAMPLED = 100  # queries whose exact lists are searched too, to measure recall
FORMAT = 1  # of an index file in the cache
PROBED = 64  # rows of the gallery that name an index file, besides what they were extracted from


class Kind(Protocol):
    """An index and its options; equal names mean equal indexes of one gallery."""

    @property
    def name(self) -> str:
        """As the command line and the seal have it."""

    @property
    def farther(self) -> str:
        """What to give where too few images are found."""

    def resolved(self, count: int, dim: int) -> Kind:
        """With every option a number, for so many images of so many values. UserError where it cannot be built."""

    def build(self, gallery: Vectors, dim: int, progress: Callable[[int, int], None] | None) -> Any:
        """FAISS's index of the gallery; of resolved options alone."""

    def proposals(self, depth: int) -> int:
        """How many images it proposes where so many are wanted."""

    def prepare(self, index: Any, proposals: int) -> None:
        """Make the index ready to propose so many."""


@dataclass(frozen=True)
class IvfPq:
    """Inverted lists of product-quantised descriptors (Jegou, Douze, Schmid, TPAMI 2011). ValueError for bad values."""

    lists: int | None = None  # cells of the gallery; none: four times the root of its size
    probes: int = 32  # cells that a query looks through
    codes: int | None = None  # codes an image; none: the most up to 64 that its values can be parted into
    bits: int = 8  # of a code
    refine: int = 8  # so many times the images wanted are compared exactly

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.bits > 12:
            raise ValueError(f"bits={self.bits}, expected 1 to 12")

    @property
    def name(self) -> str:
        return _name("ivfpq", self)

    @property
    def farther(self) -> str:
        return f"ivfpq:probes={4 * self.probes}"

    def resolved(self, count: int, dim: int) -> IvfPq:
        fits = [codes for codes in range(1, min(dim, MOST_CODES) + 1) if dim % codes == 0]
        lists = max(1, min(int(4 * math.sqrt(count)), count // FEWEST)) if self.lists is None else self.lists
        codes = fits[-1] if self.codes is None else self.codes
        if dim % codes:
            raise UserError(
                f"{OPTION} ivfpq:codes={codes}: descriptors of {dim} values cannot be parted into so many",
                hint=f"codes={fits[-1]} divides them",
            )
        needed = FEWEST * max(lists, 2**self.bits)
        if count < needed:
            raise UserError(
                f"{OPTION} ivfpq: a gallery of {count} images is too small to train {lists} lists and codes of "
                f"{self.bits} bits, which takes {needed}",
                hint=f"{OPTION} blocks finds the same or better, and is fast for so few",
            )
        return replace(self, lists=lists, codes=codes, probes=min(self.probes, lists))

    def build(self, gallery: Vectors, dim: int, progress: Callable[[int, int], None] | None) -> Any:
        import faiss

        assert self.lists is not None and self.codes is not None
        cells = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFPQ(cells, dim, self.lists, self.codes, self.bits, faiss.METRIC_INNER_PRODUCT)
        some = min(gallery.count, TRAINED_ON * max(self.lists, 2**self.bits))
        drawn = np.sort(np.random.default_rng(0).choice(gallery.count, some, replace=False))
        index.train(_finite(np.ascontiguousarray(gallery.rows(drawn), np.float32), drawn))
        _add(index, gallery, progress)
        return index

    def proposals(self, depth: int) -> int:
        return self.refine * depth

    def prepare(self, index: Any, proposals: int) -> None:
        index.nprobe = self.probes


@dataclass(frozen=True)
class Hnsw:
    """A navigable graph of the descriptors (Malkov and Yashunin, TPAMI 2020). ValueError for bad values."""

    links: int = 32  # neighbours that an image is linked to
    construction: int = 200  # images that are looked at to link one
    breadth: int = 256  # images that a query keeps looking from

    def __post_init__(self) -> None:
        _require_positive(self)

    @property
    def name(self) -> str:
        return _name("hnsw", self)

    @property
    def farther(self) -> str:
        return f"hnsw:breadth={4 * self.breadth}"

    def resolved(self, count: int, dim: int) -> Hnsw:
        return self

    def build(self, gallery: Vectors, dim: int, progress: Callable[[int, int], None] | None) -> Any:
        import faiss

        index = faiss.IndexHNSWFlat(dim, self.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self.construction
        with _one_thread():  # several link images in the order in which they come to it: another graph every time
            _add(index, gallery, progress)
        return index

    def proposals(self, depth: int) -> int:
        return depth

    def prepare(self, index: Any, proposals: int) -> None:
        index.hnsw.efSearch = max(self.breadth, proposals)


KINDS: dict[str, type[IvfPq] | type[Hnsw]] = {"ivfpq": IvfPq, "hnsw": Hnsw}


def parse(text: str) -> Kind | None:
    """The index that `--search TEXT` names, NAME[:OPTION=VALUE…]; None for an exact search. UserError for others.

    >>> parse("ivfpq:probes=8").name, parse("blocks")
    ('ivfpq:probes=8:bits=8:refine=8', None)
    """
    name, colon, rest = text.partition(":")
    if name in ENGINES and not colon:
        return None
    if name not in KINDS:
        raise unknown(f"{OPTION}:", text, [*ENGINES, *KINDS])
    given = {}
    for piece in filter(None, rest.split(":")):
        key, equals, value = piece.partition("=")
        if not equals:
            raise UserError(f"{OPTION} {text}: {piece!r}, expected OPTION=VALUE", hint=f"for example {name}:probes=8")
        given[key] = value
    kind: Kind = read_options(KINDS[name], given, f"{OPTION} {name}", f"{OPTION} {name}:")
    return kind


def _require_positive(kind: Any) -> None:
    for field in fields(kind):
        value = getattr(kind, field.name)
        if value is not None and value < 1:
            raise ValueError(f"{field.name}={value}, expected 1 or more")


def _name(name: str, kind: Any) -> str:
    values = {field.name: getattr(kind, field.name) for field in fields(kind)}
    return ":".join([name, *(f"{key}={value}" for key, value in values.items() if value is not None)])


@contextmanager
def _one_thread() -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _add(index: Any, gallery: Vectors, progress: Callable[[int, int], None] | None) -> None:
    for start in range(0, gallery.count, BLOCK):
        stop = min(start + BLOCK, gallery.count)
        rows = np.ascontiguousarray(gallery.block(start, stop), np.float32)
        index.add(_finite(rows, np.arange(start, stop)))
        if progress is not None:
            progress(stop, gallery.count)


def _finite(rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise NotFinite("gallery image", int(images[finite.argmin()]))
    return rows


@dataclass(frozen=True)
class Recall:
    """How much of the exact lists an approximate search finds."""

    share: float  # mean over these queries of the share of the exact list's k images that are in its list
    queries: int  # that were looked at
    k: int

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and self.queries > 0 and self.k > 0):
            raise ValueError(f"{self}: expected a share in 0 to 1, of one query or more")


@dataclass(frozen=True, eq=False)
class Index:
    """A gallery's index, ready to search. `kind` is resolved."""

    kind: Kind
    faiss: Any
    bytes_per_image: float  # of the index itself, mean over the gallery
    built: bool  # now, not read from the cache

    def search(
        self,
        source: Dense,
        depth: int,
        *,
        probes: Sequence[np.ndarray] | None = None,
        own: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Found:
        """As `bench.search.search_by`, of what the index proposes; a probe that is not found has the rank -1.

        UserError where a query finds fewer than `depth` images, though there are more.
        """
        finite = np.isfinite(source.rows).all(axis=1)
        if not finite.all():
            raise NotFinite("query", int(finite.argmin()))
        own = np.full(source.queries, -1) if own is None else own
        depth = min(depth, source.count - int((own >= 0).any()))
        proposals = min(self.kind.proposals(depth + MARGIN) + 1, source.count)  # one more: the query's own image
        self.kind.prepare(self.faiss, proposals)
        order = np.empty((source.queries, depth), np.int64)
        values = np.empty((source.queries, depth), np.float32)
        for at in range(0, source.queries, QUERIES):
            rows = np.ascontiguousarray(source.rows[at : at + QUERIES], np.float32)
            for query, images in enumerate(self.faiss.search(rows, proposals)[1], at):
                # without features all are equal, and stand in the gallery's order as in an exact search
                found = images[images >= 0] if rows[query - at].any() else np.arange(min(depth + 1, source.count))
                order[query], values[query] = self._best(source, query, found, own[query], depth)
            if progress is not None:
                progress(min(at + QUERIES, source.queries), source.queries)
        asked = [np.zeros(0, np.int64)] * source.queries if probes is None else probes
        return Found(order, values, tuple(map(_ranks, order, asked)))

    def _best(
        self, source: Dense, query: int, proposed: np.ndarray, own: int, depth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first `depth` of the images proposed and their similarities; ties are in gallery order."""
        images = np.sort(proposed[proposed != own])
        if len(images) < depth:
            raise UserError(
                f"{OPTION} {self.kind.name}: a query finds {len(images)} images, {depth} are wanted",
                hint=f"look farther ({OPTION} {self.kind.farther}), or ask for fewer (--top-k)",
            )
        exact = source.exact(query, images).astype(np.float32)
        if not (finite := np.isfinite(exact)).all():
            raise NotFinite("gallery image", int(images[finite.argmin()]))
        best = np.argsort(-exact, kind="stable")[:depth]
        return images[best], exact[best]

    def recall(self, source: Dense, k: int, own: np.ndarray) -> Recall:
        """Against the exact lists of the SAMPLED queries that a fixed seed draws, or of all where there are fewer."""
        some = np.sort(np.random.default_rng(0).permutation(source.queries)[:SAMPLED])
        part, mine = Dense(source.rows[some], source.gallery), own[some]
        exact, found = search_by(part, k, own=mine).order, self.search(part, k, own=mine).order
        shares = [np.isin(one, other).mean() for one, other in zip(exact, found, strict=True)]
        return Recall(float(np.mean(shares)), len(some), exact.shape[1])


def _ranks(order: np.ndarray, probes: np.ndarray) -> np.ndarray:
    places = {int(image): place for place, image in enumerate(order)}
    return np.array([places.get(int(probe), -1) for probe in probes], np.int64)


def opened(
    kind: Kind,
    source: Dense,
    folder: Path,
    identity: str,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """The index of the source's gallery, read from `folder` where it was built before, else built and kept there.

    `identity` says what the gallery's descriptors are; FAISS's version and some of the rows themselves are added to it.
    UserError for a gallery that it cannot be built of.
    """
    from bench.doctor import require_faiss

    require_faiss()
    import faiss

    gallery, dim = source.gallery, source.rows.shape[1]
    kind = kind.resolved(gallery.count, dim)
    probed = np.ascontiguousarray(gallery.rows(np.unique(np.linspace(0, gallery.count - 1, PROBED, dtype=np.int64))))
    said = [FORMAT, faiss.__version__, identity, kind.name, gallery.count, dim]
    name = hashlib.sha256(json.dumps(said).encode() + probed.astype(np.float32).tobytes()).hexdigest()
    path = folder / f"{name}.faiss"
    index = _read(path, gallery.count)
    built = index is None
    if built:
        index = kind.build(gallery, dim, progress)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(index, path)
    return Index(kind, index, path.stat().st_size / gallery.count, built)


def _read(path: Path, count: int) -> Any:
    """The index in a file; None where there is none that is whole."""
    import faiss

    try:
        index = faiss.read_index(str(path)) if path.is_file() else None
    except RuntimeError:  # FAISS's word for a damaged file
        return None
    return index if index is not None and index.ntotal == count else None


def _write(index: Any, path: Path) -> None:
    import faiss

    with whole(path) as temporary:
        try:
            faiss.write_index(index, str(temporary))
        except RuntimeError as error:  # FAISS's word for a full disk
            raise OSError(str(error).splitlines()[-1]) from error
