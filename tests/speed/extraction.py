"""Extraction with an image a thread, against one thread and against all threads on one image; also beside others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.datasets.catalogue import load as load_dataset
from bench.datasets.demo import ready
from bench.features.extract import ExtractOptions, Part, PartExtractor, _extract_one, extract
from bench.features.items import Item
from bench.features.sets import SetName
from bench.features.store import FeatureStore
from bench.places import Places
from tests.speed import interleaved
from tests.speed.table import Row, show

TIMES_FASTER = 1.8  # two threads against one, on two free cores
TIMES_SLOWER = 3.0  # beside two busy programs, at most
BUSY = "while True: pass"


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many other programs, each of which keeps a core busy."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(programs)]
    try:
        yield
    finally:
        for program in started:
            program.kill()
        for program in started:
            program.wait()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def into_a_store(part: Part, images: Sequence[Item], threads: int) -> list[np.ndarray]:
    """What is extracted of the images with so many threads, an array an image."""
    options = ExtractOptions()
    with torch_threads(threads), tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "store"
        extract(images, at, partial(PartExtractor, part, options), part.identity(options))
        store, keys = FeatureStore(at), [item.key for item in images]
        if store.dims[1]:
            return list(store.global_descriptors(keys))
        return [image.descriptors.numpy() for image in store.read_all(keys, frozenset({"local"}))]


def one_after_the_other(extractor: PartExtractor, images: Sequence[Item], threads: int) -> None:
    """Every image by itself, all threads at work on it."""
    with torch_threads(threads):
        for item in images:
            _extract_one(item, extractor)


def demo_images(places: Places, count: int) -> list[Item]:
    """The first images of the demo; none where it is not made."""
    if not ready(places.cache):
        return []
    gallery = load_dataset("demo", places).gallery
    return [Item(key, (gallery[key],)) for key in list(gallery)[:count]]


def bench_extraction(name: str, images: Sequence[Item], rounds: int = 3, threads: int | None = None) -> bool:
    """Seconds an image; whether the features are the same to the bit."""
    if not images:
        print("extraction: needs the images of the demo (`make demo`)")
        return True
    count = threads or os.cpu_count() or 1
    (part,) = SetName.parse(name).parts[:1]
    assert isinstance(part, Part)
    extractor, few = PartExtractor(part), images[: max(1, len(images) // 8)]
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "one thread": (len(images), partial(into_a_store, part, images, 1)),
        "an image a thread": (len(images), partial(into_a_store, part, images, count)),
        "an image on all threads": (len(few), partial(one_after_the_other, extractor, few, count)),
    }
    alone = interleaved({way: call for way, (_, call) in calls.items()}, rounds)
    with busy(count):
        beside = interleaved({way: call for way, (_, call) in calls.items()}, 1, warm_up=False)
    free, taken = ({way: m.seconds[way] / n for way, (n, _) in calls.items()} for m in (alone, beside))
    one, many = (into_a_store(part, images, number) for number in (1, count))
    same = all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
    new, old = "an image a thread", "an image on all threads"
    slower = taken[new] / free[new]
    rows = [
        Row(f"extraction {name}", free[new], "one thread", free["one thread"] / free[new], TIMES_FASTER, same=same),
        Row("", free[new], "all on one", free[old] / free[new]),
        Row("  beside busy programs", taken[new], "all on one", taken[old] / taken[new]),
    ]
    held = show(rows, alone)
    print(
        f"  {count} threads; beside {count} busy programs {slower:.2f} times slower (at most {TIMES_SLOWER:g}: "
        f"{'met' if slower <= TIMES_SLOWER else 'missed'}), all threads on one image {taken[old] / free[old]:.2f} times"
    )
    return held
