"""A user's own images: one folder per instance, a file that names instances, or queries with ground truth."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.datasets import GRADES
from bench.datasets.boxes import check_boxes
from bench.datasets.dataset import Dataset, Instances, Place, Query, dataset, grade
from bench.datasets.listed import GROUPS, INSTANCES, Finder, Listed, read_groups, read_instances
from bench.errors import UserError
from bench.files import read_text
from bench.images import HEIF, HEIF_PACKAGE, Box, suffixes
from bench.names import Names, encodable, shown
from bench.walk import Walk, walk

TRUTH = "gnd.json"
KEYS = ("gallery", "queries")
QUERY_KEYS = ("query", "box", *GRADES)
# what other programs and data sets call these, in lower case
SYNONYMS: Mapping[str, str] = {
    **dict.fromkeys(("imlist", "database", "index", "images"), "gallery"),
    **dict.fromkeys(("qimlist", "gnd", "query"), "queries"),
    **dict.fromkeys(("id", "image", "name", "qim"), "query"),
    **dict.fromkeys(("bbx", "bbox", "bounding_box", "roi", "crop"), "box"),
    **dict.fromkeys(("good", "positive", "positives", "pos", "relevant"), "easy"),
    "ok": "hard",
    **dict.fromkeys(("ignore", "ignored"), "junk"),
}
FORM = '{"gallery": ["a", "b"], "queries": [{"query": "q1", "box": [x1, y1, x2, y2], "easy": ["a"]}]}'
QUERY_FOLDERS, GALLERY_FOLDERS = frozenset({"queries", "query"}), frozenset({"gallery", "database", "index"})
# suffixes and names of files that lie beside images and are none: they are passed over without a word
BESIDE = frozenset(
    {".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log"}
    | {".html", ".htm", ".url", ".xmp", ".aae", ".py", ".ipynb", ".sh", ".m", ".db", ".sqlite", ".md5", ".sha256"}
    | {".pkl", ".npy", ".npz", ".h5", ".hdf5", ".mat", ".pt", ".pth", ".safetensors", ".parquet", ".run", ".qrels"}
)
TEXTS = frozenset({"readme", "license", "licence", "copying", "notice", "authors", "changelog", "makefile"})
LISTS = frozenset({".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json"})  # suffixes of files that name instances
NAMED = 5  # files at most in a note


@dataclass(frozen=True)
class Options:
    split: str = ""  # which images of instances.csv are read, where it has a column split of train and test


@dataset(
    "folder",
    summary="your images: one folder per instance, a list of instances, or gallery/, queries/ and gnd.json",
    licence="yours",
    needs="the folder",
    takes="PATH",
    options=Options,
)
def read(place: Place) -> Dataset:
    assert place.path is not None
    return load(place.path, place.name, place.options.split)


def load(path: Path, name: str | None = None, split: str = "") -> Dataset:
    """The data set in a folder, by its layout, or that of a file which describes it.

    With `gnd.json`: {"gallery": [ids], "queries": [{"query": id, "box": [x1, y1, x2, y2] or absent, "easy": [ids],
    "hard": [ids], "junk": [ids]}]}, scored as Revisited Oxford is. Otherwise instances are those of `instances.csv`, or
    JSON lines, with the columns image, instance and perhaps split, those of `groups.json`, or the subfolders. Every
    image queries all the others (leave one out), itself excluded by id, unless the splits are query and gallery.
    """
    file = path if path.is_file() and path.suffix.lower() in LISTS else None
    root = path.parent if file else path
    require_folder(root)
    name = name or f"folder:{path}"
    told = [root / each for each in (TRUTH, *INSTANCES, GROUPS) if (root / each).is_file()]
    if file is None and len(told) > 1:
        raise UserError(
            f"{path}: {' and '.join(each.name for each in told)} say what is right", hint=f"--dataset folder:{told[0]}"
        )
    file = file or next(iter(told), None)
    if split and (file is None or file.name == TRUTH or _has_groups(file)):
        raise UserError(f"{path}: no column split, so there is no split {split!r}", hint="leave the option out")
    if file is None:
        return _by_instance(path, name)
    return _with_ground_truth(root, name) if file.name == TRUTH else _as_listed(root, file, name, split, path == file)


def require_folder(path: Path, hint: str | None = None) -> None:
    """UserError for what is no folder, and for a path that is not UTF-8, as no record could hold it."""
    if not path.is_dir():
        raise UserError(f"{shown(path)}: no such folder", hint=hint)
    if not encodable(str(path)):
        raise UserError(f"{shown(path)}: the path is not UTF-8", hint="rename that folder")


@dataclass(frozen=True)
class Found:
    """The images below a folder, and what else is there that a user may have meant to be read."""

    images: Mapping[str, Path]  # by id: the path below the folder without its suffix; sorted
    skipped: tuple[Path, ...]  # files that are neither read nor known to be none
    walked: Walk

    def notes(self, folder: Path, where: str = "") -> tuple[str, ...]:
        """What was left out below `folder`, which a user knows as `where`."""
        counts = Counter(shown(path.suffix.lower()) or "without a suffix" for path in self.skipped)
        listed = ", ".join(f"{times} {suffix}" for suffix, times in sorted(counts.items()))
        paths = (
            ("Links that lead to nothing, left out", self.walked.broken),
            ("Linked folders left out, as they are read under another name", self.walked.again),
            ("Folders left out, as their names are those of copies", self.walked.copies),
        )
        return (
            *([f"Files that were not read{where}: {listed}."] if listed else []),
            *([f"HEIC files are read where the package {HEIF_PACKAGE} is installed."] if HEIF & counts.keys() else []),
            *(f"{what}{where}: {_some(p.relative_to(folder) for p in found)}." for what, found in paths if found),
        )


def look(folder: Path) -> Found:
    """What lies below a folder. UserError for two images of one id and for an image whose name is not UTF-8."""
    walked, known = walk(folder), suffixes()
    found: dict[str, Path] = {}
    skipped = []
    for file in walked.files:
        suffix = file.suffix.lower()
        if suffix not in known:
            if suffix not in BESIDE and (suffix or file.name.lower() not in TEXTS):
                skipped.append(file)
            continue
        image = file.relative_to(folder).with_suffix("").as_posix()
        if not encodable(image):
            raise UserError(f"{shown(file)}: the name is not UTF-8", hint="rename that file or folder, or remove it")
        if image in found:
            raise UserError(
                f"{file} and {found[image]} have the same id {image!r}", hint="rename or remove one of them"
            )
        found[image] = file
    return Found(found, tuple(skipped), walked)


def images(folder: Path) -> dict[str, Path]:
    """id (path below `folder` without its suffix) -> file, sorted; as `look`, which says what was left out."""
    return dict(look(folder).images)


def said_with(message: str, notes: Sequence[str]) -> str:
    """An error's message with what was left out, which may be its cause."""
    return ". ".join([message, *([" ".join(notes)] if notes else [])])


def _some(names: Iterable[object]) -> str:
    """The first few names."""
    listed = [shown(name) for name in names]
    return ", ".join(listed[:NAMED]) + (f" and {len(listed) - NAMED} more" if len(listed) > NAMED else "")


def _image_set(paths: Mapping[str, Path]) -> str:
    """Which files these are, by name and size; their contents are under the seal through the features."""
    listed = "\n".join(f"{image} {path.stat().st_size}" for image, path in sorted(paths.items()))
    return "files " + hashlib.sha256(listed.encode()).hexdigest()[:12]


def _has_groups(file: Path) -> bool:
    return file.suffix.lower() == Path(GROUPS).suffix


def _as_listed(root: Path, file: Path, name: str, split: str, named: bool) -> Dataset:
    """The data set that a file describes; `named` by the user, it may lie among files that it does not mean."""
    found = None if named and not _has_groups(file) else look(root)
    finder = Finder(root, lambda: look(root).images if found is None else found.images)
    listed = read_groups(file, finder, finder.look()) if _has_groups(file) else read_instances(file, finder, split)
    notes = list(listed.notes)
    if found is not None:
        notes += found.notes(root)
        others = [image for image in found.images if image not in listed.files]
        if others and not split:  # some of another split were counted
            notes.append(f"Images that {file.name} does not name, left out: {len(others)} ({_some(others)}).")
    gallery = {image: path for image, path in listed.files.items() if image not in (listed.queries or ())}
    queries, grades = _queries_and_grades(listed)
    if not queries:
        raise UserError(
            f"{file}: no instance has two images, so nothing can be found", hint="images of one instance share its name"
        )
    return Dataset(name, "instance", _image_set(listed.files), queries, gallery, grades, tuple(notes))


def _queries_and_grades(listed: Listed) -> tuple[tuple[Query, ...], Mapping[str, Mapping[str, str]]]:
    """Queries in the file's order, and what is right for them."""
    members = listed.members()
    if listed.queries is None:
        several = {image for group in members if len(group) > 1 for image in group}
        return tuple(Query(image, path) for image, path in listed.files.items() if image in several), Instances(members)
    grades: dict[str, Mapping[str, str]] = {}
    for group in members:
        right = dict.fromkeys((image for image in group if image not in listed.queries), "easy")
        grades |= {image: right for image in group if image in listed.queries}
    return tuple(Query(image, path) for image, path in listed.files.items() if image in listed.queries), grades


def _by_instance(path: Path, name: str) -> Dataset:
    found = look(path)
    gallery = found.images
    members: dict[str, list[str]] = {}
    for image in gallery:
        members.setdefault(image.rpartition("/")[0], []).append(image)
    _refuse_queries_and_gallery(path, members)
    if not gallery:
        raise UserError(
            said_with(f"{path}: no images found", found.notes(path)),
            hint="expected gallery/, queries/ and gnd.json, or one folder per "
            f"instance; known suffixes: {', '.join(sorted(suffixes()))}",
        )
    if "" in members:
        raise UserError(
            f"{path}: {members[''][0]!r} lies outside any instance folder",
            hint="one folder per instance, or add gnd.json beside gallery/ and queries/",
        )
    queries = tuple(Query(image, gallery[image]) for group in members.values() if len(group) > 1 for image in group)
    if not queries:
        raise UserError(
            said_with(f"{path}: no instance folder holds two images, so nothing can be found", found.notes(path))
        )
    return Dataset(
        name, "instance", _image_set(gallery), queries, gallery, Instances(members.values()), found.notes(path)
    )


def _refuse_queries_and_gallery(path: Path, instances: Iterable[str]) -> None:
    """Folders of queries and of a gallery are no instances: UserError that says what is missing, or where it is."""
    below: dict[Path, set[str]] = {Path(): {entry.name.lower() for entry in path.iterdir() if entry.is_dir()}}
    for instance in instances:
        for part in (Path(instance), *Path(instance).parents):
            below.setdefault(part.parent, set()).add(part.name.lower())
    for place, names in below.items():
        queries, gallery = sorted(names & QUERY_FOLDERS), sorted(names & GALLERY_FOLDERS)
        if not queries or not gallery:
            continue
        where = path / place
        if (where / TRUTH).is_file():
            raise UserError(f"{path}: gnd.json is in {where}", hint=f"--dataset folder:{where}")
        raise UserError(
            f"{where}: {gallery[0]}/ and {queries[0]}/ without gnd.json, which says what is right for each query",
            hint=f"write {where / TRUTH}, {FORM}; ids are file names without their suffix. "
            "Rename the folders if they are instances",
        )


def _with_ground_truth(path: Path, name: str) -> Dataset:
    file = path / TRUTH
    content = _read(file)
    _refuse_unknown(content, KEYS, "", file)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in KEYS):
        raise UserError(f"{file}: expected an object with the lists 'gallery' and 'queries'", hint=FORM)
    sides = {folder: _Side.of(path / folder) for folder in KEYS}
    gallery: dict[str, Path] = {}
    for image in content["gallery"]:
        known, found = sides["gallery"].find(image, file)
        if known in gallery:
            raise UserError(f"{file}: gallery id {image!r} appears more than once")
        gallery[known] = found
    names = Names(gallery)
    queries, grades = [], {}
    for entry in content["queries"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("query"), str):
            _refuse_unknown(entry, QUERY_KEYS, " in an entry of 'queries'", file)
            raise UserError(f"{file}: every entry of 'queries' needs the string 'query', found {entry!r:.80}")
        _refuse_unknown(entry, QUERY_KEYS, f" in query {entry['query']!r}", file)
        query, found = sides["queries"].find(entry["query"], file)
        queries.append(Query(query, found, _box(entry.get("box"), query, file)))
        grades[query] = grade(query, **{key: _meant(entry.get(key, []), names) for key in GRADES})
    notes = [
        *sides["gallery"].notes(gallery),
        *sides["queries"].notes({query.id for query in queries}),
        *check_boxes(queries, str(file)),
    ]
    return Dataset(
        name,
        "revisited",
        _image_set(
            {**{f"gallery/{k}": v for k, v in gallery.items()}, **{f"queries/{q.id}": q.image for q in queries}}
        ),
        tuple(queries),
        gallery,
        grades,
        tuple(notes),
    )


def _read(file: Path) -> Any:
    try:
        return json.loads(read_text(file), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; ValueError for a key given twice, of which Python would keep the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def _refuse_unknown(content: object, known: tuple[str, ...], where: str, file: Path) -> None:
    """UserError that names the keys of an object that would not be read."""
    others = [key for key in content if key not in known] if isinstance(content, dict) else []
    if not others:
        return
    meant = {key: near for key in others if (near := _nearest(key, known))}
    asked = " and ".join(f"{near!r} by {key!r}" for key, near in meant.items())
    raise UserError(
        f"{file}: unknown key{'s' * (len(others) > 1)} {', '.join(map(repr, others))}{where}",
        hint=(f"did you mean {asked}? " if asked else "") + f"known: {', '.join(known)}",
    )


def _nearest(key: str, known: tuple[str, ...]) -> str | None:
    """The known key that is probably meant: what others call so, or the most alike."""
    synonym = SYNONYMS.get(key.lower())
    near = difflib.get_close_matches(key.lower(), known, n=1)
    return synonym if synonym in known else near[0] if near else None


@dataclass(frozen=True)
class _Side:
    """`gallery/` or `queries/`."""

    folder: Path
    found: Found
    names: Names

    @staticmethod
    def of(folder: Path) -> _Side:
        found = look(folder) if folder.is_dir() else Found({}, (), Walk(()))
        return _Side(folder, found, Names(found.images))

    def find(self, image: object, truth: Path) -> tuple[str, Path]:
        """The id and the file of the image that the ground truth names."""
        known = self.names.find(image) if isinstance(image, str) else None
        if known is None:
            raise UserError(
                f"{truth} names {image!r}, but {self.folder} holds no image of that name", hint=self._hint(image)
            )
        return known, self.found.images[known]

    def _hint(self, image: object) -> str:
        form = "ids are file names without their suffix"
        if not isinstance(image, str):
            return form
        bare = image.rpartition(".")[0]
        if bare in self.found.images:
            return f"{form}: {bare!r}"
        others = [
            path for path in self.found.skipped if path.relative_to(self.folder).with_suffix("").as_posix() == image
        ]
        if others and others[0].suffix.lower() in HEIF:
            return (
                f"{shown(others[0].name)} is there; HEIC files are read where the package {HEIF_PACKAGE} is installed"
            )
        return f"{shown(others[0].name)} is there, but such files are not read" if others else form

    def notes(self, used: Iterable[str]) -> tuple[str, ...]:
        where, used = f" below {self.folder.name}/", frozenset(used)
        others = [image for image in self.found.images if image not in used]
        unnamed = [f"Images{where} that gnd.json does not name, left out: {len(others)} ({_some(others)})."]
        return (*self.found.notes(self.folder, where), *(unnamed if others else []))


def _meant(value: object, names: Names) -> object:
    """A list of ids as the gallery knows them; anything else as it is, to be refused where grades are read."""
    if not isinstance(value, list):
        return value
    return [(names.find(image) or image) if isinstance(image, str) else image for image in value]


def _box(value: object, query: str, file: Path) -> Box | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise UserError(f"{file}: box of query {query!r} is {value!r:.80}, expected [x1, y1, x2, y2] in pixels")
    x1, y1, x2, y2 = (float(v) for v in value)
    return (x1, y1, x2, y2)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False
