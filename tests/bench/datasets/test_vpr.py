"""Place recognition: positives are by distance, names say where, and what is wrong with a name is said with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.conformance_dataset import check_dataset
from bench.datasets import Dataset, catalogue
from bench.datasets.dataset import Place
from bench.datasets.utm import project
from bench.datasets.vpr import Grid, placed, within
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE, Rankings, evaluate
from bench.places import Places
from bench.results import tables
from bench.search import Dense, Vectors
from bench.shortlist import first_stage

EAST, NORTH = 584844.09, 4477316.41


def named(east: float = 0.0, north: float = 0.0, more: str = "17@T", note: str = "") -> str:
    """A name of the benchmark, metres from one place of Pittsburgh."""
    return f"@{EAST + east:010.2f}@{NORTH + north:010.2f}@{more}@+40.44@-079.99@@@@@@@@{note}@.jpg"


def dot(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12)).save(path, "jpeg")
    return path


def tree(root: Path, database: Iterable[str], queries: Iterable[str], asked: str = "queries") -> Path:
    """`root` with these images in images/test/database and images/test/queries."""
    for folder, names in (("database", database), (asked, queries)):
        for name in names:
            dot(root / "images" / "test" / folder / name)
    return root


def load(name: str, images: bool = True) -> Dataset:
    return catalogue.load(name, Places(*[Path("nowhere")] * 3), images=images)


DATABASE = [named(25), named(-15, 20.01, note="far"), named(0, 3, note="near")]
QUERIES = [named(0), named(4000)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tree(tmp_path / "pitts", DATABASE, QUERIES)


def right(dataset: Dataset, query: int = 0) -> list[str]:
    """Base names of the positives of a query."""
    return [image.removeprefix("database/") for image in dataset.grades[dataset.queries[query].id]]


# --- layout and names ---------------------------------------------------------------------------------------------


def test_images_within_the_radius_are_right_and_no_other(place: Path) -> None:
    dataset = load(f"vpr:{place}")
    assert dataset.name == f"vpr:{place}" and dataset.protocol == "vpr"
    assert list(dataset.gallery) == [f"database/{name}" for name in sorted(DATABASE)]
    assert [query.id for query in dataset.queries] == [f"queries/{name}" for name in sorted(QUERIES)]
    assert right(dataset) == [DATABASE[2], DATABASE[0]] and right(dataset, 1) == []
    assert all(query.box is None and query.image.is_file() for query in dataset.queries)
    assert "1 of 2 queries have no image of the database within 25 m; they count as missed." in dataset.notes


@pytest.mark.parametrize("more", ["", "/images/test"])
def test_both_folders_may_be_in_the_path_itself(place: Path, more: str) -> None:
    assert list(load(f"vpr:{place}{more}").gallery) == list(load(f"vpr:{place}").gallery)


def test_the_data_set_conforms_with_and_without_photographs(place: Path, tmp_path: Path) -> None:
    check_dataset("vpr", Place(tmp_path, tmp_path, place))
    check_dataset("vpr", Place(tmp_path, tmp_path, Path(f"{place}:radius=26")))
    for name in ("database", "queries"):
        folder = place / "images" / "test" / name
        files = sorted(path.name for path in folder.iterdir())
        folder.with_name(f"{name}_images_paths.txt").write_text("\n".join(files) + "\n")
    whole = load(f"vpr:{place}")
    for file in (place / "images" / "test" / "database").iterdir():
        file.unlink()
    bare = load(f"vpr:{place}", images=False)
    assert bare.grades == whole.grades and list(bare.gallery) == list(whole.gallery)
    with pytest.raises(UserError, match=r"3 of 3 images are not in .*database"):
        load(f"vpr:{place}")


def test_a_radius_is_part_of_the_name_and_so_of_the_seal(place: Path) -> None:
    assert len(right(load(f"vpr:{place}:radius=25.01"))) == 3
    assert load(f"vpr:{place}:radius=10").name == f"vpr:{place}:radius=10"
    assert right(load(f"vpr:{place}/:radius=10")) == [DATABASE[2]]
    assert load(f"vpr:{place}:radius=25.0").name == f"vpr:{place}"


def test_other_queries_are_an_option(place: Path) -> None:
    tree(place, [], [named(1)], "queries_night")
    dataset = load(f"vpr:{place}:queries=queries_night:radius=30")
    assert [query.id for query in dataset.queries] == [f"queries_night/{named(1)}"]
    assert dataset.name == f"vpr:{place}:radius=30:queries=queries_night"
    with pytest.raises(UserError, match=r"queries_day: no such folder") as refusal:
        load(f"vpr:{place}:queries=queries_day")
    assert "vpr:PATH:queries=queries" in str(refusal.value.hint)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (":radius=0", "radius=0, expected more than 0"),
        (":radius=-3", "radius=-3, expected more than 0"),
        (":radius=nan", "radius=nan: expected float"),
        (":radius=wide", "radius=wide: expected float"),
        (":radius=1:radius=2", "radius is given twice"),
        (":radios=1", "unknown option of data set vpr 'radios'"),
        (":queries=database", "queries=database, expected the name of a folder beside database"),
        (":queries=../queries", "expected the name of a folder"),
    ],
)
def test_options_that_there_are_not_are_refused(place: Path, options: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(f"vpr:{place}{options}")


def test_a_folder_whose_name_looks_like_options_is_a_folder(tmp_path: Path) -> None:
    odd = tree(tmp_path / "set:radius=3", DATABASE, QUERIES)
    assert len(right(load(f"vpr:{odd}"))) == 2
    assert len(right(load(f"vpr:{odd}:radius=3"))) == 1


def test_nested_folders_of_the_same_base_names_are_images_of_their_own(tmp_path: Path) -> None:
    name = named(1)
    root = tree(tmp_path / "set", [f"2019/{name}", f"20@20/{name}"], [f"a@b/{named()}"])
    dataset = load(f"vpr:{root}")
    assert list(dataset.gallery) == [f"database/2019/{name}", f"database/20@20/{name}"]
    assert len(right(dataset)) == 2


def test_a_copy_of_the_query_in_the_database_stays_its_candidate(tmp_path: Path) -> None:
    """The benchmark leaves no image out of a query's list."""
    dataset = load(f"vpr:{tree(tmp_path / 'set', [named()], [named()])}")
    assert not dataset.itself(dataset.queries[0]) and right(dataset) == [named()]


def test_a_list_beside_a_folder_says_which_images_there_are_and_their_order(place: Path) -> None:
    listed = place / "images" / "test" / "database_images_paths.txt"
    listed.write_text(f"\ufeff{DATABASE[2]}\r\n{DATABASE[0]}\r\n")
    assert list(load(f"vpr:{place}").gallery) == [f"database/{DATABASE[i]}" for i in (2, 0)]
    for line, says in [
        (DATABASE[2], "stands there twice"),
        ("../x.jpg", "expected a path below"),
        ("/x", "expected a"),
    ]:
        listed.write_text(f"{DATABASE[2]}\n{line}\n")
        with pytest.raises(UserError, match=rf"database_images_paths.txt, line 2: .*{says}"):
            load(f"vpr:{place}")


NAMES: Mapping[str, tuple[str, str]] = {
    "photo.jpg": ("its name has no coordinates", "datasets convert"),
    "@1@2.jpg": ("its name has no coordinates", "@UTM_east@UTM_north@"),
    "@584844,09@4477316.41@.jpg": ("found '584844,09' as UTM east", "not a comma"),
    "@584844.09@nan@.jpg": ("found 'nan' as UTM north", "@UTM_east"),
    "@1e999@1@.jpg": ("found '1e999' as UTM east", "@UTM_east"),
    "@@4477316.41@.jpg": ("found '' as UTM east", "@UTM_east"),
    "@1_0@2@.jpg": ("found '1_0' as UTM east", "@UTM_east"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["database", "queries"])
def test_a_name_without_coordinates_is_named(place: Path, folder: str, name: str) -> None:
    dot(place / "images" / "test" / folder / "a@1@2@3" / name)  # the folder's @ says nothing
    says, hint = NAMES[name]
    with pytest.raises(UserError, match=says) as refusal:
        load(f"vpr:{place}")
    assert f"{folder}/a@1@2@3/{name}" in refusal.value.message and hint in str(refusal.value.hint)


def test_what_is_no_such_folder_is_said_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load(f"vpr:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nor database is there; found the folders none"):
        load(f"vpr:{tmp_path / 'empty'}")
    tree(tmp_path / "set", DATABASE, [])
    with pytest.raises(UserError, match="queries: no such folder"):
        load(f"vpr:{tmp_path / 'set'}")
    (tmp_path / "set" / "images" / "test" / "queries").mkdir()
    with pytest.raises(UserError, match="queries: no images found"):
        load(f"vpr:{tmp_path / 'set'}")
    (tmp_path / "set" / "images" / "test").rename(tmp_path / "set" / "images" / "val")
    with pytest.raises(UserError, match="neither images/test/database nor database") as refusal:
        load(f"vpr:{tmp_path / 'set'}")
    assert f"vpr:{tmp_path / 'set' / 'images' / 'val'}" in str(refusal.value.hint)


# --- zones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "grid"),
    [
        ("17@T", Grid("17", True)),
        ("06@m", Grid("6", False)),
        ("60@N", Grid("60", True)),
        ("61@T", None),
        ("0@T", None),
        ("17@", None),
        ("@", None),
        ("17@I", None),
    ],
)
def test_a_name_says_its_zone_and_hemisphere_or_none(more: str, grid: Grid | None) -> None:
    assert placed(named(more=more)).grid == grid
    assert placed("@1@2@17@.jpg").grid is None  # the number of a frame


def test_images_of_far_zones_are_never_each_others_positives(tmp_path: Path) -> None:
    """As of MSLS, whose validation set has two cities: the same metres in two zones are two places."""
    root = tree(tmp_path / "set", [named(more="10@S"), named(1, more="33@U")], [named(2, more="33@U")])
    dataset = load(f"vpr:{root}")
    assert right(dataset) == [named(1, more="33@U")]
    assert any("UTM zones 10 north, 33 north; none is near" in note for note in dataset.notes)


def test_a_border_between_zones_among_the_images_is_refused(tmp_path: Path) -> None:
    """Ten metres from each other, on either side of 12 degrees east."""
    latitude, step = 46.0, 5 / (111_320 * math.cos(math.radians(46.0)))
    west, east = (
        project(np.array([latitude]), np.array([12 + side * step]), zone, True)[0] for side, zone in ((-1, 32), (1, 33))
    )
    names = [f"@{e:.2f}@{n:.2f}@{zone}@T@{note}@@@.jpg" for (e, n), zone, note in ((west, 32, "w"), (east, 33, "e"))]
    root = tree(tmp_path / "set", [names[0]], [names[1]])
    with pytest.raises(UserError, match=r"different UTM zones \(32 north, 33 north\) within 25 m of each other") as no:
        load(f"vpr:{root}")
    assert names[0] in no.value.message and names[1] in no.value.message and "convert" in str(no.value.hint)
    assert load(f"vpr:{root}:radius=9").grades == {f"queries/{names[1]}": {}}


def test_names_without_a_zone_are_in_the_only_one_and_else_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", [named(more="@")], [named(1)])
    assert right(load(f"vpr:{root}")) == [named(more="@")]
    tree(root, [named(more="33@U")], [])
    with pytest.raises(UserError, match=r"in the UTM zones 17 north, 33 north, and .* names none"):
        load(f"vpr:{root}")


# --- distance and measures ----------------------------------------------------------------------------------------


def test_far_north_a_centimetre_counts() -> None:
    """In single precision both are 25 m away: it has half metres there."""
    queries, database = np.array([[500_000.0, 9_000_000.0]]), np.array([[500_025.0, 9_000_000.0], [5e5, 9_000_025.01]])
    assert within(queries, database, 25)[0].tolist() == [0]
    assert within(np.float32(queries), np.float32(database), 25)[0].tolist() == [0, 1]


@given(
    st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), max_size=20),
    st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), max_size=20),
    st.integers(1, 50),
)
def test_within_is_what_every_pair_says(points: list, others: list, radius: int) -> None:
    a, b = (np.array(some, np.float64).reshape(-1, 2) for some in (points, others))
    found = [near.tolist() for near in within(a, b, radius)]
    assert found == [
        [i for i, other in enumerate(others) if math.dist(one, other) <= radius] for one in points
    ]  # of whole numbers distances are exact enough to tell 25 from more


def test_queries_without_a_positive_stay_in_the_mean(place: Path) -> None:
    """By hand: one query of two has positives, and the second best image is one of them."""
    dataset = load(f"vpr:{place}")
    order = {image: i for i, image in enumerate(dataset.gallery)}
    values = np.zeros((2, 3), np.float32)
    for rank, name in enumerate((DATABASE[1], DATABASE[0], DATABASE[2])):
        values[:, order[f"database/{name}"]] = 1 - rank / 10
    made = first_stage(dataset, Dense(np.eye(2), Vectors.of(values.T)), name="f", content="c", policy="blind", k=3)
    found = evaluate(Rankings(tables([], made)["scores"], made, dataset))
    found = found[found.method == FIRST_STAGE]
    assert found.groupby("measure")["value"].mean().to_dict() == {
        "Recall@1": 0.0,
        "Recall@5": 0.5,
        "Recall@10": 0.5,
        "Recall@20": 0.5,
        "Recall@100": 0.5,
    }
    assert len(found) == 10


def test_a_run_prints_recall_and_says_what_is_missed(
    cli: Callable[..., Result], view: Callable[[int, int], np.ndarray], tmp_path: Path
) -> None:
    root = tmp_path / "city"
    for number in range(3):
        for folder, shot in (("database", 1), ("queries", 2)):
            path = dot(root / folder / named(1000 * number + shot))
            Image.fromarray(view(number, shot)).save(path)
    dot(root / "queries" / named(9000))
    Image.fromarray(view(7, 1)).save(root / "queries" / named(9000))
    done = cli(
        "run", "-m", "identity,oracle", "-d", f"vpr:{root}:radius=5", "--max-side", "160", "--keep-descriptors", "99"
    )
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "Recall@1 All" in said and "1 of 4 queries have no image of the database within 5 m" in said
    assert "left out of the means" not in said
    oracle = next(line for line in done.output.splitlines() if line.split()[:1] == ["oracle*"])
    assert oracle.split()[2] == "75.0"  # of four queries three can be found


def test_a_large_set_is_kept_in_another_way_and_is_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load(f"vpr:{place}")
    monkeypatch.setattr("bench.datasets.vpr.MANY", 2)
    large = load(f"vpr:{place}")
    assert type(large.gallery) is not type(small.gallery) and dict(large.gallery) == dict(small.gallery)
    assert large.grades == small.grades and large.image_set == small.image_set
