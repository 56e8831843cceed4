"""`demo`: the embedded data set, generated once from a seed into the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.datasets import cached
from bench.datasets.dataset import Dataset, Place, dataset
from bench.datasets.demo.generate import VERSION, DemoSpec, generate


def _place(cache: Path, spec: DemoSpec) -> Path:
    text = json.dumps([VERSION, asdict(spec)], sort_keys=True)
    return cache / "datasets" / f"demo-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def ready(cache: Path, spec: DemoSpec = DemoSpec()) -> bool:
    return cached.ready(_place(cache, spec))


def make(cache: Path, spec: DemoSpec = DemoSpec(), progress: Callable[[int, int], None] | None = None) -> Path:
    """Folder of the generated images, made if it is not there."""
    place, workers = _place(cache, spec), os.cpu_count() or 1
    cached.make(place, lambda folder: generate(folder, spec, workers, progress))
    return place


def load(cache: Path, progress: Callable[[int, int], None] | None = None, spec: DemoSpec = DemoSpec()) -> Dataset:
    """The data set, generated if need be; UserError if a cached image no longer has its content."""
    return cached.load(make(cache, spec, progress), "demo")


@dataset(
    "demo",
    summary="generated buildings: 40 landmarks, 400 confusable distractors",
    licence="Apache-2.0",
    needs="nothing",
    made=lambda place: ready(place.cache),
)
def read(place: Place) -> Dataset:
    return load(place.cache, place.progress)
