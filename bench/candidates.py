"""Other people's first stage: candidate lists from a file, sealed as our own are.

Lists of names: a TREC run or hloc's pairs, plain or gzip'd; an `.npz` with `queries` (nq,) and `candidates` (nq, k).
Lists of gallery indices, best first, in the order of the data set's queries: an `.npy`, `.npz`, `.safetensors` or torch
file with `candidates` (nq, k), or a pickle `nn_inds_*.pkl`. Arrays may have `similarities`, `scores` or `distances`
(nq, k) beside them. What a file is, its first bytes say, and its suffix only where they do not.
A folder has a text file for each query, as VPR-methods-evaluation writes them (`bench.predictions`).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from unicodedata import normalize

import numpy as np

from bench.datasets import Dataset
from bench.errors import UserError
from bench.files import file_hash, read_npz
from bench.metrics import ranks_in
from bench.names import Names, shown
from bench.predictions import content_of, read_folder
from bench.search import Found
from bench.shortlist import Order, Policy, Shortlist, depth_of, graded_images, own_images, seal
from bench.trec import GZIP, encoded, read_rows
from third_party import torch_file
from third_party.allowed_pickle import read_index_lists

LARGEST = 4 * 2**30  # bytes of all arrays together
Meaning = Literal["similarities", "distances", "ranks"]
NUMBERS: Mapping[str, Meaning] = {
    "similarities": "similarities",
    "scores": "similarities",
    "distances": "distances",
}  # arrays that may stand beside the candidates, and what they mean
READ = "a TREC run, pairs, an npz, npy, safetensors or torch file, or a pickle of an index array"
AS_NAMES = "np.savez('lists.npz', queries=names, candidates=names_of_candidates), of shapes (nq,) and (nq, k), is read"
WHICH = (
    "--shortlist-order says which is meant: distances (lower is better), similarities (higher is better) or ranks "
    "(the numbers are not read)"
)


@dataclass(frozen=True, eq=False)
class Listed:
    """The list of one query as its file has it.

    `images` (n,) are names or gallery indices, `ranks` (n,) say their order, lower first, `numbers` (n,) are what the
    file tells of each, `at` where each stands in the file, for messages.
    """

    images: Sequence[str] | np.ndarray
    ranks: np.ndarray
    numbers: np.ndarray | None
    at: Callable[[int], str]

    def conflict(self, meaning: Meaning) -> tuple[int, int] | None:
        """Two entries of which the one ranked before has the worse number, or None."""
        if self.numbers is None or not len(self.ranks):
            return None
        worth = _worth(self.numbers, meaning)
        # ranks that are all the same say nothing: the order of the file is then the order
        ranks = self.ranks if (self.ranks != self.ranks[0]).any() else np.arange(len(self.ranks))
        by = np.lexsort((-worth, ranks))
        rises = np.diff(worth[by]) > 0
        return (int(by[rises.argmax()]), int(by[rises.argmax() + 1])) if rises.any() else None


def _worth(numbers: np.ndarray, meaning: Meaning) -> np.ndarray:
    return 0.0 - numbers if meaning == "distances" else numbers


@dataclass(frozen=True, eq=False)
class Lists:
    """What a file holds. `queries` are names, or None where the lists are in the order of the data set's queries.

    `what` names the file's numbers and `meaning` what that name says of them. Names that are `paths_elsewhere` begin
    with folders of the machine that wrote them.
    """

    queries: Sequence[str] | None
    lists: Sequence[Listed]
    what: str = "scores"
    meaning: Meaning = "similarities"
    notes: tuple[str, ...] = ()
    paths_elsewhere: bool = False


@dataclass(frozen=True, eq=False)
class Imported:
    """A sealed shortlist and what its reader should know of how the file was read."""

    shortlist: Shortlist
    notes: tuple[str, ...]


def common_folder(paths: Iterable[Path]) -> Path:
    """The folder that holds all of these files, directly or below.

    >>> common_folder([Path("/a/queries/0.jpg"), Path("/a/gallery/0.jpg")]).as_posix()
    '/a'
    """
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


class Images:
    """Images that a file may name by id, by an id in another Unicode form, or by the path of their file.

    A path may be whole, or its last parts as long as they fit one image. One from `elsewhere` ends with the whole path
    below the folder that all images have in common.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        index: Callable[[str], int],
        beside: Iterable[Path],
        elsewhere: bool = False,
    ):
        self.files, self.index, self._beside, self._elsewhere = files, index, beside, elsewhere

    @cached_property
    def _names(self) -> Names:
        return Names(self.files)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for image, path in self.files.items():
            found.setdefault(normalize("NFC", path.name), []).append(image)
        return found

    @cached_property
    def _root(self) -> tuple[str, ...]:
        return _parts(str(common_folder([*self.files.values(), *self._beside])))

    def find(self, name: str) -> int:
        """The image's index. KeyError where none, or more than one, has the name; its text says which."""
        if self._elsewhere and (ends := self._by_end(name)) is not None:
            return self.index(ends)
        for spell in (str, encoded):  # encoded: a file may mean its %XX as they stand
            try:
                return self.index(spell(name))
            except (KeyError, UnicodeEncodeError):
                pass
        known = self._names.find(name) if not name.isascii() else None
        return self.index(known if known is not None else self._by_path(name))

    @cached_property
    def _below(self) -> tuple[dict[str, str], list[int]]:
        """Images by their path below the common folder, and of how many parts such paths are, most first."""
        root = common_folder([*self.files.values(), *self._beside])
        found = {path.absolute().relative_to(root).as_posix(): image for image, path in self.files.items()}
        return found, sorted({path.count("/") + 1 for path in found}, reverse=True)

    def _by_end(self, name: str) -> str | None:
        """The image whose whole path below the common folder the name ends with: the longest such path."""
        known, depths = self._below
        parts = name.split("/")
        ends = ("/".join(parts[-depth:]) for depth in depths if depth <= len(parts))
        return next((known[end] for end in ends if end in known), None)

    def _by_path(self, name: str) -> str:
        parts = _parts(name)
        near = self._by_name.get(parts[-1], ()) if parts else ()
        paths = {image: _parts(str(self.files[image].absolute())) for image in near}
        whole = [image for image, path in paths.items() if path == self._root + parts]
        fitting = whole or [image for image, path in paths.items() if path[-len(parts) :] == parts]
        if len(fitting) != 1:
            raise KeyError("several images" if fitting else "no image")
        return fitting[0]


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(normalize("NFC", path)).parts


def _text(path: Path) -> Lists:
    found = read_rows(path)
    scored = next(iter(found.values()))[0].score is not None
    lists = []
    for rows in found.values():
        numbers = np.array([row.score for row in rows], np.float64) if scored else None
        at = partial(_line, [(row.rank, row.line) for row in rows])
        lists.append(Listed([row.image for row in rows], np.array([row.rank for row in rows]), numbers, at))
    notes = () if scored else (f"the pairs of {shown(path)} have no scores: a query's candidates rank as they stand",)
    return Lists(tuple(found), lists, "scores", notes=notes)


def _predictions(path: Path) -> Lists:
    found = read_folder(path)
    lists = [
        Listed(each.images, np.arange(len(each.images)), None, partial(_line_of_file, each.file.name, each.lines))
        for each in found
    ]
    return Lists(tuple(each.query for each in found), lists, paths_elsewhere=True)


def _line_of_file(file: str, lines: Sequence[int], entry: int) -> str:
    return f"at place {entry + 1} ({shown(file)}, line {lines[entry]})"


def _line(rows: Sequence[tuple[int, int]], entry: int) -> str:
    rank, line = rows[entry]
    return f"at rank {rank} (line {line})"


def _place(entry: int) -> str:
    return f"at place {entry + 1}"


def _npz(path: Path) -> Lists:
    try:
        return _arrays(path, read_npz(path, LARGEST))
    except (OSError, ValueError) as error:
        hint = AS_NAMES if "object" in str(error) else None
        raise UserError(f"{path}: not a readable npz with queries and candidates ({error})", hint=hint) from error


def _zip(path: Path) -> Lists:
    """An npz, or what torch writes: both are zips."""
    try:
        with zipfile.ZipFile(path) as archive:
            torch = any(PurePosixPath(name).name == "data.pkl" for name in archive.namelist())
    except Exception:  # the reader says what is wrong with a damaged one
        torch = False
    return _torch(path) if torch else _npz(path)


def _npy(path: Path) -> Lists:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: no more memory than the file has bytes
        return _arrays(path, {"candidates": np.array(array)})
    except UserError:
        raise
    except Exception as error:  # numpy's header parser raises many kinds
        raise UserError(f"{path}: not a readable npy array ({error})", hint=AS_NAMES) from error


def _pickle(path: Path) -> Lists:
    return _arrays(path, {"candidates": read_index_lists(path)})


def _safetensors(path: Path) -> Lists:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # the library's own error, and numpy's for kinds of numbers it lacks
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    return _arrays(path, arrays)


def _torch(path: Path) -> Lists:
    """Tensors alone are loaded, by torch's own reader of weights."""
    import torch

    try:
        content: Any = torch_file.load(path)
    except UserError:
        raise
    except Exception as error:  # RuntimeError, EOFError, KeyError, UnpicklingError, …
        raise UserError(
            f"{path}: not a torch file of tensors alone ({type(error).__name__})",
            hint="in the environment that wrote it: np.save('lists.npy', indices.long().numpy())",
        ) from error
    if isinstance(content, tuple | list):  # similarities and indices, as topk gives them
        content = {("similarities" if _fractions(t) else "candidates"): t for t in content} if len(content) == 2 else {}
    named = content if isinstance(content, Mapping) else {"candidates": content}
    if not named or not all(isinstance(t, torch.Tensor) and t.layout == torch.strided for t in named.values()):
        kinds = ", ".join(sorted({type(t).__name__ for t in named.values()})) or type(content).__name__
        raise UserError(f"{path}: holds {kinds}, expected tensors candidates (nq, k) and similarities (nq, k)")
    if any(t.numel() * t.element_size() > path.stat().st_size for t in named.values()):
        raise UserError(f"{path}: a tensor is larger than the file")
    try:
        arrays = {str(name): (t.double() if _fractions(t) else t).detach().numpy() for name, t in named.items()}
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path}: holds tensors that are no arrays of numbers ({error})") from error
    return _arrays(path, arrays)


def _fractions(tensor: Any) -> bool:
    return bool(getattr(tensor, "is_floating_point", bool)())


def _names_in(array: np.ndarray) -> np.ndarray:
    """Names as text; bytes are UTF-8."""
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> Lists:
    """Lists from named arrays; a single array of whole numbers may have any name."""
    if len(arrays) == 1 and next(iter(arrays.values())).dtype.kind in "iu":
        arrays = {"candidates": next(iter(arrays.values()))}
    if "candidates" not in arrays:
        found = ", ".join(arrays) or "none"
        raise UserError(f"{path}: arrays {found}; expected candidates (nq, k) and names queries (nq,)", hint=AS_NAMES)
    try:
        candidates = _names_in(arrays["candidates"])
        queries = _names_in(arrays["queries"]) if "queries" in arrays else None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: names are not UTF-8 ({error})", hint=AS_NAMES) from error
    if candidates.dtype.kind not in "Uiu" or candidates.ndim != 2:
        raise UserError(
            f"{path}: candidates {candidates.dtype} {candidates.shape}, expected names queries (nq,) and candidates "
            "(nq, k), or gallery indices (nq, k)",
            hint=AS_NAMES,
        )
    if queries is None and candidates.dtype.kind == "U":
        raise UserError(f"{path}: names candidates without names queries (nq,) of whom they are", hint=AS_NAMES)
    if queries is not None and (queries.dtype.kind != "U" or queries.shape != candidates.shape[:1]):
        raise UserError(
            f"{path}: queries {queries.dtype} {queries.shape}, expected names queries (nq,) and candidates (nq, k); "
            f"candidates have the shape {candidates.shape}"
        )
    if candidates.dtype.kind in "iu" and candidates.size and candidates.max() > np.iinfo(np.int64).max:
        raise UserError(f"{path}: candidates hold the index {candidates.max()}, which no gallery has")
    what = next((name for name in NUMBERS if name in arrays), None)
    numbers = None if what is None else _numbers(path, what, arrays[what], candidates.shape)
    indices = candidates.dtype.kind in "iu"
    images: Sequence[Any] = list(candidates.astype(np.int64)) if indices else candidates.tolist()
    ranks = np.arange(candidates.shape[1])
    lists = [Listed(row, ranks, None if numbers is None else numbers[i], _place) for i, row in enumerate(images)]
    notes = []
    if indices:
        notes.append(f"{shown(path)} holds indices: the data set's order says which images they are")
    if left := [name for name in arrays if name not in ("queries", "candidates", what)]:
        notes.append(f"arrays of {shown(path)} that are not read: {', '.join(left)}")
    names = None if queries is None else queries.tolist()
    return Lists(names, lists, what or "scores", "similarities" if what is None else NUMBERS[what], tuple(notes))


def _numbers(path: Path, name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name} {array.dtype} {array.shape}, expected numbers {shape}")
    return array.astype(np.float64)


@dataclass(frozen=True)
class Form:
    """A kind of file: the bytes it begins with, the suffixes it has, and what reads it."""

    begins: tuple[bytes, ...]
    suffixes: tuple[str, ...]
    read: Callable[[Path], Lists]


def _refused(what: str, path: Path) -> Lists:
    raise UserError(f"{path}: {what}, which is not read as candidate lists", hint=f"read are {READ}")


FORMS = (
    Form((torch_file.ZIP, b"PK\x05\x06"), (), _zip),
    Form((b"\x93NUMPY",), (".npy",), _npy),
    Form((torch_file.LEGACY,), (".pt", ".pth", ".ckpt"), _torch),
    Form((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), (".pkl", ".pickle"), _pickle),
    Form((GZIP,), (), _text),
    Form((), (".npz",), _npz),
    Form((), (".safetensors",), _safetensors),
    Form((b"\x89HDF",), (), partial(_refused, "an HDF5 file")),
    Form((b"PAR1\x15",), (), partial(_refused, "a Parquet table")),
    Form((b"SQLite format 3",), (), partial(_refused, "an SQLite database")),
    Form((b"MATLAB 5.0",), (), partial(_refused, "a MATLAB file")),
    Form(tuple(b"BZh%d1AY&SY" % level for level in range(1, 10)), (), partial(_refused, "a file packed by bzip2")),
    Form((b"\xfd7zXZ",), (), partial(_refused, "a file packed by xz")),
    Form((b"\x28\xb5\x2f\xfd",), (), partial(_refused, "a file packed by zstd")),
)


def read_lists(path: Path) -> Lists:
    """The lists of a folder of predictions, or of a file of any kind that FORMS knows, else of text.

    UserError for what is none.
    """
    if path.is_dir():
        return _predictions(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not path.is_file():
        raise UserError(f"{path}: not a regular file, and it is read more than once", hint="write it to a file first")
    if not head:
        raise UserError(f"{path}: the file is empty", hint=f"read are {READ}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _safetensors(path)
    fitting = [form.read for form in FORMS if head.startswith(form.begins)]
    fitting += [form.read for form in FORMS if path.suffix.lower() in form.suffixes]
    return (*fitting, _text)[0](path)


def imported_shortlist(
    path: Path, dataset: Dataset, policy: Policy, k: int, meaning: Meaning | None = None
) -> Imported:
    """The file's lists, sealed. Graded images that the file does not list are not retrieved: they add nothing.

    `meaning` says what orders them: the numbers as similarities (higher first) or distances (lower first; the negative
    distances are sealed), or the ranks alone. Without it, numbers and ranks must agree.

    UserError for unknown or repeated images, a query without a list, numbers that disagree with the ranks, or lists
    that are not deep enough for k (and, under the policy `paper`, for the ignored images that are moved behind).
    """
    read = read_lists(path)
    order = Order.of(dataset.gallery)
    lists, notes = _of_queries(path, dataset, read)
    wheres = [f"{path}: the list of query {query.id!r}" for query in dataset.queries]
    numbers = [_values(w, read.what, listed, meaning or read.meaning) for w, listed in zip(wheres, lists, strict=True)]
    notes += _agreement(path, dataset, read, lists, meaning)
    gallery = Images(
        dataset.gallery, order.index, [query.image for query in dataset.queries], elsewhere=read.paths_elsewhere
    )
    own, graded = own_images(dataset, order), graded_images(dataset, order)
    kept = []
    for where, listed, values, itself in zip(wheres, lists, numbers, own, strict=True):
        by = _order(where, listed, meaning or read.meaning)
        images = _indices(where, dataset, gallery, listed)[by]
        unique, times = np.unique(images, return_counts=True)
        if len(unique) != len(images):
            raise UserError(f"{where} repeats the image {order.id_at(int(unique[times.argmax()]))!r}")
        others = images != itself
        kept.append((images[others], None if values is None else values[by][others]))
    possible = len(dataset.gallery) - int((own >= 0).any())
    wanted = min(depth_of(dataset, policy, k), possible)
    _deep_enough(path, dataset, [len(images) for images, _ in kept], wanted, k)
    falling = np.linspace(1, 0, wanted, dtype=np.float32)  # where the file tells no similarities
    found = Found(
        np.stack([images[:wanted] for images, _ in kept]),
        np.stack([falling if values is None else values[:wanted] for _, values in kept]),
        tuple(ranks_in(images, asked) for (images, _), asked in zip(kept, graded, strict=True)),
    )
    name = f"imported:{shown(path.name)}" + (f",{meaning}" if meaning else "")
    content = content_of(path) if path.is_dir() else file_hash(path)
    made = seal(dataset, order, found, graded, name=name, content=content, policy=policy, k=k)
    return Imported(made, (*read.notes, *notes))


def _of_queries(path: Path, dataset: Dataset, read: Lists) -> tuple[list[Listed], list[str]]:
    """The list of each of the data set's queries, in their order, and what was left over."""
    ids = [query.id for query in dataset.queries]
    if read.queries is None:
        if len(read.lists) != len(ids):
            images = {len(listed.images) for listed in read.lists}
            hint = "the lists may be its columns: save the transposed array" if images == {len(ids)} else AS_NAMES
            raise UserError(f"{path}: {len(read.lists)} lists, the data set has {len(ids)} queries", hint=hint)
        return list(read.lists), []
    files = {query.id: query.image for query in dataset.queries}
    numbers = {query: i for i, query in enumerate(ids)}
    known = Images(files, numbers.__getitem__, dataset.gallery.values(), elsewhere=read.paths_elsewhere)
    found: dict[int, tuple[str, Listed]] = {}
    unknown = []
    for name, listed in zip(read.queries, read.lists, strict=True):
        try:
            number = known.find(name)
        except KeyError:
            unknown.append(name)
            continue
        if number in found:
            raise UserError(f"{path}: {found[number][0]!r} and {name!r} are lists of one query, {ids[number]!r}")
        found[number] = (name, listed)
    if missing := [query for number, query in enumerate(ids) if number not in found]:
        more = f", nor of {len(missing) - 1} others of the {len(ids)} queries" if len(missing) > 1 else ""
        raise UserError(
            f"{path}: no list of query {missing[0]!r}{more}", hint=f"it has lists of {_first(read.queries)}"
        )
    notes = []
    if unknown:
        notes.append(f"{shown(path)} has lists of {len(unknown)} queries that {dataset.name} lacks: {_first(unknown)}")
    return [found[number][1] for number in range(len(ids))], notes


def _first(names: Sequence[str]) -> str:
    return ", ".join(f"{shown(name)!r:.80}" for name in names[:3]) + (", …" if len(names) > 3 else "")


def _agreement(
    path: Path, dataset: Dataset, read: Lists, lists: Sequence[Listed], meaning: Meaning | None
) -> list[str]:
    """What is to be said of ranks and numbers that disagree: UserError unless it was said which is meant."""
    told = any(listed.numbers is not None for listed in lists)
    if not told and meaning in ("similarities", "distances"):
        raise UserError(f"{path}: no numbers beside the candidates, so --shortlist-order {meaning} has none to read")
    numbers = read.meaning if meaning in (None, "ranks") else meaning
    conflicts = {n: c for n, listed in enumerate(lists) if (c := listed.conflict(numbers)) is not None}
    if not conflicts:
        return []
    count = f"{len(conflicts)} of {len(lists)} queries"
    if meaning is not None:
        return [f"ranks and {read.what} of {shown(path)} disagree for {count}: ordered by {meaning}"]
    number, (before, after) = next(iter(conflicts.items()))
    listed = lists[number]
    assert listed.numbers is not None
    other: Meaning = "similarities" if numbers == "distances" else "distances"
    turned = all(listed.conflict(other) is None for listed in lists)
    raise UserError(
        f"{path}: order and {read.what} disagree for {count}; {dataset.queries[number].id!r} has "
        f"{listed.numbers[before]:g} {listed.at(before)}, {listed.numbers[after]:g} {listed.at(after)}",
        hint=WHICH + (f"; all lists are ordered as {other} are" if turned else ""),
    )


def _indices(where: str, dataset: Dataset, gallery: Images, listed: Listed) -> np.ndarray:
    """(n,) gallery indices of the list's images, as the file orders them."""
    count = len(dataset.gallery)
    if isinstance(listed.images, np.ndarray):
        wrong = (listed.images < 0) | (listed.images >= count)
        if wrong.any():
            at = int(wrong.argmax())
            hint = "FAISS writes -1 where it found no more" if listed.images[at] == -1 else AS_NAMES
            raise UserError(
                f"{where} has the index {listed.images[at]} {listed.at(at)}, the gallery has {count} images: "
                f"0 to {count - 1}",
                hint=hint,
            )
        return listed.images
    found, unknown = [], []
    for name in listed.images:
        try:
            found.append(gallery.find(name))
        except KeyError as error:
            unknown.append((name, error.args[0]))
    if unknown:
        name, why = unknown[0]
        ids = _first([*(image for image, _ in zip(dataset.gallery, range(4), strict=False))])
        raise UserError(
            f"{where} names {shown(name)!r}, which fits several images of the gallery"
            if why == "several images"
            else f"{where} names {shown(name)!r}, which is not in the gallery; "
            f"{len(unknown)} of its {len(listed.images)} images are not",
            hint=f"the gallery of {dataset.name} has {ids}; files are named by their path or its last parts",
        )
    return np.array(found, np.int64)


def _order(where: str, listed: Listed, meaning: Meaning) -> np.ndarray:
    """(n,) places of the file's entries, best first."""
    if meaning != "ranks":
        if listed.numbers is None:
            return np.argsort(listed.ranks, kind="stable")
        return np.lexsort((listed.ranks, -_worth(listed.numbers, meaning)))
    by = np.argsort(listed.ranks, kind="stable")
    same = np.diff(listed.ranks[by]) == 0
    if same.any():
        first, second = (int(by[same.argmax() + step]) for step in (0, 1))
        raise UserError(f"{where} has one rank twice, {listed.at(first)} and {listed.at(second)}")
    return by


def _values(where: str, what: str, listed: Listed, meaning: Meaning) -> np.ndarray | None:
    """(n,) first-stage similarities in single precision, or None where the file tells none or they are not read."""
    if listed.numbers is None or meaning == "ranks":
        return None
    with np.errstate(over="ignore"):  # said below
        values = _worth(listed.numbers, meaning).astype(np.float32)
    wrong = ~np.isfinite(values)
    if wrong.any():
        at = int(wrong.argmax())
        number = listed.numbers[at]
        raise UserError(
            f"{where} has {number:g} {listed.at(at)} of its {what}, expected finite numbers"
            + (" of single precision" if np.isfinite(number) else ""),
            hint="mend the file, or let --shortlist-order ranks read the order of the candidates alone",
        )
    return values


def _deep_enough(path: Path, dataset: Dataset, lengths: Sequence[int], wanted: int, k: int) -> None:
    shortest = min(lengths)
    if shortest >= wanted:
        return
    query, largest = dataset.queries[lengths.index(shortest)].id, shortest - (wanted - k)
    hint = f"use --top-k {largest} or less, or a deeper list" if largest > 0 else "a deeper list is needed"
    raise UserError(
        f"{path}: its shortest list has {shortest} images, {wanted} are needed for top-{k}: "
        f"that of query {query!r}, itself left out",
        hint=hint,
    )
