"""Rows of a file are those of the array in it, and what is wrong with the file is said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.features.arrays import ArrayFile


@given(
    kind=st.sampled_from(["float16", "float32", "uint8", "int64"]),
    shape=st.sampled_from([(7,), (0,), (7, 3), (1, 1), (0, 3), (7, 0), (5, 2, 2)]),
    by_columns=st.booleans(),
    span=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    at=st.lists(st.integers(0, 6), max_size=9),
)
def test_rows_are_those_of_the_array(
    tmp_path_factory: pytest.TempPathFactory, kind: str, shape: tuple, by_columns: bool, span: tuple, at: list[int]
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.npy"
    array = np.arange(np.prod(shape)).astype(kind).reshape(shape)
    np.save(path, np.asfortranarray(array) if by_columns else array)
    file = ArrayFile(path)
    assert (file.shape, file.dtype, len(file)) == (array.shape, array.dtype, len(array))
    start, stop = (min(end, len(array)) for end in sorted(span))
    np.testing.assert_array_equal(file.rows(start, stop), array[start:stop])
    wanted = np.array([number for number in at if number < len(array)], np.int64)
    found = np.empty((len(wanted), *array.shape[1:]), array.dtype)
    file.gather(found, wanted)
    np.testing.assert_array_equal(found, array[wanted])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
    return tmp_path / "a.npy"


def test_rows_that_are_not_there_and_rows_of_another_kind_are_refused(path: Path) -> None:
    file = ArrayFile(path)
    for start, stop in ((5, 7), (-1, 1)):
        with pytest.raises(ValueError, match="no rows"):
            file.rows(start, stop)
    for rows in (np.empty((2, 2), np.float16), np.empty((2, 3), np.float32)):
        with pytest.raises(ValueError, match="rows are float32"):
            file.into(rows, 0)


def test_a_file_that_is_cut_short_while_it_is_open_is_an_error_and_no_crash(path: Path) -> None:
    file = ArrayFile(path)
    os.truncate(path, path.stat().st_size - 4)
    assert file.rows(0, 5).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    with pytest.raises(UserError, match="was cut short"):
        file.rows(0, 6)
    with pytest.raises(ValueError, match=r"do not hold an array \(6, 2\) of float32"):
        ArrayFile(path)


def test_an_open_file_is_read_after_it_was_removed_and_is_closed_with_its_reader(path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    file = ArrayFile(path)
    path.unlink()
    assert file.rows(5, 6).tolist() == [[10, 11]]
    del file
    assert len(os.listdir("/dev/fd")) == before


def test_what_holds_no_plain_values_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "one.npy", np.float32(1))
    (tmp_path / "text.npy").write_text("no array")
    for name in ("objects", "one", "text"):
        with pytest.raises(ValueError):
            ArrayFile(tmp_path / f"{name}.npy")
