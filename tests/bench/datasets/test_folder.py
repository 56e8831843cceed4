"""A user's own folder: both layouts are read, and whatever is wrong with it is said with its file and its id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bench.datasets import Dataset, Query, folder, grade
from bench.errors import UserError


@pytest.fixture
def guarded(write_buildings: Callable[[Path], Path], tmp_path: Path) -> Path:
    return write_buildings(tmp_path / "set")


@pytest.fixture
def edit(guarded: Path) -> Callable[[Callable[[dict], object]], Path]:
    """`edit(change)`: the folder after its gnd.json went through `change`."""

    def go(change: Callable[[dict], object]) -> Path:
        truth = json.loads((guarded / "gnd.json").read_text())
        change(truth)
        (guarded / "gnd.json").write_text(json.dumps(truth))
        return guarded

    return go


def dot(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def test_one_folder_per_instance_leaves_one_out(instances: Path) -> None:
    dataset = folder.load(instances)
    assert dataset.protocol == "instance" and list(dataset.difficulties) == ["All"]
    assert list(dataset.gallery) == [f"object{i}/view{v}" for i in range(3) for v in range(3)]
    assert [q.id for q in dataset.queries] == list(dataset.gallery)
    assert dataset.grades["object1/view0"] == {"object1/view1": "easy", "object1/view2": "easy"}
    assert all(q.box is None and q.image == dataset.gallery[q.id] for q in dataset.queries)


def test_ground_truth_gives_queries_boxes_and_grades(buildings: Path) -> None:
    dataset = folder.load(buildings)
    assert dataset.protocol == "revisited" and list(dataset.difficulties) == ["Easy", "Medium", "Hard"]
    assert len(dataset.gallery) == 12 and [q.id for q in dataset.queries] == ["query0", "query1"]
    assert dataset.queries[0].box == (10.0, 5.0, 150.0, 115.0)
    assert dataset.grades["query1"] == {
        "landmark1_0": "easy",
        "landmark1_1": "hard",
        "landmark1_2": "hard",
        "landmark1_3": "junk",
    }


def test_a_lone_image_is_a_distractor_and_no_query(instances: Path, tmp_path: Path) -> None:
    for name in ("pair/a.png", "pair/b.png", "alone/c.png"):
        dot(tmp_path / "set" / name)
    dataset = folder.load(tmp_path / "set")
    assert [q.id for q in dataset.queries] == ["pair/a", "pair/b"] and "alone/c" in dataset.gallery


def test_nested_folders_upper_case_suffixes_and_hidden_files(tmp_path: Path) -> None:
    for name in ("a/b/one.PNG", "a/b/two.Jpg", "a/b/.hidden.png", "c/three.png", "c/four.png"):
        dot(tmp_path / "set" / name)
    (tmp_path / "set" / "c" / "notes.txt").write_text("not an image")
    (tmp_path / "set" / "c" / "folder.png").mkdir()
    assert list(folder.load(tmp_path / "set").gallery) == ["a/b/one", "a/b/two", "c/four", "c/three"]


def test_order_and_name_do_not_depend_on_the_file_system(instances: Path) -> None:
    assert folder.load(instances).image_set == folder.load(instances).image_set
    assert folder.load(instances).name == f"folder:{instances}"


def test_a_changed_size_is_another_image_set(tmp_path: Path, write_instances: Callable[..., Path]) -> None:
    path = write_instances(tmp_path / "set", 2, 2)
    before = folder.load(path).image_set
    with (path / "object0" / "view0.png").open("ab") as file:
        file.write(b"\0")
    assert folder.load(path).image_set != before


@pytest.mark.parametrize("layout", ["absent", "file", "empty", "no images", "flat", "no pair"])
def test_a_folder_that_cannot_be_a_data_set_is_refused(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "set"
    if layout == "file":
        path.write_text("")
    elif layout != "absent":
        path.mkdir()
    if layout == "no images":
        (path / "a").mkdir()
        (path / "a" / "text.txt").write_text("")
    elif layout == "flat":
        dot(path / "one.png")
        dot(path / "a" / "two.png")
    elif layout == "no pair":
        dot(path / "a" / "one.png")
        dot(path / "b" / "two.png")
    said = {
        "absent": "no such folder",
        "file": "no such folder",
        "empty": "no images found",
        "no images": "no images found",
        "flat": "'one' lies outside any instance",
        "no pair": "no instance folder holds two",
    }
    with pytest.raises(UserError, match=said[layout]) as refusal:
        folder.load(path)
    assert str(path) in str(refusal.value)


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    for name in ("a/one.png", "a/one.jpg", "a/two.png"):
        dot(tmp_path / "set" / name)
    with pytest.raises(UserError, match=r"one.png and .*one.jpg have the same id 'a/one'"):
        folder.load(tmp_path / "set")


@pytest.mark.parametrize("text", ["", "{", "not json", "\ufeff{}", '{"gallery": [], }'])
def test_broken_json_is_refused(guarded: Path, text: str) -> None:
    (guarded / "gnd.json").write_text(text)
    with pytest.raises(UserError, match=r"gnd.json: not readable as JSON"):
        folder.load(guarded)


def test_json_of_another_encoding_is_refused(guarded: Path) -> None:
    (guarded / "gnd.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match=r"gnd.json: not readable as JSON"):
        folder.load(guarded)


@pytest.mark.parametrize(
    "content",
    [[], 3, {}, {"gallery": []}, {"queries": []}, {"gallery": {}, "queries": []}, {"gallery": None, "queries": None}],
)
def test_json_of_another_shape_is_refused(guarded: Path, content: object) -> None:
    (guarded / "gnd.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected an object with the lists"):
        folder.load(guarded)


WRONG: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing gallery image": (
        lambda t: t["gallery"].append("nowhere"),
        "names 'nowhere', but .*gallery holds no image",
    ),
    "missing query image": (
        lambda t: t["queries"][0].update(query="nobody"),
        "names 'nobody', but .*queries holds no image",
    ),
    "grade outside the gallery": (
        lambda t: t["queries"][0]["easy"].append("nowhere"),
        "query 'query0' names 'nowhere'",
    ),
    "duplicate gallery id": (lambda t: t["gallery"].append("other1"), "gallery id 'other1' appears more than once"),
    "duplicate query": (lambda t: t["queries"].append(t["queries"][0]), "query id 'query0' appears more than once"),
    "easy and junk": (
        lambda t: t["queries"][1]["junk"].append("landmark1_0"),
        "'query1' lists 'landmark1_0' both in 'easy' and in 'junk'",
    ),
    "easy and hard": (lambda t: t["queries"][1]["hard"].append("landmark1_0"), "both in 'easy' and in 'hard'"),
    "twice easy": (lambda t: t["queries"][0]["easy"].append("landmark0_0"), "twice in 'easy'"),
    "a list in the gallery": (lambda t: t["gallery"].append(["x"]), r"names \['x'\]"),
    "a number in the gallery": (lambda t: t["gallery"].append(7), "names 7"),
    "a path out of the folder": (lambda t: t["gallery"].append("../queries/query0"), "holds no image"),
    "query without a name": (lambda t: t["queries"][0].pop("query"), "needs the string 'query'"),
    "query that is a string": (lambda t: t["queries"].append("query0"), "needs the string 'query'"),
    "grades that are a string": (
        lambda t: t["queries"][0].update(easy="landmark0_0"),
        "'easy' must be a list of image ids",
    ),
    "grades that are numbers": (lambda t: t["queries"][0].update(hard=[1, 2]), "'hard' must be a list of image ids"),
    "no queries": (lambda t: t["queries"].clear(), "0 queries and 12 gallery images"),
    "no gallery": (
        lambda t: (t["gallery"].clear(), [q.update(easy=[], hard=[], junk=[]) for q in t["queries"]]),
        "2 queries and 0 gallery images",
    ),
    "box of three": (lambda t: t["queries"][0].update(box=[1, 2, 3]), r"box of query 'query0' is \[1, 2, 3\]"),
    "box of words": (lambda t: t["queries"][0].update(box=["a", 2, 3, 4]), "expected .x1, y1, x2, y2. in pixels"),
    "box that is a number": (lambda t: t["queries"][0].update(box=5), "expected .x1, y1, x2, y2. in pixels"),
    "empty box": (lambda t: t["queries"][0].update(box=[5, 5, 5, 9]), "is empty"),
    "box backwards": (lambda t: t["queries"][0].update(box=[50, 5, 10, 90]), "is empty"),
    "box without a number": (lambda t: t["queries"][0].update(box=[float("nan"), 5, 10, 90]), "box"),
    "box without an end": (lambda t: t["queries"][0].update(box=[1, 5, float("inf"), 90]), "box"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_ground_truth_is_refused_and_says_what(edit: Callable, what: str) -> None:
    change, said = WRONG[what]
    with pytest.raises(UserError, match=said):
        folder.load(edit(change))


def test_missing_folders_are_named(guarded: Path) -> None:
    import shutil

    shutil.rmtree(guarded / "queries")
    with pytest.raises(UserError, match="queries holds no image of that name"):
        folder.load(guarded)


def test_a_query_without_box_or_grades_is_allowed(edit: Callable) -> None:
    def change(truth: dict) -> None:
        for key in ("box", "easy", "hard", "junk"):
            truth["queries"][0].pop(key)

    dataset = folder.load(edit(change))
    assert dataset.queries[0].box is None and dataset.grades["query0"] == {}


def test_a_box_outside_the_image_is_an_error_that_names_both(edit: Callable, run: Callable) -> None:
    with pytest.raises(UserError, match=r"query0.png: the query box .* lies outside the image of 160x120"):
        run(edit(lambda t: t["queries"][0].update(box=[500, 500, 600, 600])), "identity")


def test_a_query_without_positives_leaves_the_mean_alone(edit: Callable, run: Callable, buildings: Path) -> None:
    from bench.report.tables import compare

    table = compare([run(edit(lambda t: t["queries"][0].update(easy=[], hard=[])), "identity,constant").run])
    one = compare([run(buildings, "identity").run])
    assert not table.rows.isna().loc["identity", ["mAP Easy", "mAP Medium", "mAP Hard"]].any()
    assert 0 <= table.rows.loc["identity", "mAP Medium"] <= 100 and len(one.rows) == 1


def test_the_data_set_refuses_what_no_layout_may_give() -> None:
    gallery = {"a": Path("a.png")}
    with pytest.raises(ValueError, match="protocol"):
        Dataset("d", "revisitd", "v", (Query("q", Path("q.png")),), gallery, {})
    with pytest.raises(UserError, match="which is not in the gallery"):
        Dataset("d", "revisited", "v", (Query("q", Path("q.png")),), gallery, {"q": {"b": "easy"}})
    with pytest.raises(UserError, match="is empty"):
        Query("q", Path("q.png"), (3, 3, 3, 8))
    assert grade("q", easy=["a"], junk=("b",)) == {"a": "easy", "b": "junk"}
