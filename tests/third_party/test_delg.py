"""Files of DELG features are read to the bit, and the worst a file can do is to be refused by name."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.errors import UserError
from third_party import delg as reader
from third_party.delg import LocalDescriptors, parse_global, parse_local

HERE = Path("photo.delg_local")
FIELDS = {"desc": "descriptors", "xy": "keypoints", "scale": "scales", "strength": "strengths"}


def rows_of(found: LocalDescriptors) -> np.ndarray:
    """(n, 5 + d) x, y, scale, orientation, strength, descriptor."""
    scalars = [found.scales, found.orientations, found.strengths]
    return np.concatenate([found.keypoints, np.stack(scalars, axis=1), found.descriptors], axis=1)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == np.float32 and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- what is read -------------------------------------------------------------------------------------------------


def test_the_reference_files_are_read_to_the_bit(reference: Path) -> None:
    expected = np.load(reference / "delg" / "expected.npz", allow_pickle=False)
    names = sorted({key.partition(".")[0] for key in expected})
    assert names
    for name in names:
        path = reference / "delg" / f"{name}.delg_global"
        assert same_bits(parse_global(reader.read_bytes(path), path), expected[f"{name}.global"])
        path = path.with_suffix(".delg_local")
        found = parse_local(reader.read_bytes(path), path)
        for key, field in FIELDS.items():
            wanted = expected[f"{name}.{key}"]
            assert same_bits(getattr(found, field).reshape(wanted.shape), wanted), (name, key)
        assert not found.orientations.any()


def test_unpacked_floats_of_the_reference_are_the_packed_ones(reference: Path) -> None:
    for path in (reference / "delg").glob("*_unpacked.delg_global"):
        packed = path.with_name(path.name.replace("_unpacked", ""))
        assert same_bits(parse_global(path.read_bytes(), path), parse_global(packed.read_bytes(), packed))


def test_an_empty_file_has_no_features() -> None:
    found = parse_local(b"", HERE)
    assert len(found.descriptors) == len(found.keypoints) == len(found.scales) == len(found.strengths) == 0


anything = st.floats(width=32)  # NaN, infinity and minus zero too


@settings(max_examples=40)
@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(6, 14)), elements=anything), st.data())
def test_whatever_was_written_is_read_again(delg, values: np.ndarray, data: st.DataObject) -> None:
    """Packed and unpacked in one file, fields in any order, left out (which is 0) or unknown (which is skipped)."""
    noise = st.sampled_from([b"", b"\x78\x05", delg.field(9, b"??"), b"\x79" + bytes(8), b"\x7d" + bytes(4)])
    wanted, text = values.copy(), data.draw(noise)
    for row in wanted:
        order = data.draw(st.permutations(range(2, 7)))
        kept = order[: data.draw(st.integers(0, 5))]
        row[[n - 2 for n in order if n not in kept]] = 0
        feature = delg.feature(row[5:], {n: row[n - 2] for n in kept}, data.draw(st.booleans()))
        text += delg.field(1, feature + data.draw(noise)) + data.draw(noise)
    assert same_bits(rows_of(parse_local(text, HERE)), wanted)


@settings(max_examples=40)
@given(arrays(np.float32, st.integers(1, 30), elements=anything), st.booleans(), st.booleans())
def test_a_global_descriptor_is_read_again(delg, values: np.ndarray, packed: bool, shape: bool) -> None:
    assert same_bits(parse_global(delg.datum(values, packed, shape), HERE), values)


def test_features_framed_alike_and_otherwise_are_read_the_same(delg) -> None:
    """The rows that are read at once stop at the first whose bytes differ in more than values."""
    values = np.random.default_rng(3).normal(size=(60, 5 + 16)).astype(np.float32)
    for odd in (1, 30, 59):
        for unlike in ({"packed": False}, {"scalars": {6: 1.0}}):
            rows = [delg.feature(v[5:], v[:5]) for v in values]
            rows[odd] = delg.feature(**{"descriptor": values[odd, 5:], "scalars": values[odd, :5], **unlike})
            one_by_one = [rows_of(parse_local(delg.field(1, row), HERE)) for row in rows]
            whole = parse_local(b"".join(delg.field(1, row) for row in rows), HERE)
            assert same_bits(rows_of(whole), np.concatenate(one_by_one))


def test_parts_are_merged_as_protobuf_merges_them(delg) -> None:
    """A message given twice is one message: repeated values are joined, of single ones the last counts."""
    two = delg.field(1, delg.datum([1, 2], shape=False)) + delg.field(1, delg.datum([3], shape=False, packed=False))
    x_twice = b"".join(b"\x15" + np.float32(v).tobytes() for v in (7, 8))
    found = parse_local(delg.field(1, two + x_twice), HERE)
    assert found.descriptors.tolist() == [[1, 2, 3]] and found.keypoints.tolist() == [[8, 0]]


# --- what is refused ----------------------------------------------------------------------------------------------

HUGE = (2**62, 2**63, 2**64 - 1)
BAD_LOCAL: dict[str, Callable] = {
    **{f"a length of {n}": lambda w, n=n: b"\x0a" + w.varint(n) for n in HUGE},
    "a length one too long": lambda w: w.field(1, w.feature([1.0], [1] * 5))[:-1],
    "an inner length beyond its message": lambda w: w.field(1, b"\x0a\x7f\x12\x06\x0a\x04abcd"),
    "a length that breaks off": lambda w: b"\x0a\x80\x80",
    "a number without end": lambda w: b"\x0a" + b"\x80" * 40 + b"\x01",
    "a tag without end": lambda w: b"\xff" * 11,
    "a tag of 11 bytes": lambda w: b"\x8a" + b"\x80" * 9 + b"\x00\x00",
    "the start of a group": lambda w: b"\x0b",
    "the end of a group": lambda w: b"\x0c",
    "wire type 6": lambda w: b"\x0e",
    "wire type 7": lambda w: b"\x0f\x00",
    "a group in a feature": lambda w: w.field(1, w.feature([1.0], [1] * 5) + b"\x0b"),
    "field number 0": lambda w: b"\x02\x00",
    "field number above protobuf's": lambda w: w.varint(1 << 32 | 2) + b"\x00",
    "a fixed value that breaks off": lambda w: b"\x0d\x00\x00",
    "a feature without a descriptor": lambda w: w.field(1, w.feature([], [1] * 5)),
    "an empty feature": lambda w: b"\x0a\x00",
    "millions of empty features": lambda w: b"\x0a\x00" * (reader.LARGEST // 2),
    "descriptors of two lengths": lambda w: b"".join(w.field(1, w.feature(np.ones(n), [1] * 5)) for n in (3, 3, 4)),
    "a descriptor of integers": lambda w: w.field(1, w.field(1, w.field(3, b"\x0a\x01\x05"))),
    "floats cut": lambda w: w.field(1, w.field(1, w.field(2, w.field(1, b"abcde")))),
    "another shape": lambda w: w.field(1, w.field(1, w.field(1, b"\x08\x03") + w.datum([1, 2], shape=False))),
    "a huge shape": lambda w: w.field(1, w.field(1, w.field(1, b"\x08" + w.varint(2**63)) + w.datum([1], shape=False))),
    "endless dimensions": lambda w: w.field(
        1, w.field(1, w.field(1, w.field(1, b"\x01" * 10**6)) + w.datum([1], shape=False))
    ),
    "too many values": lambda w: w.field(1, w.feature(np.ones(reader.MOST + 1), [1] * 5)),
    "too many unpacked values": lambda w: w.field(1, w.feature(np.ones(reader.MOST + 1), [1] * 5, packed=False)),
    "too many features alike": lambda w: w.field(1, w.feature([1.0], [1] * 5)) * (reader.MOST + 1),
    "a global descriptor": lambda w: w.datum(np.ones(2048)),
}
BAD_GLOBAL: dict[str, Callable] = {
    "nothing": lambda w: b"",
    "a shape alone": lambda w: w.field(1, b"\x08\x05"),
    "fewer than its shape": lambda w: w.datum(np.ones(5))[:2] + w.datum(np.ones(4)),
    "local descriptors": lambda w: w.field(1, w.feature(np.ones(128), [1] * 5)),
    "a group": lambda w: b"\x0b\x0c",
    "a huge length": lambda w: b"\x12" + w.varint(2**63 - 1),
}


def nested(writer, depth: int) -> bytes:
    text = b""
    for _ in range(depth):
        text = writer.field(1, text)
    return text


@pytest.mark.parametrize("what", list(BAD_LOCAL))
def test_a_malformed_file_of_local_descriptors_is_refused_by_name(delg, what: str) -> None:
    with pytest.raises(UserError, match=r"^photo\.delg_local: not a readable file of DELG features"):
        parse_local(BAD_LOCAL[what](delg), HERE)


@pytest.mark.parametrize("what", list(BAD_GLOBAL))
def test_a_malformed_global_descriptor_is_refused_by_name(delg, what: str) -> None:
    with pytest.raises(UserError, match=r"^photo\.delg_local: not a readable file of DELG features"):
        parse_global(BAD_GLOBAL[what](delg), HERE)


def test_messages_nested_deeper_than_the_schema_are_not_followed(delg) -> None:
    for parse in (parse_local, parse_global):
        with pytest.raises(UserError):
            parse(nested(delg, 3_000), HERE)


@pytest.mark.parametrize(
    "what", ["a length of 9223372036854775808", "millions of empty features", "endless dimensions", "unknown fields"]
)
def test_refusing_takes_neither_memory_nor_time(delg, what: str) -> None:
    whole = {**BAD_LOCAL, "unknown fields": lambda w: b"\x78\x00" * 10**4 + b"\x0b"}[what](delg)
    tracemalloc.start()
    begin = process_time()
    with pytest.raises(UserError):
        parse_local(whole, HERE)
    seconds, (_, most) = process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20 and seconds < 5


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_an_error_that_names_the_file(data: bytes) -> None:
    for parse in (parse_local, parse_global):
        try:
            parse(data, HERE)
        except UserError as error:
            assert error.message.startswith("photo.delg_local: ")


@given(st.data())
def test_a_damaged_file_gives_a_value_or_an_error_that_names_it(delg, data: st.DataObject) -> None:
    good = b"".join(
        delg.field(1, delg.feature(np.arange(4), [1, 2, 3, 4, 5], packed)) for packed in (True, True, False)
    )
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse_local(bytes(damaged[: data.draw(st.integers(0, len(good)))]), HERE)
        assert len(found.descriptors) == len(found.keypoints) <= len(good) // 5
    except UserError as error:
        assert error.message.startswith("photo.delg_local: ")


def test_a_file_cut_anywhere_but_between_features_is_refused(delg) -> None:
    one = delg.field(1, delg.feature(np.arange(3), [1, 2, 3, 4, 5]))
    for size in range(3 * len(one)):
        if size % len(one):
            with pytest.raises(UserError):
                parse_local((one * 3)[:size], HERE)
        else:
            assert len(parse_local((one * 3)[:size], HERE).scales) == size // len(one)


def test_a_file_that_is_too_large_or_not_there_is_refused_by_name(tmp_path: Path) -> None:
    large = tmp_path / "large.delg_local"
    large.touch()
    os.truncate(large, 2**40)  # a hole: no byte of it is on the disk
    for path, said in ((large, "MiB"), (tmp_path / "no.delg_local", "cannot be read"), (tmp_path, "cannot be read")):
        with pytest.raises(UserError, match=said) as refusal:
            reader.read_bytes(path)
        assert str(path) in refusal.value.message
