"""Options from the command line: read as their type, or refused with their name."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import registry
from bench.errors import UserError
from bench.options import parse_value
from bench.reranker import parse_options


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("0.5", float, 0.5),
        ("yes", bool, True),
        ("False", bool, False),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("1,2", tuple[int, ...], (1, 2)),
        ("none", tuple[int, ...], ()),
        ("a/b", Path, Path("a/b")),
    ],
)
def test_values_are_read_as_their_type(text: str, kind: object, value: object) -> None:
    assert parse_value(text, kind, "-o m.x") == value


@pytest.mark.parametrize(
    ("text", "kind"), [("x", int), ("1.5", int), ("", float), ("maybe", bool), ("1,x", tuple[int, ...])]
)
def test_values_of_another_type_are_refused(text: str, kind: object) -> None:
    with pytest.raises(UserError, match=r"-o m.x=.*expected"):
        parse_value(text, kind, "-o m.x")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_options(registry.get("ransac"), {"threshold": text})
