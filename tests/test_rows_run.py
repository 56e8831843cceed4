"""Rows of several feature sets in one run, on the command line: one seal, one table, and what is said of others."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result

from bench import registry
from bench.results import Run
from bench.trec import read_run

SMALL = ("--max-side", "160", "--keep-descriptors", "150", "--threads", "1")
FIRST = ("--first-stage", "gem-lite0")
Cli = Callable[..., Result]


@pytest.fixture
def go(cli: Cli, instances: Path) -> Callable[..., Run]:
    """`go("mnn,mnn@sift", …)`: the finished run of the command line on the instances."""

    def run(rows: str, *more: str) -> Run:
        done = cli("run", "-m", rows, "-d", f"folder:{instances}", "-k", "5", *SMALL, *more)
        assert done.exit_code == 0, done.output
        return Run.load(Path(re.findall(r"^run: (.*)$", done.output, re.MULTILINE)[0]))

    return run


@pytest.fixture
def refused(cli: Cli, instances: Path, tmp_path: Path) -> Callable[..., str]:
    """`refused("rrt@sift", …)`: what the command line says of a run that it refuses before any extraction."""

    def run(rows: str, *more: str) -> str:
        empty = tmp_path / "nothing extracted"
        where = ("-d", f"folder:{instances}", "-k", "5", *SMALL, "--cache-dir", str(empty))
        done = cli("run", "-m", rows, *where, *more)
        assert done.exit_code == 1 and not empty.exists(), done.output
        return " ".join(done.output.split())

    return run


def tables(cli: Cli, *more: str) -> list[dict]:
    """What `report` has, a table for each seal."""
    done = cli("report", "--format", "json", *more)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def scores_of(run: Run, row: str) -> pd.Series:
    found = run.scores[run.scores.method == row].set_index(["query", "candidate"])["score"].sort_index()
    assert len(found)
    return found


def shared(one: pd.Series, other: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The scores of the pairs that both runs scored, of which there are some but not all."""
    both = one.index.intersection(other.index)
    assert 20 < len(both) < len(one)
    return one.loc[both], other.loc[both]


# --- one table ----------------------------------------------------------------------------------------------------


def test_rows_of_three_feature_sets_stand_in_one_table_under_one_seal(go: Callable, cli: Cli) -> None:
    first = go("mnn,mnn@sift,ransac@sift,aqe,rrt,identity")
    assert not first.record.skipped and not first.record.failed
    second = go("ransac,maxsim@sift", "-f", "sift", "--first-stage", "sum:gem-lite0,asmk@xfeat*0.5")
    assert first.seal == second.seal
    (table,) = tables(cli)
    assert table["first_stage"] == "sum:gem-lite0,asmk@xfeat*0.5"
    assert {row["method"]: row["features"] for row in table["rows"]} == {
        "mnn": "xfeat",
        "mnn@sift": "sift",
        "ransac@sift": "sift",
        "maxsim@sift": "sift",
        "aqe": "gem-lite0",
        "rrt": "xfeat+gem-lite0",
        "identity": "",
    }


def test_tables_of_several_seals_are_one_csv_and_apart_on_a_terminal(go: Callable, cli: Cli) -> None:
    runs = [go("mnn,identity", *FIRST), go("identity,rrt")]
    assert runs[0].seal != runs[1].seal
    rows = pd.read_csv(io.StringIO(cli("report", "--format", "csv").stdout))
    assert rows.groupby("seal")["method"].agg(set).to_dict() == {run.seal: set(run.record.costs) for run in runs}
    assert rows["machine"].notna().all() and rows["mAP All"].notna().all()
    one = pd.read_csv(io.StringIO(cli("report", "--format", "csv", "--seal", runs[0].seal).stdout))
    assert len(one) == 2
    shown = cli("report").stdout.splitlines()
    (second,) = [number for number, line in enumerate(shown) if f"seal {runs[1].seal[:8]}" in line]
    assert "" in [line.strip() for line in shown[second - 4 : second - 1]]


def test_the_best_row_within_limits_is_said_above_the_table_and_in_its_files(go: Callable, cli: Cli) -> None:
    go("mnn,rrt,identity", *FIRST, "-o", "mnn.descriptors=10")
    (table,) = tables(cli, "--within", "kib=3")
    said = table["answer"].splitlines()[1]
    assert said.startswith("1 of 2 rows costs at most 3 KiB/image: mnn descriptors=10 reaches")
    assert len(tables(cli)[0]["answer"].splitlines()) == 1
    for form in ("terminal", "md", "latex"):
        assert said in " ".join(
            cli("report", "--within", "kib=3", "--format", form).stdout.replace("\n% ", "\n").split()
        )
    refused = cli("report", "--within", "kib=three")
    assert refused.exit_code == 1 and "--within ms=5,kib=10" in refused.output


def test_what_there_is_is_said_where_no_run_is_meant(go: Callable, cli: Cli) -> None:
    run = go("mnn,identity", *FIRST)
    for arguments in (["--seal", "nothing"], ["-d", "demo"]):
        said = cli("report", *arguments)
        assert said.exit_code == 1 and "no finished run of that kind" in said.output
        assert f"there are runs of {run.shortlist.header.dataset} (seal {run.seal[:8]})" in said.output
    for arguments in (["--cascade", "mnn,ransac:5"], ["--gate", "ransac:5,mnn"]):
        said = cli("report", *arguments)
        assert said.exit_code == 1 and f"rows are identity, mnn (seal {run.seal[:8]})" in " ".join(said.output.split())


def test_a_row_is_the_same_whatever_else_a_run_reads(go: Callable) -> None:
    runs = [go("mnn", *FIRST), go("mnn@xfeat,mnn@sift", "--first-stage", "asmk:descriptors=40@xfeat", "-f", "sift")]
    one, other = (run.record.identity.methods["mnn"] for run in runs)
    assert one == other and runs[0].seal != runs[1].seal
    pd.testing.assert_series_equal(*shared(*(scores_of(run, "mnn") for run in runs)), check_exact=True)
    on_sift = scores_of(runs[1], "mnn@sift")
    assert not on_sift.equals(scores_of(runs[1], "mnn"))


def test_a_transformer_reads_the_global_descriptor_of_its_own_set_whatever_the_first_stage(go: Callable) -> None:
    runs = [go("rrt", *FIRST), go("rrt", "--first-stage", "asmk@xfeat"), go("rrt", *FIRST, "-f", "sift")]
    assert len({run.record.identity.methods["rrt"].contents for run in runs}) == 1
    pd.testing.assert_series_equal(*shared(*(scores_of(run, "rrt") for run in runs[:2])), check_exact=True)
    pd.testing.assert_series_equal(scores_of(runs[0], "rrt"), scores_of(runs[2], "rrt"), check_exact=True)


def test_other_descriptors_of_one_name_are_another_row_under_the_same_seal(go: Callable, cli: Cli) -> None:
    many = go("mnn,aqe", *FIRST)
    few = go("mnn,aqe", *FIRST, "--keep-descriptors", "20")
    assert many.seal == few.seal and many.folder != few.folder
    methods = [run.record.identity.methods for run in (many, few)]
    assert methods[0]["aqe"] == methods[1]["aqe"] and methods[0]["mnn"].contents != methods[1]["mnn"].contents
    assert methods[0]["mnn"].features == methods[1]["mnn"].features == ("xfeat",)
    (table,) = tables(cli)
    used = {row["method"]: row["desc max"] for row in table["rows"]}
    told = {f"mnn [features {each['mnn'].contents[0][:8]}]" for each in methods}
    assert set(used) == {"aqe", *told} and len(told) == 2
    assert used[f"mnn [features {methods[1]['mnn'].contents[0][:8]}]"] == 20


def test_the_seal_does_not_change_with_the_rows(go: Callable) -> None:
    seals = {go(rows, *FIRST).seal for rows in ("identity", "mnn", "mnn@sift,aqe", "rrt")}
    assert len(seals) == 1


# --- rows that cannot run -----------------------------------------------------------------------------------------


def test_rows_that_cannot_run_are_said_and_the_others_run(go: Callable, cli: Cli) -> None:
    done = go("mnn@hloc,rrt@sift,ransac@gem-lite0,mnn@sift,identity", *FIRST)
    assert set(done.record.costs) == {"mnn@sift", "identity"}
    skipped = done.record.skipped
    assert set(skipped) == {"mnn@hloc", "rrt@sift", "ransac@gem-lite0"}
    assert "9 images have not been imported" in skipped["mnn@hloc"]
    assert "features import hloc PLACE --dataset folder:" in skipped["mnn@hloc"]
    assert skipped["rrt@sift"].startswith("the shipped weights read xfeat and gem-lite0 descriptors, not sift")
    assert skipped["ransac@gem-lite0"] == "it reads local descriptors, and the feature set has none"
    (table,) = tables(cli)
    for row, reason in skipped.items():
        assert f"{row} did not run: {reason}" in table["notes"]


def test_only_rows_that_cannot_run_are_an_error_before_anything_is_extracted(refused: Callable) -> None:
    said = refused("rrt@sift,mnn@gem-lite0")
    assert "no requested method can run here" in said
    assert "rrt@sift: the shipped weights read" in said and "mnn@gem-lite0: it reads local descriptors" in said


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ("mnn,mnn@sfit", (), "unknown feature set 'sfit' hint: did you mean 'sift'?"),
        ("mmn@sift", (), "unknown method 'mmn' hint: did you mean 'mnn'?"),
        ("mnn@", (), "--method mnn@: expected METHOD or METHOD@FEATURES hint: for example ransac@sift"),
        ("mnn@sift+xfeat", (), "--method mnn@sift+xfeat: 'xfeat' gives no global descriptors (expected LOCAL+"),
        ("mnn@superpoint", (), "--method mnn@superpoint: superpoint needs weights"),
        ("mnn", ("-f", "sfit"), "unknown feature set 'sfit' hint: did you mean 'sift'?"),
        ("mnn", ("-o", "mnn@sift.descriptors=20"), "-o mnn@sift.…: 'mnn@sift' is not part of this run hint: running"),
        ("mnn@sift", ("-o", "mnn@sift.descriptor=20"), "unknown option of mnn 'descriptor' hint: did you mean"),
        (
            "cascade",
            ("-o", "cascade.stages=mnn,ransac@sfit:3"),
            "unknown feature set 'sfit' hint: did you mean 'sift'?",
        ),
    ],
)
def test_features_that_are_none_are_refused_with_a_suggestion(
    refused: Callable, rows: str, more: tuple, said: str
) -> None:
    assert said in refused(rows, *more)


# --- options, sweeps ----------------------------------------------------------------------------------------------


def test_an_option_is_of_a_method_or_of_one_of_its_rows(go: Callable) -> None:
    options = ("-o", "mnn@sift.descriptors=20", "-o", "mnn.descriptors=30")
    costs = go("mnn,mnn@sift", *FIRST, *options).record.costs
    assert (costs["mnn"].descriptors_max, costs["mnn@sift"].descriptors_max) == (30, 20)
    costs = go("mnn,mnn@sift", *FIRST, *options[:2]).record.costs
    assert costs["mnn"].descriptors_max == 150 and costs["mnn@sift"].descriptors_max == 20


def test_a_sweep_takes_rows_on_features_of_their_own(cli: Cli, instances: Path, tmp_path: Path) -> None:
    where = ("-d", f"folder:{instances}", "-k", "5", *SMALL, *FIRST, "--out", str(tmp_path / "out"))
    done = cli("sweep", "-m", "mnn,mnn@sift", "--descriptors", "10,40", *where)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "out" / "sweep.csv").set_index("method")
    assert table["desc max"].to_dict() == {
        f"{row} descriptors={budget}": budget for row in ("mnn", "mnn@sift") for budget in (10, 40)
    }
    assert table["features"].tolist() == ["xfeat", "xfeat", "sift", "sift"]
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 5000


def test_an_option_of_one_row_can_be_varied(cli: Cli, instances: Path, tmp_path: Path) -> None:
    where = ("-d", f"folder:{instances}", "-k", "5", *SMALL, *FIRST, "--out", str(tmp_path / "out"))
    done = cli("sweep", "-m", "ransac,ransac@sift", "--vary", "ransac@sift.seed=0,1,2", *where)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "out" / "sweep.csv")
    # the row that is not varied is run once
    assert sorted(table["method"]) == ["ransac seed=0", *(f"ransac@sift seed={seed}" for seed in range(3))]
    assert "ransac@sift, 3 seeds, mAP All: mean" in " ".join(done.output.split())


# --- baselines, exports, listings ---------------------------------------------------------------------------------


def test_a_baseline_holds_rows_and_what_they_read(go: Callable, cli: Cli, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    go("mnn,mnn@sift,identity,constant", *FIRST)
    assert cli("check", "--baseline", str(baseline), "--write").exit_code == 0
    kept = json.loads(baseline.read_text())
    features = {name: row["features"] for name, row in kept["rows"].items()}
    assert features == {"mnn": "xfeat", "mnn@sift": "sift", "identity": "", "constant": ""}
    again = cli("check", "--baseline", str(baseline))
    assert again.exit_code == 0 and "mnn@sift All: mAP changed by +0.00 points" in again.output
    kept["rows"]["mnn@sift"]["features"] = "xfeat"
    baseline.write_text(json.dumps(kept))
    found = cli("check", "--baseline", str(baseline))
    assert found.exit_code == 1 and "FAIL  mnn@sift: reads sift, in the baseline xfeat" in found.output
    assert [line for line in found.output.splitlines() if line.startswith("FAIL")] == [
        "FAIL  mnn@sift: reads sift, in the baseline xfeat"
    ]


def test_a_baseline_without_its_row_names_the_command_with_it(go: Callable, cli: Cli, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    go("mnn@sift,aqe", *FIRST)
    assert cli("check", "--baseline", str(baseline), "--write").exit_code == 0
    kept = json.loads(baseline.read_text())
    kept["rows"]["mnn"] = kept["rows"]["mnn@sift"]
    baseline.write_text(json.dumps(kept))
    found = cli("check", "--baseline", str(baseline))
    assert found.exit_code == 1 and "no finished run to check" in found.output
    (method,) = re.findall(r"--method (\S+)", " ".join(found.output.split()))
    assert set(method.split(",")) == {"aqe", "mnn", "mnn@sift"} and "--first-stage gem-lite0" in found.output


def test_an_export_has_a_file_for_every_row(go: Callable, cli: Cli, tmp_path: Path) -> None:
    run = go("mnn,mnn@sift,rrt,identity", *FIRST)
    assert cli("export", "--out", str(tmp_path / "trec")).exit_code == 0
    names = {"first-stage", "mnn", "mnn-sift", "rrt", "identity"}
    assert {path.name for path in (tmp_path / "trec").iterdir()} == {
        "All.qrels",
        *(f"{name}.All.run" for name in names),
    }
    for row, name in (("mnn", "mnn"), ("mnn@sift", "mnn-sift")):
        written = read_run(tmp_path / "trec" / f"{name}.All.run")
        for query, images in written.items():
            best = scores_of(run, row).loc[query]
            assert best.loc[[image for image, _ in images]].is_monotonic_decreasing
    assert cli("export", "--format", "csv", "--out", str(tmp_path / "csv")).exit_code == 0
    assert set(pd.read_csv(tmp_path / "csv" / "scores.csv")["method"]) == {"mnn", "mnn@sift", "rrt", "identity"}


@pytest.mark.parametrize(
    ("features", "reads"),
    [
        (
            "xfeat",
            {"mnn": "xfeat", "aqe": "gem-lite0", "rrt": "xfeat+gem-lite0", "cascade": "xfeat+gem-lite0, xfeat"},
        ),
        ("sift", {"mnn": "sift", "aqe": "gem-lite0", "rrt": "xfeat+gem-lite0", "asmk": "xfeat", "ransac": "sift"}),
        ("gem-lite0", {"aqe": "gem-lite0", "rrt": "xfeat+gem-lite0", "lightglue": "xfeat"}),
    ],
)
def test_the_list_of_methods_says_what_each_would_read(cli: Cli, features: str, reads: dict[str, str]) -> None:
    listing = cli("methods", "--features", features)
    assert listing.exit_code == 0
    lines = {line.split()[0].rstrip("*"): line.rstrip() for line in listing.output.splitlines() if line.split()}
    for method in registry.names():
        assert method in lines
    for method, names in reads.items():
        assert lines[method].endswith(f"ready, reads {names}"), lines[method]
    assert lines["identity"].endswith("ready")
    if features == "gem-lite0":
        said = " ".join(listing.output[listing.output.index(" mnn ") :].split())
        assert "it reads local descriptors, and the" in said and "feature set has none" in said  # on two lines


def test_a_replay_finds_its_rows_by_any_features_they_read(go: Callable, cli: Cli) -> None:
    go("rrt,ransac@sift,cascade", *FIRST, "-o", "cascade.stages=rrt,ransac@sift:3")
    for stages in ("rrt,ransac@sift:3", "rrt@xfeat,ransac@sift+gem-lite0:3"):
        (table,) = tables(cli, "--cascade", stages)
        values = {row["method"]: row["mAP All"] for row in table["rows"]}
        (run,) = (value for name, value in values.items() if name.startswith("cascade stages="))
        assert values[f"cascade (replayed) stages={stages}"] == run
    missing = cli("report", "--cascade", "rrt@sift,ransac@sift:3")
    assert missing.exit_code == 1 and "no finished run above has all of its methods" in missing.output
