"""The match kernel as a first stage beside the search of global descriptors, and its lists against the kernel itself.

`python -m tests.speed.first_stage --images 100000` writes 4.6 GB below --folder, 46 kB an image, and removes them.

An image has 320 descriptors: words of the shipped codebook, each as likely as any, with normal noise of 0.1 a value,
then of unit length. A query is a gallery image with further noise of 0.03 a value.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.features import Features
from bench.first_stages.asmk import AsmkSimilarities, build, query_aggregates
from bench.search import Vectors, search, search_by
from methods.asmk import Aggregates, Asmk, aggregate, similarity
from methods.asmk.codebook import Codebook
from tests.speed import interleaved
from tests.speed.full_size import DEPTH, DIM, GRADES, QUERIES, write_vectors

DESCRIPTORS, NOISE, QUERY_NOISE = 320, 0.1, 0.03
SAMPLE, LISTED = 200, 20  # images, and places of a list, that are compared with the kernel itself


@dataclass(frozen=True, eq=False)
class Drawn:
    """Features that are drawn when they are read; a key that ends in a slash is that image's query."""

    centroids: torch.Tensor

    def read_all(
        self, keys: Sequence[str], needs: frozenset[str], top: Callable[[int], int] | None
    ) -> tuple[Features, ...]:
        return tuple(map(self._image, keys))

    def _image(self, key: str) -> Features:
        draw = torch.Generator().manual_seed(int(key.removesuffix("/")))
        rows = self.centroids[torch.randint(len(self.centroids), (DESCRIPTORS,), generator=draw)]
        rows = rows + NOISE * torch.randn(rows.shape, generator=draw)
        if key.endswith("/"):
            rows += QUERY_NOISE * torch.randn(rows.shape, generator=draw)
        rows = torch.nn.functional.normalize(rows, dim=1)
        return Features.checked(descriptors=rows)


def kernel_lists(store: Drawn, keys: Sequence[str], queries: Sequence[str], options: Asmk.Options) -> np.ndarray:
    """(queries, LISTED) gallery indices by the reranker's own functions, pair by pair, in double precision."""

    def doubled(key: str, stored: torch.dtype) -> Aggregates:
        rows = store.read_all([key], frozenset(), None)[0].descriptors
        found = aggregate(rows, store.centroids, 1, options.binary)
        return Aggregates(found.words, found.vectors.to(stored).double())

    gallery = [doubled(key, torch.float32 if options.binary else torch.float16) for key in keys]
    lists = []
    for query in (doubled(key, torch.float32) for key in queries):
        scores = [float(similarity(query, one, options.alpha, options.threshold)) for one in gallery]
        lists.append(np.argsort(-np.array(scores, np.float32), kind="stable")[:LISTED])
    return np.stack(lists)


def bench_first_stage(images: int, parent: Path | None = None, rounds: int = 3) -> bool:
    """Whether lists of a sample are the kernel's, and the queries' own images are found first in the whole gallery."""
    store = Drawn(Codebook.load(Asmk.Options().codebook).centroids)
    draw = np.random.default_rng(0)
    asked = draw.choice(images, QUERIES, replace=images < QUERIES)
    keys, queries = [str(i) for i in range(images)], [f"{i}/" for i in asked]
    probes = [draw.choice(images, min(images, sum(GRADES.values())), replace=False) for _ in range(QUERIES)]
    held, sources, lines = [], {}, []
    with tempfile.TemporaryDirectory(dir=parent) as root:
        for name, options in {"float16": Asmk.Options(), "bits": Asmk.Options(binary=True)}.items():
            start = time.perf_counter()
            file = build(store, keys, Path(root) / name, "drawn", options)
            seconds = time.perf_counter() - start
            lines.append(
                f"  {name}: {file.bytes_per_image:,.0f} bytes an image, of {2 * DIM:,} for the global descriptor; "
                f"built in {1000 * seconds / images:.2f} ms an image"
            )
            sources[name] = AsmkSimilarities(file, query_aggregates(store, queries, options), options)
            sample = build(store, keys[:SAMPLE], Path(root) / f"sample-{name}", "drawn", options)
            few = [f"{i}/" for i in range(min(LISTED, images))]
            found = search_by(AsmkSimilarities(sample, query_aggregates(store, few, options), options), LISTED)
            equal = (found.order == kernel_lists(store, keys[:SAMPLE], few, options)).all(axis=1)
            lines.append(f"  {name}: {int(equal.sum())} of {len(few)} lists of a sample are the kernel's own")
            held.append(bool(equal.all()))
        write_vectors(Path(root) / "globals.npy", images, DIM)
        globals_ = Vectors.of(np.load(Path(root) / "globals.npy", mmap_mode="r"))
        rows = globals_.rows(asked).astype(np.float32)
        calls: dict[str, Callable[[], object]] = {
            f"kernel, {name}": partial(search_by, source, DEPTH, probes=probes) for name, source in sources.items()
        }
        calls[f"global descriptors, {DIM:,}-d"] = partial(search, rows, globals_, DEPTH, probes=probes)
        times = interleaved(calls, rounds)
        first = {name: search_by(source, 1).order[:, 0] for name, source in sources.items()}
    print(f"first stages, {images:,} images x {DESCRIPTORS} descriptors, {QUERIES} queries, top {DEPTH} ({times})")
    print("\n".join(lines))
    for name, seconds in times.seconds.items():
        print(f"  {1000 * seconds / QUERIES:8.2f} ms a query, ranks of {len(probes[0])} images among them: {name}")
    for name, best in first.items():
        print(f"  {name}: {int((best == asked).sum())} of {QUERIES} queries find their own image first")
        held.append(bool((best == asked).all()))
    return all(held)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.speed.first_stage", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where temporary files go [default: the system's place for them]")
    given = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    sys.exit(0 if bench_first_stage(given.images, given.folder) else 1)


if __name__ == "__main__":
    main()
