"""Weights that were trained with several seeds are one row, as seeds of a method's own are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.report.page import page
from bench.report.row_names import alike, newest_rows
from bench.report.sections import Section
from bench.report.seeds import Seeds
from bench.report.tables import compare
from bench.results import Run
from bench.trained import Training
from tests.bench.report.test_seeds import SHARES, Told, told

LEARNED = """
@dataclass(frozen=True)
class Options:
    from pathlib import Path
    number: int = 0
    offset: int = 0
    weights: Path = Path("none")  # a card

def weights(self):
    return self.options.weights

def trained(self):
    import json
    from bench.reranker import Training
    return Training.of(json.loads(self.options.weights.read_text()))

def score(self, query, candidates):
    return candidates.similarities * (-1 if self.trained() is not None and self.trained().seed % 2 else 1)
"""
NUMBER = {"draws": ("number",)}  # as if that option were a seed


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., Path]:
    """`weights("w0", 0)`: a file of weights of that name, trained with that seed, and with another recipe if given."""

    def write(name: str, seed: int | None, validation: float = 0.5, **recipe: object) -> Path:
        said = {} if seed is None else {"recipe": {"lr": 0.1, "seed": seed, **recipe}, "bank": "60ca"}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**said, "validation": validation}))
        return path

    return write


@pytest.fixture
def learned(run: Callable, instances: Path, add_method: Callable) -> Callable[..., Run]:
    """`learned(path)`: the run of the method `draws` with these weights, and other options where they are given."""
    add_method("draws", LEARNED)

    def go(path: Path, names: str = "draws", **more: str) -> Run:
        return run(instances, names, top_k=5, options={"draws": {"weights": str(path), **more}}).run

    return go


@pytest.fixture
def seeds(learned: Callable[..., Run], weights: Callable[..., Path]) -> Callable[[int], Run]:
    """`seeds(4)`: the run with weights trained with that seed."""
    return lambda number: learned(weights(f"w{number}", number, validation=0.1 * number))


def with_seed(run: Run, values: Sequence[float], times: Sequence[float] = (1.0,), **changed: Any) -> Told:
    """The run with these values and times, as if it had said something else of its training."""
    return told(Run(run.folder, changing(run, **changed).record), values, times)


def changing(run: Run, **changed: Any) -> Run:
    """The run, as if its row were another in what is given of its identity or its training."""
    record, mine, how = run.record, run.record.identity.methods["draws"], run.record.trained["draws"]
    trained = {name: changed.pop(name) for name in ("seed", "but_seed") if name in changed}
    finished = changed.pop("finished", record.finished)
    options = {**mine.options, **changed.pop("options", {})}
    methods = {"draws": replace(mine, options=options, **changed)}
    return Run(
        run.folder,
        replace(
            record,
            identity=replace(record.identity, methods=methods),
            trained={"draws": replace(how, **trained)},
            finished=finished,
        ),
    )


def names(*runs: Run, show: frozenset[str] = frozenset()) -> set[str]:
    """Rows of the table, without the folder of the weights."""
    return {str(name).replace(f"{_folder(runs[0])}/", "") for name in compare(runs, show=show).rows.index}


def _folder(run: Run) -> Path:
    return Path(run.record.identity.methods["draws"].options["weights"]).parent


def test_trainings_become_one_row_of_means_computed_by_hand(seeds: Callable[[int], Run]) -> None:
    """Nine queries, two seeds that differ by 0.2 on each: all that is uncertain is the seed."""
    runs = [told(seeds(0), [0.6] * 9, (1.0, 2.0)), told(seeds(1), [0.8] * 9, (3.0, 9.0, 9.0))]
    table = compare(runs)
    assert names(*runs) == {"draws weights=w*.json 2 seeds"}
    row = table.rows.iloc[0]
    assert row["mAP All"] == pytest.approx(70) and row["gain"] == pytest.approx(20)
    assert row["sd seeds"] == pytest.approx(np.sqrt(200))  # of 60 and 80
    assert (row["gain low"], row["gain high"]) == (pytest.approx(10), pytest.approx(30))  # a quarter of draws each
    assert row["p"] == 2 / 2**9 and row["ms/query p50"] == 3  # of five samples, not of two medians
    assert any("w*.json 2 seeds (seeds 0, 1): mAP All of each 60.00, 80.00" in note for note in table.notes)


def test_a_real_score_is_that_of_each_file(seeds: Callable[[int], Run]) -> None:
    """Seeds that are odd turn the candidates' order round."""
    runs = [seeds(number) for number in range(3)]
    alone = [float(compare([run]).rows["mAP All"].iloc[0]) for run in runs]
    row = compare(runs).rows.iloc[0]
    assert alone[0] == alone[2] != alone[1]
    assert row["mAP All"] == pytest.approx(np.mean(alone)) and row["sd seeds"] == pytest.approx(np.std(alone, ddof=1))


def test_runs_of_several_trained_methods_are_pooled_row_by_row(
    run: Callable, instances: Path, add_method: Callable, weights: Callable[..., Path]
) -> None:
    add_method("draws", LEARNED)
    add_method("other", LEARNED)
    runs = []
    for number in (0, 1):
        files = {name: {"weights": str(weights(f"{name}{number}", number))} for name in ("draws", "other")}
        runs.append(run(instances, "identity,draws,other", top_k=5, options=files).run)
    rows = compare(runs).rows
    assert len(rows) == 3 and sum("2 seeds" in str(name) for name in rows.index) == 2


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(SHARES, min_size=3, max_size=3))
def test_seeds_of_a_training_count_exactly_as_seeds_of_a_method_do(
    seeds: Callable[[int], Run], values: list[list[float]]
) -> None:
    one = seeds(0)
    trained = [with_seed(one, of, seed=n, options={"weights": f"w{n}"}) for n, of in enumerate(values)]
    drawn = []
    for number, of in enumerate(values):
        run = changing(one, options={"number": number})
        drawn.append(told(Run(run.folder, replace(run.record, trained={}, seeds=NUMBER)), of))
    ours, theirs = compare(trained).rows, compare(drawn).rows
    assert len(ours) == len(theirs) == 1
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True), check_exact=True)
    pd.testing.assert_frame_equal(compare(trained[::-1]).rows, ours, check_exact=True)


def test_one_training_alone_is_the_row_that_it_would_be_without_saying_so(seeds: Callable[[int], Run]) -> None:
    run = seeds(0)
    silent = Run(run.folder, replace(run.record, trained={}))
    pd.testing.assert_frame_equal(compare([run]).rows, compare([silent]).rows, check_exact=True)
    assert names(run) == {"draws weights=w0.json"}


@pytest.mark.parametrize(
    "other",
    [
        {"but_seed": "another recipe"},
        {"source_sha256": "0" * 64},
        {"options": {"offset": 3}},
        {"features": ("sift",), "contents": ("c0",)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_differs_in_more_than_the_seed_is_a_row_of_its_own(
    seeds: Callable[[int], Run], other: dict[str, Any]
) -> None:
    runs = [seeds(0), changing(seeds(1), **other)]
    assert not any(isinstance(run, Seeds) for run, _ in newest_rows(runs).values()) and len(newest_rows(runs)) == 2
    more = newest_rows([*runs, changing(seeds(2), **other)])
    assert sorted(isinstance(run, Seeds) for run, _ in more.values()) == [False, True]


def test_weights_of_another_recipe_or_without_any_are_rows_of_their_own(
    learned: Callable[..., Run], weights: Callable[..., Path]
) -> None:
    files = [weights("a", 0), weights("b", 1), weights("c", 2, lr=0.2), weights("d", None), weights("e", None, 0.6)]
    assert names(*map(learned, files)) == {
        "draws weights=*.json 2 seeds",
        *(f"draws weights={name}.json" for name in "cde"),
    }


def test_as_many_seeds_of_two_recipes_are_told_apart_by_what_their_files_share_or_by_all_files(
    learned: Callable[..., Run], weights: Callable[..., Path]
) -> None:
    def both(one: Sequence[str], two: Sequence[str]) -> set[str]:
        files = [*(weights(name, n) for n, name in enumerate(one)), *(weights(x, n, lr=9) for n, x in enumerate(two))]
        return names(*map(learned, files))

    assert both(["a0", "a1"], ["b0", "b1"]) == {"draws weights=a*.json 2 seeds", "draws weights=b*.json 2 seeds"}
    assert both(["x", "y"], ["u", "v"]) == {
        "draws weights=*.json 2 seeds [0, 1] [x.json, y.json]",
        "draws weights=*.json 2 seeds [0, 1] [u.json, v.json]",
    }


def test_a_seed_that_has_two_files_counts_once_by_its_newest_run(seeds: Callable[[int], Run]) -> None:
    first, again, other = seeds(0), seeds(2), seeds(1)
    later, earlier = "2030-01-01T00:00:00+00:00", "2020-01-01T00:00:00+00:00"
    for times, expected in (((earlier, later), 70), ((later, earlier), 40)):
        old = with_seed(first, [0.0] * 9, finished=times[0])
        new = with_seed(again, [0.6] * 9, seed=0, finished=times[1])
        rows = compare([old, new, told(other, [0.8] * 9)]).rows
        assert len(rows) == 1 and rows["mAP All"].iloc[0] == pytest.approx(expected)


def test_one_seed_of_two_files_stays_two_rows(seeds: Callable[[int], Run]) -> None:
    assert names(seeds(0), changing(seeds(1), seed=0)) == {"draws weights=w0.json", "draws weights=w1.json"}


def test_a_table_that_is_to_show_the_weights_has_a_row_of_each(seeds: Callable[[int], Run]) -> None:
    shown = names(seeds(0), seeds(1), show=frozenset({"weights"}))
    assert shown == {"draws weights=w0.json", "draws weights=w1.json"}


def test_seeds_of_the_method_and_of_the_training_are_told_together(
    learned: Callable[..., Run], weights: Callable[..., Path]
) -> None:
    files = [weights("w0", 0), weights("w1", 1)]
    runs = [learned(path, number=number) for path in files for number in ("0", "5")]
    runs = [Run(run.folder, replace(run.record, seeds=NUMBER)) for run in runs]
    assert names(*runs) == {"draws weights=w*.json 4 seeds"}
    assert any("(seeds 0/0, 0/1, 5/0, 5/1)" in note for note in compare(runs).notes)


def test_a_run_that_does_not_say_how_its_weights_were_trained_is_read_and_stays_a_row(
    seeds: Callable[[int], Run],
) -> None:
    """As records were before they could say it."""
    runs = [seeds(0), seeds(1)]
    for run in runs:
        content = json.loads((run.folder / "run.json").read_text())
        assert content.pop("trained")["draws"]["option"] == "weights"
        (run.folder / "run.json").write_text(json.dumps(content))
    before = [Run.load(run.folder) for run in runs]
    assert names(*before) == {"draws weights=w0.json", "draws weights=w1.json"}
    assert names(before[0], runs[1]) == names(*before)


def test_what_is_said_of_the_training_makes_no_other_run(seeds: Callable[[int], Run]) -> None:
    """A run that was finished before it could be said is found again, not measured anew."""
    run = seeds(0)
    assert run.record.trained["draws"] == Training.of({"recipe": {"lr": 0.1, "seed": 0}, "bank": "60ca"})
    assert "trained" not in json.loads((run.folder / "run.json").read_text())["identity"]


def test_the_page_names_all_weights_and_the_commands_of_all_runs(seeds: Callable[[int], Run]) -> None:
    runs = [seeds(0), seeds(1)]
    table = compare(runs)
    values = Section(tuple(runs), table).values()
    (row,), (card,) = values["table"]["rows"], values["cards"]
    assert row["name"].endswith("w*.json 2 seeds") and len(values["commands"]) == 2
    digests = [run.record.identity.methods["draws"].weights_sha256 for run in runs]
    assert [sha for _, sha in card["weights"]] == digests and digests[0] != digests[1]
    assert "w0.json" in card["options"] and "w1.json" in card["options"]
    assert "w*.json 2 seeds" in page([(runs, table)])


def test_every_machine_readable_report_has_one_row(
    seeds: Callable[[int], Run], learned: Callable[..., Run], cli: Callable[..., Result], weights: Callable[..., Path]
) -> None:
    learned(weights("w0", 0), "draws,identity")
    learned(weights("w1", 1))
    frame = pd.read_csv(io.StringIO(cli("report", "--format", "csv").stdout))
    (name,) = frame["method"][frame["method"] != "identity"]
    assert name.endswith("w*.json 2 seeds") and frame["sd seeds"].notna().sum() == 1
    rows = {row["method"]: row for row in json.loads(cli("report", "--format", "json").stdout)["rows"]}
    assert rows[name]["sd seeds"] > 0


def test_a_check_takes_one_training_and_says_that_another_is_other_weights(
    seeds: Callable[[int], Run], cli: Callable[..., Result], tmp_path: Path
) -> None:
    seeds(0)
    kept = str(tmp_path / "kept.json")
    assert cli("check", "--baseline", kept, "--write").exit_code == 0
    assert "seeds" not in (tmp_path / "kept.json").read_text()
    seeds(1)
    said = cli("check", "--baseline", kept).output
    assert "another version of the weights" in said and "2 seeds" not in said


@given(st.lists(st.text("ab/.", max_size=5), min_size=1, max_size=4))
def test_names_that_share_their_ends_are_named_by_them(texts: list[str]) -> None:
    first, star, last = alike(texts).partition("*")
    assert (star == "*") == (len(set(texts)) > 1)
    assert all(text.startswith(first) and text.endswith(last) and len(first + last) <= len(text) for text in texts)
