"""Which image of a data set is meant by another program's name of it.

It is the one whose name there shares the longest end with the image's file or id, compared part by part of the path.
The last part may have another suffix, or none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.datasets import Dataset
from bench.errors import UserError
from bench.features.import_facts import some
from bench.features.items import items, query_key
from bench.names import shown
from third_party.foreign_features import Ames, Foreign, Matrices


def matched(dataset: Dataset, listed: Sequence[str], foreign: Foreign, source: Path) -> dict[str, str]:
    """The store's key of each image -> the other program's name of it."""
    if isinstance(foreign, Ames):
        return _in_order(dataset, listed, foreign, source)
    if isinstance(foreign, Matrices):
        return _in_order_of_files(dataset, listed, foreign, source)
    files = {query_key(dataset, i): query.image for i, query in enumerate(dataset.queries)}
    found: dict[str, str] = {}
    owners: dict[str, Path] = {}
    for key, fits in fitting(dataset, listed).items():
        path = files.get(key) or dataset.gallery[key]
        image = shown(key.removeprefix("query/").removesuffix("/") if key in files else key)
        if len(fits) != 1:
            what = f"more than one image ({some(fits)})" if fits else "no image"
            missing = "; if it is none of these, it is missing there" if fits else ""
            raise UserError(
                f"{shown(source)}: {what} fits '{image}'", hint=f"the image's file is {shown(path)}{missing}"
            )
        (name,) = fits
        if owners.setdefault(name, path) != path:
            raise UserError(
                f"{shown(source)}: '{shown(name)}' fits two images, {shown(owners[name])} and {shown(path)}",
                hint="expected names with as many folders as tell the two apart",
            )
        found[key] = name
    return found


def by_ends(dataset: Dataset, names: Mapping[str, str]) -> dict[str, str]:
    """Of `matched`, the names that an image's file and id do not end with, though they share an end: by file."""
    queries = {query_key(dataset, i): (query.id, query.image) for i, query in enumerate(dataset.queries)}
    found = {}
    for key, name in names.items():
        image, path = queries.get(key) or (key, dataset.gallery[key])
        texts = [unicodedata.normalize("NFC", text) for text in (path.as_posix(), image)]
        ends = {end for text in texts for way in (text, _without_suffix(text)) for end in _ends(way)}
        plain = unicodedata.normalize("NFC", name)
        if not ends.intersection((plain, _without_suffix(plain))):
            found[path.as_posix()] = name
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


def _in_order_of_files(dataset: Dataset, listed: Sequence[str], foreign: Matrices, source: Path) -> dict[str, str]:
    """Rows are the sorted files of the gallery, and then those of the queries, each file once.

    The images of a place-recognition set are in that order already, or in that of its own list, which counts then.
    """
    own = {query_key(dataset, i): query.image for i, query in enumerate(dataset.queries)}
    asked = list(dict.fromkeys(own.values()))
    gallery = list(dataset.gallery)
    if dataset.protocol != "vpr":
        asked.sort(key=Path.as_posix)
        gallery.sort(key=lambda image: dataset.gallery[image].as_posix())
    lacking = [key for key in own if key not in dataset.gallery]
    expected = [len(gallery), len(asked)] if lacking or len(foreign.counts) > 1 else [len(gallery)]
    if foreign.counts != expected:
        rows = " and ".join(
            f"{count} of the {part}" for part, count in zip(foreign.PARTS, foreign.counts, strict=False)
        )
        raise UserError(
            f"{shown(source)}: rows {rows}; {dataset.name} has {len(gallery)} images of the gallery and {len(asked)} "
            "of queries",
            hint="its queries' file is queries_descriptors.npy beside the database's, or given with --queries"
            if len(foreign.counts) < len(expected)
            else "one row an image is expected: were files added, removed or left out since the descriptors were made?",
        )
    rows_of = dict(zip([*gallery, *asked], listed, strict=False))
    queries = dict(zip(asked, listed[len(gallery) :], strict=False))
    found = {image: rows_of[image] for image in gallery}
    return found | {key: queries[own[key]] for key in lacking}


def fitting(dataset: Dataset, listed: Sequence[str]) -> dict[str, list[str]]:
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
