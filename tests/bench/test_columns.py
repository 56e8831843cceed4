"""Tables of people are read however their program parted, quoted and ended them; a line that is wrong is named."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.columns import read_table
from bench.errors import UserError

ROWS = [("a/1.jpg", "mug"), ("b, c.jpg", 'lamp "x"'), ("é.png", "3")]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path) -> list[tuple[str, str]]:
    return [(row["image"], row["instance"]) for row in read_table(path, ("image", "instance")).rows]


def as_csv(rows: list[tuple[str, str]], parted: str = ",", ended: str = "\n") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=parted, lineterminator=ended).writerows([("image", "instance"), *rows])
    return text.getvalue()


@pytest.mark.parametrize("parted", [",", ";", "\t"])
@pytest.mark.parametrize("ended", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_is_the_same_however_it_is_written(tmp_path: Path, parted: str, ended: str, mark: str) -> None:
    assert values(written(tmp_path / "t.csv", mark + as_csv(ROWS, parted, ended))) == ROWS
    lines = [json.dumps({"instance": instance, "image": image}) for image, instance in ROWS]
    assert values(written(tmp_path / "t.jsonl", mark + ended.join(lines) + ended)) == ROWS


cells = st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text == text.strip()
)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_what_a_program_writes_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    assert values(written(tmp_path_factory.mktemp("t") / "t.csv", as_csv(rows))) == rows


def test_other_columns_are_passed_over_and_named(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "id,Image,INSTANCE,split\n7,a,b,\n")
    table = read_table(path, ("image", "instance"), ("split",))
    assert dict(table.rows[0].values) == {"image": "a", "instance": "b", "split": ""} and table.others == ("id",)


def test_numbers_of_json_stay_as_they_are_written(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.jsonl", '{"image": "a", "instance": 4477316.410}\n\n{"image": "b", "instance": 07e1}\n'
    )
    with pytest.raises(UserError, match="line 3: not readable as JSON"):
        values(path)
    assert values(written(path, '{"image": "a", "instance": 4477316.410}')) == [("a", "4477316.410")]


BAD: dict[str, tuple[str | bytes, str, str]] = {
    "empty": ("", "no rows", "image, instance"),
    "header alone": ("image,instance\n", "no rows", "image, instance"),
    "no column": ("image,size\na,b\n", "line 1: no column 'instance'", "found 'image', 'size'"),
    "another name": ("filename,instance\na,b\n", "line 1: no column 'image'", "'image' by 'filename'"),
    "another label": ("image,class\na,b\n", "line 1: no column 'instance'", "'instance' by 'class'"),
    "a typing error": ("image,instanse\na,b\n", "line 1: no column 'instance'", "'instance' by 'instanse'"),
    "twice": ("image,instance,image\na,b,c\n", "line 1: the column 'image' is there twice", "rename"),
    "too many cells": ("image,instance\na,b\nc,d,e\n", "line 3: 3 cells, expected the 2", "quotes"),
    "too few cells": ("image,instance\na\n", "line 2: 1 cells", "quotes"),
    "empty cell": ("image,instance\na,b\n , c\n", "line 3: image is empty", "fill it in"),
    "open quote": ('image,instance\na,"b\n', "not readable as CSV", ""),
    "UTF-16": ("image,instance\na,b\n".encode("utf-16"), "not UTF-8", "iconv"),
    "NUL": (b"image,instance\na,b\0\n", "NUL characters", "iconv"),
    "a JSON list": ('[{"image": "a"}]', "found a list, expected JSON lines", "one object a line"),
    "JSON of many lines": ('{\n"image": "a",\n"instance": "b"\n}', "line 1: not readable as JSON", "one object a line"),
    "a number among lines": ('{"image": "a", "instance": "b"}\n7\n', "line 2: found '7'", "one object a line"),
    "a key twice": ('{"image": "a", "image": "b", "instance": "c"}', "a key twice", ""),
    "a list as value": ('{"image": "a", "instance": ["b"]}', "line 1: instance is empty", "fill it in"),
    "a key missing": (
        '{"image": "a", "instance": "b"}\n{"image": "c"}',
        "line 2: no column 'instance'",
        "found 'image'",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_table_that_is_wrong_is_named_with_its_line(tmp_path: Path, what: str) -> None:
    content, says, hint = BAD[what]
    with pytest.raises(UserError, match=says) as refusal:
        values(written(tmp_path / "t.csv", content))
    assert str(tmp_path / "t.csv") in refusal.value.message and hint in str(refusal.value.hint)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv: cannot be read"):
        values(tmp_path / "nowhere.csv")
