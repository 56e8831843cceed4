"""Which rerankers there are: one file or folder in `methods/` each, and entry points of other packages.

Names are known without importing anything; a method is imported when it is first asked for. A plugin that cannot be
imported is listed with its error and stops nothing else.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points

import methods
from bench.errors import UserError, unknown
from bench.reranker import Reranker
from bench.reranker import register as register  # where authors looked for it at first

ENTRY_POINTS = "rerankbench.rerankers"


def _sources() -> dict[str, Callable[[], object]]:
    """name -> a function that imports the module or class of that method."""
    found: dict[str, Callable[[], object]] = {}
    origins: dict[str, str] = {}
    for module in pkgutil.iter_modules(methods.__path__):
        if not module.name.startswith("_"):
            name = module.name.replace("_", "-")
            found[name] = partial(importlib.import_module, f"methods.{module.name}")
            origins[name] = f"methods/{module.name}"
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in found:
            found[point.name] = partial(
                _refuse, f"{point.name!r} is registered by {point.value} and by {origins[point.name]}"
            )
        else:
            found[point.name] = point.load
            origins[point.name] = point.value
    return found


def _refuse(message: str) -> None:
    raise ValueError(message)


def names() -> list[str]:
    """Every method's name, sorted, without importing one."""
    return sorted(_sources())


def get(name: str) -> type[Reranker]:
    """The reranker class of that name. UserError for an unknown name or a plugin that cannot be loaded."""
    sources = _sources()
    if name not in sources:
        raise unknown("method", name, sources)
    try:
        loaded = sources[name]()
        found = [loaded] if inspect.isclass(loaded) else list(vars(loaded).values())
        classes = [
            value
            for value in found
            if inspect.isclass(value)
            and issubclass(value, Reranker)
            and "spec" in vars(value)
            and value.spec.name == name
        ]
        if len(classes) != 1:
            raise ValueError(f"expected exactly one class registered as {name!r}, found {len(classes)}")
    except Exception as error:  # a plugin may fail in any way; it is reported with its name, never silently dropped
        raise UserError(
            f"method {name!r} cannot be loaded: {type(error).__name__}: {error}",
            hint="leave it out of --method, or mend or uninstall the package that provides it",
        ) from error
    return classes[0]
