"""A row of a comparison: a reranker on a feature set of its own.

`METHOD@FEATURES` asks for one. METHOD alone reads the features of the comparison where it can, else those that its
weights were made for. A row's name is METHOD where it reads the project's default features, and METHOD@FEATURES
elsewhere, so that equal names mean equal rows, whatever was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bench.errors import NoRoom, Unknown, UserError
from bench.features.importing import without_order
from bench.features.sets import FeatureSet, SetName, Stores
from bench.features.store import ALL
from bench.indexes import keeps_index
from bench.reranker import Reranker

DEFAULT_FEATURES = "xfeat"


@dataclass(frozen=True)
class Asked:
    """A row as it was asked for."""

    method: str
    features: str | None = None

    @staticmethod
    def parse(text: str) -> Asked:
        """From METHOD or METHOD@FEATURES.

        >>> Asked.parse("ransac@sift")
        Asked(method='ransac', features='sift')
        """
        method, at, features = text.partition("@")
        if not method or (at and not features):
            raise UserError(f"--method {text}: expected METHOD or METHOD@FEATURES", hint="for example ransac@sift")
        return Asked(method, features or None)

    def __str__(self) -> str:
        return self.method if self.features is None else f"{self.method}@{self.features}"


@dataclass(frozen=True, eq=False)
class Reading:
    """What is read of one feature set, and how many of as many local descriptors as an image has."""

    features: FeatureSet
    needs: frozenset[str]
    used: Callable[[int], int]


@dataclass(frozen=True, eq=False)
class Row:
    """A reranker that can run here, and the features that it reads: None where it reads none or its parts do."""

    name: str
    method: Reranker
    features: FeatureSet | None = None
    parts: tuple[Row, ...] = ()

    @cached_property
    def reads(self) -> tuple[Reading, ...]:
        """What is read; parts that read one feature set share the reading."""
        if not self.parts:
            return () if self.features is None else (Reading(self.features, self.needs, self.method.descriptors_used),)
        return tuple(reading for reading, _ in _shared(self.parts))

    @cached_property
    def indexing(self) -> tuple[Reranker, ...]:
        """The method, or those of its parts, that read of a gallery image what they made of it once."""
        return tuple(row.method for row in self.parts or (self,) if keeps_index(row.method))

    @cached_property
    def stored(self) -> tuple[Reading, ...]:
        """What is read of a gallery image for every query, as `reads`."""
        if not self.parts:
            return () if self.indexing else self.reads
        return tuple(reading for reading, _ in _shared(part for part in self.parts if not part.indexing))

    @cached_property
    def reading_of(self) -> tuple[int | None, ...]:
        """For each part, the place in `reads` of what it reads; None where it reads nothing."""
        places: dict[Row, int] = {}
        for place, (_, rows) in enumerate(_shared(self.parts)):
            places.update(dict.fromkeys(rows, place))
        return tuple(places.get(part) for part in self.parts)

    @property
    def needs(self) -> frozenset[str]:
        """What it reads of features."""
        return self.method.needs() & ALL

    @property
    def sets(self) -> tuple[FeatureSet, ...]:
        return tuple(reading.features for reading in self.reads)


def _shared(rows: Iterable[Row]) -> list[tuple[Reading, list[Row]]]:
    """What rows read together: one reading of each local part, with the global part if that is one too."""
    found: list[tuple[Reading, list[Row]]] = []
    for row in rows:
        for reading in row.reads:
            for place, (before, others) in enumerate(found):
                if (joined := _joined(before, reading)) is not None:
                    found[place] = (joined, [*others, row])
                    break
            else:
                found.append((reading, [row]))
    return found


def _joined(one: Reading, other: Reading) -> Reading | None:
    """Both readings as one; None where their local or their global parts are two."""
    names = one.features.name, other.features.name
    for parts in ({name.local for name in names} - {None}, {name.global_ for name in names} - {None}):
        if len({part.key for part in parts if part is not None}) > 1:
            return None
    first, second = one.features, other.features
    features = FeatureSet(
        SetName(names[0].local or names[1].local, names[0].global_ or names[1].global_),
        first.local or second.local,
        first.globals_ or second.globals_,
    )
    return Reading(features, one.needs | other.needs, lambda count: max(one.used(count), other.used(count)))


@dataclass(frozen=True, eq=False)
class Wanted:
    """A row before its features are there: what it may read, best first, and why the rest was refused."""

    asked: Asked
    method: Reranker
    choices: tuple[SetName, ...]
    reason: str | None  # why the choice that came first was refused
    parts: tuple[Wanted, ...] = ()


def wanted(asked: Asked, method: Reranker, features: str, allowed: frozenset[str]) -> Wanted | str:
    """What a row may read, as far as names tell; or the reason why it can read nothing.

    `features` is the comparison's set, `allowed` the conditions that were agreed to. UserError for a name after
    @ that is not known.
    """
    if parts := method.parts():
        return _composite(asked, method, parts, features, allowed)
    if asked.features is not None:
        try:
            names = [SetName.parse(asked.features, f"--method {asked}")]
        except Unknown:
            raise
        except UserError as error:  # a set that lacks its weights leaves out its row, and no other
            return error.line
    else:
        names = [SetName.parse(features), *_made_for(method)]
    choices, reasons = [], []
    for name in names:
        reason = _refused(method, name, allowed)
        if reason is None:
            choices.append(name)
        else:
            reasons.append(reason)
    if not choices:
        return reasons[0]
    return Wanted(asked, method, tuple(choices), reasons[0] if reasons else None)


def _composite(
    asked: Asked, method: Reranker, parts: Sequence[Reranker], features: str, allowed: frozenset[str]
) -> Wanted | str:
    found = []
    for part, own in zip(parts, method.part_features(), strict=True):
        one = wanted(Asked(part.spec.name, own or asked.features), part, features, allowed)
        if isinstance(one, str):
            return f"{part.spec.name}: {one}"
        found.append(one)
    return Wanted(asked, method, (), None, tuple(found))


def _made_for(method: Reranker) -> list[SetName]:
    """The set that a method's weights were made for; none where they do not say, or it is not known here."""
    name = method.made_for()
    try:
        return [] if name is None else [SetName.parse(name)]
    except UserError:
        return []


def _refused(method: Reranker, name: SetName, allowed: frozenset[str]) -> str | None:
    """Why a method cannot read a set, as far as its name tells."""
    read = name.reading(method.needs())
    for condition in () if read is None else read.conditions:
        if condition.option not in allowed:
            return f"features {name.name}: their {condition.why}: {condition.option}"
    return _lacks(method, name.local is None, name.global_ is None) or (
        method.skip(name.card) if name.card.known else None  # else once the features tell
    )


def _lacks(method: Reranker, no_local: bool, no_global: bool) -> str | None:
    needs = method.needs()
    if no_local and needs & {"local", "keypoints"}:
        return "it reads local descriptors, and the feature set has none"
    return "it reads global descriptors, and the feature set has none" if no_global and "global" in needs else None


def opened(row: Wanted, stores: Stores, keys: Callable[[], Iterable[str]]) -> Row | str:
    """The row with its features, extracted where they were not; or the reason why it cannot run.

    `keys` are the images in the stores that it may be asked to read.
    """
    if row.parts:
        parts = []
        for wanted_part in row.parts:
            part = opened(wanted_part, stores, keys)
            if isinstance(part, str):
                return f"{wanted_part.method.spec.name}: {part}"
            parts.append(part)
        return _named(Row("", row.method, None, tuple(parts)), row)
    reason = row.reason
    for name in row.choices:
        found = _opened(row.method, name, stores, keys)
        if isinstance(found, str):
            reason = reason or found
        else:
            return _named(Row("", row.method, found), row)
    assert reason is not None
    return reason


def _opened(
    method: Reranker, name: SetName, stores: Stores, keys: Callable[[], Iterable[str]]
) -> FeatureSet | str | None:
    read = name.reading(method.needs())
    if read is None:
        return None
    try:
        features = stores.of(read)
    except NoRoom:
        raise
    except UserError as error:
        return error.line
    except Exception as error:  # an extractor of the user's; it leaves out its rows, as a method that raises does
        return f"{type(error).__name__}: {error}"
    if reason := _lacks(method, features.card.local_dim == 0, features.card.global_dim == 0):
        return reason
    if not name.card.known and (reason := method.skip(features.card)):
        return reason
    if features.local is not None:
        used = {method.spec.name: method.descriptors_used}
        if reasons := without_order(features.local, used, keys()):
            return reasons[method.spec.name]
    method.bind(features.card)
    return features


def _named(row: Row, asked: Wanted) -> Row:
    """The row with its name; parts that were given features of their own are told by their options instead."""
    method = row.method.spec.name
    own = asked.method.part_features() if row.parts else ()
    rows = [part for part, features in zip(row.parts, own, strict=True) if features is None] if row.parts else [row]
    if all(_by_default(reading.features.name) for each in rows for reading in each.reads):
        return replace(row, name=method)
    names = dict.fromkeys(reading.features.name.name for each in rows for reading in each.reads)
    return replace(row, name=f"{method}@{'+'.join(names)}")


def _by_default(name: SetName) -> bool:
    """Whether a set is the project's default, or the part of it that is read."""
    default = SetName.parse(DEFAULT_FEATURES)
    pairs = ((name.local, default.local), (name.global_, default.global_))
    return all(part is None or (other is not None and part.key == other.key) for part, other in pairs)


def same_row(text: str, row: str, features: Sequence[str]) -> bool:
    """Whether a row that reads these features is the one that a user names METHOD or METHOD@FEATURES.

    >>> same_row("rrt@xfeat", "rrt", ("xfeat", "gem-lite0")), same_row("mnn", "mnn@sift", ("sift",))
    (True, False)
    """
    method, at, given = text.partition("@")
    if text == row or not at or row.partition("@")[0] != method:
        return text == row
    try:
        parts = {part.key for part in SetName.parse(given).parts}
    except UserError:  # features by the name that tables have, which holds the contents of weights
        return given == "+".join(features)
    return set(features) <= parts  # it reads those of the parts that it needs


def counts_of(sets: Iterable[FeatureSet], gallery: Iterable[str]) -> Mapping[str, np.ndarray]:
    """By local part, the numbers of local descriptors of the gallery's images."""
    locals_ = {features.name.local.key: features for features in sets if features.name.local is not None}
    return {key: features.counts(gallery) for key, features in locals_.items()}


def parts_of(rows: Iterable[Row]) -> Iterator[str]:
    """Keys of the parts of features that rows read, each once."""
    seen = dict.fromkeys(part.key for row in rows for features in row.sets for part in features.name.parts)
    yield from seen
