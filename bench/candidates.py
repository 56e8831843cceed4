"""Other people's first stage: candidate lists from a file, sealed as our own are.

A TREC run; an `.npz` with `queries` (nq,) and `candidates` (nq, k) names and, if there are, `similarities` (nq, k); or
a pickle `nn_inds_*.pkl` (nq, n) of gallery indices, best first, in the order of the data set's queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bench.datasets import Dataset
from bench.errors import UserError
from bench.files import read_npz
from bench.metrics import ranks_in
from bench.search import Found
from bench.shortlist import Order, Policy, Shortlist, depth_of, graded_images, own_images, seal
from bench.trec import read_run
from third_party.allowed_pickle import read_index_lists

LARGEST = 4 * 2**30  # bytes of an npz
Lists = list[tuple[np.ndarray, np.ndarray | None]]  # of each query: gallery indices best first, similarities


def _named(
    path: Path, dataset: Dataset, order: Order, images: Mapping[str, tuple[list[str], list[float] | None]]
) -> Lists:
    found: Lists = []
    for query in dataset.queries:
        if query.id not in images:
            raise UserError(f"{path}: no list of query {query.id!r}", hint=f"it has {', '.join(list(images)[:3])}, …")
        names, values = images[query.id]
        try:
            indices = np.array([order.index(name) for name in names], np.int64)
        except KeyError as error:
            raise UserError(f"{path}: query {query.id!r} names {error}, which is not in the gallery") from error
        found.append((indices, None if values is None else np.array(values)))
    return found


def _trec(path: Path, dataset: Dataset, order: Order) -> Lists:
    run = read_run(path)
    return _named(path, dataset, order, {q: ([i for i, _ in rows], [v for _, v in rows]) for q, rows in run.items()})


def _npz(path: Path, dataset: Dataset, order: Order) -> Lists:
    try:
        content = read_npz(path, LARGEST)
        queries, candidates = content["queries"], content["candidates"]
        values = content.get("similarities")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable npz with queries and candidates ({error})") from error
    fits = queries.ndim == 1 and candidates.ndim == 2 and len(queries) == len(candidates)
    if not fits or {queries.dtype.kind, candidates.dtype.kind} != {"U"}:
        raise UserError(f"{path}: expected names queries (nq,) and candidates (nq, k)")
    if values is not None and (values.shape != candidates.shape or values.dtype.kind != "f"):
        raise UserError(f"{path}: similarities {values.dtype} {values.shape}, expected numbers {candidates.shape}")
    listed = candidates.tolist()
    rows = [None] * len(listed) if values is None else values.astype(float).tolist()
    return _named(path, dataset, order, dict(zip(queries.tolist(), zip(listed, rows, strict=True), strict=True)))


def _pickle(path: Path, dataset: Dataset, order: Order) -> Lists:
    lists = read_index_lists(path)
    if len(lists) != len(dataset.queries):
        raise UserError(f"{path}: {len(lists)} lists, the data set has {len(dataset.queries)} queries")
    if lists.size and (lists.min() < 0 or lists.max() >= len(dataset.gallery)):
        raise UserError(
            f"{path}: indices {lists.min()} to {lists.max()}, the gallery has {len(dataset.gallery)} images"
        )
    return [(row, None) for row in lists]


READERS: Mapping[str, Callable[[Path, Dataset, Order], Lists]] = {".npz": _npz, ".pkl": _pickle}


def imported_shortlist(path: Path, dataset: Dataset, policy: Policy, k: int) -> Shortlist:
    """The file's lists, sealed. Graded images that the file does not list are not retrieved: they add nothing.

    UserError for unknown or repeated images, a query without a list, or lists that are not deep enough for k (and,
    under the policy `paper`, for the ignored images that are moved behind).
    """
    order = Order.of(dataset.gallery)
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    lists = READERS.get(path.suffix, _trec)(path, dataset, order)
    own, graded = own_images(dataset, order), graded_images(dataset, order)
    kept: Lists = []
    for query, (images, values), itself in zip(dataset.queries, lists, own, strict=True):
        if len(np.unique(images)) != len(images):
            raise UserError(f"{path}: the list of query {query.id!r} repeats an image")
        others = images != itself
        kept.append((images[others], None if values is None else values[others]))
    possible = len(dataset.gallery) - int((own >= 0).any())
    wanted, shortest = min(depth_of(dataset, policy, k), possible), min(len(images) for images, _ in kept)
    if shortest < wanted:
        hint = f"use --top-k {max(1, shortest - (wanted - k))} or less, or a deeper list"
        raise UserError(f"{path}: its shortest list has {shortest} images, {wanted} are needed for top-{k}", hint=hint)
    falling = np.linspace(1, 0, wanted, dtype=np.float32)  # where the file tells no similarities
    found = Found(
        np.stack([images[:wanted] for images, _ in kept]),
        np.stack([falling if values is None else values[:wanted].astype(np.float32) for _, values in kept]),
        tuple(ranks_in(images, asked) for (images, _), asked in zip(kept, graded, strict=True)),
    )
    name = f"imported:{path.name}"
    return seal(dataset, order, found, graded, features=name, features_content=content, policy=policy, k=k)
