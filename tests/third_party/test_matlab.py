"""MATLAB files are read as scipy reads them, and one that declares more than it has is refused before any of it is."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from bench.errors import UserError
from third_party.matlab import HEADER, load

LARGEST = 2**20


def read(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    return load(path, ("a", "b"), largest, "get it again")


def cell(*values: Any) -> np.ndarray:
    found = np.empty((1, len(values)), object)
    found[0, :] = values
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Names in cells, and a structure of numbers, as ground truth of retrieval has them."""
    entries = np.empty((1, 2), [("ok", object), ("box", object)])
    for number in range(2):
        entries[0, number] = (np.arange(3, dtype=np.uint16), np.array([[1.5, 2, 3, number]]))
    savemat(tmp_path / "t.mat", {"a": cell("x/1.jpg", "é", "", "name longer than eight bytes"), "b": entries})
    return tmp_path / "t.mat"


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_is_read_as_scipy_reads_it(path: Path, packed: bool) -> None:
    content = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    savemat(path, {**content, "other": np.eye(3)}, do_compression=packed)
    found = read(path)
    assert found.keys() - {"__header__", "__version__", "__globals__"} == {"a", "b"}
    assert [str(value[0]) if value.size else "" for value in found["a"][0]] == [
        "x/1.jpg",
        "é",
        "",
        "name longer than eight bytes",
    ]
    assert found["b"]["box"][0, 1].tolist() == [[1.5, 2, 3, 1]] and found["b"][0, 0][0].tolist() == [[0, 1, 2]]


@given(st.lists(st.lists(st.floats(-1e9, 1e9), max_size=4), max_size=4), st.booleans())
def test_arrays_of_any_size_are_read(tmp_path_factory: pytest.TempPathFactory, values: list, packed: bool) -> None:
    file = tmp_path_factory.mktemp("m") / "t.mat"
    savemat(file, {"a": cell(*(np.array([row]) for row in values)), "b": np.zeros((0, 3))}, do_compression=packed)
    assert [row.ravel().tolist() for row in read(file)["a"].ravel()] == values


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("sides", [(2**30, 4), (1, 2**31 - 1), (-1, 4), (0, 2**31 - 1), (4, 4)])
def test_more_elements_than_there_are_is_refused_and_no_room_is_made(
    path: Path, packed: bool, sides: tuple[int, int]
) -> None:
    savemat(path, {"a": cell("x", "y", "z")})
    content = path.read_bytes()
    at = content.index(struct.pack("<2i", 1, 3), HEADER)
    content = content[:at] + struct.pack("<2i", *sides) + content[at + 8 :]
    if packed:
        inside = zlib.compress(content[HEADER:])
        content = content[:HEADER] + struct.pack("<2I", 15, len(inside)) + inside
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"arrays inside, expected|an array of the size") as refusal:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert str(path) in refusal.value.message and refusal.value.hint == "get it again"


def test_numbers_that_are_not_there_are_refused(path: Path) -> None:
    savemat(path, {"a": np.ones((7, 9))})
    content = path.read_bytes()
    at = content.index(struct.pack("<2i", 7, 9), HEADER)
    path.write_bytes(content[:at] + struct.pack("<2i", 7, 2**28) + content[at + 8 :])
    with pytest.raises(UserError, match="numbers in 504 bytes"):
        read(path)


def test_a_variable_that_unpacks_to_more_than_is_allowed_is_refused(path: Path) -> None:
    savemat(path, {"a": np.zeros((1000, 1000))}, do_compression=True)
    assert path.stat().st_size < LARGEST
    with pytest.raises(UserError, match="cut off, or too large"):
        read(path)
    savemat(path, {"a": np.zeros((1000, 1000))})
    with pytest.raises(UserError, match=r"8000\d+ bytes, expected at most 1048576"):
        read(path)


def test_other_files_are_refused(path: Path) -> None:
    content = path.read_bytes()
    for other in (b"", b"\x89HDF\r\n\x1a\n" + b"\0" * 200, content[:100], content[:-9], content[:124] + b"\0\2IM"):
        path.write_bytes(other)
        with pytest.raises(UserError, match="not readable as a MATLAB file of version 5 to 7"):
            read(path)
    savemat(path, {"a": np.ones(3)}, format="4")
    with pytest.raises(UserError, match="no header of version 5"):
        read(path)


def test_cells_nested_without_end_are_refused(path: Path) -> None:
    value: Any = "x"
    for _ in range(20):
        value = cell(value)
    savemat(path, {"a": value})
    with pytest.raises(UserError, match="arrays more than 8 deep"):
        read(path)
