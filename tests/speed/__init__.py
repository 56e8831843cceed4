"""Speed of the program's own parts (`make bench`): medians of interleaved rounds, compared as ratios.

Ratios depend on the machine and are printed against their targets; what must hold anywhere (the results of the plain
way, the time of `--help`) decides the exit status.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.datasets.catalogue import load as load_dataset
from bench.features.sets import DEFAULT_GLOBAL, FeatureSet, SetName, Stores, features_of, part_folder
from bench.first_stages import names as stages
from bench.first_stages.stage import Context
from bench.places import Places
from bench.prepare import seal_shortlist
from bench.scores import Scorer
from bench.setup import Setup


@dataclass(frozen=True)
class Medians:
    """Median seconds of each call, and how many samples other load disturbed; those are left out where others exist."""

    seconds: Mapping[str, float]
    disturbed: int
    samples: int

    def __str__(self) -> str:
        return f"{self.samples - self.disturbed} of {self.samples} samples undisturbed by other load"


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int = 5, warm_up: bool = True) -> Medians:
    """Times of the calls, which take turns, after one call each to warm up."""
    samples: dict[str, list[tuple[bool, float]]] = {name: [] for name in calls}
    for call in calls.values() if warm_up else ():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start, busy, own = time.perf_counter(), _busy_seconds(), time.process_time()
            call()
            seconds = time.perf_counter() - start
            others = _busy_seconds() - busy - (time.process_time() - own)
            free = (os.cpu_count() or 1) - torch.get_num_threads()
            samples[name].append((others > (free + 0.1) * seconds + 0.02, seconds))
    return Medians(
        {name: statistics.median(sorted(s for d, s in v if d == min(v)[0])) for name, v in samples.items()},
        sum(d for v in samples.values() for d, _ in v),
        rounds * len(calls),
    )


def _busy_seconds() -> float:
    """Processor seconds that all programs of the machine have used; 0 where the system does not say."""
    try:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def rank_changes(scores: Sequence[float], reference: Sequence[float]) -> int:
    """How many candidates have another rank by `scores` than by `reference`; ties keep the candidates' order."""
    orders = [np.argsort(-np.asarray(values), kind="stable") for values in (scores, reference)]
    return int((orders[0] != orders[1]).sum())


def demo_scorer(places: Places, top_k: int = 50) -> tuple[Scorer, FeatureSet] | None:
    """The demo's queries on its sealed shortlist, and their features; None where `make demo` has not made them."""
    request, device = Setup("demo", top_k=top_k), torch.device("cpu")
    parts = SetName.parse(request.features).parts
    if not all(part_folder("demo", part, request.extract, places).is_dir() for part in parts):
        return None
    dataset = load_dataset("demo", places)
    store, _ = features_of(dataset, request.features, request.extract, device, places)
    stage = stages.parse(DEFAULT_GLOBAL).open(
        Context(dataset, Stores(dataset, request.extract, device, places), places)
    )
    shortlist, *_ = seal_shortlist(dataset, stage, request, places, [])
    return Scorer(dataset, shortlist, device), store
