"""Plugins in a package outside the repository: built, installed, tested by its author, and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import Start

REPOSITORY = Path(__file__).resolve().parent.parent
Python = Callable[..., str]
Typed = Callable[..., list[str]]


@pytest.fixture(scope="module")
def python(program: Start, tmp_path_factory: pytest.TempPathFactory) -> Python:
    """`python(…)`: what a Python that has the sample package prints; fails if it exits with an error."""
    source, site = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(REPOSITORY / "tests" / "plugin", source)  # a build leaves files behind
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, *install, "--target", str(site), str(source)]
    installed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    environment = {"PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)])}

    def go(*arguments: str) -> str:
        done = program(*arguments, env=environment).finish()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return go


COMMANDS = """
import json, sys
from click.testing import CliRunner
from cli import main
printed = []
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, (arguments, done.output)
    printed.append(done.stdout)
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def typed(python: Python) -> Typed:
    """`typed(command, …)`: what each command prints, all in one process of that Python; fails as `python` does."""
    return lambda *commands: json.loads(python("-c", COMMANDS, json.dumps(commands)))


def test_its_author_tests_it_in_one_line(python: Python) -> None:
    line = "check_reranker(Hamming)"
    python("-c", f"from rerankbench_hamming import Hamming; from bench.conformance import check_reranker; {line}")


def test_it_runs_beside_the_others_and_a_broken_one_is_only_listed(
    typed: Typed, instances: Path, tmp_path: Path
) -> None:
    folders = ["--cache-dir", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs")]
    small = ["--max-side", "160", "--keep-descriptors", "150", "--top-k", "5", "-o", "hamming.descriptors=40"]
    _, report, listed = typed(
        ["run", "-m", "hamming,identity", "-d", f"folder:{instances}", *small, *folders],
        ["report", "--format", "json", *folders],
        ["methods"],
    )
    table = json.loads(report)
    rows = {row["method"]: row for row in table["rows"]}
    assert rows["hamming descriptors=40"]["desc max"] == 40
    assert rows["hamming descriptors=40"]["mAP All"] > rows["identity"]["mAP All"]
    assert "hamming-broken" in listed and "a_package_that_nobody" in "".join(listed.split())


def test_its_author_tests_an_extractor_in_one_line(python: Python) -> None:
    line = "check_extractor(Colours)"
    python(
        "-c", f"from rerankbench_hamming.colours import Colours; from bench.conformance import check_extractor; {line}"
    )


def test_an_extractor_of_a_package_is_a_first_stage_like_any_other(
    typed: Typed, instances: Path, tmp_path: Path
) -> None:
    folders = ["--cache-dir", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs")]
    small = ["--max-side", "160", "--keep-descriptors", "150", "--top-k", "5", "-d", f"folder:{instances}"]
    methods = ["-m", "mnn,lightglue,asmk,ransac,aqe"]
    _, report, listed = typed(
        ["run", *methods, "--features", "xfeat+colours:bins=3", *small, *folders],
        ["report", "--format", "json", *folders],
        ["features"],
    )
    table = json.loads(report)
    assert table["first_stage"].startswith("colours-")
    on_colours = f"aqe@{table['first_stage']}"
    assert {row["method"] for row in table["rows"]} == {"mnn", "lightglue", "asmk", "ransac", on_colours}
    assert "colours" in listed and "Square roots of a histogram" in " ".join(listed.split())


@pytest.fixture
def listing(instances: Path, tmp_path: Path) -> Path:
    """A CSV file that lists the images of three instances."""
    lines = [f"{image.name},{image.parent.name}" for image in sorted(instances.rglob("*.png"))]
    for image in instances.rglob("*.png"):
        shutil.copy(image, tmp_path / f"{image.parent.name}-{image.name}")
    file = tmp_path / "images.csv"
    file.write_text("\n".join(["image,instance", *(f"{line.split(',')[1]}-{line}" for line in lines)]))
    return file


def test_the_author_of_a_data_set_tests_it_in_one_line(python: Python, listing: Path) -> None:
    line = f"check_dataset(load, Place(Path('data'), Path('cache'), Path({str(listing)!r})))"
    imports = (
        "from pathlib import Path",
        "from bench.conformance_dataset import check_dataset",
        "from bench.datasets.dataset import Place",
        "from rerankbench_hamming.listed import load",
    )
    python("-c", "; ".join([*imports, line]))


def test_its_data_set_is_listed_and_run_like_any_other(
    typed: Typed, instances: Path, listing: Path, tmp_path: Path
) -> None:
    folders = ["--cache-dir", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs")]
    small = ["--max-side", "160", "--keep-descriptors", "150", "--top-k", "5"]
    names = (f"csv:{listing}", f"folder:{instances}")
    printed, *_, of_ours, of_same = typed(
        ["datasets", *folders],
        *(["run", "-m", "mnn", "-d", name, *small, *folders] for name in names),
        *(["report", "-d", name, "--format", "json", *folders] for name in names),
    )
    listed = "".join(printed.split())
    assert "csv:FILE" in listed and "csv-broken" in listed and "a_package_that_nobody" in listed
    ours, same = (json.loads(report)["rows"] for report in (of_ours, of_same))
    assert [row["mAP All"] for row in ours] == [row["mAP All"] for row in same] and ours


def test_the_page_on_data_sets_shows_the_file_that_is_installed_here() -> None:
    page = (REPOSITORY / "docs" / "data-sets.md").read_text()
    example = (REPOSITORY / "tests" / "plugin" / "rerankbench_hamming" / "listed.py").read_text()
    assert f"```python\n{example}```" in page
