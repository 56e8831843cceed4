"""TREC files are written so that every scorer keeps our order, and read back as they were."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.trec import decoded, encoded, qrels_lines, read_qrels, read_run, run_lines

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@given(NAMES)
def test_a_name_is_one_column_and_comes_back(name: str) -> None:
    assert len(encoded(name).split()) == 1 and decoded(encoded(name)) == name


@given(st.dictionaries(NAMES, st.lists(NAMES, unique=True, min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_run_and_qrels_come_back(tmp_path_factory: Any, lists: dict[str, list[str]]) -> None:
    path: Path = tmp_path_factory.mktemp("t") / "run"
    ranked = {
        query: [(image, float(len(images) - i)) for i, image in enumerate(images)] for query, images in lists.items()
    }
    path.write_text("".join(run_lines(ranked, "a tag")), encoding="utf-8")
    assert read_run(path) == ranked
    path.write_text("".join(qrels_lines(lists)), encoding="utf-8")
    assert read_qrels(path) == {query: dict.fromkeys(images, 1) for query, images in lists.items()}


def test_lines_by_hand() -> None:
    assert "".join(run_lines({"q 1": [("b", 0.5), ("a%", 0.5)]}, "m")) == "q%201 Q0 b 1 2 m\nq%201 Q0 a%25 2 1 m\n"
    assert "".join(qrels_lines({"q": ["a"]})) == "q 0 a 1\n"


def test_scores_decide_then_ranks(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("q Q0 a 2 0.5 t\nq Q0 b 1 0.5 t\n\nq Q0 c 9 7 t\n")
    assert [image for image, _ in read_run(path)["q"]] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("q Q0 a 1 0.5", "line 1: found"),
        ("q Q0 a 1 0.5 t\nq Q0 a 2 0.4 t", "line 2: query 'q' names 'a' twice"),
        ("q Q0 a 1 nan t", "not finite"),
        ("q Q0 a one 2 t", "no numbers"),
        ("", "empty run"),
    ],
)
def test_what_is_no_run_is_named_by_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "file.run"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"file.run.*{says}"):
        read_run(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read: it is UTF-16 text"):
        read_run(path)


def test_a_name_of_a_file_that_is_not_utf_8_comes_back() -> None:
    assert encoded("caf\udce9") == "caf%E9" and decoded("caf%E9") == "caf\udce9"


def test_the_first_line_after_a_byte_order_mark_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_bytes(b"\xef\xbb\xbfq 0 a 1\r\nq 0 b 0\r\n")
    assert read_qrels(path) == {"q": {"a": 1, "b": 0}}
    path.write_bytes(b"\xef\xbb\xbfq Q0 a 1 2 t\nq Q0 b 2 1 t\n")
    assert [image for image, _ in read_run(path)["q"]] == ["a", "b"]


def test_a_no_break_space_is_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("q 0 a\u00a0b 1\n", encoding="utf-8")
    assert read_qrels(path) == {"q": {"a\u00a0b": 1}}


@pytest.mark.parametrize("separator", "\x1c\x1d\x1e\x1f")
def test_a_separator_of_ascii_is_part_of_a_name_too(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "run"
    path.write_text(f"q Q0 a{separator}b 1 2 tag\n")
    assert read_run(path) == {"q": [(f"a{separator}b", 2.0)]}
    path.write_text(f"{separator}\n")
    with pytest.raises(UserError, match="line 1"):
        read_run(path)


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_bytes(gzip.compress(b"9" * 2**24))
    with pytest.raises(UserError, match="line 1: too long"):
        read_run(path)


def test_pairs_are_no_run_for_a_reader_of_runs(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q a\n")
    with pytest.raises(UserError, match="pairs without scores"):
        read_run(tmp_path / "run")
