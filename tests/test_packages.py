"""What users run needs no package of the tests, and a test that needs one names it where it is skipped."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.datasets import cached, demo
from bench.datasets.demo.generate import DemoSpec

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
MODULES = {"scikit-image": "skimage", "pyyaml": "yaml", "pytest-xdist": "xdist"}  # of packages with other names
# what `make test` does not install either: the tests of these run where a user has the package
ELSEWHERE = {"asmk", "trackio", "mlflow", "sqlalchemy", "wandb"}
COMMANDS = """
import json, sys
from click.testing import CliRunner
from cli import main
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, (arguments, done.output)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def packages(extra: str) -> Iterator[str]:
    """The packages of an extra, and of the extras that it takes in."""
    for requirement in PROJECT["optional-dependencies"][extra]:
        if own := re.fullmatch(rf"{PROJECT['name']}\[([\w,]+)\]", requirement):
            for other in own[1].split(","):
                yield from packages(other)
        else:
            yield re.match(r"[\w-]+", requirement)[0]  # type: ignore[index]


def modules(*extras: str) -> set[str]:
    return {MODULES.get(name, name.replace("-", "_")) for extra in extras for name in packages(extra)}


def test_the_commands_of_every_user_import_no_package_of_the_tests(
    tmp_path: Path, write_buildings: Callable[[Path], Path]
) -> None:
    """Also with every row of `make demo`; a small data set stands in for the generated one."""
    cached.make(demo._place(tmp_path / "cache", DemoSpec()), write_buildings)
    rows = re.search(r"^METHODS := (\S+)$", MAKEFILE, re.MULTILINE)
    assert rows is not None
    small = ("--max-side", "112", "--keep-descriptors", "100", "--top-k", "3", "--threads", "1")
    folders = {f"RERANKBENCH_{name.upper()}": str(tmp_path / name) for name in ("cache", "data", "runs")}
    commands = [["--help"], ["run", "-d", "demo", "-m", rows[1], *small], ["report"]]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=REPOSITORY,
        env={**os.environ, **folders},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert {"torch", "pandas"} <= imported and not imported & modules("test", "lint")


def test_what_tests_need_is_no_requirement_of_users() -> None:
    users = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}  # type: ignore[index]
    assert "torch" in users and not users & {*packages("test"), *packages("lint")}
    assert set(packages("dev")) == {*packages("test"), *packages("lint")}


@pytest.mark.parametrize(
    ("target", "extra"), [("demo", ""), ("check", ""), ("test", "-test"), ("lint", "-lint"), ("types", "-lint")]
)
def test_a_target_of_make_installs_what_it_needs(target: str, extra: str) -> None:
    assert f"\n{target}: .venv/ready-$(FAISS){extra}\n" in MAKEFILE


def skips() -> Iterator[tuple[Path, str, bool]]:
    """File, module and whether a reason is given, of every `importorskip`."""
    for file in (REPOSITORY / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "importorskip":
                (module,) = (ast.literal_eval(argument) for argument in node.args)
                yield file, module.partition(".")[0], "reason" in {keyword.arg for keyword in node.keywords}


def test_who_skips_without_a_package_says_which_and_make_test_installs_it() -> None:
    found = list(skips())
    assert {"ray", "transformers", "skimage", "ir_measures", "yaml"} <= {module for _, module, _ in found}
    installed = modules("test") | ELSEWHERE | sys.stdlib_module_names | {"huggingface_hub"}  # which transformers needs
    for file, module, reasoned in found:
        assert reasoned and module in installed, (file, module)
