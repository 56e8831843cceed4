"""Other people's candidates are sealed as our own are."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from bench.candidates import imported_shortlist
from bench.datasets import Dataset, Query
from bench.datasets.folder import load as load_folder
from bench.errors import UserError
from bench.exports import export, ranked
from bench.results import Run
from bench.run import Outcome
from bench.search import Dense, Vectors
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


def newest(runs: Path) -> Run:
    return Run.load(max(runs.iterdir(), key=lambda folder: (folder / "run.json").stat().st_mtime_ns))


def letters(made: Shortlist, query: int, of: str = "any") -> str:
    return "".join(made.gallery[i] for i in made.candidates(of, query))


@pytest.mark.parametrize("kind", ["trec", "npz", "pkl"])
def test_the_lists_are_the_files_without_the_query_itself(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    made = imported_shortlist(written(tmp_path, kind), dataset, "blind", 3).shortlist
    assert [letters(made, q) for q in (0, 1)] == ["hab", "cba"]
    assert [made.gallery[i] for i in made.graded.of(0)[0]] == list("abc") and made.graded.of(0)[1].tolist() == [1, 2, 3]
    assert (
        made.header.first_stage == f"imported:{written(tmp_path, kind).name}"
        and len(made.header.first_stage_content) == 64
    )
    if kind != "pkl":
        assert made.similarities["any"][0].tolist() == pytest.approx([1, 0.9, 0.8])
    paper = imported_shortlist(written(tmp_path, kind), dataset, "paper", 3).shortlist
    assert letters(paper, 0, "Hard") == "hbd" and letters(paper, 1, "Medium") == "cba"


def test_the_same_lists_as_our_own_first_stage_have_the_same_candidates(dataset: Dataset, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 8)).astype(np.float32)
    ours = first_stage(dataset, Dense(np.eye(2), Vectors.of(values.T)), name="f", content="c", policy="blind", k=4)
    names = np.array([[GALLERY[i] for i in np.argsort(-row)] for row in values])
    theirs = imported_shortlist(written(tmp_path, "npz", names), dataset, "blind", 4).shortlist
    assert [letters(ours, q) for q in (0, 1)] == [letters(theirs, q) for q in (0, 1)]
    assert all(np.array_equal(ours.graded.of(q)[1], theirs.graded.of(q)[1]) for q in (0, 1))
    assert ours.header.gallery_content == theirs.header.gallery_content


def test_graded_images_that_the_file_does_not_list_have_no_rank(dataset: Dataset, tmp_path: Path) -> None:
    made = imported_shortlist(written(tmp_path, "npz", RANKING[:, :3]), dataset, "blind", 2).shortlist
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
        assert any("theirs.npz" in note for note in theirs.run.record.notes)
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


# Order and numbers


def test_falling_numbers_are_the_order_and_rising_ones_are_refused_until_their_meaning_is_said(
    cli: Callable[..., Result], buildings: Path, tmp_path: Path
) -> None:
    gallery = json.loads((buildings / "gnd.json").read_text())["gallery"]
    rows = [(q, g, r) for q in ("query0", "query1") for r, g in enumerate(gallery, 1)]
    path = tmp_path / "distances.run"
    path.write_text("".join(f"{q} Q0 {g} {r} {r / 10} x\n" for q, g, r in rows))
    run = ("run", "-m", "identity", "-d", f"folder:{buildings}", "--max-side", "160", "--keep-descriptors", "150")
    refused = cli(*run, "-k", "6", "--shortlist", str(path))
    assert refused.exit_code == 1 and "order and scores disagree for 2 of 2 queries" in refused.output
    assert "(line 1)" in refused.output and "--shortlist-order" in refused.output and "distances" in refused.output
    nearest = {}
    for said in ("distances", "ranks", "similarities"):
        done = cli(*run, "-k", "6", "--shortlist", str(path), "--shortlist-order", said)
        assert done.exit_code == 0 and f"imported:distances.run,{said}" in done.output
        made = newest(tmp_path / "runs").shortlist
        nearest[said] = [made.gallery[i] for i in made.lists["any"][0]]
        assert ("disagree for 2 of 2" in done.output) == (said != "distances")
    assert nearest["distances"] == nearest["ranks"] == gallery[:6]
    assert nearest["similarities"] == gallery[:5:-1]
    alone = cli(*run, "-k", "6", "--shortlist-order", "ranks")
    assert alone.exit_code == 1 and "no --shortlist was given" in alone.output
    whitened = cli(*run, "-k", "6", "--shortlist", str(path), "--whiten", "demo")
    assert whitened.exit_code == 1 and "--whiten demo" in whitened.output


def trec(path: Path, rows: Iterable[tuple[str, str, int, float]]) -> Path:
    path.write_text("".join(f"{q} Q0 {g} {rank} {float(score)} x\n" for q, g, rank, score in rows))
    return path


def test_distances_are_sealed_as_their_negatives(dataset: Dataset, tmp_path: Path) -> None:
    path = trec(tmp_path / "d.run", [(q, g, r, r / 2) for q in ("q1", "d") for r, g in enumerate("habcefg")])
    made = imported_shortlist(path, dataset, "blind", 3, "distances").shortlist
    assert letters(made, 0) == "hab" and made.similarities["any"][0].tolist() == [0, -0.5, -1]
    made = imported_shortlist(path, dataset, "blind", 3, "ranks").shortlist
    assert made.similarities["any"][0].tolist() == [1, 0.5, 0]


def test_an_array_that_is_called_distances_is_one(dataset: Dataset, tmp_path: Path) -> None:
    path, rising = tmp_path / "theirs.npz", np.arange(16.0).reshape(2, 8)
    np.savez(path, queries=np.array(["q1", "d"]), candidates=RANKING, distances=rising)
    assert letters(imported_shortlist(path, dataset, "blind", 3).shortlist, 0) == "hab"
    np.savez(path, queries=np.array(["q1", "d"]), candidates=RANKING, distances=-rising)
    with pytest.raises(UserError, match="order and distances disagree for 2 of 2") as refusal:
        imported_shortlist(path, dataset, "blind", 3)
    assert "ordered as similarities are" in str(refusal.value.hint)


def test_similarities_that_rise_somewhere_are_refused_with_their_query_and_place(
    dataset: Dataset, tmp_path: Path
) -> None:
    path, values = tmp_path / "theirs.npz", 1 - np.arange(8) / 10
    swapped = values[[0, 1, 2, 4, 3, 5, 6, 7]]
    np.savez(path, queries=np.array(["q1", "d"]), candidates=RANKING, similarities=np.stack([values, swapped]))
    with pytest.raises(UserError, match=r"1 of 2 queries; 'd' has 0\.6 at place 4, 0\.7 at place 5"):
        imported_shortlist(path, dataset, "blind", 3)
    made = imported_shortlist(path, dataset, "blind", 5, "similarities")
    assert letters(made.shortlist, 1) == "cbhag" and "1 of 2 queries" in made.notes[-1]


def test_a_rank_that_disagrees_with_its_score_is_named_by_its_line(dataset: Dataset, tmp_path: Path) -> None:
    rows = [(q, g, r, 1 - r / 10) for q in ("q1", "d") for r, g in enumerate("habcefg")]
    rows[3] = (*rows[3][:3], 0.95)
    with pytest.raises(UserError, match=r"'q1' has 0\.8 at rank 2 \(line 3\), 0\.95 at rank 3 \(line 4\)"):
        imported_shortlist(trec(tmp_path / "t.run", rows), dataset, "blind", 3)


def test_ranks_that_are_all_the_same_leave_the_order_to_the_lines(dataset: Dataset, tmp_path: Path) -> None:
    falling = [(q, g, 0, 1 - r / 10) for q in ("q1", "d") for r, g in enumerate("habcefg")]
    assert letters(imported_shortlist(trec(tmp_path / "t", falling), dataset, "blind", 3).shortlist, 0) == "hab"
    rising = [(q, g, 0, -score) for q, g, _, score in falling]
    with pytest.raises(UserError, match="disagree"):
        imported_shortlist(trec(tmp_path / "t", rising), dataset, "blind", 3)
    with pytest.raises(UserError, match="has one rank twice"):
        imported_shortlist(trec(tmp_path / "t", rising), dataset, "blind", 3, "ranks")


def test_an_order_by_numbers_that_the_file_does_not_have_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no numbers beside the candidates"):
        imported_shortlist(written(tmp_path, "pkl"), dataset, "blind", 3, "distances")


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "nan at place 3 of its similarities, expected finite"), (1e300, "single precision")]
)
def test_numbers_that_are_not_finite_are_named_by_file_query_and_array(
    dataset: Dataset, tmp_path: Path, value: float, says: str
) -> None:
    values = np.tile(1 - np.arange(8) / 10, (2, 1))
    values[1, 2] = value
    np.savez(tmp_path / "nan.npz", queries=np.array(["q1", "d"]), candidates=RANKING, similarities=values)
    with pytest.raises(UserError, match=rf"nan\.npz: the list of query 'd' has .*{says}") as refusal:
        imported_shortlist(tmp_path / "nan.npz", dataset, "blind", 3)
    assert "extract" not in str(refusal.value)
    made = imported_shortlist(tmp_path / "nan.npz", dataset, "blind", 3, "ranks").shortlist
    assert letters(made, 1) == "cba"


# How names are found


def accented(form: str) -> Dataset:
    name = normalize(form, "café")
    queries = (Query(normalize(form, "é1"), Path("set/queries/1.jpg")),)
    files = {
        name: Path(f"set/gallery/{name}.jpg"),
        "a/0": Path("set/gallery/a/0.jpg"),
        "b/0": Path("set/gallery/b/0.jpg"),
    }
    return Dataset("tiny", "revisited", "v1", queries, files, {queries[0].id: {name: "easy"}})


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("columns", ["{q} Q0 {g} {r} {s} x", "{q} {g}", "{q}\t{g}\t{s}"])
def test_names_in_another_unicode_form_are_the_same_names(tmp_path: Path, forms: tuple[str, str], columns: str) -> None:
    names = [normalize(forms[1], name) for name in ("b/0", "café", "a/0")]
    lines = [columns.format(q=normalize(forms[1], "é1"), g=g, r=r, s=9 - r) for r, g in enumerate(names)]
    (tmp_path / "t").write_text("\n".join(lines), encoding="utf-8")
    made = imported_shortlist(tmp_path / "t", accented(forms[0]), "blind", 3).shortlist
    assert [made.gallery[i] for i in made.lists["any"][0]] == ["b/0", normalize(forms[0], "café"), "a/0"]


def test_files_are_named_by_their_path_or_as_much_of_its_end_as_fits_one(tmp_path: Path) -> None:
    data = accented("NFC")

    def named(query: str, *images: str) -> list[str]:
        (tmp_path / "pairs.txt").write_text("".join(f"{query} {image}\n" for image in images), encoding="utf-8")
        made = imported_shortlist(tmp_path / "pairs.txt", data, "blind", len(images)).shortlist
        return [made.gallery[i] for i in made.lists["any"][0]]

    assert named("queries/1.jpg", "gallery/b/0.jpg", "café.jpg") == ["b/0", "café"]
    assert named("1.jpg", str(Path("set/gallery/a/0.jpg").absolute())) == ["a/0"]
    for image, says in {
        "0.jpg": "fits several images",
        "queries/1.jpg": "is not in the gallery; 1 of its 2 images are not",
        "other/b/0.jpg": "is not in the gallery",
    }.items():
        with pytest.raises(UserError, match=rf"pairs\.txt: the list of query 'é1' names '{image}', which {says}"):
            named("é1", "b/0", image)


def test_a_whole_path_goes_before_the_end_of_another(tmp_path: Path) -> None:
    files = {"x": Path("set/b/0.jpg"), "y": Path("set/a/b/0.jpg")}
    data = Dataset("tiny", "revisited", "v1", (Query("q", Path("set/q.jpg")),), files, {"q": {"x": "easy"}})
    (tmp_path / "pairs.txt").write_text("q.jpg b/0.jpg\n")
    made = imported_shortlist(tmp_path / "pairs.txt", data, "blind", 1).shortlist
    assert made.gallery[made.lists["any"][0, 0]] == "x"


def test_a_name_that_a_file_has_with_its_escapes_as_they_stand_is_found(tmp_path: Path) -> None:
    files = {"a%20b": Path("a%20b.jpg"), "c d": Path("c d.jpg")}
    data = Dataset("tiny", "revisited", "v1", (Query("q", Path("q.jpg")),), files, {"q": {"c d": "easy"}})
    made = imported_shortlist(trec(tmp_path / "t", [("q", "a%20b", 1, 2.0), ("q", "c%20d", 2, 1.0)]), data, "blind", 2)
    assert [made.shortlist.gallery[i] for i in made.shortlist.lists["any"][0]] == ["a%20b", "c d"]


def test_lists_of_queries_that_the_data_set_lacks_are_counted_in_a_note(
    cli: Callable[..., Result], buildings: Path, tmp_path: Path
) -> None:
    gallery = json.loads((buildings / "gnd.json").read_text())["gallery"]
    path = tmp_path / "more.run"
    rows = [(q, g, r, -float(r)) for q in ("query0", "query1", "query7", "query8") for r, g in enumerate(gallery)]
    path = trec(path, rows)
    small = ("--max-side", "160", "--keep-descriptors", "150", "-k", "5")
    shown = cli("run", "-m", "identity", "-d", f"folder:{buildings}", *small, "--shortlist", str(path))
    said = " ".join(shown.output.split())
    assert shown.exit_code == 0 and "lists of 2 queries" in said and "'query7', 'query8'" in said


def test_two_lists_of_one_query_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    path, names = tmp_path / "t.npz", np.array([list("abc"), list("abc"), list("bca")])
    np.savez(path, queries=np.array(["q1", "d", "q1"]), candidates=names)
    with pytest.raises(UserError, match="'q1' and 'q1' are lists of one query"):
        imported_shortlist(path, dataset, "blind", 1)


# Kinds of files

INDICES = np.array([[GALLERY.index(i) for i in row] for row in RANKING])
FALLING = np.tile(1 - np.arange(8, dtype=np.float32) / 10, (2, 1))


def _bytes(save: Callable[..., object], *content: object, **named: object) -> bytes:
    file = io.BytesIO()
    save(file, *content, **named)
    return file.getvalue()


def _torch(content: object, **more: object) -> bytes:
    import torch

    return _bytes(lambda file: torch.save(content, file, **more))


def _run() -> bytes:
    rows = [(q, g, r) for q, row in zip(("q1", "d"), RANKING, strict=True) for r, g in enumerate(row, 1)]
    return "".join(f"{q} Q0 {g} {r} {9 - r} x\n" for q, g, r in rows).encode()


def _pairs(score: bool = False) -> bytes:
    rows = [(q, g, r) for q, row in zip(("q1", "d"), RANKING, strict=True) for r, g in enumerate(row)]
    return "".join(f"{q} {g}{f' {-r / 3}' if score else ''}\n" for q, g, r in rows).encode()


def _tensors() -> tuple[Any, Any]:
    import torch

    return torch.from_numpy(FALLING), torch.from_numpy(INDICES)


def _safetensors() -> bytes:
    from safetensors.numpy import save

    return save({"candidates": INDICES.astype(np.int32), "similarities": FALLING})


READABLE: dict[str, Callable[[], bytes]] = {
    "run": _run,
    "run with a byte order mark": lambda: codecs.BOM_UTF8 + _run(),
    "runs with byte order marks, joined": lambda: b"".join(codecs.BOM_UTF8 + line for line in _run().splitlines(True)),
    "run with tabs": lambda: _run().replace(b" ", b"\t"),
    "run with the line ends of Windows": lambda: _run().replace(b"\n", b"\r\n"),
    "gzip'd run": lambda: gzip.compress(_run()),
    "gzip'd run with a byte order mark": lambda: gzip.compress(codecs.BOM_UTF8 + _run()),
    "pairs": _pairs,
    "gzip'd pairs": lambda: gzip.compress(_pairs()),
    "pairs with scores": lambda: _pairs(True),
    "npz": lambda: _bytes(np.savez, queries=np.array(["q1", "d"]), candidates=RANKING, similarities=FALLING),
    "npz of bytes": lambda: _bytes(np.savez, queries=np.array([b"q1", b"d"]), candidates=RANKING.astype("S")),
    "npz of indices": lambda: _bytes(np.savez, candidates=INDICES, scores=FALLING.astype(np.float16)),
    "npz of queries in another order": lambda: _bytes(
        np.savez_compressed, queries=np.array(["d", "q1"]), candidates=INDICES[::-1]
    ),
    "npy": lambda: _bytes(np.save, INDICES),
    "npy of columns": lambda: _bytes(np.save, np.asfortranarray(INDICES.astype(np.uint16))),
    "pickle": lambda: pickle.dumps(INDICES),
    "safetensors": _safetensors,
    "torch tensor": lambda: _torch(_tensors()[1]),
    "torch pair as topk gives it": lambda: _torch(tuple(_tensors())),
    "torch dictionary": lambda: _torch(dict(zip(("similarities", "candidates"), _tensors(), strict=True))),
    "older torch": lambda: _torch(_tensors()[1], _use_new_zipfile_serialization=False),
}


def has_magic(kind: str) -> bool:
    """Whether the first bytes say what it is; of plain text they do not, and there the suffix decides."""
    return not kind.startswith(("run", "pairs"))


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        (kind, suffix)
        for kind in READABLE
        for suffix in ("", ".txt", ".NPZ", ".pkl", ".gz", ".run")
        if has_magic(kind) or suffix not in (".NPZ", ".pkl")
    ],
)
def test_what_a_file_is_its_content_says(dataset: Dataset, tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"theirs{suffix}"
    path.write_bytes(READABLE[kind]())
    made = imported_shortlist(path, dataset, "blind", 3).shortlist
    assert [letters(made, q) for q in (0, 1)] == ["hab", "cba"]


def _pickled_tensors() -> bytes:
    return pickle.dumps(tuple(_tensors()))


def _frame() -> bytes:
    import pandas as pd

    return pickle.dumps(pd.DataFrame({"query": ["q1"], "candidate": ["a"]}))


REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "UTF-16": (lambda: _run().decode().encode("utf-16"), "UTF-16", "iconv"),
    "UTF-16 without a mark": (lambda: _run().decode().encode("utf-16-le"), "NUL", ""),
    "Latin-1": (lambda: "q1 Q0 café 1 2 x\n".encode("latin1"), "UTF-8", ""),
    "qrels": (lambda: b"q1 0 a 1\n", "expected qid Q0 docid rank score tag or query candidate", "qrels"),
    "CSV": (lambda: b"query,candidate,score\nq1,a,1\n", "line 1: found 'query,candidate,score'", "commas"),
    "JSON": (lambda: b'{"q1": ["a", "b"], "q2": 1}', "line 1", "JSON"),
    "lines of two kinds": (lambda: b"q1 a\nq1 b 0.5\n", "line 2: found 'q1 b 0.5', expected query candidate", ""),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file", "read are"),
    "nothing": (lambda: b"", "empty", "read are"),
    "tensors in a pickle": (_pickled_tensors, "torch", "np.savez('lists.npz', similarities="),
    "a table in a pickle": (_frame, "pandas", "pd.read_pickle('theirs.bin')"),
    "an object in a pickle": (lambda: pickle.dumps(Path("a")), "pathlib", "np.savez('lists.npz'"),
    "fractions in a pickle": (lambda: pickle.dumps(FALLING), "an array of fractions", "np.savez('lists.npz'"),
    "names in a pickle": (lambda: pickle.dumps(RANKING), "an array of names", "queries=names"),
    "a dictionary in a pickle": (lambda: pickle.dumps({"q1": ["a"]}), "holds a dict", "queries=names"),
    "objects in an npz": (
        lambda: _bytes(np.savez, queries=np.array(["q1", "d"]), candidates=np.array([["a"], ["b", "c"]], object)),
        "of object",
        "np.savez",
    ),
    "fractions in an npy": (lambda: _bytes(np.save, FALLING), r"candidates float32 \(2, 8\)", "np.savez"),
    "names without queries": (lambda: _bytes(np.savez, candidates=RANKING), "without names queries", "np.savez"),
    "other arrays": (lambda: _bytes(np.savez, a=RANKING, b=RANKING), "arrays a, b; expected candidates", "np.savez"),
    "columns": (lambda: _bytes(np.save, INDICES.T), "8 lists, the data set has 2 queries", "transposed"),
    "-1": (lambda: _bytes(np.save, np.array([[0, 1], [2, -1]])), "'d' has the index -1 at place 2", "FAISS"),
    "indices beyond": (
        lambda: _bytes(np.save, np.array([[0, 8], [2, 1]])),
        "'q1' has the index 8 at place 2",
        "np.sav",
    ),
    "a repeated index": (lambda: _bytes(np.save, np.array([[0, 0], [2, 1]])), "'q1' repeats the image 'a'", ""),
    "empty lists": (lambda: _bytes(np.save, np.zeros((2, 0), int)), "has 0 images", "a deeper list is needed"),
    "a short list": (lambda: b"d a\nd b\nd c\nq1 a\n", "has 1 images.*that of query 'q1'", "--top-k 1"),
    "another data set's ids": (
        lambda: b"q1 x\nq1 y\nd a\n",
        "'x', which is not in the gallery; 2 of its 2",
        "'a', 'b'",
    ),
    "another data set's queries": (
        lambda: b"x a\ny a\n",
        "no list of query 'q1', nor of 1 others of the 2",
        "'x', 'y'",
    ),
    "torch code": (lambda: _torch({"a": Path("x")}), "not a torch file of tensors alone", "np.save"),
    "a damaged gzip": (lambda: gzip.compress(_run())[:-9], "cannot be read", ""),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_named_with_what_to_do(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    content, says, hint = REFUSED[kind]
    path = tmp_path / "theirs.bin"
    path.write_bytes(content())
    with pytest.raises(UserError, match=rf"theirs\.bin.*{says}") as refusal:
        imported_shortlist(path, dataset, "blind", 2)
    assert hint in (refusal.value.hint or "")


def test_arrays_that_are_not_read_and_indices_are_said(dataset: Dataset, tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", candidates=INDICES, similarities=FALLING, distances=-FALLING, extra=np.zeros(3))
    notes = " ".join(imported_shortlist(tmp_path / "t.npz", dataset, "blind", 3).notes)
    assert "not read: distances, extra" in notes and "t.npz holds indices" in notes


def test_a_pipe_is_refused_since_it_can_be_read_once_only(dataset: Dataset, tmp_path: Path) -> None:
    end, other = os.pipe()
    os.write(other, _run())
    os.close(other)
    try:
        with pytest.raises(UserError, match="not a regular file"):
            imported_shortlist(Path(f"/dev/fd/{end}"), dataset, "blind", 3)
    finally:
        os.close(end)


def test_one_candidate_is_a_list(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("q1 b\nd a\n")
    assert letters(imported_shortlist(tmp_path / "pairs.txt", dataset, "blind", 1).shortlist, 0) == "b"


# What never changes a list

DATASET = Dataset(
    "tiny",
    "revisited",
    "v1",
    (Query("q1", Path("q1")), Query("q2", Path("q2"))),
    {i: Path(i) for i in GALLERY},
    {"q1": {"a": "easy", "b": "hard", "c": "junk"}},
)
SCORES = st.lists(st.integers(-50, 50), min_size=8, max_size=8)
ROWS = st.tuples(
    st.permutations(GALLERY), st.permutations(GALLERY), SCORES, SCORES, st.integers(0, 1)
)  # images of each query, their scores, and whether ranks count from 0 or 1


def rows_of(drawn: Any) -> list[tuple[str, str, int, float]]:
    images, others, scores, more, first = drawn
    return [
        (query, image, rank + first, float(score))
        for query, listed, values in (("q1", images, scores), ("q2", others, more))
        for rank, (image, score) in enumerate(zip(listed, sorted(values, reverse=True), strict=True))
    ]


def lists_of(path: Path, meaning: Any = None) -> tuple[Any, ...]:
    made = imported_shortlist(path, DATASET, "paper", 4, meaning).shortlist
    ranks = [made.graded.of(q)[1].tolist() for q in (0, 1)]
    return made.gallery, {name: images.tolist() for name, images in made.lists.items()}, ranks


@given(ROWS, st.data())
def test_permuted_lines_and_increasing_changes_of_the_scores_leave_the_lists(
    tmp_path_factory: Any, drawn: Any, data: Any
) -> None:
    path, rows = tmp_path_factory.mktemp("p") / "t.run", rows_of(drawn)
    expected = lists_of(trec(path, rows))
    assert expected[1]["Medium"] and lists_of(trec(path, data.draw(st.permutations(rows)))) == expected
    scale, offset = data.draw(st.floats(0.01, 100)), data.draw(st.floats(-100, 100))
    assert lists_of(trec(path, [(q, g, r, np.arctan(s) * scale + offset) for q, g, r, s in rows])) == expected
    assert lists_of(trec(path, [(q, g, r, -s) for q, g, r, s in rows]), "distances") == expected
    assert lists_of(trec(path, rows), "ranks") == expected


@given(ROWS, st.data())
def test_spelling_of_the_file_leaves_the_lists(tmp_path_factory: Any, drawn: Any, data: Any) -> None:
    path, rows = tmp_path_factory.mktemp("p") / "t.run", rows_of(drawn)
    expected = lists_of(trec(path, rows))
    content = path.read_bytes()
    if data.draw(st.booleans()):
        content = content.replace(b"\n", b"\r\n")
    if data.draw(st.booleans()):
        content = content.replace(b" ", b"\t")
    if data.draw(st.booleans()):
        content = codecs.BOM_UTF8 + content
    if data.draw(st.booleans()):
        content = gzip.compress(content)
    path.write_bytes(content)
    assert lists_of(path) == expected


@given(ROWS)
def test_turned_numbers_are_refused_unless_they_are_all_the_same(tmp_path_factory: Any, drawn: Any) -> None:
    path, rows = tmp_path_factory.mktemp("p") / "t.run", rows_of(drawn)
    trec(path, [(q, g, r, -s) for q, g, r, s in rows])
    if all(len({s for q, _, _, s in rows if q == query}) == 1 for query in ("q1", "q2")):
        assert lists_of(path) == lists_of(trec(path, rows))
        return
    with pytest.raises(UserError, match="order and scores disagree"):
        lists_of(path)


def test_every_exported_ranking_comes_back_as_a_shortlist(
    run: Callable[..., Outcome], buildings: Path, tmp_path: Path
) -> None:
    ours = run(buildings, "identity,mnn,constant", top_k=8).run
    everything = load_folder(buildings)
    export(ours, "trec", tmp_path)
    for method in ("identity", "mnn", "constant"):
        for difficulty in ours.dataset.difficulties:
            expected = [[image for image, _ in rows] for rows in ranked(ours.rankings(), method, difficulty).values()]
            k = min(map(len, expected))
            path = tmp_path / f"{method}.{difficulty}.run"
            made = imported_shortlist(path, everything, "blind", k).shortlist
            assert [[made.gallery[i] for i in row] for row in made.lists["any"]] == [row[:k] for row in expected]
