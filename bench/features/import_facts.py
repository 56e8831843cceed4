"""What is counted while other programs' features are read, and the sentences that a user and every table are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.datasets import Dataset, Query
from bench.features.imported import Source
from bench.names import shown
from third_party.foreign_features import Arrays, Contents, fields

BEYOND = 2  # pixels that an image of a crop may be larger than the query's box: rounding
UNIT = 2e-2  # a descriptor whose norm is this near to 1 is one that was stored in few bits, not another length
ORDER: Mapping[str, str] = {
    "none": "the files hold no scores: the order of local descriptors says nothing of their quality",
    "order": "the files hold no scores: the order of local descriptors is taken as that of quality (--ordered)",
    "scale": "COLMAP stores no scores: larger keypoints are taken as better, as COLMAP's own limit does",
}


@dataclass
class Facts:
    """What is counted while images are read: images, and rows where a fact is one of rows."""

    images: Counter[str]
    rows: Counter[str]
    whole: list[str]  # queries with a box whose features are not of the crop
    unknown: list[str]  # queries with a box whose files do not tell

    def add(self, given: Arrays, arrays: Arrays, lengths: Mapping[str, np.ndarray]) -> None:
        for name, norm in lengths.items():
            self._count(f"zero {name}", int((norm == 0).sum()))
            self._count(f"long {name}", int(((np.abs(norm - 1) > UNIT) & (norm != 0)).sum()))
        if "keypoints" not in arrays:
            return
        points, scores = arrays["keypoints"], arrays["scores"]
        self._count("empty", int(len(points) == 0))
        self._count("one place", int(len(points) > 1 and (points == points[0]).all()))
        self._count("parts", int(len(points) > 1 and points.min() >= 0 and points.max() <= 1))
        if "image_size" in given and len(points):
            most, size = points.max(axis=0), np.asarray(arrays["image_size"]) + BEYOND
            beyond = bool((most > size).any())
            self._count("swapped", int(beyond and not (most[::-1] > size).any()))
            self._count("beyond", int(beyond))
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
        extent = np.asarray(given.get("keypoints", np.zeros((0, 2))), np.float64).max(axis=0, initial=0)
        if shared or (extent > side + BEYOND).any() or (size is not None and (size > side + BEYOND).any()):
            self.whole.append(query.id)
        elif size is None or (size < side - BEYOND).any():
            self.unknown.append(query.id)

    def caveats(self, total: int) -> Iterator[str]:
        """Sentences about the features, for every table made of them."""

        def of_all(name: str) -> str:
            return f"{self.images[name]} of {total} images"

        what = {"descriptors": "local descriptors", "global_descriptor": "global descriptors"}
        for name, words in what.items():
            if self.rows[f"zero {name}"]:
                yield f"{of_all(f'zero {name}')} have {words} that are all zero: {self.rows[f'zero {name}']} in all"
            if self.rows[f"long {name}"]:
                yield f"{of_all(f'long {name}')} had {words} that were not of unit length: they were normalised"
        sentences = {
            "empty": "have no local descriptors",
            "one place": "have all keypoints in one place",
            "one score": "have equal scores: the order of their local descriptors is that in the file",
            "parts": "have all keypoints within 0..1: they may be parts of the sides, not pixels",
        }
        yield from (f"{of_all(name)} {sentence}" for name, sentence in sentences.items() if self.images[name])
        if beyond := self.images["beyond"]:
            swapped = ": x and y, or width and height, may be swapped" if self.images["swapped"] == beyond else ""
            yield f"{of_all('beyond')} have keypoints beyond their width or height{swapped}"

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
                f"({some(self.whole)}): they were not extracted from the crop, as the protocol asks"
            )
        if self.unknown:
            yield (
                f"{kind} files do not tell whether {len(self.unknown)} of {queries} queries were cropped to their box "
                f"({some(self.unknown)}), as the protocol asks"
            )


def some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:5])) + (", …" if len(names) > 5 else "")


def caveats_of(source: Source, dataset: Dataset, scored: str, facts: Facts, total: int) -> Iterator[str]:
    yield from source.kind.always
    if scored in ORDER:
        yield ORDER[scored]
    yield from facts.caveats(total)
    yield from facts.uncropped(source.kind.name, len(dataset.queries))


def notes_of(
    source: Source,
    dataset: Dataset,
    contents: Contents,
    listed: Sequence[str],
    names: Mapping[str, str],
    whole: object,
    ends: Mapping[str, str],
) -> Iterator[str]:
    """What was read under another name, what was not read, and what is missing; `ends` as of `by_ends`."""
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
    if ends:
        path, name = next(iter(ends.items()))
        yield (
            f"{place}: names of {len(ends)} images share an end alone with the images' files, as {shown(name)} with "
            f"{shown(path)}: are they of these images?"
        )
    others = sorted(set(listed) - set(names.values()))
    if others:
        yield (
            f"{len(others)} of {len(listed)} images in {place} are not in {dataset.name}: "
            f"they are not imported ({some(others)})"
        )
    if not whole:
        again = ", or import again with --globals" if "globals" in source.kind.takes else ""
        yield f"{place} holds no global descriptors: `run` needs --shortlist{again}"
