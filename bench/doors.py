"""How rerankers, extractors and data sets are found: files of a folder, and entry points of other packages.

A plugin that cannot be imported is listed with its error and stops nothing else.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from bench.errors import UserError, unknown

T = TypeVar("T")


@cache
def installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group that installed packages declare; looked for once, which takes some milliseconds."""
    return tuple(entry_points(group=group))


@dataclass(frozen=True)
class Door(Generic[T]):
    """One kind of plugin. A file of `package` has the plugin's name, `_` for `-`; files that begin with `_` are none.

    `name_of` says the name that a value of a module was declared with, or None for a value that is no plugin.
    With `families`, a file declares any number of plugins of any names, or none; the files are imported to know.
    """

    kind: str  # as messages say it: method, extractor, data set
    option: str  # where its names stand on the command line
    package: str  # whose files are plugins
    group: str  # of the entry points
    name_of: Callable[[Any], str | None]
    families: bool = False

    def _sources(self) -> dict[str, Callable[[], object]]:
        """name -> a function that imports the module, or the value itself, of that plugin."""
        found: dict[str, Callable[[], object]] = {}
        origins: dict[str, str] = {}

        def add(name: str, origin: str, load: Callable[[], object]) -> None:
            if name in found:
                load = partial(_refuse, f"{name!r} is registered by {origin} and by {origins[name]}")
            found[name] = load
            origins[name] = origin

        known: set[int] = set()  # plugins of a family that other files import are theirs
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            if not module.name.startswith("_"):
                load = partial(importlib.import_module, f"{self.package}.{module.name}")
                for name in self._names_in(module.name, load, known):
                    add(name, f"{self.package.replace('.', '/')}/{module.name}", load)
        for point in installed(self.group):
            add(point.name, point.value, point.load)
        return found

    def _names_in(self, module: str, load: Callable[[], object], known: set[int]) -> list[str]:
        """The names that a file declares; its own where it is one plugin, and where it cannot be imported."""
        own = module.replace("_", "-")
        if not self.families:
            return [own]
        try:
            values = list(vars(load()).values())
        except Exception:  # raised again, and reported, when it is asked for
            return [own]
        declared = {
            id(value): name for value in values if (name := self.name_of(value)) is not None and id(value) not in known
        }
        known.update(declared)
        return list(dict.fromkeys(declared.values()))

    def names(self) -> list[str]:
        """Every plugin's name, sorted; none is imported, but files that may hold families."""
        return sorted(self._sources())

    def get(self, name: str) -> T:
        """The plugin of that name. UserError for an unknown name or one that cannot be loaded."""
        sources = self._sources()
        if name not in sources:
            raise unknown(self.kind, name, sources)
        try:
            loaded = sources[name]()
            values: list[Any] = list(vars(loaded).values()) if inspect.ismodule(loaded) else [loaded]
            plugins = [value for value in values if self.name_of(value) == name]
            if len({id(plugin) for plugin in plugins}) != 1:
                raise ValueError(f"expected exactly one {self.kind} registered as {name!r}, found {len(plugins)}")
        except Exception as error:  # a plugin may fail in any way; it is reported with its name, never silently dropped
            raise UserError(
                f"{self.kind} {name!r} cannot be loaded: {type(error).__name__}: {error}",
                hint=f"leave it out of {self.option}, or mend or uninstall the package that provides it",
            ) from error
        return plugins[0]


def _refuse(message: str) -> None:
    raise ValueError(message)
