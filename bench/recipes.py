"""Which trainings there are: files `methods/METHOD/training/RECIPE.py`.

A recipe has a dataclass `TrainOptions` and a function `train(options, out, progress)`. Other files are helpers.
Names are known without importing anything; a recipe is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

from bench.errors import UserError, unknown

OPTIONS = re.compile(r"^class TrainOptions\b", re.MULTILINE)  # what a helper does not have


def recipes() -> dict[str, dict[str, str]]:
    """The module of every recipe, by method and by name, sorted."""
    import methods

    found: dict[str, dict[str, str]] = {}
    for file in sorted(file for place in methods.__path__ for file in Path(place).glob("*/training/*.py")):
        if not file.stem.startswith("_") and OPTIONS.search(file.read_text(encoding="utf-8")):
            folder = file.parent.parent.name
            found.setdefault(_shown(folder), {})[_shown(file.stem)] = f"methods.{folder}.training.{file.stem}"
    return found


def _shown(module: str) -> str:
    return module.replace("_", "-")


def load_recipe(method: str, name: str) -> ModuleType:
    """The module of a method's recipe. UserError for an unknown name, and for another method's recipe."""
    known = recipes()
    own = known.get(method, {})
    if name in own:
        return importlib.import_module(own[name])
    owner = next((other for other, names in known.items() if name in names), None)
    if owner is not None:
        raise UserError(f"{name!r} is no recipe of {method}", hint=f"train {owner} --recipe {name}")
    raise unknown(f"recipe of {method}", name, own)
