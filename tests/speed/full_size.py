"""A gallery of full size: the first stage against FAISS's flat index, and measures against the reference's algorithm.

`python -m tests.speed.full_size --images 1000000` needs 2.6 GB on disk and 12 GB of memory, for FAISS's copy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.datasets import REVISITED
from bench.metrics import measure, measures, ranks_in, without
from bench.search import Vectors, search
from tests.speed import interleaved
from tests.speed.table import HEADING, Probe, Row, Work, show

QUERIES, DIM, DEPTH = 70, 1280, 100
TARGET_SEARCH, TARGET_EVALUATION = 1.0, 10.0
GRADES = {"easy": 40, "hard": 60, "junk": 30}  # images of a query, about as many as Revisited Oxford has


def write_vectors(path: Path, count: int, dim: int, seed: int = 0) -> None:
    """Random unit vectors (count, dim) in half precision, written block by block."""
    draw = torch.Generator().manual_seed(seed)
    array = np.lib.format.open_memmap(path, "w+", np.float16, (count, dim))
    for start in range(0, count, 8192):
        rows = torch.randn((min(8192, count - start), dim), generator=draw)
        array[start : start + len(rows)] = torch.nn.functional.normalize(rows, dim=1).half().numpy()
    array.flush()


def bench_search(count: int, dim: int = DIM, rounds: int = 3) -> bool:
    """Blocks of a memory map in half precision, and of the same values in memory, against FAISS's flat index."""
    import faiss

    with tempfile.TemporaryDirectory() as folder:
        write_vectors(Path(folder) / "gallery.npy", count, dim)
        mapped = np.load(Path(folder) / "gallery.npy", mmap_mode="r")
        draw = np.random.default_rng(1)
        queries = draw.normal(size=(QUERIES, dim)).astype(np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        index = faiss.IndexFlatIP(dim)
        whole = np.empty((count, dim), np.float32)
        for start in range(0, count, 65536):
            whole[start : start + 65536] = mapped[start : start + 65536]
        index.add(whole)
        probes = [draw.choice(count, min(count, sum(GRADES.values())), replace=False) for _ in range(QUERIES)]
        calls = {
            "faiss, float32 in memory": lambda: index.search(queries, DEPTH),
            "blocks, float32 in memory": lambda: search(queries, Vectors.of(whole), DEPTH),
            "blocks, float16 from the memory map": lambda: search(queries, Vectors.of(mapped), DEPTH),
            "blocks, map, with ranks of 130 images a query": lambda: search(
                queries, Vectors.of(mapped), DEPTH, probes=probes
            ),
        }
        probe = Probe()
        times = interleaved({**calls, **probe.calls}, rounds)
        peaks = probe.peaks(times)
        found, theirs = search(queries, Vectors.of(mapped), DEPTH), index.search(queries, DEPTH)[1]
    lists = int((found.order == theirs).all(axis=1).sum())
    seconds, rows = {name: taken / QUERIES for name, taken in times.seconds.items()}, []
    size = f"{count / 1e6:g}M" if count >= 1e6 else f"{count / 1e3:g}k"
    for name, what, width in (
        ("faiss, float32 in memory", f"faiss {size}x{dim}", 4),
        ("blocks, float32 in memory", f"search {size}x{dim}", 4),
        ("blocks, float16 from the memory map", "  float16 from a file", 2),
        ("blocks, map, with ranks of 130 images a query", "  and 130 ranks", 2),
    ):
        work = Work(2 * count * dim, count * dim * width / QUERIES)  # the gallery is read once for all queries
        ours = not what.startswith("faiss")
        ratio = seconds["faiss, float32 in memory"] / seconds[name] if ours else None
        target, held = (TARGET_SEARCH, lists == QUERIES) if what.startswith("search") else (None, None)
        bound = peaks.bound(work, seconds[name])
        rows.append(Row(what, seconds[name], "FAISS" if ours else "", ratio, target, bound, held))
    held = show(rows, times)
    print(f"  {lists} of {QUERIES} lists are FAISS's, image by image")
    return held


def plain_scores(ranking: np.ndarray, truth: dict[str, np.ndarray]) -> list[float]:
    """revisitop's algorithm over one whole ranking: AP and P@1, 5, 10 of the three difficulties."""
    values = []
    for positive, ignored in REVISITED.values():
        ok = np.concatenate([truth[grade] for grade in sorted(positive)])
        out = np.concatenate([truth[grade] for grade in sorted(ignored)])
        places = np.arange(ranking.shape[0])
        at, junk = places[np.isin(ranking, ok)], places[np.isin(ranking, out)]
        before, j = 0, 0
        for i in range(len(at)):
            while j < len(junk) and at[i] > junk[j]:
                before, j = before + 1, j + 1
            at[i] -= before
        total, step = 0.0, 1.0 / len(ok)
        for i, rank in enumerate(at):
            total += ((1.0 if rank == 0 else i / rank) + (i + 1) / (rank + 1)) * step / 2.0
        values.append(float(total))
        for k in (1, 5, 10):
            shortest = min(int(max(at)) + 1, k)
            values.append(float((at + 1 <= shortest).sum() / shortest))
    return values


def own_scores(ranking: np.ndarray, truth: dict[str, np.ndarray]) -> list[float]:
    """The same by the program's functions."""
    ranks = ranks_in(ranking, np.concatenate(list(truth.values())))
    parts = dict(zip(truth, np.split(ranks, np.cumsum([len(images) for images in truth.values()])[:-1]), strict=True))
    values = []
    for positive, ignored in REVISITED.values():
        ok, out = (np.concatenate([parts[grade] for grade in sorted(grades)]) for grades in (positive, ignored))
        left = without(ok, out)
        values += [measure(left, len(ok), name) for name in measures("revisited")]
    return values


def bench_evaluation(count: int, rounds: int = 3) -> bool:
    """All measures of all difficulties for whole rankings."""
    draw = np.random.default_rng(2)
    rankings = np.stack([draw.permutation(count).astype(np.int64) for _ in range(QUERIES)])
    truths = []
    for _ in range(QUERIES):
        images = draw.choice(count, sum(GRADES.values()), replace=False)
        truths.append(dict(zip(GRADES, np.split(images, np.cumsum(list(GRADES.values()))[:-1]), strict=True)))
    calls = {
        "reference": lambda: [plain_scores(*each) for each in zip(rankings, truths, strict=True)],
        "ours": lambda: [own_scores(*each) for each in zip(rankings, truths, strict=True)],
    }
    probe = Probe()
    times = interleaved({**calls, **probe.calls}, rounds)
    difference = float(np.abs(np.subtract(calls["ours"](), calls["reference"]())).max())
    seconds, ratio = times.seconds["ours"] / QUERIES, times.seconds["reference"] / times.seconds["ours"]
    bound = probe.peaks(times).bound(Work(0, rankings[0].nbytes), seconds)  # a ranking is read once
    row = Row(f"measures, {count:,}", seconds, "reference", ratio, TARGET_EVALUATION, bound, difference == 0)
    print(f"  greatest difference of measures {difference:g}")
    return show([row], times)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.speed.full_size", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    count = parser.parse_args().images
    print(HEADING)
    held = [bench_search(count), bench_evaluation(count)]
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
