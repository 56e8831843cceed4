"""What a method is: its own code and the code that it imports."""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import methods
import third_party
from bench import registry
from bench.provenance import closure_of, source_hash, versions

HOME = Path(methods.__file__).parent
Edit = Callable[[str], set[str]]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """`edit(file)` changes a file of a copy of the methods and adapters: the methods whose code is another one then."""
    for package in (methods, third_party):
        shutil.copytree(next(iter(package.__path__)), tmp_path / package.__name__)
        monkeypatch.setattr(package, "__path__", [str(tmp_path / package.__name__)])
    classes = {name: registry.get(name) for name in registry.names()}

    def change(file: str) -> set[str]:
        before = {name: source_hash(cls) for name, cls in classes.items()}
        path = tmp_path / file
        path.write_text(path.read_text() + "\n# changed\n")
        return {name for name, cls in classes.items() if source_hash(cls) != before[name]}

    return change


def test_the_shared_modules_that_a_method_imports_are_part_of_it() -> None:
    shared = [HOME / "_matching.py", HOME / "_parallel.py", *sorted((HOME / "_verification").glob("*.py"))]
    text = b"".join(path.read_bytes() for path in (HOME / "ransac.py", *shared))
    assert source_hash(registry.get("ransac")) == hashlib.sha256(text).hexdigest()


def test_a_method_that_imports_none_is_its_file_alone() -> None:
    assert source_hash(registry.get("maxsim")) == hashlib.sha256((HOME / "maxsim.py").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("file", "retired"),
    [
        ("methods/rrt/model.py", {"rrt"}),
        ("methods/rrt_sop/matcher.py", {"rrt-sop"}),
        ("methods/_transformer.py", {"rrt", "rrt-sop", "ames", "r2former"}),
        ("methods/_attention.py", {"rrt", "ames"}),
        ("methods/_verification/colmap.py", {"ransac", "lightglue"}),
        ("methods/asmk/codebook.py", {"asmk"}),
        ("third_party/efficientnet_lite.py", {"rrt-sop"}),
        ("third_party/checkpoints.py", {"rrt", "rrt-sop", "superglue", "lightglue", "ames", "elvis", "r2former"}),
        ("methods/_views/bank.py", set()),
        ("methods/rrt_sop/training/sop.py", set()),
        ("methods/asmk/training/kmeans.py", set()),
    ],
)
def test_an_edit_retires_the_runs_of_the_methods_whose_scores_depend_on_it(
    file: str, retired: set[str], edit: Edit
) -> None:
    assert edit(file) == retired


def test_no_method_scores_with_training_code() -> None:
    for name in registry.names():
        assert not [module for module in closure_of(registry.get(name)).files if ".training" in module]


OUTSIDE = """
from bench.reranker import Card, Reranker, register
from methods._transformer import Layer
from .util import SCALE

@register("outside", needs=(), card=Card(paper=None, licence="MIT"))
class Outside(Reranker): ...
"""


def test_the_modules_of_a_package_from_outside_are_part_of_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rerankbench_outside"
    folder.mkdir()
    for name, text in (("__init__", OUTSIDE), ("util", "SCALE = 1"), ("other", "")):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    cls = importlib.import_module("rerankbench_outside").Outside
    assert list(closure_of(cls).files) == ["rerankbench_outside", "methods._transformer", "rerankbench_outside.util"]
    before = source_hash(cls)
    (folder / "util.py").write_text("SCALE = 2")
    assert source_hash(cls) != before


def test_a_method_in_a_single_file_outside_has_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rerankbench_single.py").write_text(OUTSIDE.replace("from .util import SCALE", ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    cls = importlib.import_module("rerankbench_single").Outside
    assert list(closure_of(cls).files) == ["rerankbench_single", "methods._transformer"]


def test_the_packages_that_a_method_imports_are_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = OUTSIDE.replace("from .util import SCALE", "import hypothesis.strategies").replace("outside", "hypothetical")
    (tmp_path / "rerankbench_hypothetical.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    cls = importlib.import_module("rerankbench_hypothetical").Outside
    assert "hypothesis" not in versions() and versions([cls()])["hypothesis"] == version("hypothesis")


def test_what_an_extractor_needs_is_recorded_with_its_version() -> None:
    found = versions((), ("click", "a_module_that_nobody_has"))
    assert found["click"] == version("click") and found["a_module_that_nobody_has"] is None
