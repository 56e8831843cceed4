"""Both forms of a landmark list are read, and what is neither is named by its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.datasets import gldv2
from bench.datasets.gldv2 import read_list
from bench.errors import UserError
from bench.metrics import measure, measures


def listing(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_both_forms_of_a_list_say_the_same(tmp_path: Path) -> None:
    lines = listing(tmp_path / "a.txt", "jpg/a1.jpg,7,640,480\njpg/b,c.jpg, x ,1,2\njpg/a2.jpg,7,64,48\n")
    assert read_list(lines) == {"jpg/a1.jpg": "7", "jpg/b,c.jpg": "x", "jpg/a2.jpg": "7"}
    clean = listing(tmp_path / "b.csv", "landmark_id,images\n7,a1 a2\n9,b1\n11,\n")
    assert read_list(clean) == {"a1": "7", "a2": "7", "b1": "9"}


@pytest.mark.parametrize(
    "bad", ["jpg/b.jpg,7,640", "jpg/b.jpg,7,wide,480", "", "id,landmark_id,url,x", ",7,640,480", "jpg/b.jpg,,640,480"]
)
def test_a_line_that_is_not_of_a_list_is_named(bad: str, tmp_path: Path) -> None:
    path = listing(tmp_path / "list.txt", f"jpg/a.jpg,7,640,480\n{bad}\njpg/c.jpg,7,1,1\n")
    with pytest.raises(UserError, match=r"list\.txt, line 2: found") as caught:
        read_list(path)
    assert repr(bad) in caught.value.message


def test_an_image_with_two_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'a' has the labels '7' and '9'"):
        read_list(listing(tmp_path / "l.csv", "landmark_id,images\n7,a b\n9,a\n"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_list_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"list\.txt: cannot be read"):
        read_list(path)


# --- retrieval --------------------------------------------------------------------------------------------------

INDEX = ["aaa1", "aab2", "abc3", "fff4"]
SOLUTION = "id,images,Usage\nt001,aaa1 abc3,Public\nt002,fff4,Private\nt003,None,Ignored\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The official layout: four index images, a public and a private query, and one that is ignored."""
    base = tmp_path / "gldv2"
    for part, ids in (("index", INDEX), ("test", ["t001", "t002"])):
        for image in ids:
            path = base / part / image[0] / image[1] / image[2] / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32)).save(path)
    (base / "metadata").mkdir()
    (base / "ground_truth").mkdir()
    (base / "metadata" / "index.csv").write_text("\n".join(["id", *INDEX]))
    (base / "ground_truth" / "retrieval_solution_v2.1.csv").write_text(SOLUTION)
    return tmp_path


def test_the_official_layout_is_read_by_split(tree: Path) -> None:
    whole = gldv2.load("gldv2", tree)
    assert list(whole.gallery) == INDEX and [query.id for query in whole.queries] == ["t001", "t002"]
    assert whole.grades["t001"] == {"aaa1": "easy", "abc3": "easy"}
    assert whole.gallery["abc3"] == tree / "gldv2" / "index" / "a" / "b" / "c" / "abc3.jpg"
    assert [query.id for query in gldv2.load("gldv2-public", tree).queries] == ["t001"]
    assert [query.id for query in gldv2.load("gldv2-private", tree).queries] == ["t002"]
    assert measures(whole.protocol) == ("mAP@100",)


def test_map_at_100_is_rectangular_over_the_lesser_of_100_and_the_positives() -> None:
    assert measure(np.array([0, 3]), 2, "mAP@100") == (1 / 1 + 2 / 4) / 2
    assert measure(np.array([1, 150]), 2, "mAP@100") == (1 / 2) / 2  # beyond the hundredth counts nothing
    assert measure(np.array([99]), 1, "mAP@100") == 1 / 100 and measure(np.array([100]), 1, "mAP@100") == 0
    assert measure(np.arange(100), 250, "mAP@100") == pytest.approx(1.0, abs=1e-12)
    assert measure(np.array([], int), 3, "mAP@100") == 0.0  # no prediction
    assert measure(np.array([0, 3]), 2, "mAP") != measure(np.array([0, 3]), 2, "mAP@100")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("index", "name\naaa1", "found the columns"),
        ("index", "id\nab", "line 2: 'ab' is no id"),
        ("index", "id\n../../x", "is no id"),
        ("index", "id\naaa1\naaa1", "'aaa1' twice"),
        ("solution", "id,images\nt001,aaa1", "found the columns"),
        ("solution", "id,images,Usage\nt001,aaa1", "line 2: expected the columns"),
        ("solution", "id,images,Usage\nt001,aaa1,Secret", "usage 'Secret'"),
        ("solution", "id,images,Usage\nt001,aaa1,Public\nt001,abc3,Private", "line 3: .* 't001' appears twice"),
        ("solution", "id,images,Usage\nt001,zzz9,Public", "'zzz9', which is not in the gallery"),
        ("solution", "id,images,Usage", "0 queries"),
    ],
)
def test_files_that_are_not_of_the_official_form_are_refused(tree: Path, file: str, text: str, says: str) -> None:
    places = {"index": "metadata/index.csv", "solution": "ground_truth/retrieval_solution_v2.1.csv"}
    (tree / "gldv2" / places[file]).write_text(text)
    with pytest.raises(UserError, match=says):
        gldv2.load("gldv2", tree)


def test_missing_photographs_are_named(tree: Path) -> None:
    (tree / "gldv2" / "index" / "f" / "f" / "f" / "fff4.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 4 photographs are missing.*fff4.jpg") as refusal:
        gldv2.load("gldv2", tree)
    assert "datasets download gldv2" in str(refusal.value.hint)
    assert len(gldv2.load("gldv2", tree, images=False).gallery) == 4


def test_a_byte_order_mark_changes_no_list(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    files = {
        read_list: b"landmark_id,images\n7,a1 a2\n",
        gldv2.read_index: b"id\naaa1\n",
        gldv2.read_solution: b"id,images,Usage\nt001,aaa1 bbb2,Public\n",
    }
    for number, (read, text) in enumerate(files.items()):
        plain, marked = tmp_path / f"{number}.csv", tmp_path / f"{number}-marked.csv"
        plain.write_bytes(text)
        marked.write_bytes(mark + text)
        assert list(read(marked)) == list(read(plain)) != []
    lines = tmp_path / "lines.txt"
    lines.write_bytes(mark + b"jpg/a1.jpg,7,640,480\n")
    assert read_list(lines) == {"jpg/a1.jpg": "7"}
