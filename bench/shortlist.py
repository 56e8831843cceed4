"""The first stage and its sealed result: for every query the same k candidates for every reranker.

Policies: `blind` makes one list per query and knows no ground truth; `paper` makes one list per difficulty, with the
images that difficulty ignores moved behind everything before the cut, as DELG, RRT, AMES and CVNet report
(docs/protocols.md, Shortlist policies): it uses ground truth, so no deployed system could build it.

A shortlist is as large as its candidates, however large the gallery: beyond them it keeps only where the images with a
grade stand, which is all that a measure of the whole ranking needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from bench.datasets import Dataset, Query
from bench.errors import UserError
from bench.files import read_npz
from bench.metrics import without
from bench.search import Found, NotFinite, Similarities, search_by

Policy = Literal["blind", "paper"]
BLIND_LIST = "any"  # the name of the one list of the policy `blind`
UNION = "union"  # the list a pairwise method scores: every candidate of any of the query's lists, once


@dataclass(frozen=True)
class Header:
    """What a shortlist is a shortlist of; all of it is under the seal."""

    dataset: str
    image_set: str
    protocol: str
    first_stage: str  # its name, with the whitening if any
    first_stage_content: str  # sha256 over what it searched: settings of the extraction, and contents of all images
    policy: Policy
    k: int
    query_crop: bool
    gallery_size: int
    gallery_content: str  # sha256 over the ids of the whole gallery, in order

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"--top-k {self.k}: expected at least 1")
        if self.policy not in ("blind", "paper"):
            raise UserError(f"--policy {self.policy}: expected blind or paper")


@dataclass(frozen=True, eq=False)
class Graded:
    """Where the images with a grade stand in each query's whole first-stage ranking, without the query's own image.

    Of query q: `images[offsets[q] : offsets[q + 1]]` index the shortlist's `gallery`, `ranks` are their 0-based places,
    -1 where the ranking does not have them.
    """

    offsets: np.ndarray
    images: np.ndarray
    ranks: np.ndarray

    def __post_init__(self) -> None:
        if not (len(self.offsets) and self.offsets[0] == 0 and (np.diff(self.offsets) >= 0).all()):
            raise ValueError("offsets of the graded images do not ascend from 0")
        if not self.offsets[-1] == len(self.images) == len(self.ranks):
            raise ValueError(f"{len(self.images)} graded images, {len(self.ranks)} ranks, {self.offsets[-1]} expected")

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """(p,) indices into the shortlist's gallery, and their ranks."""
        at = slice(self.offsets[query], self.offsets[query + 1])
        return self.images[at], self.ranks[at]


@dataclass(frozen=True, eq=False)
class Shortlist:
    """The candidates of every query; the constructor refuses lists no one could rerank.

    `lists[name]` (nq, k) holds distinct indices into `gallery`, best first, and `similarities[name]` (nq, k) their
    first-stage similarities, float32. `gallery` names the images that are a candidate or have a grade, in the order of
    the whole gallery.
    """

    header: Header
    queries: tuple[str, ...]
    gallery: tuple[str, ...]
    lists: Mapping[str, np.ndarray] = field(repr=False)
    similarities: Mapping[str, np.ndarray] = field(repr=False)
    graded: Graded = field(repr=False)

    def __post_init__(self) -> None:
        shape = (len(self.queries), self.header.k)
        if self.lists.keys() != self.similarities.keys() or len(self.graded.offsets) != len(self.queries) + 1:
            raise ValueError(f"lists {sorted(self.lists)}, similarities {sorted(self.similarities)}, or graded images")
        for name, candidates in self.lists.items():
            values = self.similarities[name]
            if candidates.shape != shape or values.shape != shape:
                raise ValueError(
                    f"list {name!r} has the shapes {candidates.shape} and {values.shape}, expected {shape}"
                )
            if not np.isfinite(values).all():
                number, place = (int(at[0]) for at in np.nonzero(~np.isfinite(values)))
                query = self.queries[number]
                raise UserError(f"list {name!r} of query {query!r}: the similarity at place {place + 1} is not finite")
            ordered = np.sort(candidates, axis=1)
            bad = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
            bad |= (ordered[:, 0] < 0) | (ordered[:, -1] >= len(self.gallery))
            if bad.any():
                query = self.queries[int(bad.argmax())]
                raise UserError(f"list {name!r} of query {query!r} repeats an image or names one that is not there")

    def list_for(self, difficulty: str) -> str:
        """Name of the list that is scored at a difficulty."""
        return BLIND_LIST if self.header.policy == "blind" else difficulty

    def candidates(self, name: str, query: int) -> np.ndarray:
        """(k,) indices into `gallery`, best first."""
        return self.lists[name][query]

    def union(self, query: int) -> np.ndarray:
        """Every candidate of any of the query's lists once, in the order of first appearance."""
        joined = np.concatenate([self.candidates(name, query) for name in self.lists])
        return joined[np.sort(np.unique(joined, return_index=True)[1])]

    def union_similarities(self, query: int) -> np.ndarray:
        """First-stage similarities of `union(query)`, float32."""
        joined = np.concatenate([self.candidates(name, query) for name in self.lists])
        first = np.sort(np.unique(joined, return_index=True)[1])
        return np.concatenate([values[query] for values in self.similarities.values()])[first]

    def tail(self, name: str, query: int, positives: Collection[int], ignored: Collection[int]) -> np.ndarray:
        """0-based ranks, ascending, of the positives behind a list's candidates when the ignored are taken out."""
        return self.behind(self.candidates(name, query), query, positives, ignored)

    def behind(
        self, candidates: np.ndarray, query: int, positives: Collection[int], ignored: Collection[int]
    ) -> np.ndarray:
        """As `tail`, of any first candidates of a query."""
        images, ranks = self.graded.of(query)
        behind = np.isin(images, list(positives)) & ~np.isin(images, candidates) & (ranks >= 0)
        return without(ranks[behind], ranks[np.isin(images, list(ignored)) & (ranks >= 0)])

    @cached_property
    def seal(self) -> str:
        """sha256 over the header, the ids of queries and candidates, and every candidate's place and similarity."""
        digest = hashlib.sha256(json.dumps(asdict(self.header), sort_keys=True).encode())
        used = np.unique(np.concatenate([candidates.ravel() for candidates in self.lists.values()]))
        digest.update(json.dumps([self.queries, [self.gallery[i] for i in used]]).encode())
        for name in sorted(self.lists):
            digest.update(name.encode())
            digest.update(np.searchsorted(used, self.lists[name]).astype("<i4").tobytes())
            digest.update(self.similarities[name].astype("<f4").tobytes())
        return digest.hexdigest()

    @property
    def _tail_digest(self) -> str:
        """sha256 over what is not sealed, since it is about the images with a grade."""
        digest = hashlib.sha256(json.dumps([self.gallery, self.queries]).encode())
        for array in (self.graded.offsets, self.graded.images, self.graded.ranks):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        about = {
            "header": asdict(self.header),
            "queries": self.queries,
            "gallery": self.gallery,
            "lists": list(self.lists),
            "seal": self.seal,
            "graded": self._tail_digest,
        }
        arrays = {f"list/{name}": values.astype(np.int32) for name, values in self.lists.items()}
        arrays |= {f"similarities/{name}": values for name, values in self.similarities.items()}
        arrays |= {f"graded/{name}": values for name, values in vars(self.graded).items()}
        np.savez(path, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: Path) -> Shortlist:
        """The shortlist in a file; UserError if it is damaged or its content no longer fits its seal."""
        try:
            file = read_npz(path)
            about = json.loads(str(file["about"]))
            loaded = Shortlist(
                Header(**about["header"]),
                tuple(about["queries"]),
                tuple(about["gallery"]),
                {name: file[f"list/{name}"] for name in about["lists"]},
                {name: file[f"similarities/{name}"] for name in about["lists"]},
                Graded(*(file[f"graded/{name}"] for name in ("offsets", "images", "ranks"))),
            )
            found = (loaded.seal, loaded._tail_digest)
            expected = (str(about["seal"]), str(about["graded"]))
        except UserError as error:
            raise UserError(f"{path}: {error.message}", hint=error.hint) from error
        except Exception as error:  # whatever a changed file makes of arrays and names
            raise UserError(f"{path}: not a readable shortlist ({error})", hint="run again to make it anew") from error
        if found != expected:
            raise UserError(
                f"{path}: content does not fit its seal {expected[0][:8]} (found {found[0][:8]})",
                hint="the file was changed after it was sealed; run again",
            )
        return loaded


@dataclass(frozen=True)
class Order:
    """The places of a gallery's images: `index` of an id, `id_at` a place."""

    index: Callable[[str], int]
    id_at: Callable[[int], str]

    @staticmethod
    def of(gallery: Mapping[str, Path]) -> Order:
        if hasattr(gallery, "id_at"):  # a gallery that keeps its ids compactly knows both
            return Order(gallery.index, gallery.id_at)  # type: ignore[attr-defined]
        ids = list(gallery)
        return Order({image: i for i, image in enumerate(ids)}.__getitem__, ids.__getitem__)


def graded_images(dataset: Dataset, order: Order) -> list[np.ndarray]:
    """Of every query, ascending gallery indices of the images with a grade, its own image left out."""

    def graded(query: Query) -> Iterator[int]:
        for image in dataset.grades.get(query.id, ()):
            if image != query.id or not dataset.itself(query):
                yield order.index(image)

    return [np.sort(np.fromiter(graded(query), np.int64)) for query in dataset.queries]


def own_images(dataset: Dataset, order: Order) -> np.ndarray:
    """(nq,) gallery index of each query's own image, -1 where it is not in the gallery."""
    return np.array([order.index(q.id) if dataset.itself(q) else -1 for q in dataset.queries], np.int64)


def depth_of(dataset: Dataset, policy: Policy, k: int) -> int:
    """How deep to search, so that k candidates are left where ignored images are moved behind."""
    grades = [len(dataset.grades.get(query.id, ())) for query in dataset.queries]
    return k + (max(grades) if policy == "paper" else 0)


def first_stage(
    dataset: Dataset,
    similarities: Similarities,
    *,
    name: str,
    content: str,
    policy: Policy,
    k: int,
    engine: str = "blocks",
    find: Callable[..., Found] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Shortlist:
    """Search the gallery for every query, seal k candidates each. Ties are in gallery order.

    `find` searches as `search_by` does; None: that does, by the `engine`. `progress` is told how many queries are
    searched, of how many.

    UserError if there are fewer than k possible candidates.
    """
    order = Order.of(dataset.gallery)
    graded, own = graded_images(dataset, order), own_images(dataset, order)
    try:
        depth = depth_of(dataset, policy, max(k, 1))
        searching = partial(search_by, engine=engine) if find is None else find
        found = searching(similarities, depth, probes=graded, own=own, progress=progress)
    except NotFinite as error:
        image = dataset.queries[error.number].id if error.kind == "query" else order.id_at(error.number)
        raise NotFinite(error.kind, error.number, image, name) from error
    return seal(dataset, order, found, graded, name=name, content=content, policy=policy, k=k)


def seal(
    dataset: Dataset,
    order: Order,
    found: Found,
    graded: Sequence[np.ndarray],
    *,
    name: str,
    content: str,
    policy: Policy,
    k: int,
) -> Shortlist:
    """The sealed shortlist of what was found, `depth_of` deep; `graded` are the images whose ranks were asked for."""
    gallery = hashlib.sha256()
    for image in dataset.gallery:
        gallery.update(f"{image}\n".encode())
    header = Header(
        dataset.name,
        dataset.image_set,
        dataset.protocol,
        name,
        content,
        policy,
        k,
        any(query.box is not None for query in dataset.queries),
        len(dataset.gallery),
        gallery.hexdigest(),
    )
    possible = found.order.shape[1]
    if possible < k:
        raise UserError(
            f"{dataset.name}: a query has {possible} possible candidates, fewer than --top-k {k}",
            hint=f"use --top-k {possible} or less",
        )
    places = {BLIND_LIST: np.tile(np.arange(k), (len(dataset.queries), 1))}
    if policy == "paper":
        ignored = [_ignored(dataset, order, query.id) for query in dataset.queries]
        places = {
            difficulty: np.stack(
                [_ignored_last(row, out[difficulty])[:k] for row, out in zip(found.order, ignored, strict=True)]
            )
            for difficulty in dataset.difficulties
        }
    lists = {name: np.take_along_axis(found.order, at, axis=1) for name, at in places.items()}
    named = np.unique(np.concatenate([*(images.ravel() for images in lists.values()), *graded]))
    return Shortlist(
        header,
        tuple(query.id for query in dataset.queries),
        tuple(order.id_at(int(i)) for i in named),
        {name: np.searchsorted(named, images).astype(np.int32) for name, images in lists.items()},
        {name: np.take_along_axis(found.similarities, at, axis=1) for name, at in places.items()},
        Graded(
            np.cumsum([0, *map(len, graded)]),
            np.searchsorted(named, np.concatenate(graded)).astype(np.int32),
            np.concatenate(found.ranks).astype(np.int32),
        ),
    )


def _ignored(dataset: Dataset, order: Order, query: str) -> dict[str, np.ndarray]:
    """By difficulty, the gallery indices of a query's ignored images."""
    grades = dataset.grades.get(query, {})
    return {
        difficulty: np.array([order.index(image) for image, grade in grades.items() if grade in out], np.int64)
        for difficulty, (_, out) in dataset.difficulties.items()
    }


def _ignored_last(images: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(n,) places in `images`, those of the ignored behind the others."""
    return np.argsort(np.isin(images, ignored), kind="stable")


def reranked(candidates: np.ndarray, scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Candidates by descending score, ties in first-stage order.

    >>> reranked(np.array([7, 3, 9]), [0.0, 2.0, 2.0])
    array([3, 9, 7])
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    if len(order) != len(candidates):
        raise ValueError(f"{len(order)} scores for a shortlist of {len(candidates)}")
    return candidates[order]
