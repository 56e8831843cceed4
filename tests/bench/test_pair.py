"""One pair of a run: the very score and places that the run has, from two images' features alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.errors import UserError
from bench.evaluation import main_difficulty
from bench.features import sets
from bench.pair import Pair, pair
from bench.places import Places
from bench.reranker import Explanation, Saliency
from bench.results import Run
from bench.run import Outcome
from methods._local_weights import save_checkpoint
from methods.ames.model import FORMAT as AMES
from methods.ames.model import Ames, AmesConfig
from methods.elvis.model import FORMAT as ELVIS
from methods.elvis.model import Elvis, ElvisConfig

Go = Callable[..., Outcome]
PAIRS = [("query0", "landmark0_2"), ("query1", "landmark1_0"), ("query0", "other2"), ("query1", "landmark0_3")]


@pytest.fixture
def done(finished: Callable[..., Run], buildings: Path) -> Run:
    return finished(buildings, "mnn,ransac,maxsim,asmk,rrt,identity,oracle,aqe", top_k=12)


def place(run: Run, row: str, query: str, candidate: str) -> int | None:
    """From the stored scores, higher first and ties in the first stage's order."""
    number = run.shortlist.queries.index(query)
    near = run.shortlist.candidates(run.shortlist.list_for(main_difficulty(run.dataset)), number)
    names = [run.shortlist.gallery[image] for image in near]
    of = run.scores[(run.scores["method"] == row) & (run.scores["query"] == query)].set_index("candidate")["score"]
    order = sorted(names, key=lambda name: -of[name])
    return order.index(candidate) + 1 if candidate in order else None


@pytest.mark.parametrize("row", ["mnn", "ransac", "maxsim", "asmk"])
def test_a_pair_is_scored_as_in_the_run_and_its_explanation_adds_up_to_that(
    done: Run, places: Places, row: str
) -> None:
    stored = done.scores[done.scores["method"] == row].set_index(["query", "candidate"])["score"]
    scored = 0
    for query, candidate in PAIRS:
        found = pair([done], query, candidate, row, {}, places)
        assert found.explanation is not None and found.score is not None and not found.notes
        assert found.explanation.score == pytest.approx(found.score, rel=1e-5)
        if (query, candidate) in stored.index:
            assert found.score == pytest.approx(stored[query, candidate], rel=1e-5)
            scored += 1
        assert found.after == place(done, row, query, candidate)
        assert found.kind == done.dataset.grades[query].get(candidate, "negative")
    assert scored > 1


def test_keypoints_are_there_whether_the_method_reads_them_or_not(done: Run, places: Places) -> None:
    without, reading = (pair([done], *PAIRS[0], row, {}, places) for row in ("mnn", "ransac"))
    assert without.placed and without.features is not None and reading.features is not None
    for one, other in zip(without.features, reading.features, strict=True):
        assert len(one) and torch.equal(one.keypoints, other.keypoints)


def test_features_are_read_where_they_are_kept(done: Run, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("extracted again")

    monkeypatch.setattr(sets, "extract", refuse)
    assert pair([done], *PAIRS[0], "ransac", {}, places).score == pair([done], *PAIRS[0], "ransac", {}, places).score


def test_features_that_are_not_kept_are_extracted_of_the_two_images_alone(
    done: Run, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted: list[str] = []
    extract = sets.extract

    def counted(wanted, *more):
        extracted.extend(item.key for item in wanted)
        return extract(wanted, *more)

    monkeypatch.setattr(sets, "extract", counted)
    empty = replace(places, cache=tmp_path / "empty")
    assert pair([done], *PAIRS[0], "ransac", {}, empty).score == pair([done], *PAIRS[0], "ransac", {}, places).score
    assert extracted == ["query/query0/", "landmark0_2"] and not empty.cache.exists()


def test_a_query_that_is_a_gallery_image_is_one_image(run: Go, instances: Path, places: Places) -> None:
    done = run(instances, "mnn", top_k=5).run
    query, candidate = "object1/view0.png", "object1/view1.png"
    known = set(done.dataset.gallery)
    query, candidate = (name if name in known else name.removesuffix(".png") for name in (query, candidate))
    found = pair([done], query, candidate, "mnn", {}, places)
    scores = done.scores[(done.scores["query"] == query) & (done.scores["candidate"] == candidate)]
    assert found.score == scores["score"].item() and found.kind in ("easy", "hard")


def test_what_rrt_attends_to_is_shown_and_said_to_be_no_share_of_the_score(done: Run, places: Places) -> None:
    found = pair([done], *PAIRS[0], "rrt", {}, places)
    stored = done.scores[done.scores["method"] == "rrt"].set_index(["query", "candidate"])["score"]
    assert found.score == pytest.approx(stored[PAIRS[0]], abs=1e-5) and found.placed
    assert isinstance(found.explanation, Saliency) and found.features is not None
    assert found.explanation.rows == tuple(len(image) for image in found.features)
    (note,) = found.notes
    assert note.startswith("Attention, not a share of the score; elsewhere: CLS 0.")
    assert note.count(",") == 4 and "the candidate's global 0." in note


@pytest.fixture
def given_weights(tmp_path: Path) -> dict[str, dict[str, str]]:
    """Options of `ames` and `elvis`: random weights for XFeat's descriptors."""
    torch.manual_seed(0)
    sizes = {"depth": 1, "feedforward": 8, "dim": 16, "local_dim": 64}
    for name, network, form in (
        ("ames", Ames(AmesConfig(**sizes)), AMES),  # type: ignore[arg-type]
        ("elvis", Elvis(ElvisConfig(64)), ELVIS),
    ):
        save_checkpoint(network.eval(), form, tmp_path / f"{name}.safetensors", {"descriptors": 50})
    return {name: {"weights": str(tmp_path / f"{name}.safetensors")} for name in ("ames", "elvis")}


def test_weights_of_descriptors_are_of_those_that_the_method_reads(
    run: Go, buildings: Path, places: Places, given_weights: dict[str, dict[str, str]]
) -> None:
    done = run(buildings, "ames,elvis", top_k=12, options=given_weights).run
    stored = done.scores.set_index(["method", "query", "candidate"])["score"]
    attention, votes = (pair([done], *PAIRS[0], row, {}, places) for row in ("ames", "elvis"))
    for found, row in ((attention, "ames"), (votes, "elvis")):
        assert isinstance(found.explanation, Saliency) and found.explanation.rows == (50, 50)
        assert found.score == pytest.approx(stored[(row, *PAIRS[0])], rel=1e-5)
    assert votes.explanation is not None and votes.explanation.score == pytest.approx(votes.score, rel=1e-5)
    assert votes.notes == () and attention.explanation is not None and attention.explanation.score is None
    assert [note.partition("; elsewhere: the match token 0.")[0] for note in attention.notes] == [
        "Attention, not a share of the score"
    ]


@pytest.mark.parametrize("row", ["ransac", "rrt"])
def test_features_without_keypoints_are_said_to_have_none(
    done: Run, places: Places, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all = sets.FeatureSet.read_all

    def without(*asked, **more):
        images = read_all(*asked, **more)
        return [replace(image, keypoints=torch.zeros_like(image.keypoints)) for image in images]

    monkeypatch.setattr(sets.FeatureSet, "read_all", without)
    found = pair([done], *PAIRS[0], row, {}, places)
    assert not found.placed and "These features have no keypoints" in found.notes[-1]


def test_images_without_descriptors_are_said_to_have_none(
    done: Run, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all = sets.FeatureSet.read_all
    monkeypatch.setattr(sets.FeatureSet, "read_all", lambda *asked: [image.top(0) for image in read_all(*asked)])
    found = pair([done], *PAIRS[0], "rrt", {}, places)
    assert found.explanation is None
    assert found.notes[-2:] == ("The query has no local descriptors.", "The candidate has no local descriptors.")


@pytest.mark.parametrize("row", ["identity", "oracle", "aqe"])
def test_a_method_of_no_pairs_has_the_score_of_the_run_and_says_that_it_has_none(
    done: Run, places: Places, row: str
) -> None:
    found = pair([done], *PAIRS[0], row, {}, places)
    stored = done.scores[done.scores["method"] == row].set_index(["query", "candidate"])["score"]
    assert found.explanation is None and found.score == stored[PAIRS[0]]
    assert found.before == place(done, "identity", *PAIRS[0]) and "no matches to show" in found.notes[0]


def test_an_image_that_is_no_candidate_has_no_place_and_is_scored_where_it_can_be(
    run: Go, buildings: Path, places: Places
) -> None:
    done = run(buildings, "mnn,rrt,oracle", top_k=1).run
    listed = {done.shortlist.gallery[i] for i in done.shortlist.candidates("any", 0)}
    other = next(name for name, grade in done.dataset.grades["query0"].items() if name not in listed)
    for row in ("mnn", "rrt"):
        found = pair([done], "query0", other, row, {}, places)
        assert (found.before, found.after) == (None, None) and found.score is not None
    assert pair([done], "query0", other, "oracle", {}, places).score is None


def test_options_that_are_given_choose_the_run_that_has_them(run: Go, buildings: Path, places: Places) -> None:
    few = run(buildings, "mnn", top_k=12, options={"mnn": {"descriptors": "30"}}).run
    many = run(buildings, "mnn", top_k=12).run
    newest = pair([few, many], *PAIRS[0], "mnn", {}, places)
    older = pair([few, many], *PAIRS[0], "mnn", {"mnn": {"descriptors": "30"}}, places)
    assert (newest.row, older.row) == ("mnn", "mnn descriptors=30") and older.after is not None
    assert newest.score is not None and older.score is not None and newest.score > older.score
    assert older.explanation is not None and int(older.explanation.query.max()) < 30
    none = pair([few, many], *PAIRS[0], "mnn", {"mnn": {"descriptors": "60"}}, places)
    assert none.score is not None and older.score < none.score < newest.score
    assert none.before is not None and none.after is None  # no run ranked with these


def test_a_preset_that_is_given_sets_what_it_sets(run: Go, buildings: Path, places: Places) -> None:
    plain = run(buildings, "ransac", top_k=12).run
    delg = run(buildings, "ransac", top_k=12, options={"ransac": {"preset": "delg"}}).run
    asked = {"ransac": {"preset": "delg"}}
    assert (
        pair([delg, plain], *PAIRS[0], "ransac", asked, places).score
        == pair([delg], *PAIRS[0], "ransac", {}, places).score
    )
    assert pair([plain], *PAIRS[0], "ransac", asked, places).after is None


def test_a_row_on_features_of_its_own_is_named_with_them_or_without(run: Go, buildings: Path, places: Places) -> None:
    done = run(buildings, "mnn@sift", top_k=12).run
    for method in ("mnn@sift", "mnn"):
        found = pair([done], *PAIRS[0], method, {}, places)
        assert found.row == "mnn@sift" and found.features is not None and found.features[0].descriptors.shape[1] == 128
    with pytest.raises(UserError, match="no finished run has this row") as error:
        pair([done], *PAIRS[0], "mnn@aliked", {}, places)
    assert "mnn@sift" in str(error.value)


def test_a_score_that_is_another_now_is_said(done: Run, places: Places) -> None:
    """An older run does not say how its images were extracted, so that they are extracted as is usual."""
    about = json.loads((done.folder / "run.json").read_text())
    del about["extract"]
    (done.folder / "run.json").write_text(json.dumps(about))
    found = pair([Run.load(done.folder)], *PAIRS[0], "mnn", {}, places)
    stored = done.scores[done.scores["method"] == "mnn"].set_index(["query", "candidate"])["score"]
    assert found.score != stored[PAIRS[0]] and f"The run has {stored[PAIRS[0]]:g}" in found.notes[0]


@pytest.mark.parametrize(
    ("query", "candidate", "method", "given", "said", "hint"),
    [
        ("quary0", "other1", "mnn", {}, "unknown query 'quary0'", "query0"),
        ("query0", "landmark0", "mnn", {}, "unknown candidate 'landmark0'", "landmark0_"),
        ("query0", "other1", "lightglue", {}, "no finished run has this row", "mnn"),
        ("query0", "other1", "mnn", {"ransac": {"seed": "1"}}, "-o ransac", "-o mnn.OPTION"),
        ("query0", "other1", "mnn", {"mnn": {"seed": "1"}}, "seed", "descriptors"),
    ],
)
def test_what_no_run_has_is_refused_with_what_there_is(
    done: Run, places: Places, query: str, candidate: str, method: str, given: dict, said: str, hint: str
) -> None:
    with pytest.raises(UserError) as error:
        pair([done], query, candidate, method, given, places)
    assert said in error.value.message and hint in str(error.value.hint)


def test_without_a_run_there_is_nothing_to_show(places: Places) -> None:
    with pytest.raises(UserError, match="no finished run"):
        pair([], "a", "b", "mnn", {}, places)


def test_an_image_that_is_gone_is_named(run: Go, write_buildings: Callable, places: Places, tmp_path: Path) -> None:
    root = write_buildings(tmp_path / "set")
    done = run(root, "mnn", top_k=12).run
    gone = root / "gallery" / "landmark0_2.png"
    shutil.move(gone, tmp_path / "elsewhere.png")
    with pytest.raises(UserError) as error:
        pair([done], *PAIRS[0], "mnn", {}, places)
    assert error.value.message == f"{gone}: no such image"


def test_a_pair_is_of_rows_that_its_images_have(done: Run, places: Places) -> None:
    found = pair([done], *PAIRS[0], "mnn", {}, places)
    rows = torch.tensor([10**6])
    with pytest.raises(ValueError, match="explains row 1000000 of"):
        replace(found, explanation=Explanation(rows, rows, torch.ones(1)))
    assert found.features is not None
    one, other = (torch.ones(len(image)) for image in found.features)
    assert replace(found, explanation=Saliency(one, other, "votes", adds_up=False)).explanation is not None
    with pytest.raises(ValueError, match=f"explains row {len(other)} of {len(other)}"):
        replace(found, explanation=Saliency(one, torch.ones(len(other) + 1), "votes", adds_up=False))
    with pytest.raises(ValueError, match="no features"):
        replace(found, features=None)
    with pytest.raises(ValueError, match="expected one of easy"):
        replace(found, kind="good")
    assert isinstance(found, Pair)
