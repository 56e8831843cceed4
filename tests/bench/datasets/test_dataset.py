"""A data set is declared with what a list and a command line need, and is read from a place that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.datasets.dataset import Dataset, Loader, Place, Query, Source, dataset
from bench.errors import UserError

HERE = Place(Path("data"), Path("cache"))
SAID = {"summary": "two pictures", "licence": "MIT", "needs": "nothing"}


def pictures(place: Place) -> Dataset:
    return Dataset(place.name, "instance", "v1", (Query("q", Path("q")),), {"a": Path("a")}, {"q": {"a": "easy"}})


def declare(name: str = "pair", read: Any = pictures, **more: Any) -> Loader:
    return dataset(name, **{**SAID, **more})(read)


def test_a_declared_function_reads_the_data_set_under_its_name(tmp_path: Path) -> None:
    assert declare()(HERE).name == "pair"
    given = Place(HERE.data, HERE.cache, tmp_path / "a" / ".." / "b")
    assert declare(takes="PATH")(given).name == f"pair:{tmp_path}/b"
    assert declare().usage == "pair" and declare("a+b-1.x_y", takes="FILE").usage == "a+b-1.x_y:FILE"


def test_one_source_or_several_are_what_can_be_downloaded() -> None:
    one, other = Source("one", (), "v1", "MIT"), Source("other", (), "v1", "MIT")
    assert declare().sources == () and declare(source=one).sources == (one,)
    assert declare(source=(one, other)).sources == (one, other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a:b"},
        {"name": "A"},
        {"name": ""},
        {"name": "a,b"},
        {"name": "a b"},
        {"summary": ""},
        {"licence": ""},
        {"needs": ""},
        {"takes": ""},
        {"takes": "path"},
        {"read": None},
    ],
)
def test_what_could_not_be_listed_or_named_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="data set"):
        declare(**wrong)


def test_a_path_too_many_or_too_few_is_refused_with_the_right_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pair: needs a path") as refusal:
        declare(takes="FILE")(HERE)
    assert refusal.value.hint == "--dataset pair:FILE"
    with pytest.raises(UserError, match=f"pair: takes no path, found {tmp_path}") as refusal:
        declare()(Place(HERE.data, HERE.cache, tmp_path))
    assert refusal.value.hint == "--dataset pair"


def fails(place: Place) -> Dataset:
    raise KeyError("image")


def returns_a_list(place: Place) -> Any:
    return ["a", "b"]


def calls_itself_demo(place: Place) -> Dataset:
    return pictures(Place(place.data, place.cache, name="demo"))


def has_no_queries(place: Place) -> Dataset:
    return Dataset(place.name, "instance", "v1", (), {"a": Path("a")}, {})


def grades_unheard_of(place: Place) -> Dataset:
    return Dataset(place.name, "instance", "v1", (Query("q", Path("q")),), {"a": Path("a")}, {"q": {"a": "good"}})


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (fails, "data set 'pair' cannot be read: KeyError: 'image'"),
        (returns_a_list, "data set 'pair': found list, expected a Dataset"),
        (calls_itself_demo, "data set 'pair' calls itself 'demo'"),
        (has_no_queries, "pair: 0 queries and 1 gallery images"),
        (grades_unheard_of, "pair: ground truth of query 'q' grades 'a' as 'good'"),
    ],
)
def test_a_function_that_breaks_its_word_is_an_error_that_names_the_data_set(read: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        declare(read=read)(HERE)
    assert refusal.value.hint or "expected" in refusal.value.message


def test_what_the_system_refuses_is_left_to_be_said_with_its_file() -> None:
    def read(place: Place) -> Dataset:
        return Dataset((place.data / "nowhere").read_text(), "instance", "", (), {}, {})

    with pytest.raises(FileNotFoundError):
        declare(read=read)(HERE)


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(UserError, match="~nobody_of_that_name"):
        Place(Path("data"), Path("cache"), Path("~nobody_of_that_name/set"))
