"""What a module imports, directly or through others: read from the files, without importing one."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

Roots = Mapping[str, Sequence[Path]]  # top-level packages, and the folders that hold their modules
TYPING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@dataclass(frozen=True)
class Closure:
    """A module and all that it imports below some roots."""

    files: Mapping[str, Path]  # by module name: the module itself first, the others sorted
    outside: frozenset[str]  # top-level packages that are imported from elsewhere, the standard library's among them


def find(module: str, roots: Roots) -> Path | None:
    """The file of a module below the roots, or None."""
    top, *parts = module.split(".")
    for folder in roots.get(top, ()):
        place = folder.joinpath(*parts)
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                return file
    return None


def closure(module: str, file: Path, roots: Roots) -> Closure:
    """The closure of a module that lies in `file`.

    Imports inside functions count; those that only type checkers see do not. The packages that a module lies in count,
    since Python runs them; a root counts only where something is imported from it. An import by a name that is made at
    run time is not seen.
    """
    files, outside = {module: file}, set()
    waiting = list(_imported(module, file, roots))
    while waiting:
        name = waiting.pop()
        path = find(name, roots)
        if name.partition(".")[0] not in roots:
            outside.add(name.partition(".")[0])
        elif name not in files and path is not None:
            files[name] = path
            waiting += _imported(name, path, roots)
    first, *others = files
    return Closure({name: files[name] for name in (first, *sorted(others))}, frozenset(outside))


def _imported(module: str, file: Path, roots: Roots) -> Iterator[str]:
    """The modules that a module imports, and the packages that it lies in."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in _statements(file.read_bytes()):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            full = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if find(name, roots) else source for name in full]
        for name in names:
            yield from (name, *_packages(name))
    yield from _packages(module)


def _packages(module: str) -> list[str]:
    """The packages that a module lies in, without the root."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(2, len(parts))]


@lru_cache(maxsize=1024)  # by content: a run asks for what its methods share many times, and files may change
def _statements(source: bytes) -> tuple[ast.Import | ast.ImportFrom, ...]:
    try:
        waiting: list[ast.AST] = [ast.parse(source)]
    except SyntaxError:  # who imports it will say so
        return ()
    found = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in TYPING:
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return tuple(found)
