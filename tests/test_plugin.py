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

REPOSITORY = Path(__file__).resolve().parent.parent
Python = Callable[..., str]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """`python(…)`: what a Python that has the sample package prints; fails if it exits with an error."""
    source, site = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(REPOSITORY / "tests" / "plugin", source)  # a build leaves files behind
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)])}

    def go(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    go(*install, "--target", str(site), str(source))
    return go


def test_its_author_tests_it_in_one_line(python: Python) -> None:
    line = "check_reranker(Hamming)"
    python("-c", f"from rerankbench_hamming import Hamming; from bench.conformance import check_reranker; {line}")


def test_it_runs_beside_the_others_and_a_broken_one_is_only_listed(
    python: Python, instances: Path, tmp_path: Path
) -> None:
    folders = ["--cache-dir", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs")]
    small = ["--max-side", "160", "--keep-descriptors", "150", "--top-k", "5", "-o", "hamming.descriptors=40"]
    python("cli.py", "run", "-m", "hamming,identity", "-d", f"folder:{instances}", *small, *folders)
    table = json.loads(python("cli.py", "report", "--format", "json", *folders))
    rows = {row["method"]: row for row in table["rows"]}
    assert rows["hamming descriptors=40"]["desc max"] == 40
    assert rows["hamming descriptors=40"]["mAP All"] > rows["identity"]["mAP All"]
    listed = python("cli.py", "methods")
    assert "hamming-broken" in listed and "a_package_that_nobody" in "".join(listed.split())


def test_its_author_tests_an_extractor_in_one_line(python: Python) -> None:
    line = "check_extractor(Colours)"
    python(
        "-c", f"from rerankbench_hamming.colours import Colours; from bench.conformance import check_extractor; {line}"
    )


def test_an_extractor_of_a_package_is_a_first_stage_like_any_other(
    python: Python, instances: Path, tmp_path: Path
) -> None:
    folders = ["--cache-dir", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs")]
    small = ["--max-side", "160", "--keep-descriptors", "150", "--top-k", "5", "-d", f"folder:{instances}"]
    methods = ["-m", "mnn,lightglue,asmk,ransac,aqe"]
    python("cli.py", "run", *methods, "--features", "xfeat+colours:bins=3", *small, *folders)
    table = json.loads(python("cli.py", "report", "--format", "json", *folders))
    assert table["features"].startswith("xfeat+colours-")
    assert {row["method"] for row in table["rows"]} == {"mnn", "lightglue", "asmk", "ransac", "aqe"}
    listed = python("cli.py", "features")
    assert "colours" in listed and "Square roots of a histogram" in " ".join(listed.split())
