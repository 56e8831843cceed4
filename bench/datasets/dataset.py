"""What an author of a data set writes: one function from a place to a `Dataset`, and what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench.datasets import Dataset, Instances, Query, grade
from bench.datasets.official.sources import File, Source, Unpack
from bench.errors import UserError
from bench.options import NoOptions, check_options, read_options

__all__ = ["Dataset", "File", "Instances", "Loader", "Place", "Query", "Source", "Unpack", "dataset", "grade"]
NAME = re.compile(r"[a-z0-9][a-z0-9+._-]*")  # no colon, which a path follows, and no comma or space
OPTION = re.compile(r":(?P<key>[a-z_]+)=(?P<value>[^:]*)$")  # behind a path: `:radius=10`
Progress = Callable[[int, int], None]  # images made, images in all


@dataclass(frozen=True)
class Place:
    """Where a data set is looked for.

    `path` is made absolute. UserError for the home folder of a user that there is not.
    """

    data: Path  # data root of the official layouts
    cache: Path  # of images that the program makes
    path: Path | None = None  # what follows `NAME:` on the command line
    images: bool = True  # whether photographs must be here; imported features need none
    progress: Progress | None = None
    name: str = ""  # of the data set, with its path and options; given by the loader
    options: Any = NoOptions()  # of the data set, as its class says; given by the loader

    def __post_init__(self) -> None:
        if self.path is None:
            return
        try:
            object.__setattr__(self, "path", self.path.expanduser().resolve())
        except RuntimeError as error:
            raise UserError(f"{self.path}: {error}", hint="write the whole path") from error


@dataclass(frozen=True)
class Loader:
    """A data set as it was declared. ValueError for what could not be listed or named on a command line.

    Options follow the path, as in `vpr:PATH:radius=10`. Those that are not at their defaults are part of the data set's
    name, and so of every seal.
    """

    name: str
    read: Callable[[Place], Dataset]
    summary: str
    licence: str
    needs: str  # which files, and where
    takes: str | None = None  # what follows `NAME:` on the command line, such as PATH
    sources: tuple[Source, ...] = ()  # what `datasets download` fetches
    many: bool = False  # too many photographs to look for each in a list of data sets
    made: Callable[[Place], bool] | None = None  # whether the images are made, where the program makes them itself
    options: type = NoOptions  # a frozen dataclass whose fields all have defaults

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"data set {self.name!r}: expected a name of a-z, 0-9, +, ., _ and -")
        if not callable(self.read):
            raise TypeError(f"data set {self.name!r}: {self.read!r} is no function")
        if not all((self.summary, self.licence, self.needs)):
            raise ValueError(f"data set {self.name!r}: summary, licence and needs must be said")
        if self.takes is not None and not self.takes.isupper():
            raise ValueError(f"data set {self.name!r}: takes is {self.takes!r}, expected a word such as PATH")
        check_options(self.options, f"data set {self.name!r}")
        if self.takes is None and fields(self.options):
            raise ValueError(f"data set {self.name!r}: options follow a path, and it takes none")

    @property
    def usage(self) -> str:
        """How it is named on the command line."""
        return self.name if self.takes is None else f"{self.name}:{self.takes}"

    def __call__(self, place: Place) -> Dataset:
        """The data set. UserError for a path too many or too few, and for a function that fails or breaks its word."""
        if self.takes is not None and place.path is None:
            raise UserError(f"{self.name}: needs a path", hint=f"--dataset {self.usage}")
        if self.takes is None and place.path is not None:
            raise UserError(f"{self.name}: takes no path, found {place.path}", hint=f"--dataset {self.usage}")
        place = self._with_options(place)
        name = place.name
        try:
            found = self.read(place)
        except (UserError, OSError):
            raise
        except Exception as error:  # a plugin may fail in any way; it is reported with its name
            raise UserError(
                f"data set {name!r} cannot be read: {type(error).__name__}: {error}",
                hint="mend its files, or the package that provides it",
            ) from error
        if not isinstance(found, Dataset):
            raise UserError(f"data set {name!r}: found {type(found).__name__}, expected a Dataset of its function")
        if found.name != name:
            raise UserError(
                f"data set {name!r} calls itself {found.name!r}", hint="its author gives Dataset the name place.name"
            )
        return found

    def _with_options(self, place: Place) -> Place:
        """The place with its name, and with the options behind its path. UserError for options that there are not."""
        if place.path is None:
            return replace(place, name=self.name)
        text, given = str(place.path), dict[str, str]()
        # one at a time: the folder's own name may look like options
        while fields(self.options) and not Path(text).exists() and (last := OPTION.search(text)) is not None:
            if last["key"] in given:
                raise UserError(f"{self.name}:{place.path}: {last['key']} is given twice", hint="give it once")
            given[last["key"]] = last["value"]
            text = text[: last.start()]
        options = read_options(self.options, given, f"data set {self.name}", f"{self.name}:{self.takes}:")
        changed = [
            f":{field.name}={_written(value)}"
            for field in fields(self.options)
            if (value := getattr(options, field.name)) != field.default
        ]
        place = replace(place, path=Path(text), options=options)
        return replace(place, name="".join([f"{self.name}:{place.path}", *changed]))


def _written(value: object) -> str:
    """As a user would write it: 10 for 10.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def dataset(
    name: str,
    *,
    summary: str,
    licence: str,
    needs: str,
    takes: str | None = None,
    source: Source | tuple[Source, ...] = (),
    many: bool = False,
    made: Callable[[Place], bool] | None = None,
    options: type = NoOptions,
) -> Callable[[Callable[[Place], Dataset]], Loader]:
    """Declare a function `load(place) -> Dataset` as the data set `name`; the fields are those of `Loader`.

    A file may declare several names. The `Dataset` is called `place.name`.
    """
    sources = (source,) if isinstance(source, Source) else tuple(source)
    return lambda read: Loader(name, read, summary, licence, needs, takes, sources, many, made, options)
