"""Features of other programs brought into a store: hloc, AMES, COLMAP, or arrays of one's own.

An image of the data set is the one whose name there shares the longest end with the image's file or id, compared part
by part of the path; the last part may have another suffix, or none. A query's features are those of its crop if the
other program was given the crop. Without a global descriptor there is no first stage: then `run` needs --shortlist.

`source.json` in the store says which files were imported and how. Another file, or other options, is imported beside
the store and takes its place when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets import Dataset, Query
from bench.errors import UserError
from bench.features.fill import ExtractReport, fill
from bench.features.imports import Import
from bench.features.items import Item, items, query_key
from bench.features.shards import Entry
from bench.features.store import FeatureStore
from bench.files import file_hash, read_json, write_whole, writing
from bench.names import shown
from third_party.foreign_features import Ames, Arrays, Colmap, Contents, Foreign, Hloc, ImageFiles, fields

VERSION = 2
BEYOND = 2  # pixels that an image of a crop may be larger than the query's box: rounding
EXACT = 1e-3  # a descriptor whose norm is this near to 1 is left as it is
UNIT = 2e-2  # a descriptor whose norm is this near to 1 is one that was stored in few bits, not another length


@dataclass(frozen=True)
class Source:
    """What is imported: the command's arguments. UserError for files that are not there or that the kind has not."""

    kind: str
    place: Path
    globals_: Path | None = None
    queries: Path | None = None
    query_globals: Path | None = None
    ordered: bool = False  # the user says that the files' order is that of quality
    local: str | None = None  # the extractor that made the local descriptors, where the user says so

    def __post_init__(self) -> None:
        given = {"globals": self.globals_, "queries": self.queries, "query-globals": self.query_globals}
        for option, path in given.items():
            if path is not None and option not in TAKES[self.kind]:
                takes = ", ".join(f"--{name}" for name in TAKES[self.kind]) or "no files but PLACE"
                raise UserError(f"--{option}: {self.kind} does not take it", hint=f"{self.kind} takes {takes}")
        for path in (self.place, *given.values()):
            if path is not None and not path.exists():
                raise UserError(f"{shown(path)}: no such file or folder")
        if self.kind != "ames" and self.place.is_dir() != (self.kind == "arrays"):
            raise UserError(
                f"{shown(self.place)}: {self.kind} expects a {'folder' if self.kind == 'arrays' else 'file'}"
            )

    def command(self, dataset: str) -> str:
        """The command that imports it."""
        options = {"globals": self.globals_, "queries": self.queries, "query-globals": self.query_globals}
        return " ".join(
            [
                f"python cli.py features import {self.kind} {shlex.quote(shown(self.place))}",
                *(f"--{name} {shlex.quote(shown(path))}" for name, path in options.items() if path is not None),
                *(["--ordered"] if self.ordered else []),
                *([f"--local {self.local}"] if self.local else []),
                f"--dataset {shlex.quote(dataset)}",
            ]
        )


TAKES: Mapping[str, tuple[str, ...]] = {
    "hloc": ("globals",),
    "ames": ("globals", "queries", "query-globals"),
    "colmap": (),
    "arrays": (),
}
KINDS: Mapping[str, Callable[[Source], Foreign]] = {
    "hloc": lambda source: Hloc(source.place, source.globals_),
    "ames": lambda source: Ames(source.place, source.globals_, source.queries, source.query_globals),
    "colmap": lambda source: Colmap(source.place),
    "arrays": lambda source: ImageFiles(source.place),
}
IMPORTS = (
    Import(
        "hloc",
        "hloc's HDF5 features",
        "a features .h5 of hloc; --globals the .h5 of its global descriptors, where they are not in the first",
    ),
    Import(
        "ames",
        "AMES' HDF5 descriptors",
        "the folder that AMES' extraction wrote; or the .h5 of gallery and then queries, or the gallery's with "
        "--queries the queries'; --globals and --query-globals their global descriptors, .npy or .pt",
    ),
    Import(
        "colmap",
        "keypoints and descriptors of a COLMAP database",
        "the database, of SIFT, ALIKED or LoMa; it has no global descriptors",
    ),
    Import(
        "arrays",
        "your own arrays",
        "a folder with one .npz or .safetensors an image: descriptors (n, d), keypoints (n, 2), and if there are "
        "scales, orientations, scores, image_size, global_descriptor; without scores, --ordered says that rows are "
        "best first",
    ),
)
# what is so of every file of a kind
ALWAYS: Mapping[str, tuple[str, ...]] = {
    "ames": (
        "AMES' files name no images: the order of rows is taken as the data set's order",
        "AMES' positions have the row before the column: geometric verification reads x before y",
    ),
}
ORDER: Mapping[str, str] = {
    "none": "the files hold no scores: the order of local descriptors says nothing of their quality",
    "order": "the files hold no scores: the order of local descriptors is taken as that of quality (--ordered)",
    "scale": "COLMAP stores no scores: larger keypoints are taken as better, as COLMAP's own limit does",
}


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was imported."""

    path: str
    size: int
    mtime: int  # ns
    sha256: str

    @staticmethod
    def of(path: Path, known: Sequence[Stamp] = ()) -> Stamp:
        """The file as it is; not read where its size and time are known."""
        path = path.resolve()
        status = path.stat()
        for stamp in known:
            if (stamp.path, stamp.size, stamp.mtime) == (str(path), status.st_size, status.st_mtime_ns):
                return stamp
        return Stamp(str(path), status.st_size, status.st_mtime_ns, file_hash(path))


@dataclass(frozen=True)
class Record:
    """What `source.json` says: the source, the files as they were, and facts about them once the import is whole."""

    source: Mapping[str, Any]
    files: tuple[Stamp, ...]
    caveats: tuple[str, ...] | None = None  # None: interrupted

    @staticmethod
    def of(source: Source, files: Sequence[Path], known: Sequence[Stamp]) -> Record:
        paths = {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in asdict(source).items()}
        try:
            return Record(paths, tuple(Stamp.of(path, known) for path in files))
        except OSError as error:
            raise UserError(f"{shown(error.filename)}: cannot be read ({error.strerror})") from error

    @staticmethod
    def read(folder: Path) -> Record | None:
        """The record of a store; None where there is none that can be read."""
        try:
            found = read_json(folder / "source.json")
            caveats = found["caveats"]
            stamps = tuple(Stamp(*map(_plain, stamp)) for stamp in found["files"])
            return Record(dict(found["source"]), stamps, None if caveats is None else tuple(map(str, caveats)))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, folder: Path) -> None:
        files = [list(asdict(stamp).values()) for stamp in self.files]
        text = json.dumps({"source": dict(self.source), "files": files, "caveats": self.caveats}, indent=1)
        write_whole(folder / "source.json", text)

    def original(self) -> Source | None:
        """The source, if its files are all there."""
        plain = ("kind", "ordered", "local")
        paths = {name: Path(path) for name, path in self.source.items() if name not in plain and path}
        try:
            return Source(
                str(self.source["kind"]),
                paths["place"],
                paths.get("globals_"),
                paths.get("queries"),
                paths.get("query_globals"),
                bool(self.source["ordered"]),
                self.source.get("local"),
            )
        except (UserError, TypeError, KeyError):
            return None

    def differs(self, other: Record) -> str:
        """In what the other import is another one, or nothing. Where its files lie does not matter."""
        if any(self.source.get(option) != other.source.get(option) for option in ("ordered", "local")):
            return "other options"
        return "other files" if [f.sha256 for f in self.files] != [f.sha256 for f in other.files] else ""


def _plain(value: object) -> Any:
    if not isinstance(value, int | str):
        raise TypeError(value)
    return value


@dataclass
class _Facts:
    """What is counted while images are read: images, and rows where a fact is one of rows."""

    images: Counter[str]
    rows: Counter[str]
    whole: list[str]  # queries with a box whose features are not of the crop
    unknown: list[str]  # queries with a box whose files do not tell

    def add(self, given: Arrays, arrays: Arrays, lengths: Mapping[str, np.ndarray]) -> None:
        points, scores = arrays["keypoints"], arrays["scores"]
        for name, norm in lengths.items():
            self._count(f"zero {name}", int((norm == 0).sum()))
            self._count(f"long {name}", int(((np.abs(norm - 1) > UNIT) & (norm != 0)).sum()))
        self._count("empty", int(len(points) == 0))
        self._count("one place", int(len(points) > 1 and (points == points[0]).all()))
        self._count("parts", int(len(points) > 1 and points.min() >= 0 and points.max() <= 1))
        self._count("one score", int("scores" in given and len(scores) > 1 and scores[0] == scores[-1]))
        for name in ("scales", "orientations", "image_size"):
            self._count(f"no {name}", int(name not in given))

    def _count(self, name: str, rows: int) -> None:
        self.rows[name] += rows
        self.images[name] += rows > 0

    def crop(self, query: Query, given: Arrays, shared: bool) -> None:
        """`shared`: the query's features are also those of the gallery image that the box is in."""
        if query.box is None:
            return
        x1, y1, x2, y2 = query.box
        side = np.array([x2 - x1, y2 - y1])
        size = given.get("image_size")
        extent = np.asarray(given["keypoints"], np.float64).max(axis=0, initial=0)
        if shared or (extent > side + BEYOND).any() or (size is not None and (size > side + BEYOND).any()):
            self.whole.append(query.id)
        elif size is None or (size < side - BEYOND).any():
            self.unknown.append(query.id)

    def caveats(self, total: int) -> Iterator[str]:
        """Sentences about the features, for every table made of them."""

        def some(name: str) -> str:
            return f"{self.images[name]} of {total} images"

        what = {"descriptors": "local descriptors", "global_descriptor": "global descriptors"}
        for name, words in what.items():
            if self.rows[f"zero {name}"]:
                yield f"{some(f'zero {name}')} have {words} that are all zero: {self.rows[f'zero {name}']} in all"
            if self.rows[f"long {name}"]:
                yield f"{some(f'long {name}')} had {words} that were not of unit length: they were normalised"
        sentences = {
            "empty": "have no local descriptors",
            "one place": "have all keypoints in one place",
            "one score": "have equal scores: the order of their local descriptors is that in the file",
            "parts": "have all keypoints within 0..1: they may be parts of the sides, not pixels",
        }
        yield from (f"{some(name)} {sentence}" for name, sentence in sentences.items() if self.images[name])

    def notes(self) -> Iterator[str]:
        """What the files do not hold, and what stands for it."""
        stands = {"scales": "1 pixel", "orientations": "0 radians", "image_size": "the extent of the keypoints"}
        lacking = {name: count for name in stands if (count := self.images[f"no {name}"])}
        if lacking:
            yield "not in the files: " + ", ".join(
                f"{name} of {count} images ({stands[name]} is taken)" for name, count in lacking.items()
            )

    def uncropped(self, kind: str, queries: int) -> Iterator[str]:
        if self.whole:
            yield (
                f"{len(self.whole)} of {queries} queries have keypoints or a size beyond their box "
                f"({_some(self.whole)}): they were not extracted from the crop, as the protocol asks"
            )
        if self.unknown:
            yield (
                f"{kind} files do not tell whether {len(self.unknown)} of {queries} queries were cropped to their box "
                f"({_some(self.unknown)}), as the protocol asks"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:5])) + (", …" if len(names) > 5 else "")


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
    given = Source(kind, source, globals_, queries, query_globals, ordered, local[0] if local else None)
    foreign = KINDS[kind](given)
    listed = foreign.names()
    names = _matched(kind, dataset, listed, foreign, source)
    order = [_item(item, foreign, names) for item in items(dataset)]
    contents = foreign.contents([names[item.key] for item in order])
    scored = _scored(contents, given, foreign.scored)
    read = _Reader(foreign, source, names, dataset, order, scored)
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
    at = staged if other else folder
    with writing(folder):
        if not (
            other and began is not None and not record.differs(began) and FeatureStore(staged).identity == identity
        ):
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
        caveats = (*_caveats(given, dataset, scored, read.facts, len(order)),)
        notes += read.facts.notes()
    notes += _notes(given, dataset, contents, listed, names, read.sizes["global_dim"])
    with writing(folder):
        replace(record, caveats=caveats).write(at)
        if other:
            shutil.rmtree(folder)
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
        scored: str,
    ):
        self._foreign, self._source, self._names, self._scored = foreign, source, names, scored
        self._queries = {query_key(dataset, i): query for i, query in enumerate(dataset.queries)}
        boxed = {query.image for query in dataset.queries if query.box is not None}
        files = {path: key for key, path in dataset.gallery.items() if path in boxed} if boxed else {}
        self._shared = {
            key
            for key, query in self._queries.items()
            if query.image in files and key not in dataset.gallery and names[files[query.image]] == names[key]
        }
        self.facts = _Facts(Counter(), Counter(), [], [])
        self.seen: set[str] = set()
        self.sizes = {"global_dim": 0, "local_dim": 0}
        for item in order:
            given = foreign.read(names[item.key])
            arrays, _ = _arranged(given, self._where(item.key), scored)
            self.sizes = {
                "global_dim": len(arrays["global_descriptor"]) if "global_descriptor" in given else 0,
                "local_dim": arrays["descriptors"].shape[1],
            }
            if len(arrays["descriptors"]):
                break

    def __call__(self, item: Item) -> Entry:
        given = self._foreign.read(self._names[item.key])
        where = self._where(item.key)
        arrays, lengths = _arranged(given, where, self._scored)
        if not len(arrays["descriptors"]):
            arrays["descriptors"] = np.zeros((0, self.sizes["local_dim"]), np.float32)
        expected = {"global_descriptor": self.sizes["global_dim"] or 1, "descriptors": self.sizes["local_dim"]}
        for name, size in expected.items():
            if arrays[name].shape[-1] != size:
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


def _caveats(source: Source, dataset: Dataset, scored: str, facts: _Facts, total: int) -> Iterator[str]:
    yield from ALWAYS.get(source.kind, ())
    if scored in ORDER:
        yield ORDER[scored]
    yield from facts.caveats(total)
    yield from facts.uncropped(source.kind, len(dataset.queries))


def _notes(
    source: Source, dataset: Dataset, contents: Contents, listed: Sequence[str], names: Mapping[str, str], whole: object
) -> Iterator[str]:
    """What was read under another name, what was not read, and what is missing."""
    place = shown(source.place)
    left, renamed = Counter(contents.beside), Counter[tuple[str, str]]()
    for there, count in contents.images.items():
        found = fields(there)
        left.update(dict.fromkeys(there - set(found.values()), count))
        renamed.update({(key, name): count for key, name in found.items() if key != name})
    for (key, name), count in sorted(renamed.items()):
        yield f"{place}: {name!r} of {count} images is read as {key}"
    if left:
        yield f"{place}: not read: " + ", ".join(f"{shown(name)} ({count})" for name, count in sorted(left.items()))
    yield from (f"{place}: {remark}" for remark in contents.remarks)
    others = sorted(set(listed) - set(names.values()))
    if others:
        yield (
            f"{len(others)} of {len(listed)} images in {place} are not in {dataset.name}: "
            f"they are not imported ({_some(others)})"
        )
    if not whole:
        again = ", or import again with --globals" if "globals" in TAKES[source.kind] else ""
        yield f"{place} holds no global descriptors: `run` needs --shortlist{again}"


def check_foreign(kind: str, dataset: Dataset, folder: Path) -> ExtractReport:
    """Nothing to do for a store that has every image of the data set; else UserError with the command to give.

    Where the imported files are still at hand, they must be what was imported.
    """
    record = Record.read(folder)
    store = FeatureStore(folder)
    source = None if record is None else record.original()
    total = len(items(dataset))
    foreign = KINDS[kind](source) if kind == "arrays" and source is not None else None
    names = {} if foreign is None else _fitting(dataset, foreign.names())
    here: list[Item] = []
    for item in items(dataset):
        fitting = names.get(item.key, ())
        unique = {item.key: fitting[0]} if len(fitting) == 1 else {}
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


def _matched(kind: str, dataset: Dataset, listed: Sequence[str], foreign: Foreign, source: Path) -> dict[str, str]:
    """The store's key of each image -> the other program's name of it."""
    if isinstance(foreign, Ames):
        return _in_order(dataset, listed, foreign, source)
    files = {query_key(dataset, i): query.image for i, query in enumerate(dataset.queries)}
    found: dict[str, str] = {}
    owners: dict[str, Path] = {}
    for key, fitting in _fitting(dataset, listed).items():
        path = files.get(key) or dataset.gallery[key]
        image = shown(key.removeprefix("query/").removesuffix("/") if key in files else key)
        if len(fitting) != 1:
            what = f"more than one image ({_some(fitting)})" if fitting else "no image"
            raise UserError(f"{shown(source)}: {what} fits '{image}'", hint=f"the image's file is {shown(path)}")
        (name,) = fitting
        if owners.setdefault(name, path) != path:
            raise UserError(
                f"{shown(source)}: '{shown(name)}' fits two images, {shown(owners[name])} and {shown(path)}",
                hint="expected names with as many folders as tell the two apart",
            )
        found[key] = name
    return found


def _in_order(dataset: Dataset, listed: Sequence[str], foreign: Ames, source: Path) -> dict[str, str]:
    gallery = list(dataset.gallery)
    own = [query_key(dataset, i) for i in range(len(dataset.queries))]
    apart = len(foreign.counts) > 1
    queries = own if apart else [key for key in own if key not in dataset.gallery]
    expected = [len(gallery), len(queries)] if apart else [len(gallery) + len(queries)]
    if foreign.counts != expected:
        raise UserError(
            f"{shown(source)}: {' and '.join(map(str, foreign.counts))} images, expected the gallery's {len(gallery)} "
            f"and then {len(queries)} queries",
            hint="" if apart else "the queries' own file is given with --queries",
        )
    pairs = dict(zip([*gallery, *queries], listed, strict=True))
    return {**pairs, **dict(zip(gallery, listed, strict=False))}  # a query that is a gallery image: the gallery's row


def _fitting(dataset: Dataset, listed: Sequence[str]) -> dict[str, list[str]]:
    """Key of each image of the data set -> the listed names that share the longest end with its file or its id.

    Names are compared part by part in one Unicode form; where that leaves several, the form decides.
    """
    whole: dict[str, list[str]] = {}  # every end of a name -> the names
    bare: dict[str, list[str]] = {}  # the same of names without their suffix
    for name in dict.fromkeys(listed):
        plain = unicodedata.normalize("NFC", name)
        for ends, text in ((whole, plain), (bare, _without_suffix(plain))):
            for end in _ends(text):
                ends.setdefault(end, []).append(name)
    queries = {query_key(dataset, i): (query.id, query.image) for i, query in enumerate(dataset.queries)}
    found = {}
    for item in items(dataset):
        image, path = queries.get(item.key) or (item.key, dataset.gallery[item.key])
        looks = [(path.as_posix(), whole), (path.as_posix(), bare), (image, whole), (image, bare)]
        looks += [(_without_suffix(path.as_posix()), ends) for ends in (whole, bare)]
        found[item.key] = _longest(looks)
    return found


def _without_suffix(text: str) -> str:
    folder, slash, last = text.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last)


def _ends(text: str) -> Iterator[str]:
    parts = text.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _longest(looks: Sequence[tuple[str, Mapping[str, list[str]]]]) -> list[str]:
    """Of (text, names by their ends): the names that share the longest end; the first pair that has one decides."""
    best: tuple[int, list[str]] = (0, [])
    for text, ends in looks:
        for end in _ends(text):
            names = ends.get(unicodedata.normalize("NFC", end))
            if names and end.count("/") + 1 > best[0]:
                same = [name for name in names if end in (*_ends(name), *_ends(_without_suffix(name)))]
                best = (end.count("/") + 1, same if len(same) == 1 else names)
                break
    return best[1]


def _arranged(given: Arrays, where: str, scored: str) -> tuple[Arrays, dict[str, np.ndarray]]:
    """Every array of Features, rows by descending score, descriptors of unit norm; and the norms that descriptors had.

    UserError naming the array and what is wrong with it; `where` is the file and image.
    """
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
    shapes = {
        "global_descriptor": (np.asarray(filled["global_descriptor"]).size,),
        "descriptors": (n, np.asarray(given["descriptors"]).shape[1]),
        "keypoints": (n, 2),
        **dict.fromkeys(("scales", "orientations", "scores"), (n,)),
        "image_size": (2,),
    }
    arrays: Arrays = {}
    for name, shape in shapes.items():
        array = np.asarray(filled[name])
        if array.dtype.kind not in "fiub" or array.shape != shape or 0 in shape[-1:] * (name == "global_descriptor"):
            raise UserError(f"{where}: {name} is {array.dtype} {array.shape}, expected numbers {shape}")
        with np.errstate(over="ignore"):
            arrays[name] = array.astype(np.float32)
        bad = np.argwhere(~np.isfinite(arrays[name]))
        if len(bad):
            raise UserError(
                f"{where}: values of {name} are not finite: {len(bad)}, the first at {tuple(bad[0].tolist())}"
            )
    if (arrays["image_size"] < 1).any() or (arrays["image_size"] > 2**30).any():
        raise UserError(f"{where}: image_size is {arrays['image_size'].tolist()}, expected width and height in pixels")
    best = np.argsort(-arrays["scores"].astype(np.float64), kind="stable")
    for name in ("descriptors", "keypoints", "scales", "orientations", "scores"):
        arrays[name] = arrays[name][best]
    lengths = {}
    for name in ("descriptors", "global_descriptor"):
        norm = np.linalg.norm(arrays[name].astype(np.float64), axis=-1, keepdims=True)
        # what has unit norm but for rounding stays as it is, bit for bit
        arrays[name] = (arrays[name] / np.where((norm == 0) | (np.abs(norm - 1) < EXACT), 1, norm)).astype(np.float32)
        if name in given:
            lengths[name] = norm[..., 0]
    return arrays, lengths
