"""The regression check: what is ok, what fails, what cannot be told, with the method, the query and the change."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.places import Places
from bench.report import check
from bench.report.check import Limits
from bench.report.findings import Checked, Finding
from bench.report.measured import Measured, MeasuredRow
from bench.results import Run, finished_runs
from bench.run import Outcome
from cli import main

REPOSITORY = Path(__file__).resolve().parents[3]
Go = Callable[..., Outcome]
Values = tuple[float | None, ...]
QUERIES = tuple(f"q{number:02}" for number in range(40))
SPREAD: Values = tuple(round(0.3 + 0.01 * number, 6) for number in range(40))
KEPT, TURNS = Limits(0.3, 4.0, kept=True), Limits(0.3, 1.5, kept=False)


def row(values: Values = SPREAD, time: float | None = 1.0, **more: Any) -> MeasuredRow:
    known = {"control": time is None, "deterministic": True, "options": {"descriptors": 500}, "features": "xfeat"}
    known |= {"contents": "c", "weights": "w", "code": "s", "time": time, "accuracy": {"All": values}}
    return MeasuredRow(**{**known, **more})


def measured(rows: Mapping[str, MeasuredRow] | None = None, **more: Any) -> Measured:
    controls = {"identity": row(time=None, weights=""), "constant": row(time=None, weights="")}
    header = {"dataset": "folder:mugs", "image_set": "i", "protocol": "instance", "first_stage": "gem-lite0", "k": 50}
    header |= {"policy": "blind", "query_crop": False, "gallery_size": 9, "gallery_content": "g"}
    known = {"seal": "5ea1", "header": {**header, "first_stage_content": "f"}, "lists": "l", "similarities": "s"}
    known |= {"truth": "t", "hardware": {"cpu": "AMD", "gpu": None, "device": "cpu", "threads": 2}, "disturbed": ""}
    known |= {"versions": {"torch": "2.13.0", "numpy": "2.4.6"}, "queries": QUERIES}
    usual = {"mnn": row(time=2.0), "ransac": row(time=4.0), "rrt": row(time=8.0)}
    return Measured(**{**known, "rows": {**controls, **usual, **(rows or {})}, **more})


def compared(now: Measured, before: Measured | None = None, limits: Limits = KEPT) -> Checked:
    return check.compare([now], [before or measured()], limits, ("now", "before"), usual="ransac")


def of(checked: Checked, kind: str, subject: str) -> Finding:
    (found,) = [each for each in checked.findings if (each.kind, each.subject) == (kind, subject)]
    return found


def others(checked: Checked, finding: Finding) -> set[str]:
    return {each.outcome for each in checked.findings if each != finding}


def moved(by: float, queries: int = 40) -> Values:
    return tuple(round(v + by, 6) if n < queries else v for n, v in enumerate(SPREAD) if v is not None)


# --- accuracy ------------------------------------------------------------------------------------------------------


def test_equal_runs_pass_also_where_nothing_may_be_left_untold() -> None:
    checked = compared(measured())
    assert checked.passes(strict=True) and checked.verdict == "No regression: all 9 checks passed."
    kinds = [each.kind for each in checked.findings]
    assert sorted(kinds) == ["accuracy"] * 5 + ["candidates", "latency", "latency", "ties"]


@pytest.mark.parametrize("by", [0.000001, -0.000001, 0.2, -0.2])
def test_one_query_that_differs_where_all_must_be_equal_fails_and_is_named(by: float) -> None:
    values = list(SPREAD)
    values[7] = round(values[7] + by, 6)
    finding = of(checked := compared(measured({"mnn": row(tuple(values), 2.0)})), "accuracy", "mnn All")
    assert finding.outcome == "FAIL" and "1 of 40 queries changed, most: query q07, AP 37.0 ->" in finding.text
    assert others(checked, finding) == {"ok"} and not checked.passes()
    assert [(each.query, round(each.by, 6)) for each in finding.moved] == [("q07", by)]


LOOSER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what is said -> changes of the row, and of the run
    "a method that is not deterministic": ({"deterministic": False}, {}),
    "other code": ({"code": "s2"}, {}),
    "other contents of its features": ({"contents": "c2"}, {}),
    "other versions of numpy": ({}, {"versions": {"torch": "2.13.0", "numpy": "2.5"}}),
    "another machine": ({}, {"hardware": {"cpu": "Intel", "gpu": None, "device": "cpu", "threads": 2}}),
    "other similarities of the first stage": ({}, {"similarities": "s2", "seal": "other"}),
}


@pytest.mark.parametrize("said", LOOSER)
def test_a_small_change_is_ok_where_values_need_not_be_equal(said: str) -> None:
    of_row, of_run = LOOSER[said]
    noise = tuple(round(v + 0.001 * (-1) ** n, 6) for n, v in enumerate(SPREAD) if v is not None)
    finding = of(compared(measured({"mnn": row(noise, 2.0, **of_row)}, **of_run)), "accuracy", "mnn All")
    assert finding.outcome == "ok" and said in finding.why and "95 % interval" in finding.why
    assert of(compared(measured({"mnn": row(noise, 2.0)})), "accuracy", "mnn All").outcome == "FAIL"


@pytest.mark.parametrize("said", LOOSER)
def test_a_large_loss_fails_where_values_need_not_be_equal(said: str) -> None:
    of_row, of_run = LOOSER[said]
    finding = of(compared(measured({"mnn": row(moved(-0.05), 2.0, **of_row)}, **of_run)), "accuracy", "mnn All")
    assert finding.outcome == "FAIL" and "changed by -5.00 points" in finding.text and said in finding.why


def test_a_gain_passes_where_the_code_is_another() -> None:
    assert of(compared(measured({"mnn": row(moved(0.05), 2.0, code="s2")})), "accuracy", "mnn All").outcome == "ok"


def test_a_sure_loss_within_the_tolerance_is_ok() -> None:
    finding = of(compared(measured({"mnn": row(moved(-0.002), 2.0, code="s2")})), "accuracy", "mnn All")
    assert finding.outcome == "ok" and "changed by -0.20 points" in finding.text
    assert (
        of(
            compared(measured({"mnn": row(moved(-0.002), 2.0, code="s2")}), limits=Limits(0.1, 4, kept=True)),
            "accuracy",
            "mnn All",
        ).outcome
        == "FAIL"
    )


def test_too_few_queries_to_see_a_change_of_the_tolerated_size_cannot_tell() -> None:
    """One query of 40 loses 0.25: the mean loses more than is tolerated, but by chance of one query."""
    finding = of(checked := compared(measured({"mnn": row(moved(-0.25, 1), 2.0, code="s2")})), "accuracy", "mnn All")
    assert finding.outcome == "cannot tell" and "too few queries to see a change of 0.3 points" in finding.why
    assert finding.moved[0].query == "q00" and checked.passes() and not checked.passes(strict=True)


def test_tests_are_corrected_for_their_number() -> None:
    """A loss whose p is 2 / 2^7 is sure alone and not among nine rows; the interval does not reach zero."""
    lost = moved(-0.2, 7)
    alone = of(compared(measured({"mnn": row(lost, 2.0, code="s2")})), "accuracy", "mnn All")
    assert alone.outcome == "FAIL"
    rows = {f"m{n}": row(SPREAD, 2.0) for n in range(8)}
    lossy = {name: row(lost, 2.0, code="s2") for name in rows}
    checked = compared(measured({"mnn": row(lost, 2.0, code="s2"), **lossy}), measured(rows))
    assert of(checked, "accuracy", "mnn All").outcome == "cannot tell"


def test_other_weights_cannot_tell() -> None:
    finding = of(compared(measured({"mnn": row(moved(-0.3), 2.0, weights="w2")})), "accuracy", "mnn All")
    assert finding.outcome == "cannot tell" and finding.why == "another version of the weights"


def test_a_value_that_only_one_side_has_fails_whatever_else_differs() -> None:
    lacking: Values = (None, *SPREAD[1:])
    finding = of(compared(measured({"mnn": row(lacking, 2.0, code="s2")})), "accuracy", "mnn All")
    assert finding.outcome == "FAIL" and "query q00 has a value in one run and none in another" in finding.why


def test_a_difficulty_without_positives_is_no_check() -> None:
    both = {name: row((None,) * 40, 2.0) for name in ("mnn",)}
    assert not [each for each in compared(measured(both), measured(both)).findings if each.subject == "mnn All"]


@given(st.lists(st.floats(0, 1).map(lambda v: round(v, 6)), min_size=40, max_size=40), st.integers(0, 39))
def test_any_values_pass_against_themselves_and_fail_with_any_one_moved(values: list[float], place: int) -> None:
    before = measured({"mnn": row(tuple(values), 2.0)})
    assert compared(before, before).passes(strict=True)
    other = [*values[:place], round(values[place] + (0.1 if values[place] < 0.5 else -0.1), 6), *values[place + 1 :]]
    finding = of(compared(measured({"mnn": row(tuple(other), 2.0)}), before), "accuracy", "mnn All")
    assert finding.outcome == "FAIL" and [each.query for each in finding.moved] == [QUERIES[place]]


def test_runs_of_a_method_that_draws_are_taken_together() -> None:
    """Three runs of each side: the difference is of their means."""
    draw = np.random.default_rng(0)

    def some(by: float) -> list[Measured]:
        values = [np.round(np.array(SPREAD) + by + draw.normal(0, 0.02, 40), 6).clip(0, 1) for _ in range(3)]
        return [measured({"mnn": row(tuple(v.tolist()), 2.0, deterministic=False)}) for v in values]

    same = check.compare(some(0), some(0), Limits(1, 1.5, kept=False), ("now", "before"))
    less = check.compare(some(-0.1), some(0), Limits(1, 1.5, kept=False), ("now", "before"))
    assert of(same, "accuracy", "mnn All").outcome == "ok" and of(less, "accuracy", "mnn All").outcome == "FAIL"


# --- candidates, rows, settings, ties ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"header": {**measured().header, "k": 8}}, "k 8, baseline 50"),
        ({"header": {**measured().header, "image_set": "j"}}, "image set j, baseline i"),
        ({"header": {**measured().header, "gallery_content": "h"}}, "other images in the gallery"),
        ({"truth": "t2"}, "another ground truth"),
    ],
)
def test_another_seal_cannot_tell_and_says_what_differs(changes: dict[str, Any], said: str) -> None:
    checked = compared(measured({"mnn": row(moved(-0.3), 99.0)}, seal="other", **changes))
    finding = of(checked, "candidates", "candidates")
    assert finding.outcome == "cannot tell" and finding.why == f"another seal: {said}"
    assert others(checked, finding) == {"ok"} and checked.passes() and not checked.passes(strict=True)
    assert said in " ".join(checked.notes)


def test_the_same_candidates_with_other_similarities_are_said_and_compared() -> None:
    checked = compared(measured({"mnn": row(moved(-0.05), 2.0)}, similarities="s2", seal="other"))
    assert of(checked, "candidates", "candidates").outcome == "cannot tell"
    assert of(checked, "accuracy", "mnn All").outcome == "FAIL"


@pytest.mark.parametrize(
    ("header", "said"), [({}, "other candidates"), ({"first_stage_content": "f2"}, "of other first-stage features")]
)
def test_other_candidates_of_the_same_images_are_said_and_tested(header: dict[str, str], said: str) -> None:
    changes: dict[str, Any] = {"lists": "l2", "seal": "other", "header": {**measured().header, **header}}
    same = compared(measured(**changes))
    finding = of(same, "candidates", "candidates")
    assert finding.outcome == "cannot tell" and said in finding.why
    assert of(same, "accuracy", "mnn All").outcome == "ok"
    less = compared(measured({"mnn": row(moved(-0.05), 2.0)}, **changes))
    assert of(less, "accuracy", "mnn All").outcome == "FAIL" and not less.passes()
    little = compared(measured({"mnn": row(moved(-0.001), 2.0)}, **changes))
    assert of(little, "accuracy", "mnn All").outcome == "ok"


def test_the_same_data_set_in_another_place_is_the_same() -> None:
    assert compared(measured(seal="other")).passes(strict=True)


def test_a_row_that_is_skipped_here_cannot_tell_and_one_that_failed_fails() -> None:
    rest = {name: each for name, each in measured().rows.items() if name != "mnn"}
    skipped = compared(replace(measured(), rows=rest, skipped={"mnn": "no weights"}))
    finding = of(skipped, "row", "mnn")
    assert finding.outcome == "cannot tell" and "it cannot run here: no weights" in finding.text
    assert others(skipped, finding) == {"ok"}
    failed = compared(replace(measured(), rows=rest, failed={"mnn": "out of memory"}))
    assert of(failed, "row", "mnn").text == "mnn: failed; out of memory" and not failed.passes()
    absent = of(compared(replace(measured(), rows=rest)), "row", "mnn")
    assert absent.outcome == "cannot tell" and absent.why == "the run has no such row"


def test_a_row_that_failed_fails_also_on_other_candidates() -> None:
    rest = {name: each for name, each in measured().rows.items() if name != "mnn"}
    assert not compared(replace(measured(), rows=rest, failed={"mnn": "out of memory"}, lists="l2")).passes()


def test_a_new_row_is_noted() -> None:
    checked = compared(measured({"new": row()}))
    assert checked.passes(strict=True) and "Not in the baseline, and not compared: new." in checked.notes


@pytest.mark.parametrize("change", [{"options": {"descriptors": 200}}, {"features": "sift"}])
def test_other_settings_than_the_baselines_fail(change: dict[str, Any]) -> None:
    now = measured({"mnn": row(time=2.0, **change)})
    assert of(compared(now), "settings", "mnn").outcome == "FAIL"
    assert compared(now, limits=TURNS).passes(strict=True)  # two versions of the code may have other defaults


def test_a_tie_that_does_not_keep_the_first_stages_order_fails() -> None:
    now = measured({"constant": row(moved(0.01), None, weights="")})
    finding = of(compared(now, now), "ties", "ties")
    assert finding.outcome == "FAIL" and "constant differs from identity" in finding.text


# --- latency -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "limits", "outcome"),
    [
        (2.0 * 3.9, KEPT, "ok"),
        (2.0 * 4.1, KEPT, "FAIL"),
        (2.0 / 3.9, KEPT, "ok"),
        (2.0 / 4.1, KEPT, "FAIL"),  # or the reference has become slower
        (2.0 * 1.4, TURNS, "ok"),
        (2.0 * 1.6, TURNS, "FAIL"),
        (2.0 / 4.1, TURNS, "ok"),
    ],
)
def test_a_ratio_beyond_its_bound_fails(time: float, limits: Limits, outcome: str) -> None:
    checked = compared(measured({"mnn": row(time=time)}), limits=limits)
    finding = of(checked, "latency", "mnn")
    assert finding.outcome == outcome and "x ransac's" in finding.text
    assert others(checked, finding) == {"ok"}


def test_a_machine_that_is_slower_throughout_changes_no_ratio() -> None:
    rows = {"mnn": row(time=200.0), "ransac": row(time=400.0), "rrt": row(time=800.0)}
    assert compared(measured(rows), limits=TURNS).passes(strict=True)


@pytest.mark.parametrize("side", ["now", "before"])
def test_times_measured_beside_other_programs_cannot_tell(side: str) -> None:
    said = "other programs kept 0.9 of 2 cores busy"
    slow = measured({"mnn": row(time=99.0)}, disturbed=said if side == "now" else "")
    checked = compared(slow, measured(disturbed=said if side == "before" else ""))
    latency = [each for each in checked.findings if each.kind == "latency"]
    assert {each.outcome for each in latency} == {"cannot tell"} and all(said in each.why for each in latency)
    assert others(checked, latency[0]) == {"ok", "cannot tell"} and checked.passes()


@pytest.mark.parametrize(
    ("hardware", "kept", "turns"),
    [
        ({"gpu": "H100", "device": "cuda"}, "cannot tell", "cannot tell"),
        ({"cpu": "Intel"}, "FAIL", "cannot tell"),
    ],
)
def test_ratios_of_other_machines(hardware: dict[str, str], kept: str, turns: str) -> None:
    now = measured({"mnn": row(time=99.0)}, hardware={**measured().hardware, **hardware})
    assert of(compared(now, limits=KEPT), "latency", "mnn").outcome == kept
    assert of(compared(now, limits=TURNS), "latency", "mnn").outcome == turns


def turns(*times: float) -> list[Measured]:
    return [measured({"mnn": row(time=time)}) for time in times]


@pytest.mark.parametrize(
    ("now", "outcome", "factor"),
    [((2.0, 9.0, 2.2), "ok", "1.10 of 3, 1.00 to 4.50"), ((4.0, 2.0, 4.4), "FAIL", "2.00 of 3, 1.00 to 2.20")],
)
def test_the_median_of_several_turns_decides(now: tuple[float, ...], outcome: str, factor: str) -> None:
    checked = check.compare(turns(*now), turns(2.0, 2.0, 2.0), TURNS, ("now", "before"), "ransac")
    finding = of(checked, "latency", "mnn")
    assert finding.outcome == outcome and f"factor {factor}, bound 1.5" in finding.text


def test_turns_beside_other_programs_are_left_out() -> None:
    now, before = turns(2.0, 9.0, 9.0), turns(2.0, 2.0, 2.0)
    busy = [now[0], *(replace(each, disturbed="other programs kept 2.0 of 2 cores busy") for each in now[1:])]
    finding = of(check.compare(busy, before, TURNS, ("now", "before"), "ransac"), "latency", "mnn")
    assert finding.outcome == "ok" and "factor 1.00 of 1, " in finding.text
    assert of(check.compare(now, before, TURNS, ("now", "before"), "ransac"), "latency", "mnn").outcome == "FAIL"


def test_times_are_relative_to_a_row_whose_code_is_the_same() -> None:
    before = measured()
    assert check.reference_of([before]) == "ransac"  # of the middle time
    now = measured({"ransac": row(time=4.0, code="s2")})
    assert check.reference_of([before, now]) == "mnn"
    assert check.reference_of([before, now], "rrt") == "rrt"
    assert check.reference_of([replace(before, rows={"mnn": row(), "identity": row(time=None)})]) is None


def test_one_method_alone_has_no_ratio_and_that_is_said() -> None:
    alone = replace(measured(), rows={name: measured().rows[name] for name in ("identity", "mnn")})
    checked = compared(alone, alone)
    assert {each.kind for each in checked.findings} == {"candidates", "accuracy"}
    assert any("a ratio needs two methods" in note for note in checked.notes)


def test_a_reference_that_is_not_timed_is_refused() -> None:
    with pytest.raises(UserError, match="--reference identity: not a method that is timed in every run"):
        check.compare([measured()], [measured()], TURNS, ("now", "before"), "identity")


@pytest.mark.parametrize(
    ("tolerance", "ratio", "option"),
    [(-1, 2, "--tolerance"), (float("nan"), 2, "--tolerance"), (1, 1, "--ratio-bound")],
)
def test_limits_out_of_range_are_refused(tolerance: float, ratio: float, option: str) -> None:
    with pytest.raises(UserError, match=option):
        Limits(tolerance, ratio, kept=True)


# --- the command ---------------------------------------------------------------------------------------------------

ROWS = "identity,constant,ransac,mnn,reverse"


def quiet(folder: Path, **more: Any) -> None:
    """What is said in the run's record, as no test can tell how busy its machine is."""
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "others_busy": 0.0, **more}))


def scored(folder: Path, method: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = folder / "scores.parquet"
    table = pd.read_parquet(path)
    chosen = table.method == method
    table.loc[chosen] = change(table[chosen])
    table.to_parquet(path, index=False)


def reversed_of(query: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(score=rows.score.where(rows["query"] != query, -rows.score))

    return change


def timed(folder: Path, **ms: float) -> None:
    """Milliseconds a pair."""
    table = pd.read_parquet(folder / "ledger.parquet")
    for method, time in ms.items():
        table.loc[table.method == method, "score_ms"] = time * table.pairs
    table.to_parquet(folder / "ledger.parquet", index=False)


@pytest.fixture
def folder(finished: Callable[..., Run], instances: Path) -> Path:
    """Of a run whose times are round numbers."""
    found = finished(instances, ROWS, top_k=8)
    quiet(found.folder)
    timed(found.folder, ransac=4.0, mnn=2.0)
    return found.folder


@pytest.fixture
def checked(folder: Path, places: Places, tmp_path: Path) -> Callable[..., Result]:
    """`check` on the command line, with a baseline written from a finished run."""

    def go(*more: str) -> Result:
        result = CliRunner().invoke(
            main, ["check", "--baseline", str(tmp_path / "baseline.json"), "--runs", str(places.runs), *more]
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    written = go("--write", "--reference", "ransac")
    assert written.exit_code == 0, written.output
    return go


def failing(result: Result) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith("FAIL")]


def test_a_run_passes_against_its_own_baseline(checked: Callable[..., Result]) -> None:
    result = checked("--strict")
    assert result.exit_code == 0, result.output
    assert not failing(result) and "constant equals identity" in result.output
    assert result.output.rstrip().endswith("8 ok, 0 failed, 0 cannot be told")


def test_a_baseline_has_a_line_a_row_and_no_place_of_this_machine(
    checked: Callable[..., Result], tmp_path: Path, instances: Path
) -> None:
    text = (tmp_path / "baseline.json").read_text()
    content = json.loads(text)
    assert content["format"] == 2 and set(content["rows"]) == set(ROWS.split(","))
    assert sum(line.startswith(' "') for line in text.splitlines()) == len(content["rows"])
    assert str(instances.parent) not in text and str(Path.home()) not in text
    assert content["rows"]["mnn"]["time"] == 0.5 and content["rows"]["ransac"]["time"] == 1.0
    assert content["rows"]["reverse"]["time"] is None  # controls are no contenders


def test_the_baseline_of_the_demo_has_the_rows_of_the_demo() -> None:
    rows = re.search(r"^METHODS := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    kept = check.read_baseline(REPOSITORY / "results" / "baseline" / "demo.json")
    assert rows is not None and set(kept.measured.rows) == set(rows[1].split(","))
    assert compared(kept.measured, kept.measured).passes(strict=True)


def test_a_changed_baseline_accuracy_fails_and_names_the_query(checked: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    content = json.loads(path.read_text())
    content["rows"]["ransac"]["accuracy"]["All"][content["queries"].index("object1/view2")] -= 0.5
    path.write_text(json.dumps(content))
    result = checked()
    assert result.exit_code == 1
    (line,) = failing(result)
    assert "ransac All" in line and "object1/view2" in line and "+5.56" in line


def test_tampered_scores_fail_and_name_the_query(checked: Callable[..., Result], folder: Path) -> None:
    scored(folder, "ransac", reversed_of("object2/view0"))
    result = checked()
    (line,) = failing(result)
    assert result.exit_code == 1 and "ransac All" in line and "object2/view0" in line


def test_constant_unlike_identity_fails(checked: Callable[..., Result], folder: Path) -> None:
    reverse = pd.read_parquet(folder / "scores.parquet").query("method == 'reverse'")["score"].to_numpy()
    scored(folder, "constant", lambda rows: rows.assign(score=reverse))
    assert "constant differs from identity" in checked().output


def test_relative_times_beyond_the_bound_fail(checked: Callable[..., Result], folder: Path) -> None:
    timed(folder, mnn=9.0)
    (line,) = failing(checked())
    assert line.startswith("FAIL  mnn: ms per pair is 2.25 x ransac's, baseline 0.5 (factor 4.50, bound 4)")
    assert checked("--ratio-bound", "5").exit_code == 0


def test_what_cannot_be_told_fails_where_that_is_asked_for(checked: Callable[..., Result], folder: Path) -> None:
    quiet(folder, others_busy=64.0 * 1024)
    result = checked()
    assert result.exit_code == 0 and "cannot tell  mnn: ms per pair" in result.output
    assert "other programs kept" in result.output and checked("--strict").exit_code == 1


def test_a_baseline_measured_beside_other_programs_says_so(checked: Callable[..., Result], folder: Path) -> None:
    quiet(folder, others_busy=64.0 * 1024)
    assert "no check can tell times; measure again on a quiet machine" in checked("--write").output
    quiet(folder)
    assert "during the baseline" in checked().output


def test_tolerances_that_a_user_set_outlive_a_new_baseline(checked: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tolerance": 1.5, "ratio_bound": 2.0}))
    assert checked("--write").exit_code == 0
    assert (check.read_baseline(path).tolerance, check.read_baseline(path).ratio_bound) == (1.5, 2.0)


@pytest.mark.parametrize(
    "change",
    [
        {"format": None},
        {"seal": 1},
        {"tolerance": -1},
        {"ratio_bound": 1},
        {"reference": "no such row"},
        {"queries": []},
        {"queries": ["a", "a"]},
        {"queries": ["a"]},
        {"rows": {}},
        {"rows": []},
        {"header": {}},
    ],
)
def test_a_damaged_baseline_is_refused(checked: Callable[..., Result], tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "baseline.json"
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    result = checked()
    assert result.exit_code == 1 and "not a baseline" in result.output and "--write" in result.output


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json", '{"identity": {}}', '{"format": 2}'])
def test_what_is_not_a_baseline_is_refused(checked: Callable[..., Result], tmp_path: Path, content: str) -> None:
    (tmp_path / "baseline.json").write_text(content)
    result = checked()
    assert result.exit_code == 1 and "not a baseline" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("content", ['{"identity": {}, "accuracy": {}, "relative_times": {}}', '{"format": 3}'])
def test_a_baseline_of_another_format_says_how_to_write_it_anew(
    checked: Callable[..., Result], tmp_path: Path, content: str
) -> None:
    (tmp_path / "baseline.json").write_text(content)
    result = checked()
    assert result.exit_code == 1 and "expected 2" in result.output and "--write" in result.output


def test_a_baseline_without_a_run_says_which_run_is_missing(checked: Callable[..., Result], places: Places) -> None:
    shutil.rmtree(places.runs)
    result = checked()
    assert result.exit_code == 1 and "no finished run to check" in result.output and "--top-k 8" in result.output


def test_the_baseline_of_other_options_fails(checked: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    content = json.loads(path.read_text())
    content["rows"]["ransac"]["options"]["threshold"] = 3.0
    path.write_text(json.dumps(content))
    (line,) = failing(checked())
    assert "options {'threshold': 8.0}, baseline {'threshold': 3.0}" in line
    assert check.read_baseline(path).reference == "ransac"


def test_a_run_of_other_candidates_that_is_named_cannot_tell(
    checked: Callable[..., Result], run: Go, instances: Path, places: Places
) -> None:
    run(instances, ROWS, top_k=5)
    newest = finished_runs(places.runs)[-1].folder
    result = checked("--run", str(newest))
    assert result.exit_code == 0 and "another seal: k 5, baseline 8" in result.output
    assert "another seal" not in checked().output  # of the runs there, the one that fits is taken


def test_summary_and_junit_are_written_together_and_the_lines_stay(
    checked: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    scored(folder, "ransac", reversed_of("object2/view0"))
    summary, junit = tmp_path / "new" / "summary.md", tmp_path / "new" / "junit.xml"
    result = checked("--summary", str(summary), "--junit", str(junit))
    assert result.exit_code == 1 and result.output.startswith("FAIL")
    assert summary.read_text().startswith("Regression: 1 of 8 checks failed, of accuracy.\n")
    assert "object2/view0" in summary.read_text()
    suite = ElementTree.parse(junit).getroot()[0]
    assert suite.attrib["tests"] == "8" and suite.attrib["failures"] == "1" and len(suite) == 8


def test_a_summary_that_cannot_be_written_is_a_message(checked: Callable[..., Result], tmp_path: Path) -> None:
    result = checked("--summary", str(tmp_path / "baseline.json" / "summary.md"))
    assert result.exit_code == 1 and "cannot write" in result.output


# --- two versions of the code --------------------------------------------------------------------------------------


@pytest.fixture
def versions(finished: Callable[..., Run], instances: Path, tmp_path: Path) -> Callable[..., Result]:
    """`check --base … --head …` of two turns; their folders are `base-1`, `head-1`, … below `tmp_path`."""
    for turn in ("base-1", "head-1", "base-2", "head-2"):
        found = finished(instances, ROWS, tmp_path / turn, top_k=8)
        quiet(found.folder)
        timed(found.folder, ransac=4.0, mnn=2.0)

    def go(*more: str) -> Result:
        turns = ["--base", "base-1", "--head", "head-1", "--base", "base-2", "--head", "head-2"]
        named = [word if word.startswith("--") else str(tmp_path / word) for word in turns]
        return CliRunner().invoke(main, ["check", *named, *more])

    return go


def of_turn(tmp_path: Path, turn: str) -> Path:
    (found,) = finished_runs(tmp_path / turn)
    return found.folder


def test_two_versions_with_the_same_numbers_pass(versions: Callable[..., Result]) -> None:
    result = versions("--strict")
    assert result.exit_code == 0, result.output
    assert "ms per pair is" in result.output and "of 2, 1.00 to 1.00, bound 1.5" in result.output


def test_a_version_that_ranks_otherwise_or_takes_longer_fails(versions: Callable[..., Result], tmp_path: Path) -> None:
    for turn in ("head-1", "head-2"):
        scored(of_turn(tmp_path, turn), "ransac", reversed_of("object2/view0"))
        timed(of_turn(tmp_path, turn), mnn=4.0)
    result = versions("--reference", "ransac")
    assert result.exit_code == 1
    accuracy, latency = sorted(failing(result), key=lambda line: "ms per pair" in line)
    assert "ransac All" in accuracy and "query object2/view0" in accuracy
    assert "mnn: ms per pair is 1 x ransac's, base 0.5 (factor 2.00 of 2, 2.00 to 2.00, bound 1.5)" in latency


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected --baseline FILE, or --base RUN and --head RUN"),
        (["--baseline", "b.json", "--head", "h"], "expected --baseline FILE, or --base RUN and --head RUN"),
        (["--base", "b", "--head", "h", "--write"], "expected --baseline FILE, or --base RUN and --head RUN"),
        (["--base", "b", "--head", "h"], "b: no finished run there, expected one"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["check", *arguments])
    assert result.exit_code == 1 and said in result.output


def test_base_without_head_and_a_run_against_itself_are_refused(
    versions: Callable[..., Result], tmp_path: Path
) -> None:
    more = versions("--base", str(tmp_path / "base-1"))
    assert more.exit_code == 1 and "3 --base and 2 --head" in more.output
    twice = versions("--base", str(tmp_path / "base-1"), "--head", str(tmp_path / "base-1"))
    assert twice.exit_code == 1 and "is named twice" in twice.output


def test_a_folder_of_several_runs_names_them(
    versions: Callable[..., Result], run: Go, instances: Path, places: Places, tmp_path: Path
) -> None:
    run(instances, ROWS, where=replace(places, runs=tmp_path / "head-2"), top_k=5)
    result = versions()
    assert result.exit_code == 1 and "2 finished runs there, expected one" in result.output
    assert str(finished_runs(tmp_path / "head-2")[0].folder) in result.output


NOISY = """
def deterministic(self):
    return False

def score(self, query, candidates):
    return candidates.similarities + 1e-9 * torch.rand(len(candidates))
"""


def test_a_method_that_says_it_is_not_deterministic_is_tested(
    run: Go, instances: Path, places: Places, add_method: Callable[..., Path], tmp_path: Path
) -> None:
    add_method("noisy", NOISY, {"global"})
    for turn in ("base", "head"):
        run(instances, "noisy,mnn", where=replace(places, runs=tmp_path / turn), top_k=8)
    base, head = of_turn(tmp_path, "base"), of_turn(tmp_path, "head")
    cards = json.loads((base / "run.json").read_text())["cards"]
    assert (cards["noisy"]["deterministic"], cards["mnn"]["deterministic"]) == (False, True)
    scored(head, "noisy", reversed_of("object2/view0"))
    scored(head, "mnn", reversed_of("object2/view0"))
    result = CliRunner().invoke(main, ["check", "--base", str(base), "--head", str(head)])
    (line,) = failing(result)
    assert "mnn All" in line
    assert "tested for a method that is not deterministic" in result.output
