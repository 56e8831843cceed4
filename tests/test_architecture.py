"""The shape of the code: arrows point down, none in a circle, and what a comment cites is here."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "methods", "third_party")
# what in `bench` imports a method, and why
METHODS_IN_BENCH = {
    "bench.first_stages.kernel": "its options are those of the reranker `asmk`",
    "bench.first_stages.asmk": "the kernel and its codebook are those of the reranker `asmk`",
    "bench.features.extractors.sop": "the product variant's features are those of its own trained trunk",
    "bench.features.extractors.sscd": "its ResNet-50 is that of the product variant",
}
GROUND_FLOOR = {"bench.errors", "bench.files", "bench.names"}  # all that adapters may use of the harness


@cache
def modules() -> dict[str, Path]:
    files = [*(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), ROOT / "cli.py"]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


@cache
def imports(module: str) -> frozenset[str]:
    """The project's modules that a module imports, anywhere in it, but for what only type checkers see."""
    tree = ast.parse(modules()[module].read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in modules() else node.module for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found & modules().keys() - {module})


def circle() -> list[str]:
    """Modules that import each other in a circle, or nothing."""
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(imports(module)):
            if found := walk(other, (*path, module)):
                return found
        done.add(module)
        return []

    return next((found for module in modules() if (found := walk(module, ()))), [])


def test_no_modules_import_each_other() -> None:
    assert not circle(), " -> ".join(circle())


def test_the_harness_imports_no_method_but_where_that_is_said() -> None:
    importing = {
        name
        for name in modules()
        if name.startswith("bench") and any(other.startswith("methods.") for other in imports(name))
    }
    assert {next((said for said in METHODS_IN_BENCH if name.startswith(said)), name) for name in importing} == set(
        METHODS_IN_BENCH
    )


def test_adapters_use_the_ground_floor_alone() -> None:
    wrong = {
        f"{name} imports {other}"
        for name in modules()
        if name.startswith("third_party")
        for other in imports(name)
        if other not in GROUND_FLOOR and not other.startswith("third_party")
    }
    assert not wrong


def test_nothing_imports_the_command_line() -> None:
    assert not [name for name in modules() if "cli" in imports(name)]


def test_what_the_code_cites_is_in_the_repository() -> None:
    texts = [*modules().values(), *(ROOT / "tests").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    cited = {(path.name, doc) for path in texts for doc in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text())}
    assert cited and not [(where, doc) for where, doc in cited if not (ROOT / doc).is_file()]
