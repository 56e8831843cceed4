"""Other people's candidates are sealed as our own are."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.candidates import imported_shortlist
from bench.datasets import Dataset, Query
from bench.errors import UserError
from bench.exports import export
from bench.run import Outcome
from bench.search import Vectors
from bench.shortlist import Shortlist, first_stage

GALLERY = tuple("abcdefgh")


@pytest.fixture
def dataset() -> Dataset:
    grades = {"q1": {"a": "easy", "b": "hard", "c": "junk"}, "d": {"a": "easy", "h": "junk"}}
    queries = (Query("q1", Path("q1")), Query("d", Path("d")))  # the second is in the gallery
    return Dataset("tiny", "revisited", "v1", queries, {i: Path(i) for i in GALLERY}, grades)


RANKING = np.array([list("habcdefg"), list("dcbahgfe")])


def written(path: Path, kind: str, names: np.ndarray = RANKING, queries: tuple[str, ...] = ("q1", "d")) -> Path:
    if kind == "trec":
        rows = [
            f"{q} Q0 {image} {i + 1} {1 - i / 10} t\n"
            for q, images in zip(queries, names, strict=True)
            for i, image in enumerate(images)
        ]
        path = path / "theirs.run"
        path.write_text("".join(rows))
    elif kind == "npz":
        path = path / "theirs.npz"
        values = 1 - np.arange(names.shape[1])[None].repeat(len(names), 0) / 10
        np.savez(path, queries=np.array(queries), candidates=names, similarities=values)
    else:
        path = path / "nn_inds_theirs.pkl"
        path.write_bytes(pickle.dumps(np.array([[GALLERY.index(i) for i in row] for row in names])))
    return path


def letters(made: Shortlist, query: int, of: str = "any") -> str:
    return "".join(made.gallery[i] for i in made.candidates(of, query))


@pytest.mark.parametrize("kind", ["trec", "npz", "pkl"])
def test_the_lists_are_the_files_without_the_query_itself(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    made = imported_shortlist(written(tmp_path, kind), dataset, "blind", 3)
    assert [letters(made, q) for q in (0, 1)] == ["hab", "cba"]
    assert [made.gallery[i] for i in made.graded.of(0)[0]] == list("abc") and made.graded.of(0)[1].tolist() == [1, 2, 3]
    assert (
        made.header.features == f"imported:{written(tmp_path, kind).name}" and len(made.header.features_content) == 64
    )
    if kind != "pkl":
        assert made.similarities["any"][0].tolist() == pytest.approx([1, 0.9, 0.8])
    paper = imported_shortlist(written(tmp_path, kind), dataset, "paper", 3)
    assert letters(paper, 0, "Hard") == "hbd" and letters(paper, 1, "Medium") == "cba"


def test_the_same_lists_as_our_own_first_stage_have_the_same_candidates(dataset: Dataset, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 8)).astype(np.float32)
    ours = first_stage(
        dataset, Vectors.of(values.T), np.eye(2), features="f", features_content="c", policy="blind", k=4
    )
    names = np.array([[GALLERY[i] for i in np.argsort(-row)] for row in values])
    theirs = imported_shortlist(written(tmp_path, "npz", names), dataset, "blind", 4)
    assert [letters(ours, q) for q in (0, 1)] == [letters(theirs, q) for q in (0, 1)]
    assert all(np.array_equal(ours.graded.of(q)[1], theirs.graded.of(q)[1]) for q in (0, 1))
    assert ours.header.gallery_content == theirs.header.gallery_content


def test_graded_images_that_the_file_does_not_list_have_no_rank(dataset: Dataset, tmp_path: Path) -> None:
    made = imported_shortlist(written(tmp_path, "npz", RANKING[:, :3]), dataset, "blind", 2)
    assert made.graded.of(0)[1].tolist() == [1, 2, -1]
    assert made.tail("any", 0, made.graded.of(0)[0], []).tolist() == [2]


def swapped(row: int, at: int, image: str) -> np.ndarray:
    names = RANKING.copy()
    names[row, at] = image
    return names


def test_lists_that_cannot_be_sealed_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    cases = {
        "'q1' names 'z', which is not in the gallery": (swapped(0, 1, "z"), ("q1", "d")),
        "list of query 'q1' repeats": (swapped(0, 1, "h"), ("q1", "d")),
        "no list of query 'd'": (RANKING, ("q1", "e")),
        "shortest list has 2 images, 3 are needed": (RANKING[:, :3], ("q1", "d")),
    }
    for says, (names, queries) in cases.items():
        with pytest.raises(UserError, match=says):
            imported_shortlist(written(tmp_path, "npz", names, queries), dataset, "blind", 3)
    for values in (np.array([[0, 9], [1, 2]]), np.array([[0, 1, 2, 3]])):
        (tmp_path / "nn.pkl").write_bytes(pickle.dumps(values))
        with pytest.raises(UserError, match=r"the gallery has 8 images|the data set has 2 queries"):
            imported_shortlist(tmp_path / "nn.pkl", dataset, "blind", 1)
    with pytest.raises(UserError, match="cannot be read"):
        imported_shortlist(tmp_path / "nowhere.run", dataset, "blind", 1)


def test_an_exported_first_stage_imported_again_gives_the_same_measures(
    run: Callable[..., Outcome], buildings: Path, tmp_path: Path
) -> None:
    ours = run(buildings, "identity,mnn", top_k=8).run
    for difficulty in ("Easy",):
        export(ours, "trec", tmp_path)
        names = np.array([[ours.shortlist.gallery[i] for i in row] for row in ours.shortlist.lists["any"]])
        np.savez(tmp_path / "theirs.npz", queries=np.array(ours.shortlist.queries), candidates=names)
        theirs = run(buildings, "identity,mnn", top_k=8, shortlist=tmp_path / "theirs.npz")
        assert any("theirs.npz" in note for note in theirs.notes)
        for method in ("identity", "mnn"):
            a, b = (
                r.scores[r.scores.method == method].sort_values(["query", "candidate"])[["query", "candidate"]]
                for r in (ours, theirs.run)
            )
            assert a.to_numpy().tolist() == b.to_numpy().tolist()
        mnn = [
            r.metrics()[
                (r.metrics().method == "mnn") & (r.metrics().measure == "mP@1") & (r.metrics().difficulty == difficulty)
            ]["value"].tolist()
            for r in (ours, theirs.run)
        ]
        assert mnn[0] == mnn[1]
