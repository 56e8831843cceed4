"""GPR1200, ILIAS, INSTRE and The Met: small official trees are read, and values are those worked by hand."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from bench.conformance_dataset import check_dataset
from bench.datasets import Dataset, catalogue
from bench.datasets.dataset import Place
from bench.datasets.ilias import read_box
from bench.datasets.instre import read_truth
from bench.datasets.met import read_list
from bench.datasets.official.download import download
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE, Rankings, evaluate
from bench.metrics import precision_with_query, truncated_precision
from bench.places import Places
from bench.results import tables
from bench.search import Dense, Vectors
from bench.shortlist import first_stage


def dot(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, "jpeg")
    return path


def load(name: str, images: bool = True) -> Dataset:
    return catalogue.load(name, Places(*[Path("nowhere")] * 3), images=images)


def measured(dataset: Dataset, similarities: np.ndarray, k: int) -> dict[str, float]:
    """Means over queries of the first stage that these similarities (queries, gallery) give."""
    stage = Dense(np.eye(len(similarities)), Vectors.of(similarities.T.astype(np.float32)))
    made = first_stage(dataset, stage, name="f", content="c", policy="blind", k=k)
    found = evaluate(Rankings(tables([], made)["scores"], made, dataset))
    return found[found.method == FIRST_STAGE].groupby("measure")["value"].mean().to_dict()


# --- GPR1200 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def general(tmp_path: Path) -> Path:
    for name in ("0_a.jpg", "0_b.jpg", "10_a.jpg", "10_b_c.jpg", "2_x.jpg", "2_y.jpg"):
        dot(tmp_path / "gpr" / "images" / name)
    return tmp_path / "gpr"


def test_images_of_a_category_are_right_for_each_other(general: Path, tmp_path: Path) -> None:
    dataset = load(f"gpr1200:{general}")
    assert list(dataset.gallery) == ["0_a", "0_b", "2_x", "2_y", "10_a", "10_b_c"]
    assert [query.id for query in dataset.queries] == list(dataset.gallery)
    assert dataset.grades["10_b_c"] == {"10_a": "easy"} and dataset.grades["2_x"] == {"2_y": "easy"}
    assert list(load(f"gpr1200:{general / 'images'}").gallery) == list(dataset.gallery)
    check_dataset("gpr1200", Place(tmp_path, tmp_path, general))


def test_the_query_itself_counts_in_the_mean_and_is_no_candidate(general: Path) -> None:
    """All images alike, so lists are in gallery order: the other of a category is in place 1, 3 or 5 or so."""
    dataset = load(f"gpr1200:{general}")
    found = measured(dataset, np.ones((6, 6)), 5)
    places = [0, 0, 2, 2, 4, 4]  # of the other image, the query left out
    assert found["mAP with query"] == pytest.approx(np.mean([(1 + 2 / (place + 2)) / 2 for place in places]))
    assert found["R@1"] == pytest.approx(2 / 6) and found.keys() == {"mAP with query", "R@1", "R@10", "R@100"}


@given(st.lists(st.integers(0, 40), unique=True, max_size=9), st.integers(0, 3))
def test_the_measure_is_that_of_the_list_with_the_query_at_its_head(ranks: list[int], more: int) -> None:
    n = len(ranks) + more
    if n == 0:
        return
    headed = np.array([0, *(rank + 1 for rank in sorted(ranks))])
    value = precision_with_query(np.array(ranks, np.int64), n)
    assert value == pytest.approx(truncated_precision(headed, 10_000, n + 1))


def test_an_image_of_another_name_is_named(general: Path) -> None:
    dot(general / "images" / "cat.jpg")
    with pytest.raises(UserError, match="found the image 'cat', expected names CATEGORY_NAME.jpg".replace(".", r"\.")):
        load(f"gpr1200:{general}")
    with pytest.raises(UserError, match="no such folder"):
        load(f"gpr1200:{general / 'nowhere'}")


# --- ILIAS --------------------------------------------------------------------------------------------------------


@pytest.fixture
def core(tmp_path: Path) -> Path:
    root = tmp_path / "ilias" / "ilias_core"
    for folder, number, asked, positives in (("bold_bimp", "000", 1, 2), ("zippy_x", "999", 2, 1)):
        for count in range(asked):
            dot(root / f"{folder}_{number}" / "query" / f"Q{number}_{count:02d}.jpg")
            (root / f"{folder}_{number}" / "query" / f"Q{number}_{count:02d}_bbox.txt").write_text(
                "5 4 10 8\n12 2 8 20\n"
            )
        (root / f"{folder}_{number}" / "query" / f"T{number}.txt").write_text("a bold thing")
        for count in range(positives):
            dot(root / f"{folder}_{number}" / "pos" / f"P{number}_{count:02d}.jpg")
            (root / f"{folder}_{number}" / "pos" / f"P{number}_{count:02d}_bbox.txt").write_text("1 1 5 5\n")
    return tmp_path / "ilias"


def test_queries_are_cropped_around_their_boxes_and_positives_are_their_objects(core: Path, tmp_path: Path) -> None:
    dataset = load(f"ilias:{core}")
    assert list(dataset.gallery) == [f"bold_bimp_000/pos/P000_0{i}.jpg" for i in (0, 1)] + [
        "zippy_x_999/pos/P999_00.jpg"
    ]
    assert [query.id for query in dataset.queries] == [
        "bold_bimp_000/query/Q000_00.jpg",
        "zippy_x_999/query/Q999_00.jpg",
        "zippy_x_999/query/Q999_01.jpg",
    ]
    assert {query.box for query in dataset.queries} == {(5.0, 2.0, 20.0, 22.0)}
    assert set(dataset.grades["bold_bimp_000/query/Q000_00.jpg"]) == set(list(dataset.gallery)[:2])
    assert any("published values are among 100 million distractors" in note for note in dataset.notes)
    assert load(f"ilias:{core / 'ilias_core'}").grades == dataset.grades
    check_dataset("ilias", Place(tmp_path, tmp_path, core))


def test_precisions_are_summed_over_the_positives(core: Path) -> None:
    """By hand: object 000 in places 1 and 3 is (1 + 2/3) / 2; object 999 in places 2 and 3 is 1/2 and 1/3."""
    similarities = np.array([[0.9, 0.7, 0.8], [0.9, 0.1, 0.5], [0.9, 0.8, 0.5]])
    found = measured(load(f"ilias:{core}"), similarities, 3)
    assert found == {"mAP@1000": pytest.approx(((1 + 2 / 3) / 2 + 1 / 2 + 1 / 3) / 3)}


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("5 4 10 8", (5, 4, 15, 12)),
        ("-3 -1 10 8\r\n\r\n", (0, 0, 7, 7)),
        ("\ufeff1.5 2 3 4\n0 0 1 1\n", (0, 0, 4.5, 6)),
    ],
)
def test_boxes_are_read_from_the_edge_of_the_image_on(tmp_path: Path, text: str, box: tuple[float, ...]) -> None:
    (tmp_path / "b.txt").write_text(text, encoding="utf-8")
    assert read_box(tmp_path / "b.txt") == box


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no box"),
        ("1 2 3", "line 1: found '1 2 3'"),
        ("1 2 3 4\na b c d", "line 2: found"),
        ("1 2 3 nan", "line 1"),
    ],
)
def test_boxes_of_another_form_are_named_with_their_line(core: Path, text: str, says: str) -> None:
    (core / "ilias_core" / "zippy_x_999" / "query" / "Q999_01_bbox.txt").write_text(text)
    with pytest.raises(UserError, match=says) as refusal:
        load(f"ilias:{core}")
    assert "Q999_01_bbox.txt" in refusal.value.message


def test_what_is_not_the_core_is_said(core: Path, tmp_path: Path) -> None:
    root = core / "ilias_core"
    (root / "zippy_x_999" / "query" / "Q999_01_bbox.txt").unlink()
    with pytest.raises(UserError, match=r"Q999_01_bbox\.txt: cannot be read"):
        load(f"ilias:{core}")
    (root / "zippy_x_999" / "query" / "Q999_01.jpg").rename(root / "zippy_x_999" / "query" / "Q998_01.jpg")
    with pytest.raises(UserError, match="an image of the object 998, in the folder of the object 999"):
        load(f"ilias:{core}")
    (root / "zippy_x_999" / "query" / "Q998_01.jpg").unlink()
    (root / "zippy_x_999" / "pos" / "P999_00.jpg").unlink()
    with pytest.raises(UserError, match="zippy_x_999: queries without an image P999_"):
        load(f"ilias:{core}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no queries found"):
        load(f"ilias:{tmp_path / 'empty'}")


# --- INSTRE -------------------------------------------------------------------------------------------------------

DATABASE = ["INSTRE-S1/01a_book/002.jpg", "INSTRE-S1/01a_book/003.jpg", "INSTRE-M/01_two/001.jpg"]
QUERIES = ["INSTRE-S1/01a_book/001.jpg", "INSTRE-M/01_two/002.jpg"]
CORNERS = [[2, 3, 20, 25], [10, 10, 30, 20]]
SIZES = [[2, 3, 20, 25], [25, 10, 10, 15]]  # x, y, width and height: the second cannot be corners


def cells(values: list[Any]) -> np.ndarray:
    found = np.empty((1, len(values)), object)
    found[0, :] = values
    return found


def written(path: Path, right: list[list[int]], boxes: list[list[float]], **other: Any) -> Path:
    """gnd_instre.mat as MATLAB would write it."""
    gnd = np.empty((1, len(right)), [("ok", object), ("bbx", object)])
    for number, (ok, box) in enumerate(zip(right, boxes, strict=True)):
        gnd[0, number] = (np.array([ok], np.uint16), np.array([box], np.float64))
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"imlist": cells(DATABASE), "qimlist": cells(QUERIES), "gnd": gnd, **other}, do_compression=True)
    return path


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    root = tmp_path / "instre"
    for name in (*DATABASE, *QUERIES):
        dot(root / name)
    written(root / "gnd_instre.mat", [[1, 2], [3]], CORNERS)
    return root


def test_the_ground_truth_counts_from_one_and_queries_are_cropped(objects: Path, tmp_path: Path) -> None:
    dataset = load(f"instre:{objects}")
    assert list(dataset.gallery) == DATABASE and [query.id for query in dataset.queries] == QUERIES
    assert dataset.grades == {
        QUERIES[0]: {DATABASE[0]: "easy", DATABASE[1]: "easy"},
        QUERIES[1]: {DATABASE[2]: "easy"},
    }
    assert [query.box for query in dataset.queries] == [(2, 3, 20, 25), (10, 10, 30, 20)]
    assert (
        dataset.protocol == "instance" and "Boxes of gnd_instre.mat are read as corners, x1 y1 x2 y2." in dataset.notes
    )
    check_dataset("instre", Place(tmp_path, tmp_path, objects))


def test_boxes_that_cannot_all_be_corners_are_places_and_sizes(objects: Path) -> None:
    written(objects / "gnd_instre.mat", [[1, 2], [3]], SIZES)
    dataset = load(f"instre:{objects}")
    assert [query.box for query in dataset.queries] == [(2, 3, 22, 28), (25, 10, 35, 25)]
    assert "Boxes of gnd_instre.mat are read as x, y, width and height." in dataset.notes


def test_images_may_be_in_a_folder_of_their_own_and_missing_ones_are_named(objects: Path) -> None:
    (objects / "images").mkdir()
    for name in ("INSTRE-S1", "INSTRE-M"):
        (objects / name).rename(objects / "images" / name)
    before = load(f"instre:{objects}")
    assert all(query.image.is_file() for query in before.queries)
    (objects / "images" / DATABASE[2]).unlink()
    with pytest.raises(UserError, match=r"1 of 5 photographs are missing.*001\.jpg"):
        load(f"instre:{objects}")
    assert load(f"instre:{objects}", images=False).grades == before.grades


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: written(path, [[0, 1], [3]], CORNERS), "has 0, expected distinct numbers from 1 to 3"),
        (lambda path: written(path, [[1, 4], [3]], CORNERS), "has 4, expected distinct numbers from 1 to 3"),
        (lambda path: written(path, [[1, 1], [3]], CORNERS), "has one twice"),
        (lambda path: written(path, [[1]], CORNERS[:1]), "2 queries and 1 entries of gnd"),
        (
            lambda path: written(path, [[1], [2]], [CORNERS[0], [1, 2, 3]]),
            "expected imlist and qimlist of names and gnd",
        ),
        (lambda path: written(path, [[1], [2]], [CORNERS[0], [1, 2, float("nan"), 4]]), "expected four numbers"),
        (lambda path: written(path, [[1], [2]], CORNERS, imlist=np.eye(3)), "1.0. is no name"),
        (lambda path: written(path, [[1], [2]], CORNERS, imlist=cells(["/a", "b", "c"])), "'/a' is no path"),
        (lambda path: written(path, [[1], [2]], CORNERS, qimlist=cells(["../a", "b"])), r"'\.\./a' is no path"),
        (lambda path: written(path, [[1], [2]], CORNERS, gnd=np.eye(2)), "expected imlist"),
        (lambda path: savemat(path, {"imlist": cells(["a"])}), "KeyError"),
        (lambda path: path.write_bytes(b""), "not readable as a MATLAB file"),
        (lambda path: path.write_bytes(b"MATLAB 5.0" + b"\0" * 300), "not readable as a MATLAB file|expected imlist"),
        (lambda path: path.unlink(), "missing gnd_instre.mat"),
    ],
)
def test_another_file_is_refused_and_named(objects: Path, change: Callable[[Path], object], says: str) -> None:
    change(objects / "gnd_instre.mat")
    with pytest.raises(UserError, match=says) as refusal:
        load(f"instre:{objects}")
    assert "gnd_instre.mat" in refusal.value.message


def test_a_query_that_the_lists_name_twice_is_refused(objects: Path) -> None:
    written(objects / "gnd_instre.mat", [[1], [2]], CORNERS, imlist=cells([DATABASE[0], DATABASE[0], DATABASE[2]]))
    with pytest.raises(UserError, match=r"names the image .* twice"):
        load(f"instre:{objects}")


def test_a_file_is_read_without_its_images(objects: Path) -> None:
    truth = read_truth(objects / "gnd_instre.mat")
    assert truth.right == ((0, 1), (2,)) and truth.corners and truth.images == tuple(DATABASE)


# --- The Met ------------------------------------------------------------------------------------------------------

EXHIBITS = [  # as MET_database.json has them
    {"id": 34, "path": "MET/34/0.jpg"},
    {"id": 34, "path": "MET/34/1.jpg"},
    {"id": 7, "path": "MET/7/0.jpg"},
    {"id": 901, "path": "MET/901/0.jpg"},
]
VISITORS: list[dict[str, Any]] = [  # as testset.json has them
    {"path": "test_met/a.jpg", "MET_id": 34, "photographer": "x", "url": "http://localhost/a"},
    {"path": "test_other/b.jpg", "category": "Paintings", "url": "http://localhost/b"},
    {"path": "test_met/c.jpg", "MET_id": 7},
    {"path": "test_noart/d.jpg", "category": "Trains"},
]


@pytest.fixture
def museum(tmp_path: Path) -> Path:
    """The folders that the official code reads: data/ground_truth and data/images."""
    root = tmp_path / "data"
    lists = {"MET_database": EXHIBITS, "testset": VISITORS, "valset": [{"path": "test_met/e.jpg", "MET_id": 901}]}
    lists["mini_MET_database"] = EXHIBITS[2:]
    for name, entries in lists.items():
        (root / "ground_truth").mkdir(parents=True, exist_ok=True)
        (root / "ground_truth" / f"{name}.json").write_text(json.dumps(entries))
        for entry in entries:
            dot(root / "images" / entry["path"])
    return root


def test_images_of_a_querys_exhibit_are_right_and_queries_of_none_are_left_out(museum: Path, tmp_path: Path) -> None:
    dataset = load(f"met:{museum}")
    assert list(dataset.gallery) == [entry["path"] for entry in EXHIBITS]
    assert [query.id for query in dataset.queries] == ["test_met/a.jpg", "test_met/c.jpg"]
    assert {query.box for query in dataset.queries} == {None}
    assert dataset.grades == {
        "test_met/a.jpg": {"MET/34/0.jpg": "easy", "MET/34/1.jpg": "easy"},
        "test_met/c.jpg": {"MET/7/0.jpg": "easy"},
    }
    assert dataset.notes == ("2 queries that show no exhibit are left out; GAP counts them, and is not computed",)
    assert not any(dataset.without_positives(name) for name in dataset.difficulties)
    check_dataset("met", Place(tmp_path, tmp_path, museum))


def test_the_lists_may_lie_beside_the_images(museum: Path) -> None:
    before = load(f"met:{museum}")
    for file in (museum / "ground_truth").iterdir():
        file.rename(museum / "images" / file.name)
    (museum / "ground_truth").rmdir()
    after = load(f"met:{museum / 'images'}")
    assert after.grades == before.grades and dict(after.gallery) == dict(before.gallery)
    assert after.image_set == before.image_set


def test_another_split_or_database_is_asked_for_and_is_part_of_the_name(museum: Path) -> None:
    asked = load(f"met:{museum}:split=val")
    assert asked.name == f"met:{museum}:split=val" and asked.grades == {"test_met/e.jpg": {"MET/901/0.jpg": "easy"}}
    small = load(f"met:{museum}:database=mini")
    assert small.name == f"met:{museum}:database=mini" and list(small.gallery) == ["MET/7/0.jpg", "MET/901/0.jpg"]
    assert [query.id for query in small.queries] == ["test_met/c.jpg"]
    assert "1 queries of exhibits without an image in the database are left out" in small.notes


def test_precisions_are_summed_over_the_exhibits_images(museum: Path) -> None:
    """By hand: exhibit 34 in places 1 and 3 is (1 + 2/3) / 2, exhibit 7 in place 2 is 1/2."""
    similarities = np.array([[0.9, 0.7, 0.8, 0.1], [0.9, 0.1, 0.5, 0.2]])
    found = measured(load(f"met:{museum}"), similarities, 4)
    assert found == {
        "mAP@100": pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2),
        "R@1": 0.5,
        "R@10": 1.0,
        "R@100": 1.0,
    }


def test_photographs_of_the_museum_that_are_missing_are_named(museum: Path) -> None:
    before = load(f"met:{museum}")
    (museum / "images" / "MET" / "7" / "0.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 4 photographs are missing.*0\.jpg"):
        load(f"met:{museum}")
    assert load(f"met:{museum}", images=False).grades == before.grades


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("MET_database", [*EXHIBITS, EXHIBITS[0]], r"MET_database\.json names the image 'MET/34/0\.jpg' twice"),
        ("MET_database", [{"path": "a.jpg"}], "entry 0: no id, expected the number of an exhibit"),
        ("MET_database", [{"id": 1, "path": "../a.jpg"}], "entry 0: found .* an object with the path of an image"),
        ("testset", [*VISITORS, VISITORS[0]], r"testset\.json names the query 'test_met/a\.jpg' twice"),
        ("testset", VISITORS[1:2], "no query whose MET_id is an id of MET_database"),
        ("testset", [{"path": "a.jpg", "MET_id": 1.5}], "entry 0: MET_id is '1.5', expected a number"),
        ("testset", [{"path": "a.jpg", "MET_id": True}], "entry 0: MET_id is 'True', expected a number"),
        ("testset", [*VISITORS, "a.jpg"], "entry 4: found 'a.jpg', expected an object"),
        ("testset", {"a.jpg": 34}, "expected a list of objects, one an image"),
        ("testset", [], "expected a list of objects, one an image"),
    ],
)
def test_lists_of_another_form_are_refused_with_file_and_entry(
    museum: Path, name: str, content: object, says: str
) -> None:
    (museum / "ground_truth" / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=says) as refusal:
        load(f"met:{museum}")
    assert f"{name}.json" in refusal.value.message


def test_a_list_that_is_missing_or_cut_short_is_named(museum: Path) -> None:
    file = museum / "ground_truth" / "testset.json"
    file.write_text(file.read_text()[:-5])
    with pytest.raises(UserError, match=r"testset\.json: cannot be read"):
        load(f"met:{museum}")
    file.unlink()
    with pytest.raises(UserError, match=r"missing testset\.json"):
        load(f"met:{museum}")


def test_numbers_of_exhibits_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('[{"path": "a.jpg", "MET_id": "34"}, {"path": "b.jpg", "MET_id": null}]')
    assert [each.exhibit for each in read_list(tmp_path / "list.json", "MET_id")] == [34, None]


# --- fetched ------------------------------------------------------------------------------------------------------


def _of_ilias(served: Path, folder: Path) -> None:
    with tarfile.open(served / "ilias_core.tar", "w") as tar:
        tar.add(folder / "ilias_core", "ilias_core")
    digest = hashlib.sha256((served / "ilias_core.tar").read_bytes()).hexdigest()
    base = "https://vrg.fel.cvut.cz/ilias_data"
    shard = "0" * 64 + f" {base}/yfcc100m/yfcc100m_0.tar"
    (served / "checksums.txt").write_text(f"{shard}\n{digest} {base}/ilias_core.tar\n")


def _of_gpr1200(served: Path, folder: Path) -> None:
    shutil.make_archive(str(served / "GPR1200"), "zip", folder)


def _of_met(served: Path, folder: Path) -> None:
    parts = {"ground_truth": sorted((folder / "ground_truth").iterdir())}
    for name in ("test_met", "test_other", "test_noart", "MET"):
        parts[name] = [dot(folder / "images" / name / "another.jpg").parent]
    for name, paths in parts.items():
        with tarfile.open(served / f"{name}.tar.gz", "w:gz") as tar:
            for path in paths:
                tar.add(path, path.name)


@pytest.mark.parametrize(
    ("name", "files", "pack"),
    [("gpr1200", "general", _of_gpr1200), ("ilias", "core", _of_ilias), ("met", "museum", _of_met)],
)
def test_what_its_servers_give_is_the_data_set(
    name: str,
    files: str,
    pack: Callable[[Path, Path], None],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    cli: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The archives as they are known to be, from a server of our own: none of theirs could be asked."""
    folder, served = request.getfixturevalue(files), tmp_path / "served"
    served.mkdir()
    pack(served, folder)
    before = load(f"{name}:{folder}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def here(url: str) -> str:
        return f"http://127.0.0.1:{server.server_port}/{url.rpartition('/')[2]}"

    try:
        (source,) = catalogue.sources_of(name)
        ours = [
            replace(
                file,
                urls=tuple(map(here, file.urls)),
                digest_url=None if file.digest_url is None else here(file.digest_url),
            )
            for file in source.files
        ]
        with monkeypatch.context() as patch:
            patch.setattr(catalogue, "sources_of", lambda _: (replace(source, files=tuple(ours)),))
            fetched = cli("datasets", "download", name, "--data-root", str(tmp_path / "root"))
        assert f"{len(ours)} files fetched" in fetched.output, fetched.output
        assert f"it is --dataset {name}:{tmp_path / 'root' / name}" in fetched.output
        if name == "ilias":  # its server publishes checksums
            (served / "checksums.txt").write_text("1" * 64 + " https://vrg.fel.cvut.cz/ilias_data/ilias_core.tar\n")
            with pytest.raises(UserError, match="sha256 is"):
                download(replace(source, files=tuple(ours)), tmp_path / "other")
            (served / "checksums.txt").write_text("1" * 64 + " another.tar\n" + "2" * 64 + " one.tar\n")
            with pytest.raises(UserError, match=r"no checksum of ilias_core\.tar"):
                download(replace(source, files=tuple(ours)), tmp_path / "other")
    finally:
        server.shutdown()
        server.server_close()
    after = load(f"{name}:{tmp_path / 'root' / name}")
    assert list(after.gallery) == list(before.gallery) and after.grades == before.grades
    assert [(query.id, query.box) for query in after.queries] == [(query.id, query.box) for query in before.queries]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
