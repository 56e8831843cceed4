"""Files are written whole, and what cannot be written is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.files import new_map, whole, write_whole


def test_what_a_killed_writer_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    (tmp_path / "a.json.tmp-123").write_text("ha")
    (tmp_path / "b.json.tmp-123").write_text("another file's")
    write_whole(tmp_path / "a.json", "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json.tmp-123"]
    assert (tmp_path / "a.json").read_text() == "all"


def test_what_another_is_writing_stays(tmp_path: Path) -> None:
    with whole(tmp_path / "a") as first:
        first.write_text("first")
        write_whole(tmp_path / "a", "second")
        assert first.read_text() == "first" and (tmp_path / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "first"


def test_the_room_of_an_array_that_is_mapped_is_taken_before_it_is_written_to(tmp_path: Path) -> None:
    array = new_map(tmp_path / "a.npy", np.dtype(np.float16), (1000, 1000))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes == 2_000_000  # else a full disk kills later
    array[3] = 1
    array.flush()
    found = np.load(tmp_path / "a.npy")
    assert (found[3] == 1).all() and not found[4:].any()
