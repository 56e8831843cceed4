"""`demo`: the embedded data set, generated once from a seed into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from bench.datasets import Dataset, folder
from bench.datasets.demo_generate import VERSION, DemoSpec, generate
from bench.errors import UserError

DONE = "content.json"


def _place(cache: Path, spec: DemoSpec) -> Path:
    text = json.dumps([VERSION, asdict(spec)], sort_keys=True)
    return cache / "datasets" / f"demo-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def ready(cache: Path, spec: DemoSpec = DemoSpec()) -> bool:
    return (_place(cache, spec) / DONE).is_file()


def make(cache: Path, spec: DemoSpec = DemoSpec(), progress: Callable[[int, int], None] | None = None) -> Path:
    """Folder of the generated images, made if it is not there: under a temporary name, renamed when whole."""
    place = _place(cache, spec)
    if not ready(cache, spec):
        temporary = place.with_name(f"{place.name}.tmp-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)  # without content.json it is not whole
        try:
            temporary.mkdir(parents=True)
            generate(temporary, spec, workers=min(8, os.cpu_count() or 1), progress=progress)
            (temporary / DONE).write_text(json.dumps({"sha256": content(temporary)}))
            temporary.rename(place)
        except OSError as error:
            raise UserError(
                f"{temporary}: the demo data set cannot be written ({error.strerror or error})",
                hint="make room, or choose another place with --cache-dir or RERANKBENCH_CACHE",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return place


def content(place: Path) -> str:
    """sha256 over the names and bytes of every image and of the ground truth."""
    digest = hashlib.sha256()
    for file in sorted(path for path in place.rglob("*") if path.is_file() and path.name != DONE):
        digest.update(file.relative_to(place).as_posix().encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def load(cache: Path, progress: Callable[[int, int], None] | None = None, spec: DemoSpec = DemoSpec()) -> Dataset:
    """The data set, generated if need be; UserError if a cached image no longer has its content."""
    place = make(cache, spec, progress)
    recorded = json.loads((place / DONE).read_text())["sha256"]
    if (found := content(place)) != recorded:
        raise UserError(
            f"{place}: the cached demo images have changed (sha256 {found[:8]}, expected {recorded[:8]})",
            hint="delete that folder; it is made again",
        )
    return replace(folder.load(place, "demo"), image_set=f"generated {recorded[:12]}")
