"""`python -m tests.speed`: all of them."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from bench.places import PROJECT, Places
from methods.rrt.model import RRTConfig
from tests.speed import interleaved
from tests.speed.aggregates import bench_asmk
from tests.speed.extraction import bench_extraction, demo_images
from tests.speed.full_size import bench_evaluation, bench_search
from tests.speed.learned import bench_lightglue, bench_superglue
from tests.speed.matching import (
    bench_counting,
    bench_matching,
    bench_maxsim,
    bench_threads,
    bench_trials,
    bench_verification,
)
from tests.speed.rrt import bench_precision, bench_rrt
from tests.speed.table import show_machine

SECONDS_ALLOWED_FOR_HELP = 0.5


def bench_help() -> bool:
    """The time of `cli.py --help`; whether it is short enough."""
    command = [sys.executable, str(PROJECT / "cli.py"), "--help"]
    seconds = interleaved({"help": lambda: subprocess.run(command, check=True, capture_output=True)}).seconds["help"]
    print(f"cli.py --help: {seconds:.2f} s (allowed: {SECONDS_ALLOWED_FOR_HELP})")
    return seconds < SECONDS_ALLOWED_FOR_HELP


def main() -> None:
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} processors")
    show_machine()
    shipped = RRTConfig(depth=3, feedforward=256, global_dim=1280, local_dim=64)
    released = RRTConfig(global_dim=1280, local_dim=64)
    held = [bench_rrt(shipped, 100, rounds=5), bench_rrt(released, 500, rounds=2)]
    bench_precision(Places.of())
    held += [bench_matching(descriptors) for descriptors in (500, 1000)]
    held += [bench_counting(500, size) for size in (64, 128)]
    held.append(bench_maxsim(500))
    held.append(bench_asmk())
    held += [bench_trials(matches) for matches in (40, 100, 200)]
    held.append(bench_verification(Places.of()))
    bench_threads(Places.of())
    held += [bench_superglue(keypoints) for keypoints in (500, 1000)]
    held += [bench_lightglue(descriptors) for descriptors in (200, 500)]
    held += [bench_extraction(name, demo_images(Places.of(), 48)) for name in ("xfeat", "gem-lite0")]
    held += [bench_search(100_000), bench_evaluation(100_000)]
    held.append(bench_help())
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
