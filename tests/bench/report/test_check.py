"""The regression check: a run against a baseline, with the method, the query and the change that failed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from bench.places import Places
from bench.report import check
from bench.results import finished_runs
from bench.run import Outcome
from cli import main

Go = Callable[..., Outcome]


@pytest.fixture
def checked(run: Go, instances: Path, places: Places, tmp_path: Path) -> Callable[..., Result]:
    """`check` on the command line, with a baseline written from a finished run."""
    run(instances, "identity,constant,ransac,reverse", top_k=8)

    def go(*more: str) -> Result:
        return CliRunner().invoke(
            main, ["check", "--baseline", str(tmp_path / "baseline.json"), "--runs", str(places.runs), *more]
        )

    assert go("--write").exit_code == 0
    return go


def test_a_run_passes_against_its_own_baseline(checked: Callable[..., Result]) -> None:
    result = checked()
    assert result.exit_code == 0, result.output
    assert "FAIL" not in result.output and "constant equals identity" in result.output


def test_a_changed_baseline_accuracy_fails_and_names_the_query(checked: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    content = json.loads(path.read_text())
    content["accuracy"]["ransac"]["All"]["object1/view2"] -= 0.5
    path.write_text(json.dumps(content))
    result = checked()
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("FAIL")]
    assert "ransac All" in line and "object1/view2" in line and "+5.56" in line


def test_tampered_scores_fail_and_name_the_query(checked: Callable[..., Result], places: Places) -> None:
    path = finished_runs(places.runs)[0].folder / "scores.parquet"
    table = pd.read_parquet(path)
    chosen = (table.method == "ransac") & (table["query"] == "object2/view0")
    table.loc[chosen, "score"] *= -1
    table.to_parquet(path, index=False)
    result = checked()
    assert result.exit_code == 1
    assert any(
        line.startswith("FAIL") and "ransac All" in line and "object2/view0" in line
        for line in result.output.splitlines()
    )


def test_constant_unlike_identity_fails(checked: Callable[..., Result], places: Places) -> None:
    path = finished_runs(places.runs)[0].folder / "scores.parquet"
    table = pd.read_parquet(path)
    table.loc[table.method == "constant", "score"] = table.loc[table.method == "reverse", "score"].to_numpy()
    table.to_parquet(path, index=False)
    assert "constant differs from identity" in checked().output


def test_relative_times_beyond_the_bound_fail(
    checked: Callable[..., Result], places: Places, run: Go, instances: Path, add_method: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "baseline.json"
    content = json.loads(path.read_text())
    assert content["relative_times"] == {"ransac": 1.0}  # controls are no contenders
    content["relative_times"]["ransac"] = 1 / (content["ratio_bound"] * 1.1)
    path.write_text(json.dumps(content))
    result = checked()
    assert result.exit_code == 1 and "ms per pair" in result.output


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json", '{"identity": {}}'])
def test_what_is_not_a_baseline_is_refused(checked: Callable[..., Result], tmp_path: Path, content: str) -> None:
    (tmp_path / "baseline.json").write_text(content)
    result = checked()
    assert result.exit_code == 1 and "not a baseline" in result.output and "Traceback" not in result.output


def test_a_baseline_without_a_run_says_which_run_is_missing(checked: Callable[..., Result], places: Places) -> None:
    shutil.rmtree(places.runs)
    result = checked()
    assert result.exit_code == 1 and "no finished run to check" in result.output and "--top-k 8" in result.output


def test_the_baseline_of_other_options_fails(checked: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    content = json.loads(path.read_text())
    content["identity"]["options"]["ransac"]["threshold"] = 3.0
    path.write_text(json.dumps(content))
    assert checked().exit_code == 1
    assert check.read_baseline(path)["reference"] == "ransac"
