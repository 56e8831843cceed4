"""`views:PATH`: queries with ground truth made from unlabelled photographs, to choose options on without test images.

Some photographs become landmarks: a query and several gallery images are warped, partly hidden and re-lit views of one.
The others give one view each, as distractors. A gallery view that shares more than half of the query's cells with it
(`render.overlap`) is easy, less is hard, and what shares next to nothing is junk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from bench.datasets import cached, folder
from bench.datasets.dataset import Dataset, Place, dataset
from bench.datasets.views.render import View, make_view, overlap
from bench.errors import UserError
from bench.images import decode, read_bytes
from bench.places import slug

VERSION = 1  # of the views; made by another, they are made again
FEWEST = 8  # photographs


@dataclass(frozen=True)
class ViewsSpec:
    """How many views are made; all are drawn from the seed and a photograph's number alone."""

    landmarks: int = 60  # at most a quarter of the photographs
    views: int = 5  # of each landmark in the gallery
    distractors: int = 500  # at most, one of each other photograph
    easy: float = 0.5  # least share of cells that an easy view has in common with the query
    hard: float = 0.15  # least share of a hard one
    seed: int = 0


@dataset(
    "views",
    summary="made from unlabelled photographs, to choose options on: warped views of 60 of them among views of others",
    licence="yours",
    needs="the folder",
    takes="PATH",
    made=lambda _: False,  # the views of each folder, when they are first asked for
)
def read(place: Place) -> Dataset:
    assert place.path is not None
    return load(place.path, place.cache, place.progress)


def load(
    path: Path, cache: Path, progress: Callable[[int, int], None] | None = None, spec: ViewsSpec = ViewsSpec()
) -> Dataset:
    """The data set, made if need be. UserError for a folder without enough photographs."""
    folder.require_folder(path, hint="--dataset views:PATH, a folder of photographs")
    found = folder.look(path)
    photos, notes = found.images, found.notes(path)
    if len(photos) < FEWEST:
        raise UserError(folder.said_with(f"{path}: {len(photos)} photographs, at least {FEWEST} are needed", notes))
    listed = [(image, file.stat().st_size) for image, file in photos.items()]
    digest = hashlib.sha256(json.dumps([VERSION, asdict(spec), listed]).encode()).hexdigest()[:12]
    place = cache / "datasets" / f"views-{slug(path.name)}-{digest}"
    cached.make(place, lambda made: _write(made, list(photos.values()), spec, progress))
    made = cached.load(place, f"views:{path}")
    return replace(made, notes=(*made.notes, *notes))


def _write(place: Path, photos: list[Path], spec: ViewsSpec, progress: Callable[[int, int], None] | None) -> None:
    order = np.random.default_rng(spec.seed).permutation(len(photos))
    landmarks = order[: min(spec.landmarks, len(photos) // 4)]
    distractors = order[len(landmarks) :][: spec.distractors]
    total = len(landmarks) * (1 + spec.views) + len(distractors)
    truth: dict[str, list] = {"gallery": [], "queries": []}
    done = 0

    def write(number: int, view: int, name: str) -> View:
        nonlocal done
        rng = np.random.default_rng([spec.seed, int(number), view])
        fillers = [_photo(photos[int(i)]) for i in rng.choice(len(photos), 2, replace=False) if i != number]
        made = make_view(_photo(photos[number]), fillers, rng)
        file = place / f"{name}.jpg"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(made.image).save(file, quality=95)
        done += 1
        if progress is not None:
            progress(done, total)
        return made

    for number in landmarks:
        query = write(number, 0, f"queries/{number}-query")
        grades: dict[str, list[str]] = {"easy": [], "hard": [], "junk": []}
        for view in range(1, spec.views + 1):
            name = f"{number}-{view}"
            shared = float(overlap(query.coverage, write(number, view, f"gallery/{name}").coverage))
            grade = "easy" if shared >= spec.easy else "hard" if shared >= spec.hard else "junk"
            grades[grade].append(name)
            truth["gallery"].append(name)
        truth["queries"].append({"query": f"{number}-query", **grades})
    for number in distractors:
        write(number, 0, f"gallery/{number}-other")
        truth["gallery"].append(f"{number}-other")
    (place / "gnd.json").write_text(json.dumps(truth))


def _photo(file: Path) -> Image.Image:
    return Image.fromarray(decode(read_bytes(file), file))
