"""What the README and the pages show is run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from bench.conformance import check_dataset, check_extractor, check_reranker
from bench.datasets.dataset import Place

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PLUGIN = REPOSITORY / "tests" / "plugin" / "rerankbench_hamming"


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def names_of(code: str) -> dict:
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    return names


def test_the_example_reranker_of_the_readme_conforms() -> None:
    example, check, *_ = blocks(README)
    names = names_of(example)
    exec(compile(check, str(README), "exec"), names)
    assert names["Chamfer"].spec.name == "chamfer"
    check_reranker(names["Chamfer"], names["Chamfer"].Options(descriptors=3))


def test_the_example_extractor_of_the_readme_conforms() -> None:
    colours = names_of(blocks(README)[2])["Colours"]
    assert colours.spec.name == "colours" and colours.spec.gives == "global"
    check_extractor(colours, colours.Options(bins=3))


def test_the_example_data_set_of_the_readme_conforms(instances: Path, tmp_path: Path) -> None:
    load = names_of(blocks(README)[3])["load"]
    lines = []
    for image in sorted(instances.rglob("*.png")):
        name = f"{image.parent.name}-{image.name}"
        shutil.copy(image, tmp_path / name)
        lines.append(f"{name},{image.parent.name}")
    (tmp_path / "images.csv").write_text("\n".join(["image,instance", *lines]))
    check_dataset(load, Place(tmp_path / "data", tmp_path / "cache", tmp_path / "images.csv"))


@pytest.mark.parametrize("name", ["__init__.py", "colours.py"])
def test_the_page_on_extending_shows_the_files_that_are_installed_here(name: str) -> None:
    assert (PLUGIN / name).read_text() in blocks(REPOSITORY / "docs" / "extending.md")


@pytest.mark.parametrize("page", [README, *sorted((REPOSITORY / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    from cli import main

    commands = set(re.findall(r"python cli\.py (\w+)", page.read_text()))
    assert commands <= set(main.commands) and (commands or page != README)
