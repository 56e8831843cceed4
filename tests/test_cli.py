"""The command line: quick to answer, clear when asked for what there is not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from click.testing import Result

from bench import doctor, registry
from bench.features.sets import EXTRACTORS, IMPORTS
from cli import main
from tests.programs import Start

REPOSITORY = Path(__file__).resolve().parent.parent
CONTROLS = {"identity", "constant", "random", "reverse", "oracle"}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["report", "--help"], []])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys, runpy; sys.argv = ['cli.py', *sys.argv[1:]]\n"
        "try: runpy.run_path('cli.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'kornia', 'sklearn', 'seaborn', 'faiss', 'pycolmap', 'PIL'}\n"
        "sys.exit(repr(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout + done.stderr


def test_the_version_is_that_of_the_project(cli: Callable[..., Result]) -> None:
    try:
        installed = version("rerankbench")
    except PackageNotFoundError:
        pytest.skip("the project is not installed in this environment; `make test` installs it")
    assert installed in cli("--version").output


@pytest.mark.parametrize("command", sorted(set(main.commands) - {"train"}))
def test_every_command_explains_itself(cli: Callable[..., Result], command: str) -> None:
    result = cli(command, "--help")
    assert result.exit_code == 0 and "Usage" in result.output and len(result.output) > 100


UNKNOWN = {
    "method": (["-m", "ransak"], "unknown method 'ransak'", "did you mean 'ransac'"),
    "second method": (["-m", "identity,lightglu"], "unknown method 'lightglu'", "did you mean 'lightglue'"),
    "data set": (["-m", "identity", "-d", "roxfrod"], "unknown data set 'roxfrod'", "did you mean 'roxford'"),
    "feature set": (["-m", "identity", "-f", "xfaet"], "unknown feature set 'xfaet'", "did you mean 'xfeat'"),
    "option": (
        ["-m", "ransac", "-o", "ransac.treshold=3"],
        "unknown option of ransac 'treshold'",
        "did you mean 'threshold'",
    ),
    "value": (
        ["-m", "ransac", "-o", "ransac.model=affin"],
        "unknown value of -o ransac.model",
        "did you mean 'affine'",
    ),
    "number": (["-m", "ransac", "-o", "ransac.threshold=wide"], "-o ransac.threshold=wide", "expected float"),
    "whole number": (["-m", "ransac", "-o", "ransac.descriptors=2.5"], "-o ransac.descriptors=2.5", "expected int"),
    "range": (["-m", "ransac", "-o", "ransac.descriptors=0"], "options of ransac", "at least 1"),
    "option of a method that does not run": (
        ["-m", "identity", "-o", "ransac.seed=1"],
        "not part of this run",
        "running: identity",
    ),
    "option of no method": (
        ["-m", "identity", "-o", "ransak.seed=1"],
        "unknown method 'ransak'",
        "did you mean 'ransac'",
    ),
    "option without method": (["-m", "ransac", "-o", "seed=1"], "-o seed=1", "METHOD.OPTION=VALUE"),
    "option without value": (["-m", "ransac", "-o", "ransac.seed"], "-o ransac.seed", "for example -o"),
    "option of a method without options": (
        ["-m", "identity", "-o", "identity.k=1"],
        "unknown option of identity 'k'",
        "none",
    ),
    "features not imported": (
        ["-m", "identity", "-f", "delg"],
        "images have not been imported",
        "features import delg DIR --dataset folder:",
    ),
    "device": (["-m", "identity", "--device", "cpuu"], "--device cpuu", "auto, cpu, cuda"),
    "no method": (["-m", " , "], "no method given", "all"),
    "folder": (["-m", "identity", "-d", "folder:"], "folder: needs a path", "folder:PATH"),
    "absent folder": (["-m", "identity", "-d", "folder:/nowhere/at/all"], "/nowhere/at/all", "no such folder"),
    "absent official set": (["-m", "identity", "-d", "roxford"], "'roxford' is not in", "--data-root"),
    "absent whitening set": (
        ["-m", "identity", "--whiten", "rparsi"],
        "unknown data set 'rparsi'",
        "did you mean 'rparis'",
    ),
    "weights": (["-m", "rrt", "-o", "rrt.weights=/nowhere.pt"], "/nowhere.pt", "no such file"),
}


@pytest.mark.parametrize("what", list(UNKNOWN))
def test_what_there_is_not_is_an_error_with_a_suggestion(
    cli: Callable[..., Result], instances: Path, what: str
) -> None:
    given, said, suggestion = UNKNOWN[what]
    data = [] if "-d" in given else ["-d", f"folder:{instances}"]
    result = cli("run", *data, *given, "--max-side", "160", "--keep-descriptors", "150")
    assert result.exit_code == 1, result.output
    assert said in result.output and suggestion in result.output


@pytest.mark.parametrize(
    "given",
    [
        ["--top-k", "0"],
        ["--top-k", "-3"],
        ["--top-k", "many"],
        ["--policy", "papper"],
        ["--max-side", "3"],
        ["--max-megapixels", "0"],
        ["--threads", "0"],
        ["--tok-k", "5"],
    ],
)
def test_values_outside_their_range_are_refused_with_the_usage(cli: Callable[..., Result], given: list[str]) -> None:
    result = cli("run", "-m", "identity", "-d", "demo", *given)
    assert result.exit_code == 2 and given[0].split("=")[0] in result.output


@pytest.mark.parametrize("given", [["--blend", "ad:1"], ["--blend", "add:x"], ["--seal", "zz"]])
def test_report_refuses_what_it_does_not_know(cli: Callable[..., Result], instances: Path, given: list[str]) -> None:
    assert cli("report", *given).exit_code == 1  # no run at all yet
    assert (
        cli(
            "run", "-m", "identity", "-d", f"folder:{instances}", "--max-side", "160", "--keep-descriptors", "150"
        ).exit_code
        == 0
    )
    assert cli("report", *given).exit_code == 1
    assert cli("report").exit_code == 0


def test_a_run_prints_the_table_the_notes_and_where_the_run_is(
    cli: Callable[..., Result], instances: Path, tmp_path: Path
) -> None:
    result = cli(
        "run",
        "-m",
        "identity,ransac",
        "-d",
        f"folder:{instances}",
        "-k",
        "5",
        "-o",
        "ransac.descriptors=50",
        "--max-side",
        "160",
        "--keep-descriptors",
        "150",
        "--threads",
        "1",
    )
    assert result.exit_code == 0, result.output
    for text in ("ransac descriptors=50", "identity*", "top-5", "mAP All", "KiB/image", "First stage"):
        assert text in result.output, text
    (folder,) = re.findall(r"^run: (.*)$", result.output, re.MULTILINE)
    assert Path(folder).parent == tmp_path / "runs" and (Path(folder) / "scores.parquet").is_file()


def test_a_row_that_fails_is_left_out_of_the_table_gives_status_1_and_is_tried_again(
    cli: Callable[..., Result], instances: Path, add_method: Callable
) -> None:
    add_method("broken", "def score(self, query, candidates):\n    raise RuntimeError('out of luck')")
    command = ["run", "-m", "identity,broken", "-d", f"folder:{instances}", "-k", "2", "--max-side", "160"]
    first, again = (cli(*command, "--keep-descriptors", "150") for _ in range(2))
    for result in (first, again):
        assert result.exit_code == 1 and "identity" in result.stdout and "out of luck" in result.stdout
        assert "Error: failed: broken; the reasons are above" in result.stderr
    assert "trying again" not in first.stderr and "trying again what failed before: broken" in again.stderr


def test_all_runs_every_method_that_can_run_here(cli: Callable[..., Result], instances: Path) -> None:
    result = cli(
        "run", "-m", "all", "-d", f"folder:{instances}", "-k", "2", "--max-side", "160", "--keep-descriptors", "150"
    )
    assert result.exit_code == 0, result.output
    table = re.findall(r"^\s*([\w-]+)\*?\s+[\w+–-]+\s+[\d.]+\s+[\d.]+\s", result.output, re.MULTILINE)
    assert set(table) | set(re.findall(r"([\w-]+) did not run:", result.output)) == set(registry.names())
    assert "failed" not in result.output


def test_methods_lists_every_method_with_what_it_reads_and_whether_it_can_run(cli: Callable[..., Result]) -> None:
    result = cli("methods")
    assert result.exit_code == 0
    for name in registry.names():
        line = next(line for line in result.output.splitlines() if re.match(rf"\s*{name}\*?\s", line))
        assert ("*" in line) == (name in CONTROLS), line
    assert "ransac" in result.output and "threshold=8.0" in result.output and "Apache-2.0" in result.output
    on_sift = {
        line.split()[0]: line for line in cli("methods", "--features", "sift").output.splitlines() if line.split()
    }
    for name, reads in (("mnn", "sift"), ("aqe", "gem-lite0"), ("lightglue", "xfeat"), ("rrt", "xfeat+gem-lite0")):
        assert (
            on_sift[name].rstrip().endswith(f"ready, reads {reads}")
        )  # what it reads of these, else what it is made for
    assert cli("methods", "--features", "srift").exit_code == 1


def test_datasets_lists_every_data_set_and_whether_it_is_here(cli: Callable[..., Result], tmp_path: Path) -> None:
    output = cli("datasets").output
    for name in ("demo", "roxford", "rparis", "folder:PATH"):
        assert name in output
    assert output.count("not in ") >= 2


def test_features_lists_every_feature_set(cli: Callable[..., Result]) -> None:
    output = cli("features").output
    for name in EXTRACTORS.names():
        spec = EXTRACTORS.get(name).spec
        assert name in output and all(f"{dim}-d" in output for dim in (spec.local_dim, spec.global_dim) if dim)
    assert output.count("ready") >= 3  # xfeat, sift, gem-lite0
    assert all(name in output for name in IMPORTS.names()) and "its .delg_global" in output  # and how to get them


def test_doctor_finds_this_environment_fit(cli: Callable[..., Result]) -> None:
    result = cli("doctor")
    assert result.exit_code == 0, result.output
    for what in ("python", "torch", "faiss", "devices", "threads", "cache", "runs"):
        assert re.search(rf"^ok    {what}:", result.output, re.MULTILINE), what


@pytest.mark.parametrize("installed", [[], ["faiss-cpu 1.9", "faiss-gpu 1.9"]])
def test_none_or_both_of_faiss_is_an_error(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, instances: Path, installed: list[str]
) -> None:
    monkeypatch.setattr(doctor, "faiss_packages", lambda: installed)
    result = cli("doctor")
    assert result.exit_code == 1 and "FAIL  faiss" in result.output and "exactly one" in result.output
    run = cli(
        "run",
        "-m",
        "identity",
        "-d",
        f"folder:{instances}",
        "--max-side",
        "160",
        "--keep-descriptors",
        "150",
        "--first-stage",
        "gem-lite0",
        "--search",
        "faiss",
    )
    assert run.exit_code == 1 and "exactly one" in run.output and "pip install" in run.output


def test_an_interrupt_says_how_to_go_on(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    result = cli("doctor")
    assert result.exit_code == 1 and "run the same command again" in result.output


def test_threads_are_set_and_recorded(program: Start, instances: Path, tmp_path: Path, cache: Path) -> None:
    command = ["run", "-m", "identity", "-d", f"folder:{instances}", "--threads", "2", "--runs", str(tmp_path)]
    small = ["--max-side", "160", "--keep-descriptors", "150"]
    done = program("cli.py", *command, *small, env={"RERANKBENCH_CACHE": str(cache)}).finish()
    assert done.returncode == 0, done.stderr
    assert "2 threads" in done.stdout


def test_a_wrong_name_for_weights_is_refused_before_anything_is_prepared(
    cli: Callable[..., Result], tmp_path: Path
) -> None:
    bank = tmp_path / "bank"
    result = cli("train", "rrt", "--out", str(tmp_path / "w.pt"), "--bank", str(bank))
    assert result.exit_code != 0 and "ends in .safetensors" in result.output and not bank.exists()


def test_a_method_with_one_recipe_needs_no_name_of_it(cli: Callable[..., Result]) -> None:
    for method, recipe in (("asmk", "kmeans"), ("rrt", "views"), ("rrt-sop", "sop")):
        shown = cli("train", method, "--help").output
        assert f"[default: {recipe}]" in " ".join(shown.split())
