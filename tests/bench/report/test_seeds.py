"""Runs that differ in a seed alone are one row: of means, with an interval that knows of the spread between seeds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.blend import Blend
from bench.evaluation import CEILING, FIRST_STAGE
from bench.options import Seed, seeds_of
from bench.report.formats import FORMATS
from bench.report.page import page
from bench.report.row_names import newest_rows
from bench.report.sections import Section
from bench.report.seeds import Seeds
from bench.report.tables import compare
from bench.results import Run

DRAWS = """
@dataclass(frozen=True)
class Options:
    number: Seed = 0  # a seed by declaration, not by name
    seed: int = 0  # no seed, whatever its name

def score(self, query, candidates):
    return candidates.similarities * (-1 if self.options.number % 2 else 1)
"""


@dataclass(frozen=True, eq=False)
class Told(Run):
    """A run whose method `draws` has these values by query, at every difficulty and measure, and these times."""

    values: Sequence[float]
    times: Sequence[float] = (1.0,)

    def metrics(self, blend: Blend = Blend()) -> pd.DataFrame:
        found = super().metrics(blend)
        by_query = dict(zip(self.shortlist.queries, self.values, strict=True))
        return pd.concat(
            [
                found[found["method"] == name].assign(value=lambda t, of=of: t["query"].map(of))
                for name, of in (
                    (FIRST_STAGE, dict.fromkeys(by_query, 0.5)),
                    (CEILING, dict.fromkeys(by_query, 1.0)),
                    ("draws", by_query),
                )
            ]
        )

    @property
    def ledger(self) -> pd.DataFrame:  # type: ignore[override]
        parts = {"load_ms": 0.0, "transfer_ms": 0.0, "score_ms": list(self.times)}
        return pd.DataFrame({"method": "draws", "query": "q", "pairs": 2, **parts})


@pytest.fixture
def seeds(run: Callable, instances: Path, add_method: Callable) -> Callable[..., Run]:
    """`seeds(4)`: the run of the method `draws` with that seed, and other options where they are given."""
    add_method("draws", DRAWS)

    def go(number: int, names: str = "draws", **more: str) -> Run:
        return run(instances, names, top_k=5, options={"draws": {"number": str(number), **more}}).run

    return go


def told(run: Run, values: Sequence[float], times: Sequence[float] = (1.0,)) -> Told:
    return Told(run.folder, run.record, values, times)


def test_a_seed_is_what_a_method_declares_as_one() -> None:
    @dataclass(frozen=True)
    class Options:
        number: Seed = 0
        seed: int = 0

    assert seeds_of(Options) == ("number",)


def test_seeds_become_one_row_of_means_computed_by_hand(seeds: Callable[..., Run]) -> None:
    """Nine queries, two seeds that differ by 0.2 on each: all that is uncertain is the seed."""
    table = compare([told(seeds(0), [0.6] * 9, (1.0, 2.0)), told(seeds(1), [0.8] * 9, (3.0, 9.0, 9.0))])
    assert list(table.rows.index) == ["draws 2 seeds"]
    row = table.rows.loc["draws 2 seeds"]
    assert row["mAP All"] == pytest.approx(70) and row["gain"] == pytest.approx(20)
    assert row["sd seeds"] == pytest.approx(np.sqrt(200))  # of 60 and 80
    assert (row["gain low"], row["gain high"]) == (pytest.approx(10), pytest.approx(30))  # a quarter of draws each
    assert row["p"] == 2 / 2**9 and (row["better"], row["worse"]) == (9, 0)
    assert row["ms/query p50"] == 3 and row["ms/pair"] == 1.5  # of five samples, not of two medians
    assert any("draws 2 seeds (seeds 0, 1): mAP All of each 60.00, 80.00" in note for note in table.notes)
    assert any("over queries and seeds" in note for note in table.notes)


def test_p_is_of_the_mean_over_seeds_by_query(seeds: Callable[..., Run]) -> None:
    """Gains of one seed that another takes back query by query are no gain."""
    up, down = [0.7] * 9, [0.3] * 9
    row = compare([told(seeds(0), up), told(seeds(1), down)]).rows.loc["draws 2 seeds"]
    assert row["gain"] == pytest.approx(0) and row["p"] == 1 and row["equal"] == 9
    assert row["gain low"] < -10 and row["gain high"] > 10


SHARES = st.lists(st.integers(0, 100).map(lambda percent: percent / 100), min_size=9, max_size=9)
slow = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow
@given(values=SHARES)
def test_one_seed_alone_is_exactly_the_row_that_it_would_be_without_seeds(
    seeds: Callable[..., Run], values: list[float]
) -> None:
    one = told(seeds(1), values)
    none = Told(one.folder, replace(one.record, seeds={}), values)
    with_seeds, without = compare([one]), compare([none])
    pd.testing.assert_frame_equal(with_seeds.rows, without.rows, check_exact=True)
    assert list(with_seeds.rows.index) == ["draws number=1"]
    assert vars(replace(with_seeds, rows=None)) == vars(replace(without, rows=None))  # type: ignore[arg-type]
    assert newest_rows([one]) == {"draws number=1": (one, "draws")}


@slow
@given(values=st.lists(SHARES, min_size=3, max_size=3))
def test_the_order_of_the_runs_does_not_matter_and_the_interval_holds_the_mean(
    seeds: Callable[..., Run], values: list[list[float]]
) -> None:
    runs = [told(seeds(number), of) for number, of in enumerate(values)]
    tables = [compare(some) for some in permutations(runs)]
    for table in tables:
        pd.testing.assert_frame_equal(table.rows, tables[0].rows, check_exact=True)
    row = tables[0].rows.loc["draws 3 seeds"]
    assert row["mAP All"] == pytest.approx(100 * np.mean(values))
    assert row["gain low"] - 1e-9 <= row["gain"] <= row["gain high"] + 1e-9


def test_equal_seeds_are_as_sure_as_one(seeds: Callable[..., Run]) -> None:
    values = [0.1, 0.9, 0.6, 0.6, 0.7, 0.8, 0.5, 0.4, 0.9]
    one = compare([told(seeds(0), values)]).rows.iloc[0]
    many = compare([told(seeds(number), values) for number in range(4)]).rows.iloc[0]
    assert many["sd seeds"] == pytest.approx(0, abs=1e-9)
    shared = ["mAP All", "gain", "gain low", "gain high", "p", "KiB/image", "ms/query p50"]
    assert list(many[shared]) == pytest.approx(list(one[shared]))


def test_a_seed_that_is_measured_again_counts_once_and_the_newest_stands(seeds: Callable[..., Run]) -> None:
    old, new, other = told(seeds(0), [0.0] * 9), told(seeds(0), [0.6] * 9), told(seeds(1), [0.8] * 9)
    table = compare([old, other, new])
    assert list(table.rows.index) == ["draws 2 seeds"] and table.rows["mAP All"].iloc[0] == pytest.approx(70)


def test_runs_that_differ_in_more_than_a_seed_are_rows_of_their_own(seeds: Callable[..., Run]) -> None:
    assert set(compare([seeds(0), seeds(1, seed="3")]).rows.index) == {"draws", "draws number=1 seed=3"}
    both = compare([seeds(0), seeds(1), seeds(0, seed="3"), seeds(1, seed="3"), seeds(2, seed="3")])
    assert set(both.rows.index) == {"draws 2 seeds", "draws seed=3 3 seeds"}


def test_seeds_of_earlier_code_are_not_pooled_with_those_of_later_code(
    seeds: Callable[..., Run], add_method: Callable
) -> None:
    before = [seeds(0), seeds(1)]
    again = replace(before[0].record.identity.methods["draws"], source_sha256="0" * 64)

    def of_later_code(run: Run) -> Run:
        mine = replace(again, options=run.record.identity.methods["draws"].options)
        return Run(run.folder, replace(run.record, identity=replace(run.record.identity, methods={"draws": mine})))

    assert set(compare([*before, of_later_code(seeds(2))]).rows.index) == {"draws 2 seeds", "draws number=2"}
    table = compare([*before, of_later_code(seeds(2)), of_later_code(seeds(3))])
    assert set(table.rows.index) == {"draws 2 seeds [0, 1]", "draws 2 seeds [2, 3]"}
    assert any("earlier code" in note for note in table.notes)


def test_seeds_that_a_table_is_to_show_stay_rows(seeds: Callable[..., Run]) -> None:
    rows = compare([seeds(0), seeds(1)], show={"number"}).rows
    assert set(rows.index) == {"draws number=0", "draws number=1"} and "sd seeds" not in rows


def test_other_rows_of_the_runs_are_as_they_were(seeds: Callable[..., Run]) -> None:
    alone = compare([seeds(0, "draws,mnn,identity")])
    table = compare([seeds(0, "draws,mnn,identity"), seeds(1)])
    assert set(table.rows.index) == {"draws 2 seeds", "mnn", "identity"}
    columns = [name for name in alone.rows if name != "p"]  # two contenders in each, whose p decides the correction
    for name in ("mnn", "identity"):
        pd.testing.assert_series_equal(table.rows.loc[name, columns], alone.rows.loc[name, columns])
        assert np.isnan(table.rows.loc[name, "sd seeds"])


def test_a_blend_is_replayed_for_every_seed(seeds: Callable[..., Run]) -> None:
    """The first stage alone, whatever a seed scored."""
    runs, blend = [seeds(0), seeds(1)], Blend.parse("add:0")
    floor = compare(runs, blend)
    assert floor.rows["sd seeds"].iloc[0] == 0 and floor.rows["mAP All"].iloc[0] == pytest.approx(floor.first_stage)
    assert compare(runs).rows["sd seeds"].iloc[0] > 0


def test_the_best_is_tied_with_what_its_seeds_do_not_tell_from_it(seeds: Callable[..., Run]) -> None:
    """Tied by the mean over seeds; a single seed would have won on every query."""
    runs = [told(seeds(0), [0.9] * 9), told(seeds(1), [0.5] * 9), told(seeds(2, seed="1"), [0.7] * 9)]
    table = compare(runs)
    assert "cannot be told apart" in table.answer and {"draws 2 seeds", "draws number=2 seed=1"} == set(
        table.rows.index
    )
    section = Section(tuple(runs), table)
    assert {row["name"] for row in section.values()["table"]["rows"] if row["tied"]} == set(table.rows.index)


def test_the_page_has_the_row_and_the_commands_of_all_its_runs(seeds: Callable[..., Run]) -> None:
    runs = [seeds(0), seeds(1)]
    table = compare(runs)
    values = Section(tuple(runs), table).values()
    assert [row["name"] for row in values["table"]["rows"]] == ["draws 2 seeds"] and len(values["commands"]) == 2
    assert values["cards"][0]["options"] == "number=[0, 1], seed=0"
    assert "draws 2 seeds" in page([(runs, table)])


def test_every_format_of_a_report_has_one_row_and_an_export_one_run(
    seeds: Callable[..., Run], cli: Callable[..., Result], tmp_path: Path
) -> None:
    seeds(0, "draws,identity")
    seeds(1)
    for form in ("terminal", *FORMATS):
        text = cli("report", "--format", form).output
        spread = "standard deviation" if form == "terminal" else "sd seeds"  # its headings are of several lines
        assert "draws 2 seeds" in text and spread in text and "number=1" not in text, form
    frame = pd.read_csv(io.StringIO(cli("report", "--format", "csv").stdout))
    assert sorted(frame["method"]) == ["draws 2 seeds", "identity"] and frame["sd seeds"].notna().sum() == 1
    rows = {row["method"]: row for row in json.loads(cli("report", "--format", "json").stdout)["rows"]}
    assert rows["draws 2 seeds"]["sd seeds"] > 0 and rows["identity"]["sd seeds"] is None
    assert cli("export", "--format", "csv", "--out", str(tmp_path / "out")).exit_code == 0
    assert set(pd.read_csv(tmp_path / "out" / "scores.csv")["method"]) == {"draws"}


def test_several_seeds_need_several_runs(seeds: Callable[..., Run]) -> None:
    with pytest.raises(ValueError, match="not several seeds"):
        Seeds.of("draws", [seeds(0)])
