"""Approximate first stages against the exact one, on the global descriptors of views that photographs are cut into.

`python -m tests.speed.approximate --photos PHOTOS --views 9` extracts 9 views of every photograph as the gallery, and
one more of some as queries.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from bench.approximate import Hnsw, IvfPq, Kind, opened
from bench.datasets.folder import look
from bench.features.sets import ExtractOptions, FeatureExtractor
from bench.images import decode, read_bytes, shrink
from bench.search import Dense, Vectors, search_by

QUERIES, DEPTH, SIDE = 200, 100, 128
LEAST, MOST = 0.35, 0.8  # sides of a view, as parts of the photograph's
KINDS: Sequence[Kind] = (IvfPq(probes=8), IvfPq(), Hnsw())


def views(image: np.ndarray, number: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Parts of an image, (SIDE, less) or (less, SIDE), at random."""
    height, width = image.shape[:2]
    for _ in range(number):
        high, wide = (int(side * draw.uniform(LEAST, MOST)) for side in (height, width))
        top, left = int(draw.integers(height - high + 1)), int(draw.integers(width - wide + 1))
        yield shrink(image[top : top + high, left : left + wide], SIDE)


def extracted(photographs: Sequence[Path], number: int) -> tuple[np.ndarray, np.ndarray]:
    """Global descriptors of the gallery, `number` views a photograph, and of one more view of the first QUERIES."""
    extractor = FeatureExtractor("gem-lite0", ExtractOptions(max_side=SIDE))
    gallery, queries = [], []
    for at, path in enumerate(photographs):
        found = [
            extractor(view)["global_descriptor"]
            for view in views(decode(read_bytes(path), path), number + (at < QUERIES), np.random.default_rng(at))
        ]
        gallery += found[:number]
        queries += found[number:]
    return np.stack(gallery).astype(np.float16), np.stack(queries).astype(np.float32)


def bench_approximate(gallery: np.ndarray, queries: np.ndarray, kinds: Sequence[Kind] = KINDS, k: int = DEPTH) -> bool:
    """What each index costs and finds; whether all that it finds has the similarities of the exact search."""
    source, own = Dense(queries, Vectors.of(gallery)), np.full(len(queries), -1)
    began = time.perf_counter()
    exact = search_by(source, k)
    ms = 1000 * (time.perf_counter() - began) / len(queries)
    print(f"{len(gallery):,} x {gallery.shape[1]}, {len(queries)} queries, top {k}, {torch.get_num_threads()} threads")
    print(f"  {'':60} {'build s':>8} {'KiB/image':>10} {'ms/query':>9} {'recall':>7}")
    print(f"  {'blocks':60} {'':>8} {gallery.itemsize * gallery.shape[1] / 1024:10.2f} {ms:9.2f} {100:6.1f}%")
    held = True
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            index = opened(kind, source, Path(folder), "")
            build = time.perf_counter() - began
        began = time.perf_counter()
        found = index.search(source, k)
        ms = 1000 * (time.perf_counter() - began) / len(queries)
        recall = index.recall(source, k, own)
        values = [source.exact(q, images).astype(np.float32) for q, images in enumerate(found.order)]
        held = held and np.array_equal(values, found.similarities)
        held = held and bool((found.similarities <= exact.similarities).all())
        size = index.bytes_per_image / 1024
        print(f"  {index.kind.name:60} {build:8.1f} {size:10.2f} {ms:9.2f} {100 * recall.share:6.1f}%")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.speed.approximate", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--views", type=int, default=9)
    given = parser.parse_args()
    photographs = sorted(look(given.photos).images.values())
    sys.exit(0 if bench_approximate(*extracted(photographs, given.views)) else 1)


if __name__ == "__main__":
    main()
