"""A sweep: budgets on one shortlist, counted as they were read, resumed like runs, refused before any work."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from PIL import Image

from bench.datasets.folder import load
from bench.errors import UserError
from bench.features.sets import ExtractOptions, FeatureExtractor, features_of
from bench.images import decode
from bench.places import Places
from bench.report.plots import quality_against_descriptors
from bench.results import finished_runs, write_tables
from bench.run import Outcome
from bench.setup import Selection, Setup
from bench.sweep import Sweep, Varied, selections, sweep, vary

STORED = ExtractOptions(max_side=160, descriptors=150)  # as tests/conftest.py extracts
Go = Callable[..., Sweep]


@pytest.fixture
def go(instances: Path, places: Places) -> Go:
    """`go("rrt,ransac", (10, 40), …)`: a sweep of the instance set with the session's features."""

    def run(methods: str, budgets: tuple[int, ...], path: Path = instances, progress=None, **more: object) -> Sweep:
        more = {"top_k": 5, "extract": STORED, **more}
        selection = Selection(tuple(methods.split(",")), more.pop("options", {}))  # type: ignore[arg-type]
        force = bool(more.pop("force", False))
        return sweep(Setup(f"folder:{path}", **more), selection, budgets, places, progress, force=force)  # type: ignore[arg-type]

    return run


def journals(places: Places) -> dict[str, list[str]]:
    return {p.parent.name: p.read_text().splitlines() for p in places.runs.glob("*/journal.jsonl")}


def counts(path: Path, features: str, places: Places) -> np.ndarray:
    """Local descriptors stored of each gallery image."""
    dataset = load(path)
    store, _ = features_of(dataset, features, STORED, torch.device("cpu"), places)
    return np.array([store.count(image) for image in dataset.gallery])


@pytest.mark.parametrize(("features", "fewer"), [("xfeat", False), ("sift", True)])
def test_every_budget_is_on_one_seal_and_a_row_says_what_was_read(
    go: Go, instances: Path, places: Places, features: str, fewer: bool
) -> None:
    """Half precision: 2 bytes a value, of scale and score too; keypoints 2 x 4, orientation 2."""
    available = counts(instances, features, places)
    assert (available.min() < 150) == fewer  # with SIFT, the largest budget is more than these images have
    size = {"xfeat": 64, "sift": 128}[features]
    found = go("ransac,rrt" if features == "xfeat" else "ransac", (10, 40, 150), features=features)
    methods = ("ransac", "rrt") if features == "xfeat" else ("ransac@sift",)
    assert {run.seal for run in finished_runs(places.runs)} == {found.table.about["seal"]}
    assert list(found.points.values()) == [(m, b) for m in methods for b in (10, 40, 150)]
    assert list(found.table.rows.index) == list(found.points)
    for row, (method, budget) in found.points.items():
        used = np.minimum(available, budget)
        whole, each = {"ransac": (0, 2 * size + 14), "rrt": (2 * 1280, 2 * size + 4)}[method.partition("@")[0]]
        values = found.table.rows.loc[row]
        assert row == f"{method} descriptors={budget}"
        assert values["desc mean"] == pytest.approx(used.mean()) and values["desc max"] == used.max()
        assert values["KiB/image"] == pytest.approx((whole + each * used).mean() / 1024)


def test_more_descriptors_find_more(go: Go) -> None:
    found = go("ransac", (10, 150)).table.rows
    assert found.loc["ransac descriptors=10", "mAP All"] < found.loc["ransac descriptors=150", "mAP All"]


@pytest.mark.parametrize("features", ["xfeat", "sift"])
@pytest.mark.parametrize("n", [1, 30, 70])
def test_the_best_n_of_more_are_what_extracting_n_gives(instances: Path, features: str, n: int) -> None:
    path = instances / "object1" / "view0.png"
    image = decode(path.read_bytes(), path)
    many, few = (FeatureExtractor(features, ExtractOptions(160, count))(image) for count in (150, n))
    assert len(few["scores"]) == n < len(many["scores"])
    for name in ("descriptors", "keypoints", "scales", "orientations", "scores"):
        np.testing.assert_allclose(few[name], many[name][:n], rtol=0, atol=1e-6)  # one row may round otherwise


def test_a_budget_scores_as_features_extracted_for_it_do(
    go: Go, run: Callable[..., Outcome], instances: Path, places: Places
) -> None:
    """The whole way: sixty read of a store of 150, and all of a store of sixty."""
    go("ransac,rrt", (60,), first_stage="gem-lite0")  # whose candidates do not depend on local descriptors
    (budget,) = finished_runs(places.runs)
    least = run(instances, "ransac,rrt", top_k=5, extract=ExtractOptions(160, 60)).run
    keys = ["method", "query", "candidate"]
    one, other = (r.scores.set_index(keys)["score"].sort_index() for r in (budget, least))
    pd.testing.assert_series_equal(one, other, check_exact=True)


def test_a_budget_more_runs_that_one_alone_and_the_table_says_that_times_do_not_compare(go: Go, places: Places) -> None:
    def interleaved(found: Sweep) -> bool:
        return not any("not interleaved" in note for note in found.table.notes)

    assert interleaved(go("ransac,rrt", (10, 40)))
    before = journals(places)
    assert len(before) == 2
    found = go("ransac,rrt", (10, 20, 40))
    after = journals(places)
    assert len(after) == 3 and before.items() <= after.items()
    assert [budget for _, budget in found.points.values()] == [10, 20, 40] * 2
    assert not interleaved(found)
    assert interleaved(go("ransac,rrt", (10, 40)))
    assert interleaved(go("ransac,rrt", (10, 20, 40), force=True))


def test_interrupted_it_goes_on_where_it_stopped_and_scores_nothing_again(go: Go, places: Places) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "scoring" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go("ransac,rrt", (10, 40, 150), progress=stop)
    before = journals(places)
    queries = [json.loads(line)["query"] for lines in before.values() for line in lines]
    assert len(before) == 3 and max(queries.count(query) for query in queries) == 6  # every budget's turn came
    assert len(queries) == 7 and finished_runs(places.runs) == []
    told: list[tuple[int, int]] = []
    found = go("ransac,rrt", (10, 40, 150), progress=lambda what, *of: told.append(of) if what == "scoring" else None)
    after = journals(places)
    assert list(map(len, after.values())) == [18, 18, 18]
    assert all(after[name][: len(lines)] == lines for name, lines in before.items())
    assert told[-1] == (54, 54) and len(found.points) == 6


def test_killed_when_all_was_scored_its_methods_took_turns_all_the_same(
    go: Go, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = iter([write_tables])  # those of the first run, and then no more

    def once(*arguments: object) -> None:
        next(written)(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr("bench.results.write_tables", once)
        go("ransac,rrt", (10, 40))
    (first,) = finished_runs(places.runs)
    table = go("ransac,rrt", (10, 40)).table
    assert len({run.record.together for run in finished_runs(places.runs)}) == 1 and len(first.record.together) == 2
    assert not any("not interleaved" in note for note in table.notes)


def test_a_method_that_fails_at_one_budget_loses_neither_its_others_nor_the_other_methods(
    go: Go, add_method: Callable
) -> None:
    add_method(
        "few", FEW.replace("    return", "    assert self.options.descriptors != 20, 'odd'\n    return"), {"local"}
    )
    found = go("few,ransac", (10, 20))
    assert list(found.points) == ["few descriptors=10", "ransac descriptors=10", "ransac descriptors=20"]
    assert any("few failed: AssertionError: odd" in note for note in found.table.notes)


FEW = """
@dataclass(frozen=True)
class Options:
    descriptors: int = 20
    sign: int = 1
def score(self, query, candidates):
    return self.options.sign * torch.tensor([float(len(image)) for image in candidates])
"""


def test_the_default_budget_is_named_like_the_others_and_other_options_are_kept(go: Go, add_method: Callable) -> None:
    add_method("few", FEW, {"local"})
    found = go("few", (10, 20), options={"few": {"sign": "-1"}})
    assert list(found.points) == ["few descriptors=10 sign=-1", "few descriptors=20 sign=-1"]


def test_all_are_the_methods_that_have_a_budget(add_method: Callable) -> None:
    add_method("few", FEW, {"local"})
    add_method("broken", "this is no Python")
    found = selections(Setup("demo"), Selection(("all",)), (10, 20))
    assert found[0].methods == found[1].methods
    assert {"few", "lightglue", "ransac", "rrt", "mnn"} <= set(found[0].methods)
    assert not {"identity", "aqe", "cascade"} & set(found[0].methods)
    assert [selection.options["few"] for selection in found] == [{"descriptors": "10"}, {"descriptors": "20"}]


def test_a_method_that_cannot_run_here_is_reported_and_the_others_run(go: Go) -> None:
    found = go("ransac,lightglue@sift", (10,))
    assert list(found.points) == ["ransac descriptors=10"]
    assert any("lightglue@sift did not run" in note for note in found.table.notes)


def test_the_table_says_once_what_the_weights_were_made_for(go: Go) -> None:
    notes = go("rrt", (10, 40)).table.cards
    assert len(notes) == 1 and notes[0].startswith("rrt: ") and "for 100 descriptors an image" in notes[0]


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        (["--descriptors", "0,10"], "'0' is not a number", "at least 1"),
        (["--descriptors", "-5"], "'-5' is not a number", "at least 1"),
        (["--descriptors", "ten"], "'ten' is not a number", "25,50,100"),
        (["--descriptors", "10,,20"], "'' is not a number", "25,50,100"),
        (["--descriptors", "2.5"], "'2.5' is not a number", "25,50,100"),
        (["--descriptors", "10,2000"], "2000: only the best 1000", "--keep-descriptors 2000"),
        (["-m", "ransac,identity"], "--method identity: it has no option 'descriptors'", "ransac, rrt"),
        (["-m", "ransak"], "unknown method 'ransak'", "did you mean 'ransac'"),
        (["-o", "ransac.descriptors=5"], "-o ransac.descriptors: the sweep sets it", "--descriptors"),
        (["-o", "ransac.trials=0"], "options of ransac", "at least 1"),
        (["-o", "rrt.seed=1"], "'rrt' is not part of this run", "running: ransac"),
        (["-m", "lightglue@sift"], "no requested method can run here", "no weights for sift"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(
    cli: Callable[..., Result], tmp_path: Path, given: list[str], said: str, hint: str
) -> None:
    method = [] if "-m" in given else ["-m", "ransac"]
    folders = ["--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    result = cli("sweep", *method, "-d", "demo", *given, *folders)
    assert result.exit_code == 1 and said in result.output and hint in result.output, result.output
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


def test_the_command_prints_the_table_and_writes_it_with_a_picture(
    cli: Callable[..., Result], instances: Path, tmp_path: Path
) -> None:
    given = ["-m", "ransac,rrt", "-d", f"folder:{instances}", "-k", "5", "--max-side", "160"]
    more = ["--keep-descriptors", "150", "--descriptors", "40,10", "--out", str(tmp_path / "out")]
    result = cli("sweep", *given, *more)
    assert result.exit_code == 0, result.output
    rows = [f"{m} descriptors={b}" for m in ("ransac", "rrt") for b in (10, 40)]
    csv = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert csv["method"].tolist() == rows and csv["seal"].nunique() == 1
    shown = " ".join(result.output.split())  # long names take several lines
    for row in rows:
        assert all(word in shown for word in row.split())
        assert f"| {row} |" in (tmp_path / "out" / "sweep.md").read_text()
    picture = np.asarray(Image.open(tmp_path / "out" / "sweep.png").convert("L"))
    assert picture.shape[0] > 400 and picture.shape[1] > 1200
    assert all((third < 200).mean() > 0.005 for third in np.array_split(picture, 3, axis=1))
    report = cli("report", "--format", "json")  # its runs are runs like any other
    assert {row["method"] for row in json.loads(report.stdout)["rows"]} == set(rows)


def test_an_out_that_cannot_be_written_loses_no_run(
    cli: Callable[..., Result], instances: Path, tmp_path: Path
) -> None:
    given = ["-m", "ransac", "-d", f"folder:{instances}", "-k", "5", "--max-side", "160", "--keep-descriptors", "150"]
    result = cli("sweep", *given, "--descriptors", "10", "--out", "/proc/nowhere")
    assert result.exit_code == 1 and "/proc/nowhere: cannot write" in result.output, result.output
    assert len(finished_runs(tmp_path / "runs")) == 1


def test_the_picture_shows_quality_time_descriptors_and_bytes(go: Go, tmp_path: Path) -> None:
    """Another value of any of them, of one row, is another picture; the same values are the same one."""
    found = go("ransac,rrt", (10, 40))

    def pixels(**changed: float) -> np.ndarray:
        rows = found.table.rows.copy()
        for column, factor in changed.items():
            rows.loc["rrt descriptors=40", column] *= factor
        path = quality_against_descriptors(replace(found.table, rows=rows), found.points, tmp_path, "p")
        return np.array(Image.open(path))

    plain = pixels()
    assert np.array_equal(plain, pixels())
    for column in ("mAP All", "ms/pair", "KiB/image", "desc mean"):
        assert not np.array_equal(plain, pixels(**{column: 0.8})), column


# --- any option ---------------------------------------------------------------------------------------------------


def test_every_combination_of_values_is_run_once_and_other_methods_once(instances: Path, places: Places) -> None:
    setup, base = Setup(f"folder:{instances}", top_k=5, extract=STORED), Selection(("identity", "ransac"))
    varied = [Varied.parse("ransac.threshold=4,8"), Varied.parse("ransac.model=affine,homography")]
    found = vary(setup, base, varied, places)
    rows = [f"ransac model={m} threshold={t}" for t in ("4.0", "8.0") for m in ("affine", "homography")]
    assert sorted(found.table.rows.index) == sorted(["identity", *rows]) and not found.points
    assert sum('"identity"' in line for lines in journals(places).values() for line in lines) == 9
    assert {run.seal for run in finished_runs(places.runs)} == {found.table.about["seal"]}


def test_the_spread_over_seeds_is_said(instances: Path, places: Places, add_method: Callable) -> None:
    body = """
    @dataclass(frozen=True)
    class Options:
        seed: int = 0  # any

    def score(self, query, candidates):
        return candidates.similarities * (1 if self.options.seed == 0 else -1)
    """
    add_method("coin", "from dataclasses import dataclass\n" + textwrap.dedent(body))
    setup = Setup(f"folder:{instances}", top_k=5, extract=STORED)
    found = vary(setup, Selection(("all",)), [Varied.parse("coin.seed=0,1,2")], places)
    values = found.table.rows["mAP All"]
    assert len(values) == 3 and values.max() > values.min()
    said = f"coin, 3 seeds, mAP All: mean {values.mean():.2f}, standard deviation {values.std():.2f}, "
    assert found.table.notes[0] == said + f"{values.min():.2f} to {values.max():.2f}."


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["ransac.seed"], "expected METHOD.OPTION=VALUE"),
        (["ransac=1"], "expected METHOD.OPTION=VALUE"),
        (["ransac.seed=1,,2"], "expected METHOD.OPTION=VALUE"),
        (["ransac.seed=1", "ransac.seed=2"], "given twice"),
        (["ransac.trials=1"], "given twice"),
        (["ransac.seed=x"], "expected int"),
        (["ransac.sead=1"], "sead"),
        (["ransack.seed=1"], "ransack"),
        (["ransac.threshold=-1"], "threshold"),
    ],
)
def test_values_that_cannot_be_varied_are_refused_before_any_work(
    tmp_path: Path, places: Places, texts: list[str], said: str
) -> None:
    setup, base = Setup(f"folder:{tmp_path}/none"), Selection(("ransac",), {"ransac": {"trials": "9"}})
    with pytest.raises(UserError, match=said):
        vary(setup, base, [Varied.parse(text) for text in texts], places)


def test_the_command_varies_or_sweeps_but_not_both(cli: Callable[..., Result], instances: Path, tmp_path: Path) -> None:
    common = ["sweep", "-d", f"folder:{instances}", "-m", "identity", "--out", str(tmp_path / "out"), "--top-k", "5"]
    done = cli(*common, "--vary", "random.seed=0,1", "--max-side", "160", "--keep-descriptors", "150")
    assert done.exit_code == 0, done.output
    assert "random, 2 seeds, mAP All" in (tmp_path / "out" / "sweep.md").read_text()
    assert not (tmp_path / "out" / "sweep.png").exists()
    assert cli(*common, "--vary", "random.seed=0", "--descriptors", "5").exit_code == 2


def test_a_row_that_fails_is_left_out_of_the_sweep_which_is_written_and_gives_status_1(
    cli: Callable, instances: Path, add_method: Callable, tmp_path: Path
) -> None:
    add_method("broken", "def score(self, query, candidates):\n    raise RuntimeError('out of luck')")
    given = ["sweep", "-m", "random,broken", "-d", f"folder:{instances}", "-k", "2", "--out", str(tmp_path / "out")]
    done = cli(*given, "--vary", "random.seed=0,1", "--max-side", "160", "--keep-descriptors", "150")
    assert done.exit_code == 1 and "Error: failed: broken; the reasons are above" in done.stderr
    assert "out of luck" in done.stdout and "random" in (tmp_path / "out" / "sweep.csv").read_text()
