"""Which trainings are found: by their files, before any is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import methods
from bench.errors import UserError
from bench.recipes import load_recipe, recipes

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_shipped_recipes_are_found_and_can_be_imported() -> None:
    shipped = {
        "ames": ["gld", "views"],
        "asmk": ["kmeans"],
        "elvis": ["gld", "views"],
        "rrt": ["gld", "views"],
        "rrt-sop": ["sop"],
    }
    assert {method: list(of) for method, of in recipes().items()} == shipped
    for method, names in shipped.items():
        for name in names:
            module = load_recipe(method, name)
            assert module.TrainOptions and module.train.__doc__


def test_names_are_known_before_anything_heavy_is_imported() -> None:
    code = "import sys; from bench.recipes import recipes; assert recipes() and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_files_without_options_or_with_an_underscore_are_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = tmp_path / "new_method" / "training", "class TrainOptions(LoopOptions): ..."
    folder.mkdir(parents=True)
    for name, text in (("__init__", ""), ("loss", "LIMIT = 1"), ("_base", options), ("self_made", options)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])
    assert recipes() == {"new-method": {"self-made": "methods.new_method.training.self_made"}}


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown recipe of rrt 'view'") as caught:
        load_recipe("rrt", "view")
    assert caught.value.hint and "did you mean 'views'?" in caught.value.hint


def test_the_recipe_of_another_method_is_refused_with_the_command_that_has_it(cli: Callable[..., Result]) -> None:
    result = cli("train", "rrt", "--recipe", "sop", "--stage", "joint", "--out", "w.safetensors")
    assert result.exit_code == 1 and "'sop' is no recipe of rrt" in result.output
    assert "train rrt-sop --recipe sop" in result.output
