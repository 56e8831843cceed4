"""Whole runs at galleries of several sizes: the time of every stage, and peak memory.

Memory is what the system counts of the process: of all its pages at most, and of those that no file has, looked at
every few milliseconds. The others are libraries and files, which the system may drop and read again.

`python -m tests.speed.scale --images 10000,100000,1000000` lays out Revisited Oxford's folders with generated features,
70 queries and empty distractor files below --folder (17 GB at a million), runs `identity`, `mnn` and `rrt` on them in a
process of their own, and removes each gallery before the next.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.datasets.catalogue import load
from bench.features.items import items, stamp
from bench.features.precision import PRECISIONS
from bench.features.sets import ExtractOptions, SetName, part_folder
from bench.features.shards import write_shard
from bench.files import write_whole
from bench.places import Places

DATASET, FEATURES, METHODS = "roxford+1m", "xfeat+gem-lite0", "identity,mnn,rrt"
QUERIES, NEAR, TOP_K = 70, 1000, 100  # queries, photographs that are no distractors, candidates
GRADES = {"easy": 40, "hard": 60, "junk": 30}  # images of a query, about as many as Revisited Oxford has
DESCRIPTORS, LOCAL_DIM, GLOBAL_DIM, DRAWN = 100, 64, 1280, 64
SHARD = 16_384  # images, as many as a merged shard has
STAGES = {
    "searching": "search",
    "indexing": "search",
    "scoring": "rerank",
}  # what the program calls them while it works
CHILD = """
import json, os, sys, time
from pathlib import Path
began = time.perf_counter()
from bench.places import Places
from bench.run import execute
from bench.setup import Selection, Setup
from tests.speed.scale import DATASET, FEATURES, STAGES, TOP_K, seen as memory
imported = time.perf_counter()
folders, stage, methods = json.loads(sys.argv[1]), sys.argv[2], tuple(sys.argv[3].split(","))
seen = {}
def watch(label, done, total):
    at, name = time.perf_counter(), STAGES.get(label, label)
    seen[name] = seen.get(name, (at, at))[0], at
places = Places(**{name: Path(path) for name, path in folders.items()})
setup = Setup(DATASET, FEATURES, first_stage=stage, top_k=TOP_K)
(outcome,) = execute(setup, [Selection(methods)], places, watch)
ended = time.perf_counter()
print(json.dumps({
    "began": began, "imported": imported, "seen": seen, "ended": ended, "seal": outcome.run.record.identity.seal,
    "MiB": memory(os.getpid())[1],  # what getrusage says begins with what the process that started this one held
}))
"""
LOOKED = 0.01  # seconds between two looks at a process's memory


@dataclass(frozen=True)
class Whole:
    """A run of its own process: seconds of each stage, and the most memory that it held, of all and of no file."""

    images: int
    seconds: Mapping[str, float]
    mib: float
    anonymous: float  # MiB; nan where the system does not say
    seal: str

    @staticmethod
    def of(images: int, said: Mapping[str, Any], anonymous: float, most: float) -> Whole:
        """From what the process said of itself, and what was seen of it.

        Its own word is of the time since its last method was loaded, for which a run begins to count anew.
        """
        seen = said["seen"]
        search = seen.get("search", seen["rerank"])
        return Whole(
            images,
            {
                "start": said["imported"] - said["began"],
                "open": search[0] - said["imported"],
                "search": seen["rerank"][0] - search[0],
                "rerank": seen["rerank"][1] - seen["rerank"][0],
                "write": said["ended"] - seen["rerank"][1],
            },
            float(np.fmax(said["MiB"], most)),
            anonymous,
            said["seal"],
        )

    def __str__(self) -> str:
        stages = "".join(f"{value:9.1f}" for value in self.seconds.values())
        memory = f"{self.anonymous:9.0f}{self.mib:9.0f}"
        return f"  {self.images:>9,}{stages}{sum(self.seconds.values()):9.1f}{memory}  {self.seal[:8]}"


def lay_out(root: Path, images: int) -> None:
    """Files of `roxford+1m` with so many gallery images: ground truth, small photographs, and empty distractors."""
    base, more = root / "roxford5k", root / "revisitop1m"
    (base / "jpg").mkdir(parents=True)
    near = [f"near_{i:04d}" for i in range(min(images, NEAR))]
    names = [f"query_{i:02d}" for i in range(QUERIES)]
    for name in [*near, *names]:
        Image.new("RGB", (64, 64)).save(base / "jpg" / f"{name}.jpg")
    draw = np.random.default_rng(0)
    truth = []
    for _ in names:
        graded = iter(draw.permutation(len(near)))
        counts = {grade: count * len(near) // NEAR for grade, count in GRADES.items()}
        truth.append({g: [int(next(graded)) for _ in range(max(1, n))] for g, n in counts.items()})
        truth[-1]["bbx"] = [0.0, 0.0, 63.0, 63.0]
    content = {"imlist": near, "qimlist": names, "gnd": truth}
    (base / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=2))
    listed = [f"{i // 1000:03d}/{i:07d}.jpg" for i in range(images - len(near))]
    (more / "jpg").mkdir(parents=True)
    (more / "revisitop1m.txt").write_text("".join(f"jpg/{name}\n" for name in listed))
    for folder in sorted({name.split("/")[0] for name in listed}):
        (more / "jpg" / folder).mkdir()
    for name in listed:
        (more / "jpg" / name).touch()


def write_features(places: Places) -> None:
    """Stores of both parts, shard by shard as the program writes them, of the size that merging gives.

    Local descriptors repeat those of DRAWN images, by the key. No two global descriptors are alike: equal ones would be
    ties, which a search has to remember.
    """
    draw = np.random.default_rng(0)
    dataset = load(DATASET, places)
    size = {"image_size": np.array([640, 480])}
    locals_ = [
        {
            "descriptors": unit(draw, DESCRIPTORS, LOCAL_DIM),
            "keypoints": draw.uniform(0, 640, (DESCRIPTORS, 2)).astype(np.float32),
            "scales": np.ones(DESCRIPTORS, np.float16),
            "orientations": np.zeros(DESCRIPTORS, np.float16),
            "scores": np.linspace(1, 0, DESCRIPTORS, dtype=np.float16),
        }
        for _ in range(DRAWN)
    ]
    made: Mapping[str, Callable[[int], Mapping[str, np.ndarray]]] = {
        "local": lambda number: locals_[number % DRAWN],
        "global": lambda number: {"global_descriptor": unit(np.random.default_rng(number), GLOBAL_DIM)},
    }
    for part in SetName.parse(FEATURES).parts:
        folder, identity = part_folder(DATASET, part, ExtractOptions(), places), part.identity(ExtractOptions())
        (folder / "shards").mkdir(parents=True)
        write_whole(folder / "set.json", json.dumps(identity, sort_keys=True))
        rest = iter(items(dataset))
        while some := list(islice(rest, SHARD)):
            numbers = (zlib.crc32(item.key.encode()) for item in some)
            listed = [
                {"key": item.key, "sha256": "0" * 64, "stat": stamp(item.files), "box": item.box, "error": None}
                for item in some
            ]
            arrays = [{**made[part.spec.gives](number), **size} for number in numbers]
            write_shard(folder, listed, arrays, PRECISIONS["float16"])


def unit(draw: np.random.Generator, *shape: int) -> np.ndarray:
    """Random rows of unit norm in half precision."""
    rows = draw.normal(size=shape).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16)


def whole_run(images: int, folder: Path, stage: str, methods: str) -> Whole:
    """A run on a gallery of so many images below `folder`, which is written if it is not there."""
    places = Places(folder / "cache", folder / "data", folder / "runs")
    if not places.data.is_dir():
        began = time.perf_counter()
        lay_out(places.data, images)
        laid = time.perf_counter()
        write_features(places)
        written = time.perf_counter()
        print(f"  {images:,} files laid out in {laid - began:.0f} s, features written in {written - laid:.0f} s")
    given = json.dumps({name: str(path) for name, path in vars(places).items()})
    command = [sys.executable, "-c", CHILD, given, stage, methods]
    most = np.array([np.nan, np.nan])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        while run.poll() is None:  # it says little, and at its end
            most = np.fmax(most, seen(run.pid))
            time.sleep(LOOKED)
        assert run.stdout is not None
        said = run.stdout.read()
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command)
    shutil.rmtree(places.runs)
    return Whole.of(images, json.loads(said.splitlines()[-1]), *most.tolist())


def seen(process: int) -> tuple[float, float]:
    """MiB that a process holds of pages that no file has, and at most of all; nan where the system does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return float("nan"), float("nan")
    found = {line.partition(":")[0]: float(line.split()[1]) / 1024 for line in lines if line.endswith("kB")}
    return found.get("RssAnon", float("nan")), found.get("VmHWM", float("nan"))


def bench_scale(sizes: Sequence[int], folder: Path, stage: str, methods: str = METHODS, rounds: int = 1) -> list[Whole]:
    """Runs at each size, printed as they end."""
    print(f"{methods} on {stage}, {QUERIES} queries, top {TOP_K}; seconds of each stage, and MiB at most:")
    print("  anon: of pages that no file has; MiB: of all")
    print(
        "  "
        + f"{'images':>9}"
        + "".join(f"{n:>9}" for n in ("start", "open", "search", "rerank", "write", "all", "anon", "MiB"))
    )
    found = []
    for images in sizes:
        for _ in range(rounds):
            found.append(whole_run(images, folder / str(images), stage, methods))
            print(found[-1], flush=True)
        shutil.rmtree(folder / str(images))
    for what, values in (("anonymous memory", [w.anonymous for w in found]), ("memory", [w.mib for w in found])):
        print(f"  {what} at the most {max(values) / min(values):.2f} times that at the least")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.speed.scale", description=__doc__)
    parser.add_argument("--images", default="10000,100000", help="[default: %(default)s]")
    parser.add_argument("--first-stage", default="gem-lite0", help="[default: %(default)s]")
    parser.add_argument("--methods", default=METHODS, help="[default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="[default: a temporary one]")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="rerankbench-scale-"))
    try:
        bench_scale([int(n) for n in given.images.split(",")], folder, given.first_stage, given.methods, given.rounds)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
