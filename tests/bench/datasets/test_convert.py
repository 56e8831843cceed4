"""A list of photographs with degrees becomes a folder that vpr:PATH reads, all of it in one zone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from bench.conformance_dataset import check_dataset
from bench.datasets import Dataset, catalogue
from bench.datasets.convert import Converted, convert
from bench.datasets.dataset import Place
from bench.datasets.vpr import placed
from bench.errors import UserError
from bench.places import Places

STEP = 1 / 111_132  # degrees of latitude a metre, near 45 degrees
HEADER = "image,latitude,longitude,role"


def listed(folder: Path, *lines: str, header: str = HEADER) -> Path:
    """A list, and a photograph of each of its lines."""
    for number, line in enumerate(lines):
        image = folder / line.split(",")[0]
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), (number, 0, 0)).save(image)
    path = folder / "list.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def load(path: Path) -> Dataset:
    return catalogue.load(f"vpr:{path}", Places(*[Path("nowhere")] * 3))


def places(path: Path) -> list[tuple[str, str]]:
    """Zone and letter of every image below a folder."""
    return sorted({tuple(file.name.split("@")[3:5]) for file in path.rglob("@*")})  # type: ignore[misc]


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """A query, an image 20 metres north of it, and one 30 metres north of it."""
    lines = (
        "q.jpg,45,9,query",
        f"d/near.jpg,{45 + 20 * STEP:.8f},9,database",
        f"d/far.JPG,{45 + 30 * STEP:.8f},9,gallery",
    )
    return listed(tmp_path / "photos", *lines)


def test_what_is_near_by_degrees_is_near_by_metres(city: Path, tmp_path: Path) -> None:
    assert convert(city, tmp_path / "set") == Converted(2, 1, 32, True, True)
    dataset = load(tmp_path / "set")
    (right,) = dataset.grades[dataset.queries[0].id]
    assert right.endswith("@d_near@.jpg") and len(dataset.gallery) == 2
    place, near = placed(dataset.queries[0].id), placed(right)
    assert (place.east, place.north) == (500_000.0, pytest.approx(4_982_950.400, abs=0.001))
    assert near.north - place.north == pytest.approx(20 * 0.9996, abs=0.01) and str(near.grid) == "32 north"
    check_dataset("vpr", Place(tmp_path, tmp_path, tmp_path / "set"))


def test_photographs_are_linked_to_or_copied(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(city, tmp_path / "links")
    assert not convert(city, tmp_path / "copies", copy=True).linked

    def refused(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refused)
    assert not convert(city, tmp_path / "forced").linked
    kinds = {
        name: {file.is_symlink() for file in (tmp_path / name).rglob("@*")} for name in ("links", "copies", "forced")
    }
    assert kinds == {"links": {True}, "copies": {False}, "forced": {False}}
    assert load(tmp_path / "links").grades == load(tmp_path / "copies").grades == load(tmp_path / "forced").grades


def test_the_south_is_named_so(tmp_path: Path) -> None:
    path = listed(tmp_path, "a.png,-33.8568,151.2153,query", "b.png,-33.8569,151.2153,database")
    assert convert(path, tmp_path / "set") == Converted(1, 1, 56, False, True)
    assert places(tmp_path / "set") == [("56", "H")]
    (query,) = load(tmp_path / "set").queries
    place = placed(query.id)
    assert place.north == pytest.approx(6_252_308, abs=500) and not place.grid.north  # type: ignore[union-attr]


def test_images_on_both_sides_of_a_zones_edge_are_in_one_zone(tmp_path: Path) -> None:
    """Ten metres from each other over 12 degrees east, and over the equator: near each other all the same."""
    east = listed(tmp_path / "a", "a.png,46,11.99994,query", "b.png,46,12.00006,database", "c.png,46,12.1,database")
    assert convert(east, tmp_path / "east").zone == 33
    equator = listed(tmp_path / "b", "a.png,0.00004,33,query", "b.png,-0.00004,33,database", "c.png,0.1,33,database")
    assert convert(equator, tmp_path / "equator").north
    assert places(tmp_path / "equator") == [("36", "N")]
    for made in ("east", "equator"):
        dataset = load(tmp_path / made)
        assert len(dataset.grades[dataset.queries[0].id]) == 1 and len(places(tmp_path / made)) == 1


def test_bergen_is_in_norways_wide_zone_unless_another_is_named(tmp_path: Path) -> None:
    path = listed(tmp_path, "a.png,60.39,5.32,query", "b.png,60.39,5.3201,database")
    assert convert(path, tmp_path / "wide").zone == 32
    assert convert(path, tmp_path / "narrow", zone=31).zone == 31
    for made in ("wide", "narrow"):
        assert len(next(iter(load(tmp_path / made).grades.values()))) == 1
    with pytest.raises(UserError, match=r"longitude 5\.32[01]* is 15\.7 degrees from the middle of zone 34"):
        convert(path, tmp_path / "far", zone=34)
    with pytest.raises(UserError, match="--zone 61: expected 1 to 60"):
        convert(path, tmp_path / "none", zone=61)


def test_every_nth_image_is_a_query_where_that_is_asked(tmp_path: Path) -> None:
    lines = [f"{name}.png,45,{9 + 0.01 * number}" for number, name in enumerate("abcdefg")]
    path = listed(tmp_path, *lines, header="image,latitude,longitude")
    made = convert(path, tmp_path / "set", query_every=3)
    assert (made.queries, made.database) == (2, 5)
    assert [query.id[-7:] for query in load(tmp_path / "set").queries] == ["@c@.png", "@f@.png"]
    with pytest.raises(UserError, match="no column role") as refusal:
        convert(path, tmp_path / "other")
    assert "--query-every N" in str(refusal.value.hint)
    with pytest.raises(UserError, match="--query-every 1: expected 2 or more"):
        convert(path, tmp_path / "other", query_every=1)


def test_one_name_in_two_folders_stays_two_images(tmp_path: Path) -> None:
    path = listed(tmp_path, "l/1.png,45,9,database", "r/1.png,45,9,database", "q@h.png,45,9,query")
    convert(path, tmp_path / "set")
    dataset = load(tmp_path / "set")
    assert [image[-9:] for image in dataset.gallery] == ["@l_1@.png", "@r_1@.png"]
    assert len(dataset.grades[dataset.queries[0].id]) == 2
    path = listed(tmp_path, "a@b.png,45,9,query", "a_b.png,45,9,query", "d.png,45,9,database")
    with pytest.raises(UserError, match=r"line 3: it would be named as that of .*line 2"):
        convert(path, tmp_path / "clash")


BAD = {
    "latitude beyond": ("a.png,91,9,query", "line 2: latitude 91, expected -80 to 84"),
    "exchanged": ("a.png,151.2,-33.8,query", "line 2: latitude 151.2"),
    "longitude beyond": ("a.png,45,181,query", "line 2: longitude 181"),
    "no number": ("a.png,45N,9,query", "line 2: latitude '45N'"),
    "not a number": ("a.png,nan,9,query", "line 2: latitude 'nan'"),
    "role": ("a.png,45,9,train", "line 2: role 'train', expected query or database"),
    "no role": ("a.png,45,9,", "line 2: role '', expected query or database"),
    "no database": ("a.png,45,9,query", "1 queries and 0 images of the database"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_line_that_is_wrong_is_named_and_nothing_is_made(tmp_path: Path, what: str) -> None:
    line, says = BAD[what]
    with pytest.raises(UserError, match=says):
        convert(listed(tmp_path / "photos", line), tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_files_that_are_not_there_or_twice_or_no_images_are_named(city: Path, tmp_path: Path) -> None:
    for line, says in (
        ("d/../q.jpg,45,9,database", r"line 5: 'd/../q.jpg' is listed before, in .*line 2"),
        ("nowhere.jpg,45,9,query", r"line 5: no file .*nowhere.jpg"),
        ("list.csv,45,9,query", r"line 5: 'list.csv' is no image"),
    ):
        text = city.read_text()
        city.write_text(text + line + "\n")
        with pytest.raises(UserError, match=says):
            convert(city, tmp_path / "set")
        city.write_text(text)
    assert not (tmp_path / "set").exists()


def test_commas_for_points_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text("image;latitude;longitude;role\na.png;45,5;9,25;query\n")
    with pytest.raises(UserError, match="latitude '45,5'") as refusal:
        convert(tmp_path / "list.csv", tmp_path / "set")
    assert "not a comma" in str(refusal.value.hint)


def test_the_command_makes_a_folder_and_never_writes_into_another(
    cli: Callable[..., Result], city: Path, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    done = cli("datasets", "convert", str(city), str(tmp_path / "set"))
    assert done.exit_code == 0, done.output
    assert "1 queries and 2 images of the database, links in UTM zone 32 north" in done.output
    again = cli("datasets", "convert", str(city), str(tmp_path / "set"))
    assert again.exit_code == 1 and "it is there already" in again.output
    assert len(load(tmp_path / "set").gallery) == 2
