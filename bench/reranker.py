"""What an author of a reranker writes: one class with `Options`, `score`, and what it needs to know about itself."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bench.errors import UserError, unknown
from bench.features import FeatureBatch, Features

if TYPE_CHECKING:
    from bench.features.extractors import FeatureCard

__all__ = ["Card", "FeatureBatch", "Features", "Reranker", "Scored", "apply_preset", "given_file", "register"]
NEEDS = frozenset({"global", "local", "keypoints", "truth"})


@dataclass(frozen=True)
class Card:
    """Where a method comes from and what may be done with it; printed under every table it appears in."""

    paper: str | None
    licence: str
    trained_on: str | None = None
    noncommercial: str | None = None  # the licence name that `--accept-licence` must repeat


@dataclass(frozen=True)
class Spec:
    """What a method declares about itself."""

    name: str
    needs: frozenset[str]
    card: Card
    control: bool = False  # a floor, a ceiling or a sentinel, not a contender


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores with the raw numbers they come from, which are kept beside them (`details.parquet`)."""

    scores: Tensor  # (k,)
    details: Mapping[str, Tensor]  # name -> (k,) finite numbers

    def __post_init__(self) -> None:
        for name, values in self.details.items():
            if values.shape != self.scores.shape:
                raise ValueError(f"{name} has shape {tuple(values.shape)}, the scores {tuple(self.scores.shape)}")


class Reranker:
    """Scores the candidates of one query; higher is better. Everything else is the harness's.

    Subclasses set `Options` (a frozen dataclass; its fields are the command line's `-o name.field=value`) and implement
    `score`. A pairwise method scores each candidate on its own; a listwise one (`pairwise = False`) sees a whole list.
    """

    Options: ClassVar[type] = NoOptions
    pairwise: ClassVar[bool] = True
    spec: ClassVar[Spec]

    def __init__(self, options: Any = None, device: torch.device | str = "cpu"):
        self.options = self.Options() if options is None else options
        self.device = torch.device(device)

    def skip(self, features: FeatureCard) -> str | None:
        """Why the method cannot run here on this feature set, or None."""
        return None

    def load(self) -> None:
        """Load weights and move them to `self.device`; called once, before anything is timed."""

    def weights(self) -> Path | None:
        """The file whose sha256 goes into the record, if there is one."""
        return None

    def card(self) -> Card:
        """What is printed under the tables; the registered card, unless the options make another true."""
        return self.spec.card

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor | Scored:
        """(k,) one finite score a candidate, in the order given. The only timed call."""
        raise NotImplementedError

    def needs(self) -> frozenset[str]:
        """What is read; what was registered, unless the options decide."""
        return self.spec.needs

    def parts(self) -> Sequence[Reranker]:
        """The methods this one is made of; their options, weights and code are part of what it is."""
        return ()

    def descriptors_used(self, available: int) -> int:
        """How many of an image's local descriptors are read."""
        if "local" not in self.needs():
            return 0
        return min(available, getattr(self.options, "descriptors", available))


R = TypeVar("R", bound=type[Reranker])


def register(name: str, *, needs: Iterable[str], card: Card, control: bool = False) -> Callable[[R], R]:
    """Declare a class as the reranker `name`. Refuses what the harness could not run or compare.

    `needs` is what `score` reads: `global`, `local` (descriptors, scales), `keypoints` (with orientations);
    `truth` (ground truth) only for controls. What is not named is not handed over and not counted as stored bytes.
    """
    spec = Spec(name, frozenset(needs), card, control)

    def declare(cls: R) -> R:
        where = f"{cls.__module__}.{cls.__qualname__}"
        if not (inspect.isclass(cls) and issubclass(cls, Reranker)):
            raise TypeError(f"{where}: a reranker must inherit from bench.reranker.Reranker")
        if spec.needs - NEEDS:
            raise ValueError(f"{where}: needs {sorted(spec.needs - NEEDS)}, known are {sorted(NEEDS)}")
        if "truth" in spec.needs and not control:
            raise ValueError(f"{where}: only a control may read the ground truth")
        if not (is_dataclass(cls.Options) and all(_has_default(f) for f in fields(cls.Options))):
            raise TypeError(f"{where}: Options must be a dataclass whose fields all have defaults")
        cls.spec = spec
        return cls

    return declare


def _has_default(field: Field) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def given_file(option: str, path: Path | None, hint: str) -> Path:
    """The file that an option names, for `Reranker.weights`. UserError, naming option and file, if it is not there."""
    if path is None or not path.is_file():
        raise UserError(f"-o {option}={path}: no such file", hint=hint)
    return path


def apply_preset(options: Any, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a frozen options object the values of its `preset`. ValueError for a field given another value.

    Called from `__post_init__`, before anything is checked; a field at its default counts as not given.
    """
    for field in dataclasses.fields(options):
        given = getattr(options, field.name)
        wanted = presets[options.preset].get(field.name, given)
        if given not in (field.default, wanted):
            raise ValueError(f"preset={options.preset} sets {field.name}={wanted}, which {given} contradicts")
        object.__setattr__(options, field.name, wanted)


def parse_options(cls: type[Reranker], given: Mapping[str, str]) -> Any:
    """The method's `Options` from command-line text; unknown names and values of another type are user errors."""
    types = typing.get_type_hints(cls.Options)
    known = {field.name: types[field.name] for field in dataclasses.fields(cls.Options)}
    name = cls.spec.name
    values = {}
    for key, text in given.items():
        if key not in known:
            raise unknown(f"option of {name}", key, known)
        values[key] = parse_value(text, known[key], f"-o {name}.{key}")
    try:
        return cls.Options(**values)
    except ValueError as error:
        raise UserError(f"options of {name}: {error}") from error


def described(cls: type) -> dict[str, str]:
    """The one-line comment behind each field of an options class and of its bases, by field name."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        lines = re.finditer(r"^    (\w+): [^#\n]*  # (.+)$", inspect.getsource(base), flags=re.MULTILINE)
        found |= {line[1]: line[2] for line in lines if line[1] in base.__annotations__}
    return found


def parse_value(text: str, kind: Any, option: str) -> Any:
    """The value of a field of type `kind` from text; a UserError names the `option` and what was expected."""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:  # of any length: comma-separated, or `none`
        parts = [] if text.lower() == "none" else text.split(",")
        return tuple(parse_value(part.strip(), choices[0], option) for part in parts)
    if typing.get_origin(kind) is typing.Literal:
        if text not in choices:
            raise unknown(f"value of {option}:", text, choices)
        return text
    if type(None) in choices:  # an optional value: `none` or the other type
        if text.lower() == "none":
            return None
        return parse_value(text, next(c for c in choices if c is not type(None)), option)
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise UserError(f"{option}={text}: expected true or false")
        return words[text.lower()]
    try:
        value = kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("not finite")
        return value
    except (TypeError, ValueError) as error:
        raise UserError(f"{option}={text}: expected {getattr(kind, '__name__', kind)}") from error
