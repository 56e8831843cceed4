"""Features that others extracted, read from their files into a feature store.

DELG: the files `<id>.delg_global` and `<id>.delg_local` of every query and gallery image of a data set, side by side in
one folder, or the queries' in its sub-folder `query` (or `queries`) and the gallery's in `index` (or `gallery`).
A query with a box must have been extracted from its crop, as DELG does, so that its keypoints are relative to the crop.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.datasets import Dataset
from bench.errors import UserError
from bench.features.fill import ExtractReport, fill
from bench.features.items import Item, items, query_key
from bench.features.shards import Entry
from bench.features.store import FeatureStore
from bench.files import write_whole
from bench.images import content_hash
from third_party import delg


@dataclass(frozen=True)
class Import:
    """One kind of features that other programs make."""

    name: str
    summary: str
    place: str  # what PLACE of `features import` is
    licence: str = "of the features' maker"
    dims: tuple[int | None, int | None] = (None, None)  # values of a local and a global descriptor, where all have them

    @property
    def key(self) -> str:
        return self.name

    def skip(self) -> str:
        """Why it cannot be extracted here."""
        return f"import only: python cli.py features import {self.name} PLACE --dataset NAME"


DELG = Import(
    "delg",
    "DELG local and global descriptors (ECCV 2020), as the RRT paper used them",
    "its .delg_global and .delg_local files are written by DELG's extraction (tensorflow/models, "
    "research/delf) with a model such as https://storage.googleapis.com/delf/r50delg_gldv2clean_20200914.tar.gz",
    "Apache-2.0 (code and models of tensorflow/models)",
    (128, 2048),
)
IDENTITY = {"features": "delg", "version": 1}  # what another version imported is imported again
SUFFIXES = (".delg_global", ".delg_local")
QUERY, GALLERY = ("query", "queries"), ("index", "gallery")  # sub-folders; the first that is there is used
UNIT = 1e-3  # a descriptor whose norm is this near to 1 is left as it is, bit for bit
BEYOND = 16  # pixels that keypoints may lie outside of a query's box: the stride of DELG's feature map


def locate(dataset: Dataset, source: Path) -> list[Item]:
    """Every image of the data set with the place of its two files in `source`, whether they are there or not."""

    def place(folders: Sequence[str]) -> Path:
        return next((source / folder for folder in folders if (source / folder).is_dir()), source)

    of_queries, of_gallery = place(QUERY), place(GALLERY)
    queries = {query_key(dataset, i): query.id for i, query in enumerate(dataset.queries)}

    def files(key: str) -> tuple[Path, ...]:
        stem = of_gallery / key if key in dataset.gallery else of_queries / queries[key]
        return tuple(stem.with_name(stem.name + suffix) for suffix in SUFFIXES)

    return [replace(item, files=files(item.key)) for item in items(dataset)]


def import_delg(
    dataset: Dataset, source: Path, folder: Path, progress: Callable[[int, int], None] | None = None
) -> ExtractReport:
    """Bring the store in `folder` up to date with the files in `source`; finished shards survive an interruption.

    Values are kept in float32 and rows sorted by descending attention score. Descriptors are only normalised where
    their norm is not 1, as DELG's is. Raises UserError for missing files, before anything is read, and for a file that
    is malformed or not DELG's.
    """
    report = _bring(locate(dataset, source), dataset.name, source, folder, progress)
    return replace(report, caveats=_uncropped(dataset, FeatureStore(folder)))


def import_listed(
    names: Sequence[str], source: Path, folder: Path, progress: Callable[[int, int], None] | None = None
) -> ExtractReport:
    """As `import_delg`, of training images: `names` as a list has them, with or without folder and suffix.

    An image is stored under its name without suffix; its files are there below `source`, or directly in it.
    """

    def place(name: str) -> Item:
        path = Path(name)
        key = (path.parent / path.stem).as_posix()
        stem = source / key if path.parent != Path() and (source / path.parent).is_dir() else source / path.stem
        return Item(key, tuple(stem.with_name(stem.name + suffix) for suffix in SUFFIXES))

    outside = next((name for name in names if Path(name).is_absolute() or ".." in Path(name).parts), None)
    if outside is not None or not names:
        raise UserError(f"the list names {'no images' if outside is None else repr(outside)}, expected images in DIR")
    return _bring(list(map(place, names)), "the list", source, folder, progress)


def _bring(
    wanted: list[Item], what: str, source: Path, folder: Path, progress: Callable[[int, int], None] | None
) -> ExtractReport:
    if not source.is_dir():
        raise UserError(f"{source}: no such folder", hint="give the one with the .delg_global and .delg_local files")
    missing = [path for item in wanted for path in item.files if not path.is_file()]
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of {2 * len(wanted)} files of {what} are missing: "
            + ", ".join(str(path.relative_to(source)) for path in missing[:5])
            + (", …" if len(missing) > 5 else ""),
            hint="expected <image>.delg_global and <image>.delg_local of every image in that folder, or a data set's "
            "queries in its sub-folder query and its gallery in index",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "source.json", json.dumps(str(source.resolve())))
    except OSError as error:
        raise UserError(f"{folder}: cannot write features ({error.strerror or error})") from error
    zero: list[str] = []

    def read(item: Item) -> Entry:
        entry = _read(item)
        if any(not np.asarray(entry.arrays[name]).any(axis=-1).all() for name in ("global_descriptor", "descriptors")):
            zero.append(item.key)
        return entry

    report = fill(wanted, folder, lambda: read, IDENTITY, progress, exact=True)
    if zero:
        some = ", ".join(zero[:5]) + ", …" * (len(zero) > 5)
        report = replace(
            report, notes=(*report.notes, f"{len(zero)} images have descriptors that are all zero: {some}")
        )
    return report


def check_delg(dataset: Dataset, folder: Path) -> ExtractReport:
    """Nothing to do for a store that has every image of the data set; else UserError with the command to give.

    Where the imported files are still at hand, they must be what was imported.
    """
    store, source = FeatureStore(folder), _source(folder)
    wanted = locate(dataset, source)
    here = [item if all(path.is_file() for path in item.files) else replace(item, files=()) for item in wanted]
    todo = list(store.stale(here)) if store.identity == IDENTITY else [(item, "new") for item in here]
    if todo:
        new = [item for item, reason in todo if reason == "new"]
        other = [(item, reason) for item, reason in todo if reason != "new"]
        problems = [f"{len(new)} of {len(wanted)} images have not been imported"] if new else []
        problems += [f"shard {path} is damaged ({reason})" for path, reason in store.damaged]
        if other:
            item, reason = other[0]
            name = item.files[0].with_suffix("") if item.files else item.key
            problems.append(
                f"{len(other)} of {len(wanted)} are not what was imported: {name} {reason}" + ", …" * (len(other) > 1)
            )
        raise UserError(
            f"feature set 'delg' of {dataset.name}: {'; '.join(problems)}",
            hint=f"python cli.py features import delg {shlex.quote(str(source)) if source.is_dir() else 'DIR'} "
            f"--dataset {shlex.quote(dataset.name)}",
        )
    return ExtractReport(0, {}, (), _uncropped(dataset, store))


def _source(folder: Path) -> Path:
    """Where the store was imported from; a path that is not there if that is not known."""
    try:
        return Path(json.loads((folder / "source.json").read_text()))
    except (OSError, ValueError, TypeError):
        return folder / "source"


def _read(item: Item) -> Entry:
    local_dim, global_dim = DELG.dims
    assert local_dim is not None and global_dim is not None
    data = [delg.read_bytes(path) for path in item.files]
    whole, local = delg.parse_global(data[0], item.files[0]), delg.parse_local(data[1], item.files[1])
    n = len(local.scales)
    descriptors = local.descriptors if n else np.zeros((0, local_dim), np.float32)
    best = np.argsort(-local.strengths, kind="stable")
    arrays = {
        "global_descriptor": _unit(whole),
        "descriptors": _unit(descriptors)[best],
        "keypoints": local.keypoints[best],
        "scales": local.scales[best],
        "orientations": local.orientations[best],
        "scores": local.strengths[best],
        # the files do not tell the size of the image: the extent of its keypoints stands for it
        "image_size": np.ceil(local.keypoints.max(axis=0, initial=1)).clip(max=2**30),
    }
    for path, size, expected in zip(
        item.files, (len(whole), descriptors.shape[1]), (global_dim, local_dim), strict=True
    ):
        if size != expected:
            raise UserError(f"{path}: descriptors of {size} values, expected DELG's {expected}")
    for path, names in zip(item.files, (["global_descriptor"], [*arrays][1:]), strict=True):
        for name in names:
            if not np.isfinite(arrays[name]).all() or (name == "scales" and (arrays[name] <= 0).any()):
                raise UserError(f"{path}: {name} that are not finite{' and positive' * (name == 'scales')}")
    return Entry("+".join(map(content_hash, data)), arrays)


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return np.where((np.abs(norm - 1) < UNIT) | (norm == 0), rows, rows / np.maximum(norm, 1e-300)).astype(np.float32)


def _uncropped(dataset: Dataset, store: FeatureStore) -> tuple[str, ...]:
    """A note on queries whose features cannot be those of their crop: a protocol that other numbers do not share."""
    found = []
    for number, query in enumerate(dataset.queries):
        if query.box is not None:
            x1, y1, x2, y2 = query.box
            width, height = store.read(query_key(dataset, number), frozenset()).image_size.tolist()
            if width > x2 - x1 + BEYOND or height > y2 - y1 + BEYOND:
                found.append(query.id)
    if not found:
        return ()
    return (
        f"{len(found)} of {len(dataset.queries)} queries have keypoints outside of their box ({', '.join(found[:5])}"
        f"{', …' if len(found) > 5 else ''}): they were not extracted from the crop, as the protocol asks",
    )
