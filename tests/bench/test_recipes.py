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
    assert {name: sorted(of) for name, of in recipes().items()} == {"asmk": ["kmeans"], "rrt": ["gld", "sop", "views"]}
    for method, names in recipes().items():
        for name in names:
            assert load_recipe(method, name).TrainOptions and load_recipe(method, name).train.__doc__


def test_names_are_known_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys; from bench.recipes import recipes; recipes(); assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_files_without_options_or_with_an_underscore_are_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new_method" / "recipes"
    folder.mkdir(parents=True)
    options = "class TrainOptions(LoopOptions): ..."
    for name, text in (("__init__", ""), ("loss", "LIMIT = 1\n"), ("_base", options), ("self_made", options)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])
    assert recipes() == {"new-method": {"self-made": "methods.new_method.recipes.self_made"}}


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown recipe of rrt 'view'") as caught:
        load_recipe("rrt", "view")
    assert caught.value.hint and "did you mean 'views'?" in caught.value.hint


def test_the_recipe_of_another_method_is_refused_with_the_command_that_has_it(cli: Callable[..., Result]) -> None:
    result = cli("train", "asmk", "--recipe", "gld", "--help")
    assert result.exit_code == 1 and "'gld' is no recipe of asmk" in result.output
    assert "train rrt --recipe gld" in result.output
