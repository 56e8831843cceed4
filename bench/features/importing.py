"""Features of other programs brought into a store: of any kind that `bench/features/imports/` declares.

A query's features are those of its crop if the other program was given the crop. Without a global descriptor there is
no first stage: then `run` needs --shortlist. Other files, or other options, are imported beside the store and take its
place when they are whole.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.datasets import Dataset
from bench.doors import Door
from bench.errors import UserError
from bench.features.fill import ExtractReport, fill
from bench.features.import_facts import Facts, caveats_of, notes_of
from bench.features.import_names import by_ends, fitting, matched
from bench.features.import_record import Record, Stamp
from bench.features.imported import Import, Source
from bench.features.items import Item, items, query_key
from bench.features.shards import Entry
from bench.features.store import FeatureStore
from bench.files import file_hash, writing
from bench.names import shown
from third_party.foreign_features import Ames, Arrays, Colmap, Contents, Foreign, ImageFiles, Matrices, fields

VERSION = 2
EXACT = 1e-3  # a descriptor whose norm is this near to 1 is left as it is


def _name(value: object) -> str | None:
    return value.name if isinstance(value, Import) else None


IMPORTS: Door[Import] = Door("import", "--features", "bench.features.imports", "rerankbench.imports", _name)


def import_foreign(
    kind: str,
    dataset: Dataset,
    source: Path,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    globals_: Path | None = None,
    *,
    queries: Path | None = None,
    query_globals: Path | None = None,
    ordered: bool = False,
    local: tuple[str, int | None] | None = None,
) -> ExtractReport:
    """Bring the store in `folder` up to date with the files given.

    The same files again go on where an import was interrupted; other files or options replace the store once all is
    read. `local` says which extractor made the local descriptors, and how many values one has, so that the methods made
    for that extractor run on them. UserError for images that are not there, values that are none, and descriptors of
    another size than `local` says.
    """
    declared = IMPORTS.get(kind)
    if declared.read is None:
        raise ValueError(f"{kind} has an importer of its own")
    given = Source(declared, source, globals_, queries, query_globals, ordered, local[0] if local else None)
    foreign = declared.read(given)
    listed = foreign.names()
    names = matched(dataset, listed, foreign, source)
    order = [_item(item, foreign, names) for item in items(dataset)]
    contents = foreign.contents([names[item.key] for item in order])
    scored = _scored(contents, given, foreign.scored) if declared.gives == "both" else foreign.scored
    read = _Reader(foreign, source, names, dataset, order, declared.gives)
    if local is not None and local[1] not in (None, read.sizes["local_dim"]):
        raise UserError(
            f"--local {local[0]}: {shown(source)} has {read.sizes['local_dim']}-d descriptors, not {local[1]}-d ones",
            hint="name the extractor that made them, or leave --local out",
        )
    identity = {"features": kind, "version": VERSION, **read.sizes, "scores": scored}
    if local is not None:
        identity["kind"] = local[0]

    before = Record.read(folder)
    staged = folder.with_name(f"{folder.name}.new")
    began = Record.read(staged)
    record = Record.of(given, foreign.files, [s for r in (before, began) if r is not None for s in r.files])
    other = ""
    if len(stored := FeatureStore(folder)):
        old = before is None or (stored.identity or {}).get("version") != VERSION
        other = "another version of the import" if old or before is None else record.differs(before)
        other = other or ("other arrays" if stored.identity != identity else "")
    going_on = began is not None and not record.differs(began) and FeatureStore(staged).identity == identity
    if not len(stored) and going_on:  # killed while it took the place of the other
        other = "another import"
    at = staged if other else folder
    with writing(folder):
        if not (other and going_on):
            shutil.rmtree(staged, ignore_errors=True)
        at.mkdir(parents=True, exist_ok=True)
        known = Record.read(at)
        whole = known is not None and not record.differs(known) and not any(FeatureStore(at).stale(order))
        caveats = known.caveats if known is not None and whole else None
        replace(record, caveats=caveats).write(at)

    report = fill(order, at, lambda: read, identity, progress, exact=True)
    notes = list(report.notes)
    if caveats is None:
        for item in order:
            if item.key not in read.seen:
                read(item)  # of an interrupted import: counted, not stored again
        caveats = (*caveats_of(given, dataset, scored, read.facts, len(order)),)
        notes += read.facts.notes()
    ends = {} if isinstance(foreign, (Ames, Matrices)) else by_ends(dataset, names)  # whose names are places of rows
    notes += notes_of(given, dataset, contents, listed, names, read.sizes["global_dim"], ends)
    with writing(folder):
        replace(record, caveats=caveats).write(at)
        if other:
            shutil.rmtree(folder, ignore_errors=True)  # gone, where a kill came between the two
            staged.rename(folder)
            notes.append(f"{kind} features of {dataset.name} are read anew: the store held {other}")
    return replace(report, notes=tuple(notes), caveats=caveats)


class _Reader:
    """One image after the other: what is stored of it, with the facts counted."""

    def __init__(
        self,
        foreign: Foreign,
        source: Path,
        names: Mapping[str, str],
        dataset: Dataset,
        order: Sequence[Item],
        gives: str,
    ):
        self._foreign, self._source, self._names, self._gives = foreign, source, names, gives
        self._queries = {query_key(dataset, i): query for i, query in enumerate(dataset.queries)}
        boxed = {query.image for query in dataset.queries if query.box is not None}
        files = {path: key for key, path in dataset.gallery.items() if path in boxed} if boxed else {}
        self._shared = {
            key
            for key, query in self._queries.items()
            if query.image in files and key not in dataset.gallery and names[files[query.image]] == names[key]
        }
        self.facts = Facts(Counter(), Counter(), [], [])
        self.seen: set[str] = set()
        self.sizes = {"global_dim": 0, "local_dim": 0}
        for item in order:
            given = foreign.read(names[item.key])
            arrays, _ = _arranged(given, self._where(item.key), gives)
            self.sizes = {
                "global_dim": len(arrays["global_descriptor"]) if "global_descriptor" in given else 0,
                "local_dim": arrays["descriptors"].shape[1] if "descriptors" in arrays else 0,
            }
            if "descriptors" not in arrays or len(arrays["descriptors"]):
                break

    def __call__(self, item: Item) -> Entry:
        given = self._foreign.read(self._names[item.key])
        where = self._where(item.key)
        arrays, lengths = _arranged(given, where, self._gives)
        if "descriptors" in arrays and not len(arrays["descriptors"]):
            arrays["descriptors"] = np.zeros((0, self.sizes["local_dim"]), np.float32)
        expected = {"global_descriptor": self.sizes["global_dim"] or 1, "descriptors": self.sizes["local_dim"]}
        for name, size in expected.items():
            if name in arrays and arrays[name].shape[-1] != size:
                raise UserError(f"{where}: {name} has {arrays[name].shape[-1]} values, others {size}")
        self.facts.add(given, arrays, lengths)
        if (query := self._queries.get(item.key)) is not None:
            self.facts.crop(query, given, item.key in self._shared)
        self.seen.add(item.key)
        if item.files:
            return Entry("+".join(file_hash(path) for path in item.files), arrays)
        return Entry(_digest(arrays), arrays)

    def _where(self, key: str) -> str:
        return shown(f"{self._source}: '{self._names[key]}'")


def _digest(arrays: Arrays) -> str:
    """sha256 of what is stored of an image, wherever it came from."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        rows = np.ascontiguousarray(arrays[name], np.float32)
        digest.update(f"{name} {rows.shape}\n".encode() + rows.tobytes())
    return digest.hexdigest()


def _item(item: Item, foreign: Foreign, names: Mapping[str, str]) -> Item:
    """The image with the file that is its own, where there is one."""
    files = (foreign.folder / names[item.key],) if isinstance(foreign, ImageFiles) and item.key in names else ()
    return Item(item.key, tuple(path for path in files if path.is_file()), item.box)


def _scored(contents: Contents, source: Source, kind: str) -> str:
    """What the scores are: `given`, the `scale`, the file's `order`, or `none`. UserError where only some images have
    scores, or global descriptors."""
    for name in ("scores", "global_descriptor"):
        having = sum(count for there, count in contents.images.items() if name in fields(there))
        total = sum(contents.images.values())
        if 0 < having < total:
            raise UserError(
                f"{shown(source.place)}: {having} of {total} images have {name.replace('_', ' ')}, the others none",
                hint="expected all or none of the data set's images",
            )
        if name == "scores" and having:
            if source.ordered:
                raise UserError(f"--ordered: {shown(source.place)} has scores ({kind})", hint="leave --ordered out")
            scored = kind
        elif name == "scores":
            scored = "order" if source.ordered else "none"
    return scored


def check_foreign(kind: str, dataset: Dataset, folder: Path) -> ExtractReport:
    """Nothing to do for a store that has every image of the data set; else UserError with the command to give.

    Where the imported files are still at hand, they must be what was imported.
    """
    record = Record.read(folder)
    store = FeatureStore(folder)
    declared = IMPORTS.get(kind)
    source = None if record is None else record.original(declared)
    total = len(items(dataset))
    foreign = ImageFiles(source.place) if declared.expects == "folder" and source is not None else None
    names = {} if foreign is None else fitting(dataset, foreign.names())
    here: list[Item] = []
    for item in items(dataset):
        fits = names.get(item.key, ())
        unique = {item.key: fits[0]} if len(fits) == 1 else {}
        here.append(Item(item.key, (), item.box) if foreign is None else _item(item, foreign, unique))
    current = record is not None and record.caveats is not None and (store.identity or {}).get("version") == VERSION
    todo = list(store.stale(here)) if current else [(item, "new") for item in here]
    new = sum(reason == "new" for _, reason in todo)
    problems = [f"{new} of {total} images have not been imported"] if new else []
    problems += [f"shard {path} is damaged ({reason})" for path, reason in store.damaged]
    changed = [(item, reason) for item, reason in todo if reason != "new"]
    if changed:
        item, reason = changed[0]
        name = shown(item.files[0] if item.files else item.key)
        more = ", …" * (len(changed) > 1)
        problems.append(f"{len(changed)} of {total} are not what was imported: {name} {reason}{more}")
    problems += [f"{shown(path)} is not what was imported" for path in _changed(record)]
    if problems:
        given = f"python cli.py features import {kind} PLACE --dataset {shlex.quote(dataset.name)}"
        raise UserError(
            f"feature set {kind!r} of {dataset.name}: {'; '.join(problems)}",
            hint=given if source is None else source.command(dataset.name),
        )
    assert record is not None and record.caveats is not None
    return ExtractReport(0, {}, (), record.caveats)


def _changed(record: Record | None) -> Iterator[str]:
    """Imported files that are still there with another content, and a database's log that was not there."""
    for stamp in () if record is None else record.files:
        try:
            if Stamp.of(Path(stamp.path), [stamp]).sha256 != stamp.sha256:
                yield stamp.path
        except OSError:
            continue  # the file is not needed any more
    if record is not None and record.source.get("kind") == "colmap":
        logs = Colmap(Path(record.source["place"])).files[1:]
        yield from ({str(log.resolve()) for log in logs} - {stamp.path for stamp in record.files})


def without_order(store: FeatureStore, used: Mapping[str, Callable[[int], int]], keys: Iterable[str]) -> dict[str, str]:
    """Why methods cannot run that read some of an image's local descriptors where nothing says which are the best.

    `used` has each method's `descriptors_used`: how many it reads of as many as there are; `keys` are the images.
    """
    if (store.identity or {}).get("scores") != "none":
        return {}
    counts = np.unique(store.counts(keys))
    most = int(counts.max(initial=0))
    return {
        method: f"it reads {reads(most)} of up to {most} local descriptors of an image, and the imported files hold no "
        f"scores that say which are the best: give -o {method}.descriptors={most}, or import again with --ordered if "
        "their order is that of quality"
        for method, reads in used.items()
        if any(0 < reads(int(count)) < count for count in counts)
    }


def _arranged(given: Arrays, where: str, gives: str) -> tuple[Arrays, dict[str, np.ndarray]]:
    """Every array of Features, rows by descending score, descriptors of unit norm; and the norms that descriptors had.

    Of a kind that `gives` the global descriptor alone there is that, and a size of the image that stands for none.
    UserError naming the array and what is wrong with it; `where` is the file and image.
    """
    if gives == "global":
        whole = {"global_descriptor": (np.asarray(given["global_descriptor"]).size,), "image_size": (2,)}
        return _unit_norm(_numbers({**given, "image_size": np.ones(2)}, whole, where), given)
    for name in ("keypoints", "descriptors"):
        if name not in given:
            raise UserError(f"{where}: no {name}", hint="each image needs keypoints and descriptors")
    n, points = len(given["keypoints"]), np.asarray(given["keypoints"])
    if np.asarray(given["descriptors"]).ndim != 2 or points.shape != (n, 2):
        raise UserError(
            f"{where}: keypoints {points.shape} and descriptors {np.asarray(given['descriptors']).shape}, "
            "expected (n, 2) and (n, d)"
        )
    extent = points.astype(np.float64).max(axis=0, initial=1)
    filled = {
        "global_descriptor": np.zeros(1),
        "scales": np.ones(n),
        "orientations": np.zeros(n),
        "scores": np.linspace(1, 0, n),
        "image_size": np.ceil(np.nan_to_num(extent, nan=1)).clip(1, 2**30),
        **given,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "global_descriptor": (np.asarray(filled["global_descriptor"]).size,),
        "descriptors": (n, np.asarray(given["descriptors"]).shape[1]),
        "keypoints": (n, 2),
        **dict.fromkeys(("scales", "orientations", "scores"), (n,)),
        "image_size": (2,),
    }
    arrays = _numbers(filled, shapes, where)
    if (arrays["image_size"] < 1).any() or (arrays["image_size"] > 2**30).any():
        raise UserError(f"{where}: image_size is {arrays['image_size'].tolist()}, expected width and height in pixels")
    best = np.argsort(-arrays["scores"].astype(np.float64), kind="stable")
    for name in ("descriptors", "keypoints", "scales", "orientations", "scores"):
        arrays[name] = arrays[name][best]
    return _unit_norm(arrays, given)


def _numbers(given: Arrays, shapes: Mapping[str, tuple[int, ...]], where: str) -> Arrays:
    """The arrays of these shapes in float32. UserError for one of another shape or kind, or not finite."""
    arrays: Arrays = {}
    for name, shape in shapes.items():
        array = np.asarray(given[name])
        if array.dtype.kind not in "fiub" or array.shape != shape or 0 in shape[-1:] * (name == "global_descriptor"):
            raise UserError(f"{where}: {name} is {array.dtype} {array.shape}, expected numbers {shape}")
        with np.errstate(over="ignore"):
            arrays[name] = array.astype(np.float32)
        bad = np.argwhere(~np.isfinite(arrays[name]))
        if len(bad):
            raise UserError(
                f"{where}: values of {name} are not finite: {len(bad)}, the first at {tuple(bad[0].tolist())}"
            )
    return arrays


def _unit_norm(arrays: Arrays, given: Arrays) -> tuple[Arrays, dict[str, np.ndarray]]:
    """The arrays with descriptors of unit norm, and the norms that those that were given had."""
    lengths: dict[str, np.ndarray] = {}
    for name in [name for name in ("descriptors", "global_descriptor") if name in arrays]:
        norm = np.linalg.norm(arrays[name].astype(np.float64), axis=-1, keepdims=True)
        # what has unit norm but for rounding stays as it is, bit for bit
        arrays[name] = (arrays[name] / np.where((norm == 0) | (np.abs(norm - 1) < EXACT), 1, norm)).astype(np.float32)
        if name in given:
            lengths[name] = norm[..., 0]
    return arrays, lengths
