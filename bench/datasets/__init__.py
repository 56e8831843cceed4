"""A data set: query images with boxes, gallery images, and which gallery image is what to which query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.files import file_hash
from bench.images import Box

# difficulty -> (grades that count as positive, grades dropped before scoring); revisitop evaluate.py
REVISITED: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "Easy": (frozenset({"easy"}), frozenset({"junk", "hard"})),
    "Medium": (frozenset({"easy", "hard"}), frozenset({"junk"})),
    "Hard": (frozenset({"hard"}), frozenset({"junk", "easy"})),
}
INSTANCE: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "All": (frozenset({"easy", "hard"}), frozenset({"junk"})),
}
GRADES = ("easy", "hard", "junk")
PROTOCOLS = {"revisited": REVISITED} | dict.fromkeys(
    ("instance", "sop", "gldv2", "vpr", "gpr1200", "ilias", "met"), INSTANCE
)


@dataclass(frozen=True)
class Query:
    """One query image. `box` is x1, y1, x2, y2 in pixels of the image, or None for the whole image."""

    id: str
    image: Path
    box: Box | None = None

    def __post_init__(self) -> None:
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise UserError(
                f"query {self.id!r}: box {self.box} is empty",
                hint="boxes are x1, y1, x2, y2 in pixels, not x, y, width, height",
            )


class Instances(Mapping[str, Mapping[str, str]]):
    """Grades where every other image of an instance is easy: the members are kept, and grades made when asked for.

    ValueError for an image in two instances.

    >>> Instances([["a/1", "a/2"], ["b/1"]])["a/1"]
    {'a/2': 'easy'}
    """

    def __init__(self, members: Iterable[Iterable[str]]):
        self.members = tuple(tuple(group) for group in members)
        self._instance = {image: number for number, group in enumerate(self.members) for image in group}
        if len(self._instance) != sum(map(len, self.members)):
            raise ValueError("an image is in two instances, or twice in one")

    def __getitem__(self, image: str) -> dict[str, str]:
        grades = dict.fromkeys(self.members[self._instance[image]], "easy")
        del grades[image]
        return grades

    def __iter__(self) -> Iterator[str]:
        return iter(self._instance)

    def __len__(self) -> int:
        return len(self._instance)


@dataclass(frozen=True)
class Dataset:
    """Queries, gallery and ground truth, checked: unique ids, grades that are such and name gallery images.

    `grades[query id][gallery id]` is one of `GRADES`; an image without a grade is a negative.
    """

    name: str
    protocol: str  # a key of PROTOCOLS
    image_set: str  # which version of the images, e.g. "face-blurred 2022" or a content hash
    queries: tuple[Query, ...]
    gallery: Mapping[str, Path]
    grades: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...] = ()  # what was left out or changed when it was read; said under every table

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol {self.protocol!r} is none of {sorted(PROTOCOLS)}")
        if not self.queries or not self.gallery:
            raise UserError(
                f"{self.name}: {len(self.queries)} queries and {len(self.gallery)} gallery images",
                hint="a data set needs at least one of each",
            )
        (image, times), *_ = Counter(query.id for query in self.queries).most_common(1)
        if times > 1:
            raise UserError(f"{self.name}: query id {image!r} appears more than once")
        if not isinstance(self.grades, Instances):
            for query, grades in self.grades.items():
                if wrong := next((image for image, value in grades.items() if value not in GRADES), None):
                    raise UserError(
                        f"{self.name}: ground truth of query {query!r} grades {wrong!r} as {grades[wrong]!r}",
                        hint=f"grades are {', '.join(GRADES)}; an image without one is a negative",
                    )
        for query, images in self._named():
            for image in images:
                if image not in self.gallery:
                    raise UserError(
                        f"{self.name}: ground truth of query {query!r} names {image!r}, which is not in the gallery"
                    )

    def itself(self, query: Query) -> bool:
        """Whether the gallery image of the query's id is the query: the same file, or one of the same bytes.

        Such an image is never the query's candidate; another picture that only has the same id is.
        """
        file = self.gallery.get(query.id)
        return file is not None and (file == query.image or _same_bytes(file, query.image))

    def without_positives(self, difficulty: str) -> tuple[str, ...]:
        """The queries that have no positive at a difficulty besides themselves: no ranking of theirs has a value."""
        positive, _ = self.difficulties[difficulty]

        def lacks(query: Query) -> bool:
            grades = self.grades.get(query.id, {})
            found = (image for image, grade in grades.items() if grade in positive)
            return not any(image != query.id or not self.itself(query) for image in found)

        return tuple(query.id for query in self.queries if lacks(query))

    def _named(self) -> Iterator[tuple[str, Iterable[str]]]:
        """The images that the ground truth of a query names; of those that name the same ones, a single query."""
        if isinstance(self.grades, Instances):
            return ((group[0], group) for group in self.grades.members if group)
        return ((query.id, self.grades.get(query.id, ())) for query in self.queries)

    @property
    def difficulties(self) -> Mapping[str, tuple[frozenset[str], frozenset[str]]]:
        return PROTOCOLS[self.protocol]


def _same_bytes(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_size == other.stat().st_size and file_hash(one) == file_hash(other)
    except OSError:  # photographs that are not at hand, of a data set with imported features
        return False


def grade(query: str, *, easy: object = (), hard: object = (), junk: object = ()) -> dict[str, str]:
    """Grades of one query from the three official lists; an id listed twice is an error, never a silent choice."""
    grades: dict[str, str] = {}
    for name, ids in (("easy", easy), ("hard", hard), ("junk", junk)):
        if not isinstance(ids, (list, tuple)) or not all(isinstance(i, str) for i in ids):
            raise UserError(f"ground truth of query {query!r}: {name!r} must be a list of image ids")
        for image in ids:
            if image in grades:
                where = f"twice in {name!r}" if grades[image] == name else f"both in {grades[image]!r} and in {name!r}"
                raise UserError(
                    f"ground truth of query {query!r} lists {image!r} {where}",
                    hint="each image has one grade: easy, hard or junk",
                )
            grades[image] = name
    return grades
