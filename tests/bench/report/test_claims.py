"""Published numbers beside ours: when a claim is reproduced or cannot be compared, and what the shipped file says."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from bench.datasets import catalogue
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE
from bench.files import write_json
from bench.metrics import measures
from bench.places import PROJECT
from bench.record import write_record
from bench.report.claims import (
    IMPORTED,
    SHIPPED,
    Claim,
    Grade,
    Listing,
    Ours,
    commands,
    floors,
    judge,
    listing,
    ours_of,
    read_claims,
    to_markdown,
)
from bench.results import Run
from tests.test_readme import commands as typed
from tests.test_readme import parsed, require_names

MEDIUM = ("mAP", "Medium")
CLAIM = Claim(
    paper="A paper",
    table="Table 1",
    grade="repository",
    dataset="roxford",
    policy="paper",
    k=100,
    first_stage="delg",
    model="R50",
    method="rrt",
    features="delg",
    descriptors=500,
    measure="mAP",
    difficulty="Medium",
    percent=60.0,
    other_images="faces blurred",
)
ALONE = replace(CLAIM, method="identity", features="", policy="any", k=None, descriptors=None, percent=50.0)
FILE = """
[[table]]
paper = "A paper"
table = "Table 1"
grade = "secondary"
policy = "paper"
k = 8
first_stage = "gem-lite0"
model = "any"
features = "xfeat"
columns = ["roxford mAP Medium", "roxford mAP Hard"]
rows = [{ method = "ransac", percent = [1.0, 2.5] }, { method = "mnn", k = 4, percent = [3, 4] }]
"""


def of_queries(percent: float, spread: float = 0.0) -> pd.Series:
    """Ten values, in [0, 1], of that mean and half of them that far on either side of it."""
    return pd.Series({f"q{i}": (percent + (spread if i % 2 else -spread)) / 100 for i in range(10)})


def row(percent: float = 60.0, spread: float = 0.0, floor: float = 50.0, **other: Any) -> Ours:
    """A row that was measured as CLAIM was."""
    given: dict[str, Any] = {
        "method": "rrt",
        "dataset": "roxford",
        "image_set": "as found",
        "first_stage": "delg",
        "policy": "paper",
        "k": 100,
        "features": ("delg",),
        "descriptors": 500,
    }
    return Ours(**{**given, **other}, values={MEDIUM: of_queries(percent, spread)}, floor={MEDIUM: floor})


@pytest.mark.parametrize(
    ("percent", "spread", "said"),
    [
        (60.0, 0, "reproduced"),
        (60.5, 0, "reproduced"),
        (59.5, 0, "reproduced"),
        (60.6, 0, "not reproduced"),
        (59.4, 0, "not reproduced"),
        (62.0, 20, "within interval"),
        (58.0, 20, "within interval"),
        (62.0, 1, "not reproduced"),
    ],
)
def test_a_claim_holds_within_half_a_point_or_may_within_our_interval(percent: float, spread: float, said: str) -> None:
    found = judge(CLAIM, row(percent, spread), {})
    assert (found.said, found.why) == (said, "")
    assert found.ours == pytest.approx(percent) and found.difference == pytest.approx(percent - 60)
    assert found.interval.low <= found.ours + 1e-9 and found.ours <= found.interval.high + 1e-9


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_our_interval_is_of_the_mean_and_inside_of_the_values(values: list[float]) -> None:
    of_query = pd.Series(values, [f"q{i}" for i in range(len(values))])
    found = judge(CLAIM, replace(row(), values={MEDIUM: of_query}), {})
    assert found.ours == pytest.approx(100 * of_query.mean())
    assert 100 * min(values) - 1e-6 <= found.interval.low <= found.interval.high <= 100 * max(values) + 1e-6


def test_queries_without_positives_are_in_no_mean() -> None:
    values = pd.concat([of_queries(60), pd.Series({"none": float("nan")})])
    found = judge(CLAIM, replace(row(), values={MEDIUM: values}), {})
    assert (found.ours, found.said) == (pytest.approx(60), "reproduced")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"dataset": "rparis"}, "data set rparis, there roxford"),
        ({"image_set": "faces blurred (archives)"}, "image set faces blurred (archives), there another"),
        ({"first_stage": "gem-lite0"}, "first stage gem-lite0, there delg"),
        ({"features": ("xfeat", "delg")}, "features xfeat+delg, there delg"),
        ({"features": ()}, "features none, there delg"),
        ({"policy": "blind"}, "policy blind, there paper"),
        ({"k": 50}, "k 50, there 100"),
        ({"descriptors": 1000}, "descriptors 1000, there 500"),
        ({"blend": "add:1"}, "blend add:1, there replace"),
    ],
)
def test_another_condition_makes_a_row_no_test_of_a_claim(other: dict[str, Any], why: str) -> None:
    found = judge(CLAIM, row(**other), {})
    assert (found.said, found.why) == ("not comparable", why)
    both = judge(CLAIM, row(**{"k": 7, "policy": "blind", **other}), {})
    assert "; " in both.why and all(what in both.why for what in ("blind", why.split(",")[0].split()[0]))


def test_options_of_a_claim_must_be_those_of_the_row() -> None:
    claim = replace(CLAIM, options={"preset": "delg"})
    assert judge(claim, row(options={"preset": "delg", "seed": 3}), {}).said == "reproduced"
    assert judge(claim, row(options={"preset": "none"}), {}).why == "preset none, there delg"


def test_a_claim_on_blended_scores_is_compared_with_scores_blended_so() -> None:
    claim = replace(CLAIM, blend="sigmoid:0.5,0.2")
    assert judge(claim, row(blend="sigmoid:0.5,0.2"), {}).said == "reproduced"
    assert judge(claim, row(), {}).why == "blend replace, there sigmoid:0.5,0.2"


def test_no_row_is_compared_with_a_claim_whose_source_does_not_say_all() -> None:
    claim = replace(CLAIM, k=None, unsaid=("k", "backbone"))
    for ours in (row(), row(k=7)):
        found = judge(claim, ours, {})
        assert (found.said, found.why) == ("not comparable", "k not said there; backbone not said there")


def test_features_are_of_a_name_whatever_their_weights() -> None:
    claim = replace(CLAIM, features="superpoint")
    assert judge(claim, row(features=("superpoint-0123abcd",)), {}).said == "reproduced"
    assert judge(claim, row(features=("superpoint-320-0123abcd",)), {}).said == "not comparable"


def test_a_first_stage_alone_depends_on_neither_policy_nor_k() -> None:
    ours = row(50.0, method="identity", policy="blind", k=7, features=(), descriptors=0)
    assert judge(ALONE, ours, floors([ALONE])).said == "reproduced"


def test_the_model_of_imported_features_is_told_by_what_their_first_stage_reaches() -> None:
    known = floors([ALONE, replace(ALONE, model="R101", percent=55.0)])
    assert judge(CLAIM, row(floor=50.5), known).said == "reproduced"
    other = judge(CLAIM, row(floor=54.8), known)
    assert (other.said, other.why) == (
        "not comparable",
        "features nearer to those of R101: the first stage reaches 54.8 mAP Medium, there 50.0",
    )
    neither = judge(CLAIM, row(floor=51), known)
    assert (neither.said, neither.why) == (
        "not comparable",
        "features: the first stage reaches 51.0 mAP Medium, there 50.0",
    )
    assert judge(replace(CLAIM, model="R101"), row(floor=54.8), known).said == "reproduced"
    assert judge(replace(CLAIM, model="not known"), row(floor=54.8), known).said == "reproduced"


def test_of_two_models_that_reach_nearly_the_same_the_nearest_is_compared() -> None:
    known = floors([ALONE, replace(ALONE, model="R101", percent=50.4), replace(ALONE, model="older", percent=50.01)])
    said = {
        model: judge(replace(CLAIM, model=model), row(floor=50.0), known).said for model in ("R50", "R101", "older")
    }
    assert said == {"R50": "reproduced", "R101": "not comparable", "older": "reproduced"}


def test_a_first_stage_is_compared_with_the_model_nearest_to_it() -> None:
    other = replace(ALONE, model="R101", percent=55.0)
    known, ours = floors([ALONE, other]), row(53.5, floor=53.5, method="identity")
    assert judge(other, ours, known).said == "not reproduced"
    assert judge(ALONE, ours, known).why.startswith("features nearer to those of R101: ")


def test_of_several_rows_the_one_that_differs_least_stands_and_of_equal_ones_the_last() -> None:
    rows = [row(10, k=50), row(20), row(30), row(40, policy="blind")]
    (found,) = listing([CLAIM], rows).judged
    assert found.ours == pytest.approx(30)


def test_claims_that_no_row_comes_near_are_counted() -> None:
    claims = [CLAIM, replace(CLAIM, dataset="rparis"), replace(CLAIM, method="ames"), replace(CLAIM, measure="mP@1")]
    found = listing(claims, [row()])
    assert [one.claim for one in found.judged] == [CLAIM] and found.left_out == 3
    assert found.note == "Not listed: 3 claims on data sets or methods that no finished run has."


def test_another_first_stage_alone_is_another_method() -> None:
    alone = row(50, method="identity", features=(), first_stage="gem-lite0")
    assert listing([ALONE, CLAIM], [alone, row(first_stage="gem-lite0")]).left_out == 1
    (found,) = listing([ALONE], [alone, replace(alone, first_stage="delg")]).judged
    assert found.said == "reproduced"


@pytest.mark.parametrize("rows", [[], [row(dataset="folder:/photos/roxford")], [row(dataset="demo")]])
def test_all_claims_are_listed_where_no_row_comes_near_as_subsets_never_do(rows: Sequence[Ours]) -> None:
    found = listing([CLAIM, ALONE], rows)
    assert [(one.claim, one.said) for one in found.judged] == [(CLAIM, "no run"), (ALONE, "no run")]
    assert "Subsets of a data set are not compared" in found.note


def test_a_claim_is_named_by_method_variant_features_and_first_stage() -> None:
    assert replace(CLAIM, variant="frozen").name == "rrt (frozen) on delg 500, delg of R50"
    assert replace(CLAIM, blend="add:2").name == "rrt on delg 500 add:2, delg of R50"
    assert ALONE.name == "identity, delg of R50"


def test_how_a_claim_is_measured_is_said_once_unless_it_is_reproduced() -> None:
    claim = replace(CLAIM, command="python cli.py run", files="W of its authors", blend="add:2")
    both = [claim, replace(claim, difficulty="Hard")]
    line = "rrt of R50 on roxford: `python cli.py run`; `--blend add:2` for the report; needs W of its authors."
    assert commands(listing([*both, CLAIM], [])) == [line]
    assert commands(listing([claim], [row()])) == [line]
    assert commands(listing([claim], [row(blend="add:2")])) == []
    assert commands(listing([replace(claim, blend="replace", files="")], [])) == [
        "rrt of R50 on roxford: `python cli.py run`."
    ]
    assert to_markdown(listing([claim], [])).endswith(f"\n- {line}\n")


def test_a_listing_of_nothing_says_so() -> None:
    assert listing([], [row()]) == Listing((), 0)
    assert listing([], [row()]).note == "No published number is on this data set."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"paper": ""}, "paper is '', expected text"),
        ({"dataset": "folder:/x"}, "an official data set, not a folder"),
        ({"grade": "recalled"}, "repository or secondary"),
        ({"policy": "both"}, "blind, paper or any"),
        ({"measure": "AP"}, "measure is 'AP', expected one of mAP, "),
        ({"difficulty": "Middle"}, "expected one of Easy, Medium, Hard, "),
        ({"percent": 100.1}, "from 0 to 100"),
        ({"percent": "60"}, "from 0 to 100"),
        ({"percent": True}, "from 0 to 100"),
        ({"percent": float("nan")}, "from 0 to 100"),
        ({"k": 0}, "a whole number above 0"),
        ({"k": None}, "for every method but identity"),
        ({"descriptors": 1.5}, "a whole number above 0"),
        ({"features": ""}, "what the method reads"),
        ({"method": "identity"}, "k is 100"),
        ({"options": []}, "expected a table"),
        ({"blend": "sigmoid"}, "blend is 'sigmoid', expected one that"),
        ({"blend": "add:1.0"}, "blend is 'add:1.0', expected one that"),
        ({"unsaid": "k"}, "unsaid is 'k', expected a list of texts"),
        ({"unsaid": ["k"]}, "k is 100"),
        ({"command": 3}, "command is 3, expected text"),
    ],
)
def test_a_claim_that_is_not_complete_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(CLAIM, **change)


def test_a_row_of_a_table_is_a_claim_for_each_column_and_may_say_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    path.write_text(FILE)
    found = read_claims(path)
    assert [(one.method, one.k, one.difficulty, one.percent) for one in found] == [
        ("ransac", 8, "Medium", 1.0),
        ("ransac", 8, "Hard", 2.5),
        ("mnn", 4, "Medium", 3),
        ("mnn", 4, "Hard", 4),
    ]
    assert {one.grade for one in found} == {"secondary"}


def test_a_command_is_of_the_data_set_of_its_column(tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    path.write_text(
        FILE.replace('model = "any"', 'model = "any"\ncommand = "run -d DATASET"').replace(
            "roxford mAP H", "rparis mAP H"
        )
    )
    assert [one.command for one in read_claims(path)] == ["run -d roxford", "run -d rparis"] * 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[[table]]", "[[table]", "not TOML"),
        ("[[table]]", "other = 1\n[[table]]", "found other, table, expected"),
        ("[[table]]", "[table]", "nothing else"),
        ("columns =", "column =", "table 1: columns is None, expected a list"),
        ('"roxford mAP Hard"', '"roxford Hard"', "row 1: column 'roxford Hard', expected DATASET MEASURE DIFFICULTY"),
        ('"roxford mAP Hard"', "7", "column 7"),
        ("[3, 4]", "[3]", r"table 1, row 2: percent is \[3\], expected 2 numbers"),
        ("[3, 4]", "[3, 400]", "table 1, row 2: percent is 400"),
        ('method = "mnn", ', "", "table 1, row 2: method is missing"),
        ("k = 4", "depth = 4", "row 2: depth is not known"),
        ("{ method", "3, { method", "row 1: found 3, expected an inline table"),
        ('"secondary"', '"hearsay"', "grade is 'hearsay', expected repository or secondary"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in FILE
    path = tmp_path / "claims.toml"
    path.write_text(FILE.replace(old, new, 1))
    with pytest.raises(UserError, match=said) as refusal:
        read_claims(path)
    assert refusal.value.message.startswith(f"{path}: ") and refusal.value.hint


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.toml: no claims there \(No such file"):
        read_claims(tmp_path / "none.toml")


def test_the_shipped_claims_are_complete_and_on_official_data_sets() -> None:
    found = read_claims()
    assert SHIPPED == PROJECT / "results" / "claims.toml" and len(found) > 100
    assert {one.grade for one in found} == set(get_args(Grade))
    official = {name for name in catalogue.names() if catalogue.get(name).sources}
    assert {one.dataset for one in found} <= official
    alone = {"sop", "gldv2"}  # protocols of one data set and one difficulty
    for one in found:
        assert one.measure in measures(one.dataset if one.dataset in alone else "revisited")
        assert one.difficulty in (("All",) if one.dataset in alone else ("Easy", "Medium", "Hard"))


def test_no_shipped_claim_is_there_twice() -> None:
    conditions = [str(replace(one, percent=0)) for one in read_claims()]
    assert len(conditions) == len(set(conditions))


def test_the_shipped_claims_say_what_the_rrt_paper_says_of_its_best_model() -> None:
    (one,) = [
        one
        for one in read_claims()
        if (one.method, one.model, one.dataset, one.quality) == ("rrt", "R50 GLDv2-clean", "roxford", MEDIUM)
    ]
    assert (one.percent, one.policy, one.k, one.descriptors) == (78.1, "paper", 100, 500)


def test_the_shipped_claims_say_what_the_authors_of_ames_say_of_their_models() -> None:
    """README of pavelsuma/ames: mAP Medium and Hard on both data sets, lambda and gamma of the blend."""
    ames = [one for one in read_claims() if one.method == "ames"]
    found = {one.model: (one.blend, [each.percent for each in ames if each.model == one.model]) for one in ames}
    assert found == {
        "dinov2": ("sigmoid:0.5,0.2", [92.7, 83.7, 95.2, 90.6]),
        "dinov2, distilled, binary": ("sigmoid:0.35,0.1", [91.1, 82.2, 95.2, 90.2]),
        "cvnet": ("sigmoid:0.85,0.8", [89.2, 78.7, 93.4, 86.8]),
        "cvnet, distilled, binary": ("sigmoid:0.65,0.2", [88.8, 77.5, 93.2, 86.3]),
    }
    assert {(one.grade, one.policy, one.k, one.descriptors, one.unsaid) for one in ames} == {
        ("repository", "paper", 1600, 600, ())
    }


def test_what_is_of_second_hand_of_elvis_says_so_and_is_compared_with_nothing() -> None:
    (one,) = [one for one in read_claims() if one.method == "elvis"]
    assert (one.dataset, one.quality, one.percent, one.grade) == ("gldv2", ("mAP@100", "All"), 56.9, "secondary")
    assert "k" in one.unsaid and one.k is None
    ours = replace(row(), dataset="gldv2", method="elvis", values={one.quality: of_queries(56.9)})
    assert judge(one, ours, {}).said == "not comparable"


def test_a_shipped_command_measures_what_its_claim_says() -> None:
    """It is a run of the method, data set, features, policy and k, with the weights that are named with it."""
    shipped = [one for one in read_claims() if one.command]
    assert {one.method for one in shipped} == {"ames", "elvis"}
    for one in shipped:
        (arguments,) = typed(f"`{one.command}`")
        require_names(arguments)
        given = parsed(arguments)
        assert (given["method"], given["dataset"], given["features"]) == (one.method, one.dataset, one.features)
        assert one.policy in ("any", given["policy"]) and one.k in (None, given["top_k"])
        (weights,) = given["options"]
        assert weights.startswith(f"{one.method}.weights=") and weights.partition("=")[2] in one.files
        assert given["shortlist"].name in one.files
        assert one.first_stage in (f"imported:{given['shortlist'].name}", "global descriptors of the backbone")


@pytest.fixture
def official(finished: Callable[..., Run], buildings: Path) -> Run:
    """A finished run whose record says that its data set is Revisited Oxford."""
    done = finished(buildings, "identity,ransac,mnn", top_k=8, policy="paper")
    shortlist = replace(done.shortlist, header=replace(done.shortlist.header, dataset="roxford"))
    shortlist.save(done.folder / "shortlist.npz")
    content = json.loads((done.folder / "dataset.json").read_text())
    write_json(done.folder / "dataset.json", {**content, "name": "roxford"})
    identity = replace(done.record.identity, seal=shortlist.seal, shortlist=shortlist.header)
    write_record(done.folder, replace(done.record, identity=identity))
    return Run.load(done.folder)


def test_rows_of_a_run_carry_their_conditions(official: Run) -> None:
    rows = {one.method: one for one in ours_of(official)}
    first, ransac = rows["identity"], rows["ransac"]
    assert set(rows) == {"identity", "ransac", "mnn"}
    assert (first.method, first.dataset, first.first_stage, first.policy, first.k) == (
        "identity",
        "roxford",
        "gem-lite0",
        "paper",
        8,
    )
    assert ransac.features == ("xfeat",) and ransac.options["preset"] == "none"
    assert ransac.descriptors == round(official.record.costs["ransac"].descriptors_max) > 0
    metrics = official.metrics()
    stored = metrics[(metrics.method == FIRST_STAGE) & (metrics.measure == "mAP") & (metrics.difficulty == "Medium")]
    assert first.floor[MEDIUM] == ransac.floor[MEDIUM] == pytest.approx(100 * stored["value"].mean())
    assert first.values[MEDIUM].tolist() == stored["value"].tolist()


def test_the_image_set_does_not_matter_where_no_image_was_read(official: Run) -> None:
    record = replace(official.record, first_stage=replace(official.record.first_stage, features=("delg",)))
    assert {one.method: one.image_set for one in ours_of(Run(official.folder, record))} == {
        "identity": IMPORTED,
        "ransac": official.dataset.image_set,
        "mnn": official.dataset.image_set,
    }


def test_report_shows_claims_beside_ours(cli: Callable[..., Result], official: Run, tmp_path: Path) -> None:
    """Numbers are those of the run, so that one claim is reproduced and one is not; the third is of other depth."""
    (ransac,) = [one for one in ours_of(official) if one.method == "ransac"]
    reached = {difficulty: 100 * ransac.values["mAP", difficulty].mean() for difficulty in ("Medium", "Hard")}
    far = 99.0 if reached["Hard"] < 50 else 1.0
    path = tmp_path / "mine.toml"
    path.write_text(FILE.replace("[1.0, 2.5]", f"[{reached['Medium']:.1f}, {far}]"))

    def rows(*more: str) -> tuple[str, list[dict[str, Any]]]:
        result = cli("report", "--claims", str(path), "--format", "json", *more)
        assert result.exit_code == 0, result.output
        *tables, last = result.stdout.splitlines()
        return str(len(tables)), json.loads(last)["claims"]

    tables, found = rows()
    assert tables == "1"
    assert found[0]["verdict"] == "reproduced"
    assert found[1]["verdict"] in ("not reproduced", "within interval")
    assert (found[1]["low"] <= far <= found[1]["high"]) == (found[1]["verdict"] == "within interval")
    assert found[1]["difference"] == pytest.approx(reached["Hard"] - far)
    assert [(one["verdict"], one["why"]) for one in found[2:]] == [("not comparable", "k 8, there 4")] * 2
    assert rows("--dataset", "roxford")[1] == found

    terminal = cli("report", "--claims", str(path)).stdout
    assert "ransac" in terminal and "k 8, there 4" in terminal and "[secondary]" in terminal
    markdown = cli("report", "--claims", str(path), "--format", "md").stdout
    assert "### Published numbers" in markdown and "| reproduced |" in markdown
    text = cli("report", "--claims", str(path), "--format", "csv").stdout
    listed = list(csv.DictReader(io.StringIO(text[text.index("paper,table") :])))
    assert [one["verdict"] for one in listed] == [one["verdict"] for one in found]
    assert float(listed[0]["ours"]) == pytest.approx(reached["Medium"])


def test_claims_are_listed_where_there_is_no_run(cli: Callable[..., Result]) -> None:
    result = cli("report", "--claims", "--dataset", "sop", "--format", "json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["claims"] and {(one["dataset"], one["verdict"], one["ours"]) for one in found["claims"]} == {
        ("sop", "no run", None)
    }
    assert "No finished run" in cli("report", "--claims").stdout
    assert cli("report").exit_code == 1


def test_claims_have_no_latex(cli: Callable[..., Result]) -> None:
    result = cli("report", "--claims", "--format", "latex")
    assert result.exit_code == 1 and "expected terminal, md, csv, json" in result.output
