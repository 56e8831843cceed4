"""The first stage and its sealed result: for every query the same k candidates for every reranker.

Policies: `blind` makes one list per query and knows no ground truth; `paper` makes one list per difficulty, with the
images that difficulty ignores moved behind everything before the cut, as DELG, RRT, AMES and CVNet report
(FACTS section 2.2): it uses ground truth, so no deployed system could build it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np

from bench.datasets import Dataset
from bench.errors import UserError
from bench.metrics import truth

Policy = Literal["blind", "paper"]
BLIND_LIST = "any"  # the name of the one list of the policy `blind`


@dataclass(frozen=True)
class Header:
    """What a shortlist is a shortlist of; all of it is under the seal."""

    dataset: str
    image_set: str
    protocol: str
    features: str  # name of the feature set, with the whitening if any
    features_content: str  # sha256 over the extraction settings and the contents of all images
    policy: Policy
    k: int
    query_crop: bool

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"--top-k {self.k}: expected at least 1")
        if self.policy not in ("blind", "paper"):
            raise UserError(f"--policy {self.policy}: expected blind or paper")


@dataclass(frozen=True, eq=False)
class Shortlist:
    """Full first-stage rankings whose first k are the candidates; the constructor refuses lists no one could rerank.

    `rankings[list][q]` (n,) holds distinct gallery indices, best first; `similarities[q]` (n_gallery,) the
    first-stage similarity of each gallery image, float32.
    """

    header: Header
    queries: tuple[str, ...]
    gallery: tuple[str, ...]
    similarities: np.ndarray
    rankings: Mapping[str, tuple[np.ndarray, ...]] = field(repr=False)

    def __post_init__(self) -> None:
        if self.similarities.shape != (len(self.queries), len(self.gallery)):
            raise ValueError(f"similarities {self.similarities.shape}, expected {len(self.queries), len(self.gallery)}")
        if not np.isfinite(self.similarities).all():
            raise UserError("the first stage gave similarities that are not finite", hint="extract the features again")
        for name, rankings in self.rankings.items():
            if len(rankings) != len(self.queries):
                raise ValueError(f"list {name!r} ranks {len(rankings)} of {len(self.queries)} queries")
            for query, ranking in zip(self.queries, rankings, strict=True):
                if len(ranking) < self.header.k:
                    raise UserError(
                        f"query {query!r} has {len(ranking)} possible candidates, fewer than --top-k {self.header.k}",
                        hint=f"use --top-k {len(ranking)} or less",
                    )
                if len(np.unique(ranking)) != len(ranking) or ranking.min() < 0 or ranking.max() >= len(self.gallery):
                    raise UserError(f"list {name!r} of query {query!r} repeats an image or names one that is not there")

    def list_for(self, difficulty: str) -> str:
        """Name of the list that is scored at a difficulty."""
        return BLIND_LIST if self.header.policy == "blind" else difficulty

    def candidates(self, name: str, query: int) -> np.ndarray:
        """(k,) gallery indices, best first."""
        return self.rankings[name][query][: self.header.k]

    def union(self, query: int) -> np.ndarray:
        """Every candidate of any of the query's lists once, in the order of first appearance."""
        joined = np.concatenate([self.candidates(name, query) for name in self.rankings])
        return joined[np.sort(np.unique(joined, return_index=True)[1])]

    @cached_property
    def seal(self) -> str:
        """sha256 over the header, every id, every ranking and every candidate's similarity."""
        digest = hashlib.sha256(json.dumps(asdict(self.header), sort_keys=True).encode())
        digest.update(json.dumps([self.queries, self.gallery]).encode())
        for name in sorted(self.rankings):
            digest.update(name.encode())
            for query, ranking in enumerate(self.rankings[name]):
                digest.update(ranking.astype("<i4").tobytes())
                digest.update(self.similarities[query][ranking[: self.header.k]].astype("<f4").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        arrays = {
            f"ranking/{name}/{q}": ranking.astype(np.int32)
            for name, rankings in self.rankings.items()
            for q, ranking in enumerate(rankings)
        }
        text = json.dumps(
            {
                "header": asdict(self.header),
                "queries": self.queries,
                "gallery": self.gallery,
                "lists": list(self.rankings),
                "seal": self.seal,
            }
        )
        np.savez(path, similarities=self.similarities, about=np.array(text), **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: Path) -> Shortlist:
        """The shortlist in a file; UserError if it is damaged or its content no longer fits its seal."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                rankings = {
                    name: tuple(file[f"ranking/{name}/{q}"] for q in range(len(about["queries"])))
                    for name in about["lists"]
                }
                loaded = Shortlist(
                    Header(**about["header"]),
                    tuple(about["queries"]),
                    tuple(about["gallery"]),
                    file["similarities"],
                    rankings,
                )
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise UserError(f"{path}: not a readable shortlist ({error})", hint="run again to make it anew") from error
        if loaded.seal != about["seal"]:
            raise UserError(
                f"{path}: content does not fit its seal {about['seal'][:8]} (found {loaded.seal[:8]})",
                hint="the file was changed after it was sealed; run again",
            )
        return loaded


def search(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(nq, n_gallery) exact inner products of unit descriptors, by FAISS."""
    from bench.doctor import require_faiss

    require_faiss()
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(np.ascontiguousarray(gallery, dtype=np.float32))
    values, order = index.search(np.ascontiguousarray(queries, dtype=np.float32), len(gallery))
    similarities = np.empty_like(values)
    np.put_along_axis(similarities, order, values, axis=1)
    return similarities


def first_stage(
    dataset: Dataset, similarities: np.ndarray, *, features: str, features_content: str, policy: Policy, k: int
) -> Shortlist:
    """Rank the gallery for every query (ties by gallery order; a query is never its own candidate) and seal the lists.

    `similarities` is (nq, n_gallery), higher is better.
    """
    gallery = tuple(dataset.gallery)
    index = {image: i for i, image in enumerate(gallery)}
    ranked = []
    for row, query in enumerate(dataset.queries):
        order = np.argsort(-similarities[row], kind="stable")
        ranked.append(order[order != index.get(query.id, -1)])
    rankings: dict[str, tuple[np.ndarray, ...]] = {BLIND_LIST: tuple(ranked)}
    if policy == "paper":
        rankings = {
            difficulty: tuple(
                _ignored_last(order, truth(dataset, index, query.id, difficulty)[1])
                for order, query in zip(ranked, dataset.queries, strict=True)
            )
            for difficulty in dataset.difficulties
        }
    header = Header(
        dataset.name,
        dataset.image_set,
        dataset.protocol,
        features,
        features_content,
        policy,
        k,
        any(query.box is not None for query in dataset.queries),
    )
    return Shortlist(
        header, tuple(query.id for query in dataset.queries), gallery, similarities.astype(np.float32), rankings
    )


def _ignored_last(order: np.ndarray, ignored: set[int]) -> np.ndarray:
    behind = np.isin(order, list(ignored))
    return np.concatenate([order[~behind], order[behind]])


def reranked(ranking: np.ndarray, k: int, scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """The full ranking after reranking: the first k by descending score, ties in first-stage order, then the tail.

    >>> reranked(np.array([7, 3, 9, 1]), 3, [0.0, 2.0, 2.0])
    array([3, 9, 7, 1])
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    if len(order) != k:
        raise ValueError(f"{len(order)} scores for a shortlist of {k}")
    return np.concatenate([ranking[:k][order], ranking[k:]])
