"""Stanford Online Products: every image queries the others, itself left out by its id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.datasets import sop
from bench.datasets.catalogue import load as load_named
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE, Rankings, evaluate
from bench.metrics import measures
from bench.places import Places
from bench.results import tables
from bench.search import Dense, Vectors
from bench.shortlist import Shortlist, first_stage

HEADER = "image_id class_id super_class_id path"
LINES = [
    "1 7 1 bicycle_final/a_0.JPG",
    "2 7 1 bicycle_final/a_1.JPG",
    "3 8 2 chair_final/b_0.JPG",
    "4 8 2 chair_final/b_1.JPG",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The official layout, two classes of two images."""
    folder = tmp_path / sop.FOLDER
    for line in LINES:
        path = folder / line.split()[3]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (int(line[0]) * 40, 0, 0)).save(path, "jpeg")
    (folder / "Ebay_test.txt").write_text("\n".join([HEADER, *LINES]))
    return tmp_path


def measured(dataset: sop.Dataset, vectors: np.ndarray, k: int) -> tuple[Shortlist, dict[str, float]]:
    shortlist = first_stage(dataset, Dense(vectors, Vectors.of(vectors)), name="f", content="c", policy="blind", k=k)
    found = evaluate(Rankings(tables([], shortlist)["scores"], shortlist, dataset))
    return shortlist, found[found.method == FIRST_STAGE].groupby("measure")["value"].mean().to_dict()


def test_the_official_layout_is_read(tree: Path) -> None:
    dataset = load_named("sop", Places.of(tree, tree, tree))
    assert list(dataset.gallery) == [line.split()[3].removesuffix(".JPG") for line in LINES]
    assert [query.id for query in dataset.queries] == list(dataset.gallery)
    assert dict(dataset.grades["chair_final/b_0"]) == {"chair_final/b_1": "easy"}
    assert all(path.is_file() for path in dataset.gallery.values())
    assert measures(dataset.protocol) == ("R@1", "R@10", "R@100", "R@1000")


def test_recall_by_hand_where_an_exact_copy_would_be_taken_for_the_query_itself(tree: Path) -> None:
    """Images 0 and 2, of two classes, are the same: left out by place, one of them would be its own candidate."""
    dataset = sop.load(tree)
    vectors = np.array([[1, 0], [0.8, 0.6], [1, 0], [0, 1]], np.float32)
    shortlist, found = measured(dataset, vectors, 3)
    ids = list(dataset.gallery)
    listed = [[ids.index(shortlist.gallery[i]) for i in shortlist.candidates("any", q)] for q in range(4)]
    assert listed == [[2, 1, 3], [0, 2, 3], [0, 1, 3], [1, 0, 2]]
    # hits at the first place: only query 1 (its class is 0); all classes are found among three
    assert found["R@1"] == 1 / 4 and found["R@10"] == 1.0


def test_a_query_without_another_image_of_its_class_is_left_out(tree: Path) -> None:
    file = tree / sop.FOLDER / "Ebay_test.txt"
    file.write_text("\n".join([HEADER, *LINES[:3]]))
    _, found = measured(sop.load(tree), np.array([[1, 0], [0.8, 0.6], [1, 0]], np.float32), 2)
    assert found["R@1"] == 1 / 2  # of the two queries of class 7


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("5 8 2", "line 6: found '5 8 2'"),
        ("x 8 2 a/b.JPG", "line 6: found"),
        ("5 8 2 a/b.png", "no path of an image"),
        ("5 8 2 /etc/b.JPG", "no path of an image"),
        ("5 8 2 ../b.JPG", "no path of an image"),
        ("5 8 2 chair_final/b_0.JPG", "appears twice"),
    ],
)
def test_a_line_that_is_not_of_the_official_form_is_named(tree: Path, line: str, says: str) -> None:
    file = tree / sop.FOLDER / "Ebay_test.txt"
    file.write_text("\n".join([HEADER, *LINES, line]))
    with pytest.raises(UserError, match=says) as refusal:
        sop.load(tree)
    assert "Ebay_test.txt" in refusal.value.message


def test_missing_files_are_said_with_the_command_that_gets_them(tree: Path, tmp_path: Path) -> None:
    (tree / sop.FOLDER / "chair_final" / "b_1.JPG").unlink()
    with pytest.raises(UserError, match=r"1 of 4 photographs are missing.*b_1.JPG"):
        sop.load(tree)
    assert len(sop.load(tree, images=False).gallery) == 4
    with pytest.raises(UserError, match=r"missing .*Ebay_test.txt") as refusal:
        sop.load(tmp_path / "nowhere")
    assert "datasets download sop" in str(refusal.value.hint)


def test_a_byte_order_mark_changes_nothing_and_grades_are_the_other_images_of_the_class(tree: Path) -> None:
    path = tree / sop.FOLDER / "Ebay_test.txt"
    before = sop.load(tree)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert sop.load(tree) == before
    assert before.grades["bicycle_final/a_0"] == {"bicycle_final/a_1": "easy"}
