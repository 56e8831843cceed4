"""Both forms of a landmark list are read, and what is neither is named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.datasets.gldv2 import read_list
from bench.errors import UserError


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
