"""The feature store at full size: opening it, reading one query's candidates against scoring them, and memory.

`python -m tests.speed.store --images 1000000` writes 13 GB of descriptors and 2.6 GB of global descriptors below
--folder, through the program's own writing of shards and their merging, and removes them afterwards unless --keep.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.conformance import batch_of
from bench.features.fill import fill
from bench.features.items import Item
from bench.features.shards import Entry
from bench.features.store import READS, FeatureStore
from methods.maxsim import MaxSim
from methods.mnn import MutualNearestNeighbours
from tests.speed import interleaved

DESCRIPTORS, LOCAL_DIM, GLOBAL_DIM, CANDIDATES = 100, 64, 1280, 100
NEEDS = frozenset({"local"})
OPENED = """
import json, resource, sys, time
from pathlib import Path
import bench.features.store as stores
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
store = stores.FeatureStore(Path(sys.argv[1]))
opened = time.perf_counter() - start
keys = sys.argv[2].split(",")
start = time.perf_counter()
store.read_all(keys, frozenset({"local"}))
first = time.perf_counter() - start
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([opened, first, before / 1024, after / 1024, len(store)]))
"""


def write(folder: Path, images: int) -> float:
    """A store of random unit vectors; seconds it took. Every image repeats one of 64."""
    draw = np.random.default_rng(0)

    def made() -> Entry:
        rows = draw.normal(size=(DESCRIPTORS, LOCAL_DIM)).astype(np.float32)
        return Entry(
            "0" * 64,
            {
                "global_descriptor": draw.normal(size=GLOBAL_DIM).astype(np.float16),
                "descriptors": (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16),
                "keypoints": draw.uniform(0, 640, (DESCRIPTORS, 2)).astype(np.float32),
                "scales": np.ones(DESCRIPTORS, np.float16),
                "orientations": np.zeros(DESCRIPTORS, np.float16),
                "scores": np.linspace(1, 0, DESCRIPTORS, dtype=np.float16),
                "image_size": np.array([640, 480]),
            },
        )

    entries = [made() for _ in range(64)]
    wanted = [Item(name(i), ()) for i in range(images)]
    start = time.perf_counter()
    fill(wanted, folder, lambda: lambda item: entries[int(item.key[4:]) % 64], {"features": "random"})
    return time.perf_counter() - start


def name(number: int) -> str:
    return f"1m/a{number:09d}"


def bench_store(images: int, folder: Path) -> bool:
    """Whether a store of so many images opens in under a second."""
    if not (folder / "shards").is_dir():
        seconds = write(folder, images)
        stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"written: {stored / 1e9:.1f} GB in {seconds:.0f} s, {1e6 * seconds / images:.0f} us an image")
    draw = np.random.default_rng(1)
    keys = [name(int(i)) for i in draw.choice(images, CANDIDATES, replace=False)]
    done = subprocess.run([sys.executable, "-c", OPENED, str(folder), ",".join(keys)], capture_output=True, check=True)
    opened, first, before, after, count = json.loads(done.stdout)
    store = FeatureStore(folder)
    query = store.read(keys[0], NEEDS)
    candidates = batch_of([store.read(key, NEEDS) for key in keys])
    methods = {"mnn": MutualNearestNeighbours(), "maxsim": MaxSim()}
    for method in methods.values():
        method.load()
    times = interleaved(
        {
            "read": lambda: store.read_all(keys, NEEDS),
            **{n: (lambda m=m: m.score(query, candidates)) for n, m in methods.items()},  # type: ignore[misc]
        },
        rounds=15,
    )
    read = times.seconds["read"]
    whole, row = store.bytes_per_image(frozenset(READS))
    print(
        f"store of {count:,} images x {DESCRIPTORS} x {LOCAL_DIM}-d, {len(store._index.shards)} shards, "
        f"{whole + DESCRIPTORS * row:,} bytes an image ({times})"
    )
    print(f"  opened in {1000 * opened:.0f} ms; {CANDIDATES} candidates read for the first time {1000 * first:.1f} ms")
    print(f"  resident: {before:.0f} MiB before, at most {after:.0f} MiB after")
    print(f"  {CANDIDATES} candidates read again: {1000 * read:.2f} ms")
    for n in methods:
        print(f"    scoring them by {n}: {1000 * times.seconds[n]:.1f} ms, {times.seconds[n] / read:.1f} times as long")
    start = time.perf_counter()
    counted = int(store.counts(name(i) for i in range(images)).sum())
    vectors = store.vectors(name(i) for i in range(images))
    places = time.perf_counter() - start
    start, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in vectors.blocks(4096):
        pass
    blocks = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    print(f"  places and {counted:,} descriptors counted in {places:.1f} s; global descriptors read in {blocks:.1f} s")
    print(f"  resident memory grew by {grown:.0f} MiB while {images * GLOBAL_DIM * 2 / 1e9:.1f} GB of them went by")
    return opened < 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.speed.store", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="[default: a temporary one]")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="rerankbench-store-"))
    try:
        held = bench_store(given.images, folder)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
