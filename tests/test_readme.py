"""What the README shows is run."""

import re
from pathlib import Path

from bench.conformance import check_reranker

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_reranker_of_the_readme_conforms() -> None:
    example, check = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(example, str(README), "exec"), names)
    exec(compile(check, str(README), "exec"), names)
    assert names["Chamfer"].spec.name == "chamfer"
    check_reranker(names["Chamfer"], names["Chamfer"].Options(descriptors=3))


def test_the_commands_of_the_readme_exist() -> None:
    from cli import main

    commands = set(re.findall(r"^python cli\.py (\w+)", README.read_text(), re.MULTILINE))
    assert commands and commands <= set(main.commands)
