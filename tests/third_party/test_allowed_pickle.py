"""Pickles are read without running anything, and what they declare costs nothing."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from third_party.allowed_pickle import load, read_index_lists


def written(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["<i8", ">i4", "u1", "<u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_integer_arrays_of_every_protocol_are_read(tmp_path: Path, protocol: int, kind: str, order: Any) -> None:
    array = np.asarray(np.arange(200).reshape(20, 10).astype(kind), order=order)
    assert np.array_equal(read_index_lists(written(tmp_path / "nn.pkl", array, protocol)), array.astype(np.int64))


def test_an_array_of_an_older_numpy_is_read(tmp_path: Path) -> None:
    data = pickle.dumps(np.arange(6).reshape(2, 3), 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert read_index_lists(written(tmp_path / "nn.pkl", data)).tolist() == [[0, 1, 2], [3, 4, 5]]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(PLAIN, st.integers(3, 5))
def test_plain_values_are_read_as_pickle_reads_them(tmp_path_factory: Any, value: Any, protocol: int) -> None:
    path = written(tmp_path_factory.mktemp("p") / "v.pkl", pickle.dumps(value, protocol))
    assert load(path, 2**20) == value


class Runs:
    """Pickles into a call."""

    def __init__(self, call: Any, *arguments: Any):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


ARRAY = np.arange(6, dtype=np.int64).reshape(2, 3)
HOSTILE: dict[str, Any] = {
    "a command": Runs(os.system, "true"),
    "eval": Runs(eval, "1"),
    "an object in an array": np.array([[Runs(eval, "1")]], dtype=object),
    "names": np.array([["a", "b"]]),
    "fractions": np.array([[0.5, 1.5]]),
    "records": np.array([[(1, 2)]], dtype=[("a", "i4"), ("b", "i4")]),
    "one dimension": np.arange(3),
    "no array": [1, 2, 3],
    "a call of the array class": b"cnumpy\nndarray\n(I999999999999\nt\x85R.",
    "a shape that its bytes do not fill": pickle.dumps(ARRAY, 4).replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"),
    "a memo of two thousand million": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a string longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.",
    "bytes longer than the file": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"a.",
    "a million lists in lists": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "a frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02K\x01Q.",
    "no end": b"\x80\x02]",
    "nothing": b"",
    "a stack that is empty": b"\x80\x02R.",
    "a state that is no tuple": pickle.dumps(ARRAY, 4).replace(b"t\x94b.", b"0Nb."),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_anything_else_is_refused_with_the_name_of_the_file(tmp_path: Path, what: str) -> None:
    path = written(tmp_path / "nn.pkl", HOSTILE[what])
    with pytest.raises(UserError, match=r"nn.pkl"):
        read_index_lists(path)


def test_torch_storages_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    import torch

    path = written(tmp_path / "nn_ames.pkl", pickle.dumps(torch.arange(6).reshape(2, 1, 3)))
    with pytest.raises(UserError) as refusal:
        read_index_lists(path)
    assert "torch" in str(refusal.value) and "pickle.load(open('nn_ames.pkl', 'rb'))" in str(refusal.value.hint)
    data = b"ctorch.storage\n_load_from_bytes\n(C\x01at\x85R."
    with pytest.raises(UserError) as refusal:
        read_index_lists(written(path, data))
    assert "np.savez" in str(refusal.value.hint)


def test_a_file_that_is_too_large_or_absent_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "nn.pkl"
    with pytest.raises(UserError, match=r"nn.pkl"):
        load(path, 10)
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(UserError, match="1099511627776 bytes, expected at most"):
        load(path, 2**20)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (np.zeros((2, 3)), "an array of fractions"),
        (np.array([["a"]]), "an array of names"),
        (np.arange(3), r"an array of shape \(3,\)"),
        ({"q": [1]}, "a dict"),
        (Path("a"), "pathlib"),
    ],
)
def test_what_is_no_array_of_indices_is_named_with_the_file_that_would_be_read(
    tmp_path: Path, content: Any, found: str
) -> None:
    with pytest.raises(UserError, match=rf"nn\.pkl.*{found}") as refusal:
        read_index_lists(written(tmp_path / "nn.pkl", content))
    assert "np.savez('lists.npz', queries=names" in str(refusal.value.hint)


def test_a_ground_truth_that_asks_for_more_is_not_the_official_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        load(written(tmp_path / "gnd.pkl", Path("a")), 2**20)
    assert refusal.value.hint == "it is not the official file"
