"""Writes the `demo` data set: photographs of generated landmarks and distractors, and ground truth measured on them."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from bench.datasets.demo.render import Role, View, render_view
from bench.datasets.demo.scene import Building, Style, make_building, make_style

VERSION = 2  # raise when the same spec gives other bytes, so that caches are not mixed up
ROLES: tuple[Role, ...] = ("easy", "hard", "hard", "easy", "hard", "junk", "easy", "hard", "hard")
ATTEMPTS = 25  # at a view that every query must have
BATCH = 8  # distractors a job

# What makes a gallery image easy or junk to a query; everything between is hard.
EASY_DEGREES, EASY_SHARED, EASY_RATIO = 28.0, 0.6, 1.7
JUNK_SHARED, JUNK_AREA, JUNK_RATIO = 0.06, 0.012, 4.0


@dataclass(frozen=True)
class DemoSpec:
    """What to generate. `seed` >= 0; other seeds give other landmarks. `twins`: share (0..1) of the distractors that
    copy a landmark's style (materials, colours, kinds of parts) in another arrangement."""

    seed: int = 0
    landmarks: int = 40
    views: int = 9  # gallery views per landmark
    distractors: int = 400
    queries_per_landmark: int = 1
    twins: float = 0.2

    def __post_init__(self) -> None:
        least = {"seed": 0, "landmarks": 1, "views": 2, "distractors": 0, "queries_per_landmark": 1}
        for field, low in least.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{field} must be a whole number of at least {low}, not {value!r}")
        if not 0 <= self.twins <= 1:
            raise ValueError(f"twins must lie in 0..1, not {self.twins!r}")


class _Labels(NamedTuple):
    query: int
    box: list[float]
    grades: dict[str, list[int]]


def landmark_style(seed: int, landmark: int) -> Style:
    """The style of landmark number `landmark` of a seed."""
    return make_style(np.random.default_rng([seed, 1, landmark]))


def landmark_building(seed: int, landmark: int) -> Building:
    """Landmark number `landmark` of a seed (0.2 s; keep it when rendering several views)."""
    return make_building(landmark_style(seed, landmark), [seed, 2, landmark])


def distractor_building(seed: int, distractor: int, landmarks: int, twins: float) -> Building:
    """Distractor number `distractor`; a twin takes the style of one of the `landmarks`."""
    rng = np.random.default_rng([seed, 5, distractor])
    twin = rng.random() < twins
    style = landmark_style(seed, int(rng.integers(landmarks))) if twin else make_style(rng)
    return make_building(style, [seed, 6, distractor])


def grade_views(query: View, other: View) -> str:
    """`easy`, `hard` or `junk`: what `other` is to `query`, two views of one building, by what was measured on them."""
    shared = float((query.seen & other.seen).sum()) / max(int(query.seen.sum()), 1)
    degrees = float(np.degrees(np.arccos(np.clip(query.direction @ other.direction, -1, 1))))
    ratio = max(query.scale / other.scale, other.scale / query.scale)
    if shared < JUNK_SHARED or other.area < JUNK_AREA or ratio > JUNK_RATIO:
        return "junk"
    easy = degrees <= EASY_DEGREES and shared >= EASY_SHARED and ratio <= EASY_RATIO
    return "easy" if easy else "hard"


def generate(
    folder: Path, spec: DemoSpec = DemoSpec(), workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write `gallery/`, `queries/` and `gnd.json` into the empty `folder`: the same bytes for any number of workers.

    `progress(images done, images in all)` is called in this process as work comes in.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers!r}")
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    for name in ("gallery", "queries"):
        (folder / name).mkdir()
    jobs = [(folder, spec, i, -1) for i in range(spec.landmarks)]
    jobs += [(folder, spec, i, min(i + BATCH, spec.distractors)) for i in range(0, spec.distractors, BATCH)]
    total = spec.landmarks * (spec.views + spec.queries_per_landmark) + spec.distractors
    done = 0
    labels: list[_Labels] = []
    for images, found in _run(jobs, workers):
        done += images
        labels += found
        if progress is not None:
            progress(done, total)
    gallery = sorted(_gallery_id(i) for i in range(spec.landmarks * spec.views + spec.distractors))
    queries = [
        {
            "query": _query_id(label.query),
            "box": label.box,
            **{grade: sorted(map(_gallery_id, ids)) for grade, ids in label.grades.items()},
        }
        for label in sorted(labels)
    ]
    (folder / "gnd.json").write_text(json.dumps({"gallery": gallery, "queries": queries}, indent=1) + "\n")


def _run(jobs: list[tuple[Path, DemoSpec, int, int]], workers: int) -> Iterator[tuple[int, list[_Labels]]]:
    if workers == 1:
        yield from map(_job, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_job, job) for job in jobs]):
            yield future.result()


def _job(job: tuple[Path, DemoSpec, int, int]) -> tuple[int, list[_Labels]]:
    """One landmark (stop < 0) or the distractors start..stop: writes their images, returns how many, and the truth."""
    folder, spec, start, stop = job
    if stop < 0:
        return spec.views + spec.queries_per_landmark, _landmark(folder, spec, start)
    places = _shuffled(spec, spec.landmarks * spec.views + spec.distractors, 0)
    for i in range(start, stop):
        building = distractor_building(spec.seed, i, spec.landmarks, spec.twins)
        rng = np.random.default_rng([spec.seed, 7, i])
        role = cast(Role, ("easy", "hard")[int(rng.random() < 0.5)])
        view = render_view(building, rng, role, rng.uniform(-20, 20))
        _save(view, folder / "gallery" / f"{_gallery_id(places[spec.landmarks * spec.views + i])}.jpg")
    return stop - start, []


def _landmark(folder: Path, spec: DemoSpec, landmark: int) -> list[_Labels]:
    building = landmark_building(spec.seed, landmark)
    base = float(np.random.default_rng([spec.seed, 3, landmark]).uniform(-18, 18))
    queries = [_query(spec.seed, landmark, q, building, base) for q in range(spec.queries_per_landmark)]
    names = _shuffled(spec, spec.landmarks * spec.queries_per_landmark, 1)[landmark * len(queries) :]
    places = _shuffled(spec, spec.landmarks * spec.views + spec.distractors, 0)[landmark * spec.views :]
    labels = [
        _Labels(name, [round(b, 1) for b in query.box], {"easy": [], "hard": [], "junk": []})
        for name, query in zip(names, queries, strict=False)
    ]
    for label, query in zip(labels, queries, strict=True):
        _save(query, folder / "queries" / f"{_query_id(label.query)}.jpg")
    for v in range(spec.views):
        role = ROLES[v % len(ROLES)]
        for attempt in range(ATTEMPTS):
            view = render_view(building, np.random.default_rng([spec.seed, 4, landmark, v, attempt]), role, base)
            grades = [grade_views(query, view) for query in queries]
            if v > 1 or all(grade == role for grade in grades):  # the first two are what every query must have
                break
        else:
            raise RuntimeError(f"no {role} view of landmark {landmark} of seed {spec.seed} in {ATTEMPTS} attempts")
        _save(view, folder / "gallery" / f"{_gallery_id(places[v])}.jpg")
        for label, grade in zip(labels, grades, strict=True):
            label.grades[grade].append(places[v])
    return labels


def _query(seed: int, landmark: int, number: int, building: Building, base: float) -> View:
    """A query shows most of its landmark."""
    views = []
    for attempt in range(ATTEMPTS):
        views.append(render_view(building, np.random.default_rng([seed, 8, landmark, number, attempt]), "query", base))
        if views[-1].seen.mean() > 0.55:
            break
    return max(views, key=lambda view: view.seen.mean())


def _shuffled(spec: DemoSpec, count: int, kind: int) -> list[int]:
    """Numbers for images that say nothing of what is on them."""
    return np.random.default_rng([spec.seed, 9, kind]).permutation(count).tolist()


def _gallery_id(number: int) -> str:
    return f"demo_{number:06d}"


def _query_id(number: int) -> str:
    return f"query_{number:06d}"


def _save(view: View, path: Path) -> None:
    view.image.save(path, quality=view.quality, subsampling=2)
