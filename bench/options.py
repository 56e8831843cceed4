"""Options of a method, an extractor or a training: a frozen dataclass, read from text as its types say."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from bench.errors import UserError, unknown

Seed = Annotated[int, "seed"]  # type of an option that only draws other samples of one and the same method


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


def check_options(cls: type, where: str) -> None:
    """TypeError for a class that cannot be the options of `where`."""
    if not (is_dataclass(cls) and all(map(_has_default, fields(cls)))):
        raise TypeError(f"{where}: Options must be a dataclass whose fields all have defaults")


def seeds_of(cls: type) -> tuple[str, ...]:
    """The options of a class that are declared as seeds, whatever their names."""
    types = typing.get_type_hints(cls, include_extras=True)
    return tuple(field.name for field in fields(cls) if types[field.name] == Seed)


def _has_default(field: Field) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def read_options(cls: type, given: Mapping[str, str], owner: str, flag: str) -> Any:
    """Options of the class from text by field. UserError for unknown fields and values of another type or range.

    `owner` is whose options they are, and `flag` what stands before a field's name on the command line.
    """
    types = typing.get_type_hints(cls)
    known = {field.name: types[field.name] for field in fields(cls)}
    values = {}
    for key, text in given.items():
        if key not in known:
            raise unknown(f"option of {owner}", key, known)
        values[key] = parse_value(text, known[key], f"{flag}{key}")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"options of {owner}: {error}") from error


def given_file(option: str, path: Path | None, hint: str) -> Path:
    """The file that an option names, UserError, naming option and file, if it is not there."""
    if path is None or not path.is_file():
        raise UserError(f"-o {option}={path}: no such file", hint=hint)
    return path


def named_files(options: Any) -> dict[str, Path]:
    """By option, the files that options name; those that are None are left out.

    >>> named_files(NoOptions())
    {}
    """
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: value for name, value in values.items() if isinstance(value, Path)}


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
