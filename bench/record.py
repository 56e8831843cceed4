"""What a run says of itself in `run.json`: what it is, what it was measured on, and what became of every method.

A record is refused where anything in it is not what it should be, so that no later line checks again.
"""

from __future__ import annotations

import json
import shlex
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from bench.approximate import Recall
from bench.errors import UserError
from bench.features.extract import ExtractOptions
from bench.files import read_json, write_json
from bench.reranker import Card
from bench.scores import ColdStart
from bench.shortlist import Header
from bench.trained import Training

T = TypeVar("T")
FORMAT = 3  # of a run's folder; folders of another format are left out of reports
FILE = "run.json"


@dataclass(frozen=True)
class MethodIdentity:
    """What a method's scores depend on."""

    options: Mapping[str, Any]  # option -> value, those at their defaults too
    weights_sha256: str | None = None  # of the files of its weights; None: it has none
    source_sha256: str | None = None  # of its code
    parts: tuple[Part, ...] = ()  # the methods that it is made of
    features: tuple[str, ...] = ()  # keys of the parts of features that it reads, the local one before the global one
    contents: tuple[str, ...] = ()  # of each, sha256 over the features of every image

    def __post_init__(self) -> None:
        if len(self.features) != len(self.contents):
            raise ValueError(f"contents: {len(self.contents)} of {len(self.features)} features")


@dataclass(frozen=True, kw_only=True)
class Part(MethodIdentity):
    """A method as a part of another."""

    method: str  # its name


@dataclass(frozen=True)
class Identity:
    """What makes one run another run than the next: the name of its folder has a hash of it."""

    seal: str  # sha256 of the shortlist
    shortlist: Header
    hardware: Mapping[str, Any]  # `provenance.hardware` and the executor's; times compare where all of it is equal
    methods: Mapping[str, MethodIdentity]  # row -> method; a row is named METHOD or METHOD@FEATURES

    def __post_init__(self) -> None:
        if lacking := {"cpu", "threads", "gpu"} - set(self.hardware):
            raise ValueError(f"hardware.{min(lacking)} is missing")


@dataclass(frozen=True)
class Cost:
    """What a deployed system would store and read for a method."""

    descriptors_mean: float  # local descriptors used, an image
    descriptors_max: float  # local descriptors used of the image that has most
    kib_per_image: float  # KiB, mean over the gallery, of all that the method reads; NaN where it is not known


@dataclass(frozen=True)
class Approximate:
    """An approximate search of a first stage."""

    how: str  # its index and all options of it
    recall: Recall  # against exact lists
    build_ms: float | None  # wall ms to build the index; None: it was there already


@dataclass(frozen=True)
class IndexCost:
    """What it costs to make what a method keeps of a gallery image; NaN where none was made."""

    ms: float  # wall ms an image, mean over the candidates; in none of the ledger's times
    kib: float  # KiB an image, mean over the candidates; a part of `Cost.kib_per_image`


@dataclass(frozen=True)
class FirstStageCost:
    """What the candidates of a run cost."""

    features: tuple[str, ...] = ()  # keys of the parts of features that the first stage reads
    search_ms: float | None = None  # wall ms of the search, of all queries at once, over their number
    kib_per_image: float | None = None  # KiB, mean over the gallery, of what it searches
    approximate: Approximate | None = None  # None: the search was exact


@dataclass(frozen=True, kw_only=True)
class MethodCard(Card):
    """Where a method comes from, and what it is in a comparison."""

    control: bool  # a floor, a ceiling or a sentinel, not a contender
    needs: tuple[str, ...]  # what it reads: global, local, keypoints, truth
    deterministic: bool = False  # whether equal input gives equal scores on one machine; where it was not asked: no


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run whose methods are still to be scored."""

    identity: Identity
    provenance: Mapping[str, Any]  # `provenance.record`: when, by what command, on what, with which versions
    together: tuple[str, ...] = ()  # folder names of the runs whose methods took turns query by query; none: this one
    skipped: Mapping[str, str]  # row -> why it cannot run here
    defaults: Mapping[str, Mapping[str, Any]]  # row -> option -> its value where none is given
    extract: ExtractOptions | None = None  # how images were extracted; None: not known
    seeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # row -> its options that are seeds
    trained: Mapping[str, Training] = field(default_factory=dict)  # row -> how its weights were, where they say so
    unreadable: Mapping[str, str]  # key of an image in the store -> why it has no features
    notes: tuple[str, ...] = ()  # sentences that stand under every table of the run
    features_noncommercial: str | None = None  # licence name of features that may not be used commercially
    first_stage: FirstStageCost
    extract_ms: Mapping[str, tuple[float, float]]  # part of features -> median ms to decode a query and extract from it
    cold: Mapping[str, ColdStart]  # row -> wall ms and MiB of its first query, where they were measured

    def __post_init__(self) -> None:
        for row, how in self.trained.items():
            if row not in self.identity.methods or how.option not in self.identity.methods[row].options:
                raise ValueError(f"trained.{row}: no row with an option {how.option!r}")


@dataclass(frozen=True, kw_only=True)
class RunRecord(Begun):
    """A finished run."""

    finished: str  # when, ISO 8601 in UTC
    failed: Mapping[str, str]  # row -> why it stopped
    costs: Mapping[str, Cost]  # row -> what it costs; the rows that have scores
    cards: Mapping[str, MethodCard]  # row -> card
    indexed: Mapping[str, IndexCost] = field(default_factory=dict)  # row -> what it keeps; none: rows that keep nothing
    others_busy: float | None = None  # cores that other programs kept busy while it was scored; None: not known
    # part of features -> need -> bytes an image, and bytes a local descriptor
    stored_bytes: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        datetime.fromisoformat(self.finished)
        for method in self.costs:
            if method not in self.cards or method not in self.identity.methods:
                raise ValueError(f"{method} has scores and is not described")
        super().__post_init__()


class Unfinished(ValueError):
    """The run has not come to its end, or is of another format (`older`); `command` finishes it, where it is known."""

    def __init__(self, message: str, older: bool = False, command: str = ""):
        super().__init__(message)
        self.older, self.command = older, command


# what only some methods and runs have, and its empty value: absent, since folders' names hash what is there
SELDOM = (("parts", ()), ("features", ()), ("contents", ()), ("approximate", None))


def as_json(value: Any) -> dict[str, Any]:
    """A dataclass as `run.json` has it, without the fields of SELDOM where they are empty."""
    return asdict(value, dict_factory=lambda pairs: dict(pair for pair in pairs if pair not in SELDOM))


def write_record(folder: Path, record: Begun) -> None:
    """Write whole or not at all. OSError."""
    status = "finished" if isinstance(record, RunRecord) else "running"
    write_json(folder / FILE, {"format": FORMAT, "status": status, **as_json(record)})


def read_record(folder: Path) -> RunRecord:
    """The record of a finished run. Unfinished, or ValueError that says what is wrong with the file."""
    content = _content(folder)
    if content.get("status") != "finished" or content.get("format") != FORMAT:
        provenance = content.get("provenance")
        command = provenance.get("command") if isinstance(provenance, dict) else None
        raise Unfinished(
            f"{FILE}: {content.get('status')}, format {content.get('format')}",
            content.get("format") != FORMAT,
            as_typed(command) if isinstance(command, list) and command else "",
        )
    try:
        record: RunRecord = _read(RunRecord, content, "")
    except ValueError as error:
        raise ValueError(f"{FILE}: {error}") from error
    return record


def as_typed(command: list[Any]) -> str:
    """The arguments of a process as a user types them."""
    words = [str(word) for word in command]
    return shlex.join(["python", *words] if words[0].endswith(".py") else words)


def cold_starts(folder: Path) -> Mapping[str, ColdStart] | None:
    """Those of a run that was begun in a folder, also of a damaged one; None where no record can be read."""
    try:
        content = _content(folder)
    except ValueError:
        return None
    try:
        starts: Mapping[str, ColdStart] = _read(Mapping[str, ColdStart], content.get("cold"), "cold")
    except ValueError:
        return {}
    return starts


def took_turns(folder: Path) -> tuple[str, ...]:
    """The runs that one that was begun in a folder says it took turns with; none where no record can be read."""
    try:
        return _read(tuple[str, ...], _content(folder).get("together"), "together")
    except ValueError:
        return ()


def _content(folder: Path) -> dict[str, Any]:
    try:
        content = read_json(folder / FILE)
    except OSError as error:
        raise ValueError(f"{FILE}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{FILE}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{FILE}: it holds no object")
    return content


def as_kind(kind: type[T], content: object) -> T:
    """A dataclass from an object of JSON; fields that it does not know are passed over. ValueError names the place."""
    made: T = _read(kind, content, "")
    return made


def _read(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON as a `kind`: a dataclass from an object, a tuple from a list. ValueError names the place."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        (other,) = (one for one in inner if one is not type(None))
        return None if value is None else _read(other, value, where)
    if is_dataclass(kind) and isinstance(value, dict):
        return _made(kind, value, where)
    if origin is Mapping and isinstance(value, dict):
        return {key: _read(inner[1], one, f"{where}.{key}") for key, one in value.items()}
    if origin is tuple and isinstance(value, list):
        of = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(of) == len(value):
            return tuple(_read(one, part, f"{where}[{i}]") for i, (one, part) in enumerate(zip(of, value, strict=True)))
    if origin is Literal and value in inner:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (str, int, float, bool) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {json.dumps(value):.60}, expected {_named(kind)}")


def _made(kind: Any, content: Mapping[str, Any], where: str) -> Any:
    """A dataclass from an object; what it does not know, a later version may."""
    hints, values = get_type_hints(kind), {}
    for one in fields(kind):
        place = f"{where}.{one.name}".removeprefix(".")
        if one.name in content:
            values[one.name] = _read(hints[one.name], content[one.name], place)
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{place} is missing")
    try:
        return kind(**values)
    except UserError as error:
        raise ValueError(error.message) from error


def _named(kind: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Mapping: "an object"}
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return "a list" if get_origin(kind) is tuple else names.get(get_origin(kind) or kind, "an object")
