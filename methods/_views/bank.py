"""The training bank: features of many views of photographs and of generated buildings, extracted once to disk."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save

from bench.datasets.views.render import GRID, ViewOptions, make_view, overlap
from bench.errors import UserError
from bench.training import Progress

KEPT = 160  # best-scored descriptors stored per view
SHARD = 25  # photographs per shard
VERSION = 1


@dataclass(frozen=True)
class Bank:
    """Views with features; n views, KEPT descriptors, of which the first `counts` are real."""

    global_: np.ndarray  # (n, D) float16
    local: np.ndarray  # (n, KEPT, d) float16
    xy: np.ndarray  # (n, KEPT, 2) float32 place in the source photograph (longer side 1); NaN: unknown, or not of it
    counts: np.ndarray  # (n,) int32
    coverage: np.ndarray  # (n, GRID * GRID) bool cells seen of the source photograph; all True where not recorded
    groups: np.ndarray  # (n,) int64: views of one photograph or building
    shows: np.ndarray  # (n, 3) int64: numbers of the photographs seen, its own and fillers; a building has one below 0
    held_out: np.ndarray  # (n,) bool: for validation only

    def __len__(self) -> int:
        return len(self.groups)

    def positives(self, view: int, members: np.ndarray, least: float) -> np.ndarray:
        """Those of `members` (indices into the bank) that share at least `least` of the smaller view with `view`."""
        others = members[members != view]
        return others[overlap(self.coverage[view], self.coverage[others]) >= least]

    def share(self, views: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(v, o) bool: do a view and another show a common photograph or building, if only as a filler."""
        one, two = self.shows[views], self.shows[others]
        found = np.zeros((len(one), len(two)), dtype=bool)
        for i in range(one.shape[1]):
            for j in range(two.shape[1]):
                found |= one[:, i, None] == two[:, j]
        return found

    def digest(self) -> str:
        """Fingerprint of what training depends on."""
        sha = hashlib.sha256()
        for array in (self.global_, self.local, self.counts, self.coverage, self.groups, self.shows, self.held_out):
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()[:16]


@dataclass(frozen=True)
class BankOptions:
    """What is in a bank; the shards' names follow from it, so that a changed option never reads old ones."""

    photos: Path | None = None
    limit: int | None = (
        None  # only the first so many photographs, by name, rounded up to shards (the others still appear as fillers)
    )
    views: int = 6  # per photograph
    generated: tuple[int, ...] = ()  # seeds of generated buildings
    checked_on: tuple[int, ...] = ()  # seeds of generated buildings that are all held out
    landmarks: int = 60  # per seed
    landmark_views: int = 9
    distractors: int = 150
    features: str = "xfeat"
    seed: int = 0
    view: ViewOptions = ViewOptions()


def build_bank(options: BankOptions, folder: Path, workers: int = 1, progress: Progress | None = None) -> Bank:
    """The bank of `options`, extracting what `folder` does not hold yet; finished shards survive an interruption."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = _photo_jobs(options, folder) + _generated_jobs(options, folder, progress)
    todo = [job for job in jobs if not job[0].exists()]
    if workers == 1:
        for i, job in enumerate(todo):
            _run(job)
            if progress:
                progress("extracting", i + 1, len(todo))
    elif todo:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for i, future in enumerate(as_completed([pool.submit(_run, job) for job in todo])):
                future.result()
                if progress:
                    progress("extracting", i + 1, len(todo))
    return _load([job[0] for job in jobs], _shown(options, jobs), [_all_held_out(options, job) for job in jobs])


def _load(shards: Sequence[Path], shown: np.ndarray, held_out: Sequence[bool]) -> Bank:
    """The views of `shards` in that order; groups are renumbered so that no two shards share one.

    `shown`: the photographs seen in the first views, which are those of photographs; `held_out`: whole shards.
    """
    parts: dict[str, list[np.ndarray]] = {}
    start = 0
    for shard, all_held_out in zip(shards, held_out, strict=True):
        arrays = load_file(shard)
        if all_held_out:
            arrays["held_out"] = np.ones_like(arrays["held_out"])
        _, arrays["groups"] = np.unique(arrays["groups"], return_inverse=True)
        arrays["groups"] = arrays["groups"].astype(np.int64) + start
        start = int(arrays["groups"].max()) + 1
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)
    if not parts:
        raise UserError(
            "nothing to train on: no photographs and no generated buildings",
            hint="name a folder of photographs or seeds of generated buildings",
        )
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    shows = np.repeat(-1 - whole["groups"][:, None], 3, axis=1)
    shows[: len(shown)] = shown
    return Bank(**whole, shows=shows)


def _shown(options: BankOptions, jobs: Sequence[_Job]) -> np.ndarray:
    """(n, 3) numbers of the photographs in the views of photographs: its own and those that fill its gaps."""
    rows = []
    for _, _, (kind, *what) in jobs:
        if kind == "photos":
            files, first, everything = what
            for number in range(first, first + len(files)):
                for view in range(options.views):
                    rng = np.random.default_rng([options.seed, number, view])
                    rows.append([number, *_fillers(rng, len(everything))])
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _all_held_out(options: BankOptions, job: _Job) -> bool:
    kind, *what = job[2]
    return kind == "generated" and what[1] in options.checked_on


def _fillers(rng: np.random.Generator, photographs: int) -> np.ndarray:
    """Numbers of the two photographs that fill a view, the first that its generator draws."""
    return rng.integers(photographs, size=2)


# A job: the shard to write, the options, and ("photos", files, fillers) or ("generated", folder, seed).
_Job = tuple[Path, BankOptions, tuple]


def _photo_jobs(options: BankOptions, folder: Path) -> list[_Job]:
    if options.photos is None:
        return []
    from bench.datasets import folder as folders

    if not options.photos.is_dir():
        raise UserError(f"{options.photos}: no such folder of photographs")
    files = list(folders.images(options.photos).values())
    if len(files) < 2:
        raise UserError(
            f"{options.photos}: {len(files)} photographs, expected at least 2",
            hint="training needs other photographs as negatives",
        )
    described = [f"{f.relative_to(options.photos)}:{f.stat().st_size}" for f in files]
    key = _key(described, options.views, asdict(options.view), options.features, options.seed)
    return [
        (folder / f"photos-{key}-{i // SHARD:04d}.safetensors", options, ("photos", files[i : i + SHARD], i, files))
        for i in range(0, min(len(files), options.limit or len(files)), SHARD)
    ]


def _generated_jobs(options: BankOptions, folder: Path, progress: Progress | None) -> list[_Job]:
    jobs: list[_Job] = []
    for seed in (*options.generated, *options.checked_on):
        sizes = (seed, options.landmarks, options.landmark_views, options.distractors)
        shard = folder / f"generated-{_key(*sizes, options.features)}.safetensors"
        pictures = Path()
        if not shard.exists():
            from bench.datasets import demo

            def tell(done: int, total: int, seed: int = seed) -> None:
                if progress:
                    progress(f"drawing buildings of seed {seed}", done, total)

            spec = demo.DemoSpec(
                seed=seed, landmarks=options.landmarks, views=options.landmark_views, distractors=options.distractors
            )
            pictures = demo.make(folder, spec, tell)
        jobs.append((shard, options, ("generated", pictures, seed)))
    return jobs


def _key(*what: object) -> str:
    return hashlib.sha256(json.dumps([VERSION, *what], sort_keys=True).encode()).hexdigest()[:12]


def _run(job: _Job) -> None:
    import torch

    from bench.features.sets import ExtractOptions, FeatureExtractor

    torch.set_num_threads(1)
    shard, options, (kind, *what) = job
    extractor = FeatureExtractor(options.features, ExtractOptions(descriptors=KEPT))
    rows = _photo_views(options, extractor, *what) if kind == "photos" else _generated_views(extractor, *what)
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    part = shard.with_name(shard.name + ".part")
    part.write_bytes(save(arrays))
    part.replace(shard)


def _photo_views(
    options: BankOptions, extractor: Callable, files: list[Path], first: int, everything: list[Path]
) -> list[dict[str, np.ndarray]]:
    rows = []
    for number, file in enumerate(files, first):
        photo = _open(file)
        for view in range(options.views):
            rng = np.random.default_rng([options.seed, number, view])
            fillers = [_open(everything[int(i)]) for i in _fillers(rng, len(everything))]
            seen = make_view(photo, fillers, rng, options.view)
            found = extractor(seen.image)
            place = np.column_stack([found["keypoints"], np.ones(len(found["keypoints"]))]) @ seen.to_photo.T
            x, y = found["keypoints"].astype(int).T if len(place) else np.zeros((2, 0), int)
            xy = np.where(seen.visible[y, x, None], place[:, :2] / place[:, 2:], np.nan)
            # every 20th photograph validates
            rows.append(_row(found, xy, seen.coverage, number, number % 20 == 0))
    return rows


def _generated_views(extractor: Callable, pictures: Path, seed: int) -> list[dict[str, np.ndarray]]:
    from bench.images import crop, decode, read_bytes

    gnd = json.loads((pictures / "gnd.json").read_text())
    members: dict[str, tuple[int, bool]] = {}
    left_out: set[str] = set()
    rows = []
    everywhere = np.ones(GRID * GRID, dtype=bool)

    def add(file: Path, box: Sequence[float] | None, group: int, held_out: bool) -> None:
        image, ratio = crop(decode(read_bytes(file), file), tuple(box) if box else None, file)  # type: ignore[arg-type]
        found = extractor(image, ratio)
        rows.append(_row(found, np.full((len(found["descriptors"]), 2), np.nan), everywhere, group, held_out))

    for number, query in enumerate(gnd["queries"]):
        held_out = number % 20 == 0
        members |= dict.fromkeys([*query["easy"], *query["hard"]], (number, held_out))
        left_out |= set(query["junk"])  # shows hardly anything of its building: neither the same nor another
        add(pictures / "queries" / f"{query['query']}.jpg", query["box"], number, held_out)
    others = len(gnd["queries"])
    for name in gnd["gallery"]:
        if name not in left_out:
            group, held_out = members.get(name, (others, others % 20 == 0))
            others += name not in members
            add(pictures / "gallery" / f"{name}.jpg", None, group, held_out)
    return rows


def _row(
    found: dict[str, np.ndarray], xy: np.ndarray, coverage: np.ndarray, group: int, held_out: bool
) -> dict[str, np.ndarray]:
    count = min(KEPT, len(found["descriptors"]))
    local = np.zeros((KEPT, found["descriptors"].shape[1]), dtype=np.float16)
    place = np.full((KEPT, 2), np.nan, dtype=np.float32)
    local[:count], place[:count] = found["descriptors"][:count], xy[:count]
    return {
        "global_": found["global_descriptor"].astype(np.float16),
        "local": local,
        "xy": place,
        "counts": np.array(count, np.int32),
        "coverage": coverage,
        "groups": np.array(group, np.int64),
        "held_out": np.array(held_out),
    }


def _open(file: Path) -> Image.Image:
    from bench.images import decode, read_bytes

    return Image.fromarray(decode(read_bytes(file), file))
