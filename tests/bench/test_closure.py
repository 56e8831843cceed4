"""What a module imports, read from its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.closure import Closure, closure


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package `p` whose modules import nothing, and `p.a.deep` in it."""
    for name in ("__init__", "one", "two", "a/__init__", "a/deep", "a/other"):
        file = tmp_path / "p" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    return tmp_path / "p"


def of(package: Path, text: str, module: str = "p.one") -> Closure:
    """The closure of a module of `p` with that text."""
    file = package.parent.joinpath(*module.split(".")).with_suffix(".py")
    file.write_text(text)
    return closure(module, file, {"p": [package]})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import p.two", {"p.two"}),
        ("import p.two as t", {"p.two"}),
        ("from p import two", {"p.two"}),
        ("from p.two import name", {"p.two"}),
        ("from p.two import *", {"p.two"}),
        ("from . import two", {"p.two"}),
        ("from .two import name", {"p.two"}),
        ("from p import name", {"p"}),
        ("from p.a.deep import name", {"p.a", "p.a.deep"}),
        ("from p.a import name, other", {"p.a", "p.a.other"}),
        ("def f():\n    from p import two", {"p.two"}),
        ("class A:\n    try:\n        import p.two\n    except ImportError:\n        pass", {"p.two"}),
        ("if TYPE_CHECKING:\n    from p import two", set()),
        ("if typing.TYPE_CHECKING:\n    from p import two\nelse:\n    from p.a import deep", {"p.a", "p.a.deep"}),
        ("'from p import two'", set()),
        ("from p import absent_module", {"p"}),
        ("import p.absent", set()),
        ("from p import", set()),  # no Python: what imports it will fail
    ],
)
def test_an_import_of_any_form_is_followed(text: str, found: set[str], package: Path) -> None:
    assert set(of(package, text).files) == found | {"p.one"}


def test_relative_imports_count_from_the_package_that_a_module_lies_in(package: Path) -> None:
    assert set(of(package, "from .. import two\nfrom ..one import x", "p.a.deep").files) == {
        *("p.a", "p.a.deep", "p.two", "p.one")
    }
    assert set(of(package, "from .deep import x\nfrom ..two import x", "p.a.__init__").files) >= {"p.two", "p.a.deep"}


def test_others_imports_are_followed_and_circles_end(package: Path) -> None:
    (package / "two.py").write_text("from p.a import deep\nimport numpy")
    (package / "a" / "deep.py").write_text("from p import one\nimport json")
    found = of(package, "from p import two\nimport torch.nn")
    assert list(found.files) == ["p.one", "p.a", "p.a.deep", "p.two"]  # itself first, then by name
    assert found.outside == {"json", "numpy", "torch"}


def test_a_module_is_looked_for_where_python_does(package: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for name in ("two", "three"):
        (more / f"{name}.py").write_text("")
    (package / "one.py").write_text("from p import two, three")
    found = closure("p.one", package / "one.py", {"p": [package, more]}).files
    assert found["p.two"] == package / "two.py" and found["p.three"] == more / "three.py"
