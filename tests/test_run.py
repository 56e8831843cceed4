"""A run, end to end on real images: exact controls, resuming, failures, reports and the regression check."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench.blend import Blend
from bench.datasets import Dataset, folder
from bench.errors import UserError
from bench.evaluation import CEILING, FIRST_STAGE, evaluate
from bench.features.sets import ExtractOptions, FeatureSet, features_of
from bench.places import Places
from bench.record import Cost
from bench.report.tables import compare
from bench.results import Run, finished_runs
from bench.run import Outcome, execute
from bench.setup import Selection, Setup
from tests.programs import ByItself, Program, Start

Go = Callable[..., Outcome]
REPOSITORY = Path(__file__).resolve().parent.parent


def aps(run: Run, method: str, blend: Blend = Blend()) -> pd.Series:
    rows = run.metrics(blend)
    rows = rows[rows.method == method].set_index(["query", "difficulty", "measure"])["value"]
    assert len(rows)
    return rows


def plain(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values([c for c in table.columns if c not in ("score", "value")]).reset_index(drop=True)


# --- what every run must keep -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["blind", "paper"])
def test_constant_equals_identity(run: Go, images: Path, policy: str) -> None:
    done = run(images, "constant,identity", policy=policy, top_k=5).run
    pd.testing.assert_series_equal(aps(done, "constant"), aps(done, "identity"), check_exact=True)
    pd.testing.assert_series_equal(aps(done, "identity"), aps(done, FIRST_STAGE), check_exact=True)


@pytest.mark.parametrize("policy", ["blind", "paper"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_oracle_reaches_the_ceiling_in_every_difficulty(run: Go, images: Path, policy: str, k: int) -> None:
    done = run(images, "oracle,identity,reverse,random", policy=policy, top_k=k).run
    ceiling = aps(done, CEILING)
    pd.testing.assert_series_equal(aps(done, "oracle"), ceiling, check_exact=True)
    for method in ("identity", "reverse", "random"):
        below = ceiling - aps(done, method)
        assert below[below.index.get_level_values("measure") == "mAP"].dropna().min() >= -1e-12


def test_reverse_is_the_first_stage_backwards_and_the_tail_stays(run: Go, buildings: Path) -> None:
    done = run(buildings, "reverse,identity", top_k=6).run
    scores = done.scores.set_index(["method", "query"]).sort_index()
    for query in done.shortlist.queries:
        back, front = (
            scores.loc[m, query].sort_values("score", ascending=False)["candidate"].tolist()
            for m in ("reverse", "identity")
        )
        assert back == front[::-1]
    assert set(done.scores["candidate"]) <= set(done.shortlist.gallery)
    assert done.scores.groupby(["method", "query"]).size().eq(6).all()


def test_random_depends_on_its_seed_alone(run: Go, instances: Path, places: Places, tmp_path: Path) -> None:
    first = run(instances, "random", options={"random": {"seed": "1"}}).run.scores
    again = run(
        instances, "random", Places(places.cache, places.data, tmp_path / "again"), options={"random": {"seed": "1"}}
    ).run.scores
    other = run(instances, "random", options={"random": {"seed": "2"}}).run.scores
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert not first.score.equals(other.score)


def test_a_query_is_never_scored_against_itself(run: Go, instances: Path) -> None:
    scores = run(instances, "identity").run.scores
    assert not (scores["query"] == scores["candidate"]).any()
    assert scores.groupby("query").size().eq(8).all()


def test_the_paper_policy_scores_the_union_once_and_gives_every_difficulty_its_own_list(
    run: Go,
    buildings: Path,
) -> None:
    done = run(buildings, "identity", policy="paper", top_k=3).run
    assert list(done.shortlist.lists) == ["Easy", "Medium", "Hard"]
    for number, query in enumerate(done.shortlist.queries):
        listed = done.scores[done.scores["query"] == query]["candidate"].tolist()
        assert len(listed) == len(set(listed))
        assert set(listed) == {
            done.shortlist.gallery[c] for d in done.shortlist.lists for c in done.shortlist.candidates(d, number)
        }


def test_a_listwise_method_scores_each_list(run: Go, buildings: Path, add_method: Callable) -> None:
    add_method(
        "listwise",
        "pairwise = False\ndef score(self, query, candidates):\n"
        "    assert len(candidates) == 3\n    return candidates.similarities",
    )
    done = run(buildings, "listwise,identity", policy="paper", top_k=3).run
    pd.testing.assert_series_equal(aps(done, "listwise"), aps(done, "identity"), check_exact=True)
    assert done.ledger.set_index("method").pairs["listwise"].eq(9).all()


def test_real_methods_find_the_other_views(run: Go, instances: Path) -> None:
    """A sanity check of the whole chain: geometry tells these scenes apart, whatever the first stage does."""
    table = compare([run(instances, "ransac,identity,reverse").run])
    assert table.rows.loc["ransac", "mAP All"] > 95
    assert (
        table.rows.loc["ransac", "mAP All"]
        >= table.rows.loc["identity", "mAP All"]
        > table.rows.loc["reverse", "mAP All"]
    )


def test_blends_are_replayed_from_stored_scores(run: Go, instances: Path) -> None:
    done = run(instances, "ransac,identity").run
    same = evaluate(done.rankings())
    pd.testing.assert_frame_equal(plain(same), plain(done.metrics()), check_exact=True)
    pd.testing.assert_series_equal(aps(done, "ransac", Blend.parse("add:0")), aps(done, "identity"), check_exact=True)
    pd.testing.assert_series_equal(
        aps(done, "ransac", Blend.parse("sigmoid:1,1")), aps(done, "identity"), check_exact=True
    )
    pd.testing.assert_series_equal(aps(done, "ransac", Blend.parse("add:1e6")), aps(done, "ransac"), check_exact=True)


# --- finished, forced, other identities ---------------------------------------------------------------------------


def test_a_finished_run_is_given_back_and_force_measures_again(run: Go, instances: Path) -> None:
    first = run(instances, "identity")
    before = (first.run.folder / "journal.jsonl").read_bytes()
    again = run(instances, "identity")
    assert again.run.folder == first.run.folder and any("already finished" in note for note in again.notes)
    assert (again.run.folder / "journal.jsonl").read_bytes() == before
    forced = run(instances, "identity", force=True)
    assert forced.run.folder == first.run.folder
    assert (forced.run.folder / "journal.jsonl").read_bytes() != before  # other times
    pd.testing.assert_frame_equal(forced.run.scores, first.run.scores, check_exact=True)


def test_a_run_can_be_shown_after_another_process_has_removed_it_to_measure_again(run: Go, instances: Path) -> None:
    done = run(instances, "identity,mnn")
    expected = compare([Run.load(done.run.folder)])
    shutil.rmtree(done.run.folder)
    shown = compare([done.run])
    pd.testing.assert_frame_equal(shown.rows, expected.rows, check_exact=True)
    assert shown.title == expected.title and shown.notes == expected.notes


def test_another_question_is_another_run(run: Go, instances: Path) -> None:
    folders = [
        run(instances, *a, **k).run.folder
        for a, k in (
            (("identity",), {}),
            (("identity",), {"top_k": 5}),
            (("identity",), {"policy": "paper"}),
            (("identity,constant",), {}),
            (("random",), {"options": {"random": {"seed": "3"}}}),
        )
    ]
    assert len(set(folders)) == 5


def test_changed_source_of_a_method_is_another_run(run: Go, instances: Path, add_method: Callable) -> None:
    body = "def score(self, query, candidates):\n    return {}candidates.similarities"
    add_method("edited", body.format(""))
    first = run(instances, "edited").run
    sys.modules.pop("methods.edited")
    add_method("edited", body.format("-"))
    second = run(instances, "edited").run
    assert first.folder != second.folder and not first.scores.score.equals(second.scores.score)


WEIGHTED = """
@dataclass(frozen=True)
class Options:
    from pathlib import Path
    weights: Path | None = None
    table: Path | None = None

def load(self):
    self.sign = float(self.options.weights.read_text())

def score(self, query, candidates):
    return self.sign * candidates.similarities
"""


def test_other_contents_of_a_file_that_an_option_names_are_another_run(
    run: Go, instances: Path, add_method: Callable, tmp_path: Path
) -> None:
    """Also where the method does not say that the file has its weights."""
    add_method("weighted", WEIGHTED)
    file, table = tmp_path / "w.txt", tmp_path / "tables"
    options = {"weighted": {"weights": str(file), "table": str(table)}}
    file.write_text("1")
    table.mkdir()
    (table / "a.txt").write_text("0")
    first = run(instances, "weighted,reverse", options=options)
    assert run(instances, "weighted,reverse", options=options).run.record.finished == first.run.record.finished
    file.write_text("-1")
    trained = run(instances, "weighted,reverse", options=options)
    assert trained.run.folder != first.run.folder
    pd.testing.assert_series_equal(aps(trained.run, "weighted"), aps(trained.run, "reverse"), check_exact=True)
    (table / "a.txt").write_text("2")
    assert run(instances, "weighted,reverse", options=options).run.folder not in (trained.run.folder, first.run.folder)


def test_a_file_of_an_option_that_is_not_there_is_refused_by_its_option(
    run: Go, instances: Path, places: Places, add_method: Callable, tmp_path: Path
) -> None:
    add_method("weighted", WEIGHTED)
    given, empty = {"weighted": {"weights": str(tmp_path / "none.txt")}}, tmp_path / "empty"
    with pytest.raises(UserError, match=r"-o weighted\.weights=.*none\.txt: no such file"):
        run(instances, "identity,weighted", Places(empty, places.data, places.runs), options=given)
    assert not empty.exists()  # refused before anything is extracted


def test_top_k_beyond_the_gallery_is_refused_when_asked_for_and_clamped_by_default(run: Go, images: Path) -> None:
    with pytest.raises(UserError) as refusal:
        run(images, "identity", top_k=13)
    most = 8 if images.parent.name.startswith("instances") else 12
    assert f"--top-k {most} or less" in str(refusal.value)
    outcome = run(images, "identity")
    assert outcome.run.shortlist.header.k == most
    assert any(f"top-k is {most}" in note for note in outcome.notes)


RAW = """
def score(self, query, candidates):
    from bench.reranker import Scored
    raw = torch.arange(float(len(candidates)))
    return Scored(-raw, {{"raw": raw, "more": {more}}})
"""


@pytest.mark.parametrize("policy", ["blind", "paper"])
def test_the_numbers_behind_a_score_are_kept_beside_it(
    run: Go, images: Path, add_method: Callable, policy: str
) -> None:
    add_method("raw", "import torch\n" + RAW.format(more="raw + 0.5"))
    done = run(images, "raw,identity", policy=policy, top_k=5).run
    wide = done.details.pivot(index=["list", "query", "candidate"], columns="name", values="value")
    scores = done.scores[done.scores.method == "raw"].set_index(["list", "query", "candidate"])["score"]
    assert len(wide) == len(scores) and set(done.details.method) == {"raw"}
    pd.testing.assert_series_equal(wide["raw"], -scores.sort_index(), check_names=False)
    pd.testing.assert_series_equal(wide["more"], 0.5 - scores.sort_index(), check_names=False)
    assert run(images, "identity", policy=policy, top_k=5).run.details.empty


# --- failures -----------------------------------------------------------------------------------------------------


BAD = {
    "raises": ("def score(self, query, candidates):\n    raise RuntimeError('out of luck')", "out of luck"),
    "loads-not": (
        "def load(self):\n    raise OSError('no weights here')\n"
        "def score(self, query, candidates):\n    return candidates.similarities",
        "no weights here",
    ),
    "nan": ("def score(self, query, candidates):\n    return candidates.similarities * float('nan')", "finite numbers"),
    "infinite": ("def score(self, query, candidates):\n    return candidates.similarities / 0", "finite numbers"),
    "short": (
        "def score(self, query, candidates):\n    return candidates.similarities[1:]",
        "expected a tensor of shape",
    ),
    "column": ("def score(self, query, candidates):\n    return candidates.similarities[:, None]", "shape"),
    "list": ("def score(self, query, candidates):\n    return candidates.similarities.tolist()", "list"),
    "none": ("def score(self, query, candidates):\n    pass", "NoneType"),
    "raw": ("import torch\n" + RAW.format(more="raw / 0"), "more of query"),
    "raw-short": ("import torch\n" + RAW.format(more="raw[1:]"), "more has shape"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_a_method_that_breaks_is_reported_and_the_others_finish(
    run: Go, instances: Path, add_method: Callable, kind: str
) -> None:
    body, said = BAD[kind]
    add_method("broken", body)
    done = run(instances, "identity,broken,constant").run
    assert said in done.record.failed["broken"]
    assert set(done.scores.method) == set(done.ledger.method) == {"identity", "constant"}
    table = compare([done])
    assert set(table.rows.index) == {"identity", "constant"}
    assert any(note.startswith("broken failed:") and said in note for note in table.notes)


def test_a_failure_is_not_said_once_the_row_was_measured(run: Go, instances: Path, add_method: Callable) -> None:
    add_method("late", BREAKS_LATE.format(at=6).replace(' and os.environ.get("BREAK") == "1"', ""))
    broken = run(instances, "identity,late").run
    add_method("late", "def score(self, query, candidates):\n    return candidates.similarities")
    del sys.modules["methods.late"]
    mended = run(instances, "late").run
    assert any("late failed" in note for note in compare([broken]).notes)
    assert not any("failed" in note for note in compare([broken, mended]).notes)


def test_a_failure_names_the_line_of_the_method_and_the_query(
    run: Go, instances: Path, add_method: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what it calls raises; a check of the harness has no line there."""
    monkeypatch.setenv("BREAK", "1")
    place = add_method("late", BREAKS_LATE.format(at=6))
    add_method("deep", "def score(self, query, candidates):\n    return torch.zeros(2) @ torch.zeros(3)")
    add_method("column", BAD["column"][0])
    done = run(instances, "identity,late,deep,column").run
    lines = (place / "late.py").read_text().splitlines()
    raised = next(number for number, line in enumerate(lines, 1) if "broke in" in line)
    fourth = done.shortlist.queries[3]  # two calls warm up
    assert done.record.failed["late"] == f"RuntimeError: broke in the middle (late.py, line {raised}, query {fourth})"
    assert re.search(r"\(deep\.py, line \d+\)$", done.record.failed["deep"])
    assert ".py" not in done.record.failed["column"]


BREAKS_LATE = """
calls = 0
def score(self, query, candidates):
    type(self).calls += 1
    if self.calls == {at} and os.environ.get("BREAK") == "1":
        raise RuntimeError("broke in the middle")
    return -candidates.similarities
"""


def test_a_method_that_breaks_in_the_middle_is_finished_later(
    run: Go, instances: Path, add_method: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_method("late", BREAKS_LATE.format(at=6))
    monkeypatch.setenv("BREAK", "1")
    broken = run(instances, "identity,late,reverse").run
    assert "broke in the middle" in broken.record.failed["late"]
    assert set(broken.scores.method) == {"identity", "reverse"}
    kept = [json.loads(line) for line in (broken.folder / "journal.jsonl").read_text().splitlines()]
    assert sum(record["method"] == "late" for record in kept) == 3  # two calls warm up, the sixth raised
    monkeypatch.setenv("BREAK", "0")
    mended = run(instances, "identity,late,reverse").run
    assert mended.folder == broken.folder and not mended.record.failed
    pd.testing.assert_series_equal(aps(mended, "late"), aps(mended, "reverse"), check_exact=True)
    after = [json.loads(line) for line in (mended.folder / "journal.jsonl").read_text().splitlines()]
    assert after[: len(kept)] == kept


def test_when_every_method_breaks_the_run_says_so_and_is_not_finished(
    run: Go, instances: Path, places: Places, add_method: Callable
) -> None:
    add_method("broken", BAD["raises"][0])
    with pytest.raises(UserError, match="every method failed:\n  broken: RuntimeError: out of luck"):
        run(instances, "broken")
    assert finished_runs(places.runs) == []


def test_a_method_that_changes_torchs_threads_changes_nothing_for_the_others(
    run: Go, instances: Path, add_method: Callable
) -> None:
    add_method(
        "greedy",
        "def score(self, query, candidates):\n    torch.set_num_threads(2)\n"
        "    torch.set_grad_enabled(False)\n    return candidates.similarities",
    )
    run(instances, "greedy,identity")
    assert torch.get_num_threads() == 1 and torch.is_grad_enabled()


def test_a_method_that_cannot_run_here_is_a_reported_skip(run: Go, instances: Path, add_method: Callable) -> None:
    add_method(
        "picky",
        "def skip(self, features):\n    return 'not on Mondays'\n"
        "def score(self, query, candidates):\n    return candidates.similarities",
    )
    done = run(instances, "identity,picky").run
    assert done.record.skipped == {"picky": "not on Mondays"}
    assert any("picky did not run: not on Mondays" in note for note in compare([done]).notes)
    with pytest.raises(UserError, match="no requested method can run here"):
        run(instances, "picky")


def test_truth_is_given_to_controls_only(add_method: Callable) -> None:
    from bench import registry

    add_method("peeking", "def score(self, query, candidates):\n    return candidates.positives", {"truth"})
    with pytest.raises(UserError, match="only a control may read the ground truth"):
        registry.get("peeking")


def test_a_method_is_given_only_what_it_needs(run: Go, instances: Path, add_method: Callable) -> None:
    add_method(
        "modest",
        """
def score(self, query, candidates):
    assert candidates.positives is None
    for image in (query, *candidates):
        assert len(image.global_descriptor) == 0
        assert len(image) > 0 and image.keypoints.abs().sum() == 0
        assert image.scores.min() > 0
    return candidates.similarities""",
        {"local"},
    )
    add_method(
        "blindfolded",
        """
def score(self, query, candidates):
    assert all(len(image) == 0 and len(image.global_descriptor) == 0 for image in (query, *candidates))
    return candidates.similarities""",
    )
    assert not run(instances, "modest,blindfolded").run.record.failed


# --- costs --------------------------------------------------------------------------------------------------------


def test_descriptors_and_bytes_are_those_of_the_store(
    run: Go, instances: Path, stored: tuple[Dataset, FeatureSet]
) -> None:
    dataset, store = stored
    counts = np.array([store.count(key) for key in dataset.gallery])
    costs = run(instances, "ransac,random,identity", options={"ransac": {"descriptors": "20"}}).run.record.costs
    used = np.minimum(counts, 20)
    per_row = 64 * 2 + 2 + 2 + 2 * 4 + 2  # descriptor, scale and score in half precision; x, y single; orientation half
    assert vars(costs["ransac"]) == {
        "descriptors_mean": pytest.approx(used.mean()),
        "descriptors_max": used.max(),
        "kib_per_image": pytest.approx(used.mean() * per_row / 1024),
    }
    assert costs["random"] == Cost(0, 0, 1280 * 2 / 1024)
    assert costs["identity"] == Cost(0, 0, 0)


def test_the_ledger_has_a_row_a_query_and_its_times_are_times(run: Go, instances: Path) -> None:
    done = run(instances, "ransac,identity", top_k=5).run
    assert done.ledger.groupby("method").size().to_dict() == {"ransac": 9, "identity": 9}
    assert done.ledger.pairs.eq(5).all()
    assert (done.ledger[["load_ms", "transfer_ms", "score_ms"]] >= 0).all(axis=None)
    by_method = done.ledger.groupby("method").score_ms.median()
    assert by_method["ransac"] > by_method["identity"]


def test_a_run_records_what_it_was_made_with(run: Go, instances: Path) -> None:
    record = run(instances, "ransac,identity").run.record
    made = record.provenance
    assert made["versions"]["torch"] and made["hardware"]["threads"] == 1 and made["torch_flags"]
    assert record.identity.methods["ransac"].options["seed"] == 0
    assert len(str(record.identity.methods["ransac"].source_sha256)) == 64
    assert record.cards["identity"].control and not record.cards["ransac"].control


# --- killed and resumed -------------------------------------------------------------------------------------------


SLOW = (
    "def score(self, query, candidates):\n    time.sleep(float(os.environ.get('NAP', '0')))\n"
    "    return -candidates.similarities"
)

DRIVER = """
import sys, time
import methods
methods.__path__.append({methods!r})
import bench.features.fill as fill
fill.SHARD_IMAGES = 2
from bench.features.extract import PartExtractor
plain = PartExtractor.__call__
def slow(self, *given):
    time.sleep({nap})
    return plain(self, *given)
PartExtractor.__call__ = slow
from cli import main
main()
"""


def start(
    program: Start, tmp_path: Path, places: Places, images: Path, names: str, nap: float = 0.0
) -> Program | ByItself:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(methods=str(tmp_path / "more_methods"), nap=nap))
    small = ["--max-side", "160", "--keep-descriptors", "150", "--first-stage", "gem-lite0", "--threads", "1"]
    folders = ["--cache-dir", str(places.cache), "--runs", str(places.runs)]
    command = [str(driver), "run", "--dataset", f"folder:{images}", "--method", names, *small, *folders]
    return program(*command, env={"NAP": "0.15", "PYTHONPATH": str(REPOSITORY)})


def kill_when(process: Program | ByItself, reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 100
    while not reached():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"never got there: {process.finish().stderr[-2000:]}")
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_run_killed_while_scoring_goes_on_where_it_stopped(
    program: Start,
    run: Go,
    instances: Path,
    places: Places,
    tmp_path: Path,
    add_method: Callable,
    stored: tuple[Dataset, FeatureSet],
) -> None:
    add_method("napping", SLOW)

    def journal() -> bytes:
        return b"".join(path.read_bytes() for path in places.runs.glob("*/journal.jsonl"))

    names = "identity,napping,ransac"
    kill_when(start(program, tmp_path, places, instances, names), lambda: journal().count(b"\n") >= 8)
    kept = journal()
    assert 8 <= kept.count(b"\n") < 27
    assert finished_runs(places.runs) == []
    resumed = run(instances, names)
    assert any("resuming" in note for note in resumed.notes)
    whole = kept[: kept.rfind(b"\n") + 1]
    assert (resumed.run.folder / "journal.jsonl").read_bytes().startswith(whole)  # nothing was done twice
    undisturbed = run(instances, names, Places(places.cache, places.data, tmp_path / "undisturbed"))
    assert undisturbed.run.folder.name == resumed.run.folder.name
    pd.testing.assert_frame_equal(plain(resumed.run.scores), plain(undisturbed.run.scores), check_exact=True)
    pd.testing.assert_frame_equal(plain(resumed.run.metrics()), plain(undisturbed.run.metrics()), check_exact=True)


def test_an_extraction_killed_in_the_middle_keeps_its_shards(
    program: Start,
    run: Go,
    instances: Path,
    tmp_path: Path,
    stored: tuple[Dataset, FeatureSet],
    add_method: Callable,
) -> None:
    places = Places(tmp_path / "cache", tmp_path / "data", tmp_path / "runs")

    def shards() -> list[Path]:
        return sorted(places.cache.glob("features/*/shards/[0-9]*"))

    kill_when(start(program, tmp_path, places, instances, "rrt", nap=0.2), lambda: len(shards()) >= 2)
    before = {path: (path / "shard.json").stat().st_mtime_ns for path in shards()}
    told: list[tuple[str, int, int]] = []
    extract = ExtractOptions(160, 150)
    (resumed,) = execute(
        Setup(f"folder:{instances}", first_stage="gem-lite0", extract=extract),
        [Selection(("rrt",))],
        places,
        lambda what, done, total: told.append((what, done, total)),
    )
    assert {path: (path / "shard.json").stat().st_mtime_ns for path in before} == before
    totals = {what: total for what, _, total in told}
    assert {path.parents[1].name.endswith("gem-lite0-160px") for path in before} == {True}
    assert totals["extracting gem-lite0"] == 9 - 2 * len(before) and totals["extracting xfeat"] == 9
    dataset, whole = stored
    store, _ = features_of(dataset, "xfeat", extract, torch.device("cpu"), places)
    for key in dataset.gallery:
        for name, value in vars(whole.read(key)).items():
            assert torch.equal(getattr(store.read(key), name), value), (key, name)
    assert resumed.run.seal == run(instances, "identity").run.seal


@pytest.mark.parametrize(
    "torn",
    [
        b'{"method": "identity", "query": "obj',
        b"\0" * 40,
        b"\xff\xfe\n",
        b"{}\n",
        b"3\n",
        b'{"method": "identity", "query": "object0/view0", "scores": {"union": [NaN]}, '
        b'"load_ms": 0, "transfer_ms": 0, "score_ms": 0}\n',
    ],
)
def test_a_torn_last_journal_line_is_dropped(run: Go, instances: Path, torn: bytes) -> None:
    done = run(instances, "identity,reverse").run
    path = done.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]) + torn)
    about = json.loads((done.folder / "run.json").read_text())
    (done.folder / "run.json").write_text(json.dumps({**about, "status": "running"}))
    resumed = run(instances, "identity,reverse").run
    now = path.read_bytes().splitlines(keepends=True)
    assert now[:7] == lines[:7] and len(now) == len(lines)
    pd.testing.assert_frame_equal(plain(resumed.scores), plain(done.scores), check_exact=True)


# --- whitening ----------------------------------------------------------------------------------------------------


def test_whitening_is_learned_on_another_set_and_named_in_the_record(run: Go, instances: Path, buildings: Path) -> None:
    plain_run = run(instances, "identity").run
    white = run(instances, "identity,constant", whiten=f"folder:{buildings}").run
    assert white.seal != plain_run.seal
    name = white.record.identity.shortlist.first_stage
    assert name.startswith("gem-lite0+pca11[folder:") and str(buildings) in name
    with pytest.raises(UserError, match="another data set than the one tested"):
        run(instances, "identity", whiten=f"folder:{instances}")


def test_whitening_on_the_tested_set_under_another_spelling_is_refused(run: Go, instances: Path) -> None:
    with pytest.raises(UserError, match="another data set than the one tested"):
        run(instances, "identity", whiten=f"folder:{instances}/../{instances.name}")


def test_two_folders_whose_long_names_end_alike_keep_apart(
    run: Go, write_instances: Callable, tmp_path: Path, places: Places
) -> None:
    tail = Path("a" * 40) / ("b" * 40)
    first, second = (write_instances(tmp_path / name / tail, 2, 2) for name in ("one", "two"))
    for path in (first, second):
        run(path, "mnn")
    assert folder.load(first).name != folder.load(second).name
    made = {p.name for p in (places.cache / "features").iterdir() if "b" * 40 in p.name}
    assert len(made) == 4
