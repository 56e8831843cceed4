"""A journal keeps what was scored, whatever happened to its file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.journal import Journal, Record

LINES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 9)),
        st.sampled_from([b"{}\n", b"\xff\n", b'{"method": "a", "que{"method": "a"}\n', b"\n"]),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(LINES, st.sampled_from([b"", b'{"method": "a", "query']))
def test_a_journal_counts_a_query_once_and_the_last_record_of_it_stands(
    tmp_path_factory: pytest.TempPathFactory, lines: list, torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    expected: dict[tuple[str, str], float] = {}
    for line in lines:
        if isinstance(line, tuple):
            method, query, score = line
            expected[method, query] = float(score)
            record = Record(method, query, {"any": (float(score),)}, 0.0, 0.0, 0.0)
            line = json.dumps(vars(record)).encode() + b"\n"
        with path.open("ab") as file:
            file.write(line)
    with path.open("ab") as file:
        file.write(torn)
    journal = Journal(path)
    assert len(journal) == len(expected)
    for (method, query), score in expected.items():
        found = journal.read(method, query)
        assert found is not None and found.scores == {"any": (score,)}
    journal.append(Record("new", "q", {"any": (1.0,)}, 0.0, 0.0, 0.0))
    assert len(Journal(path)) == len(expected) + 1
