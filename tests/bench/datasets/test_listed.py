"""Instances that a file names are the same however it is written, and what is wrong with it is said."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.conformance_dataset import check_dataset
from bench.datasets import Dataset, catalogue, folder
from bench.datasets.dataset import Place
from bench.errors import UserError
from bench.places import Places

IMAGES = ("shots/2019/1.jpg", "shots/2020/1.JPG", "shots/x.png", "other.png", "alone.webp", "stranger.png")
INSTANCE = {"shots/2019/1": "mug", "shots/2020/1": "mug", "shots/x": "lamp", "other": "lamp", "alone": "cup"}
ROWS = [(image, INSTANCE[image.rpartition(".")[0]]) for image in IMAGES[:5]]


def dot(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for image in IMAGES:
        dot(tmp_path / "set" / image)
    return tmp_path / "set"


def as_csv(*rows: tuple[str, ...], header: str = "image,instance") -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def load(name: str) -> Dataset:
    return catalogue.load(name, Places(*[Path("nowhere")] * 3))


def test_images_of_one_instance_are_right_and_a_lone_one_is_a_distractor(root: Path) -> None:
    written(root / "instances.csv", as_csv(*ROWS))
    dataset = folder.load(root)
    assert list(dataset.gallery) == list(INSTANCE) and dataset.protocol == "instance"
    assert [query.id for query in dataset.queries] == list(INSTANCE)[:4]
    assert dataset.grades["shots/2019/1"] == {"shots/2020/1": "easy"} and dataset.grades["alone"] == {}
    assert dataset.notes == ("Images that instances.csv does not name, left out: 1 (stranger).",)


FORMS: dict[str, tuple[str, str]] = {
    "tabs": ("instances.tsv", as_csv(*ROWS).replace(",", "\t")),
    "semicolons, BOM and CRLF": ("instances.csv", "\ufeff" + as_csv(*ROWS).replace(",", ";").replace("\n", "\r\n")),
    "quotes": ("instances.csv", as_csv(*((f'"{image}"', f'"{name}"') for image, name in ROWS))),
    "without suffixes": ("instances.csv", as_csv(*((image.rpartition(".")[0], name) for image, name in ROWS))),
    "from here": ("instances.csv", as_csv(*((f"./{image}", name) for image, name in ROWS))),
    "JSON lines": ("instances.jsonl", "\n".join(json.dumps({"image": i, "instance": n}) for i, n in ROWS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_instances_are_the_same_data_set(root: Path, form: str) -> None:
    plain = folder.load(written(root / "listed.csv", as_csv(*ROWS)))
    name, text = FORMS[form]
    other = folder.load(written(root / name, text).parent)
    assert dict(other.gallery) == dict(plain.gallery) and other.queries == plain.queries
    assert other.grades == plain.grades and other.image_set == plain.image_set


def test_a_file_of_any_name_is_a_data_set_and_the_rest_of_its_folder_is_none_of_its_business(root: Path) -> None:
    dot(root / "stranger.jpg")  # of the id of another stranger
    written(root / "mine.csv", as_csv(*ROWS))
    dataset = load(f"folder:{root / 'mine.csv'}")
    assert dataset.name == f"folder:{root / 'mine.csv'}" and len(dataset.gallery) == 5 and dataset.notes == ()
    check_dataset("folder", Place(root, root, root / "mine.csv"))


def test_data_sets_of_files_conform(root: Path) -> None:
    written(root / "instances.csv", as_csv(*ROWS))
    check_dataset("folder", Place(root, root, root))
    (root / "instances.csv").unlink()
    written(root / "groups.json", json.dumps([["shots/x.png", "other.png"]]))
    check_dataset("folder", Place(root, root, root))


def test_queries_of_a_split_are_not_in_the_gallery(root: Path) -> None:
    splits = ("query", "gallery", "Gallery", "queries", "database")
    rows = [(*row, split) for row, split in zip(ROWS, splits, strict=True)]
    written(root / "instances.csv", as_csv(*rows, header="image,instance,split"))
    dataset = folder.load(root)
    assert [query.id for query in dataset.queries] == ["shots/2019/1", "other"]
    assert list(dataset.gallery) == ["shots/2020/1", "shots/x", "alone"]
    assert dataset.grades == {"shots/2019/1": {"shots/2020/1": "easy"}, "other": {"shots/x": "easy"}}
    check_dataset("folder", Place(root, root, root))


def test_of_other_splits_one_is_named(root: Path) -> None:
    rows = [(*row, split) for row, split in zip(ROWS, ("train", "train", "test", "test", "test"), strict=True)]
    written(root / "instances.csv", as_csv(*rows, header="image,instance,split"))
    with pytest.raises(UserError, match="images of the splits train, test") as refusal:
        load(f"folder:{root}")
    assert "folder:PATH:split=test" in str(refusal.value.hint)
    dataset = load(f"folder:{root}:split=test")
    assert dataset.name == f"folder:{root}:split=test" and list(dataset.gallery) == ["shots/x", "other", "alone"]
    assert dataset.notes == ("Images of instances.csv of other splits, left out: 2.",)
    with pytest.raises(UserError, match="no image of the split 'val'") as refusal:
        load(f"folder:{root}:split=val")
    assert refusal.value.hint == "there are train, test"


def test_a_split_is_asked_for_where_there_is_none(root: Path, instances: Path, buildings: Path) -> None:
    written(root / "instances.csv", as_csv(*ROWS))
    for path in (root, instances, buildings):
        with pytest.raises(UserError, match=r"no column '?split'?, so there is no split 'test'"):
            load(f"folder:{path}:split=test")


@pytest.mark.parametrize(
    "content", [{"mug": list(IMAGES[:2]), "lamp": ["shots/x", "other"]}, [IMAGES[:2], IMAGES[2:4]]]
)
def test_groups_name_images_of_one_thing_and_the_others_are_distractors(root: Path, content: object) -> None:
    written(root / "groups.json", "\ufeff" + json.dumps(content))
    dataset = folder.load(root)
    assert set(dataset.gallery) == {image.rpartition(".")[0] for image in IMAGES}
    assert [query.id for query in dataset.queries] == list(INSTANCE)[:4]
    assert dataset.grades["other"] == {"shots/x": "easy"} and dataset.grades["stranger"] == {}
    assert dataset.notes == ("Images that groups.json does not name, to be told from the others: 2.",)


BAD: dict[str, tuple[str, str, str]] = {
    "unknown images": (
        as_csv(*ROWS, ("b.jpg", "x"), ("../c.jpg", "x")),
        r"names 2 images that are not below .*: 'b\.jpg', '\.\./c\.jpg'",
        "paths are from",
    ),
    "backslashes": (as_csv(("shots\\x.png", "lamp"), ROWS[3]), r"names 1 images", "not by \\"),
    "another suffix": (as_csv(*ROWS[:3], ("other.jpg", "lamp")), r"names 1 images .*'other\.jpg'", "paths are from"),
    "twice": (as_csv(*ROWS, ROWS[0]), r"line 7: 'shots/2019/1\.jpg' is listed before, in .*line 2", "once"),
    "twice, in other words": (as_csv(*ROWS, ("./other", "mug")), r"line 7: '\./other' is listed before, in", "once"),
    "one image an instance": (as_csv(*((i, str(n)) for n, (i, _) in enumerate(ROWS))), "no instance has two", "share"),
    "no instance": (as_csv(*ROWS, header="image,class"), "line 1: no column 'instance'", "by 'class'"),
    "queries alone": (
        as_csv(*((*row, "query") for row in ROWS), header="image,instance,split"),
        "every image",
        "gallery",
    ),
    "an empty split": (as_csv((*ROWS[0], "")[:3], header="image,instance,split"), "line 2: split is empty", "remove"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("named", [True, False])
def test_a_list_that_is_wrong_is_named(root: Path, what: str, named: bool) -> None:
    text, says, hint = BAD[what]
    file = written(root / ("mine.csv" if named else "instances.csv"), text)
    with pytest.raises(UserError, match=says) as refusal:
        folder.load(file if named else root)
    assert str(file) in refusal.value.message and hint in str(refusal.value.hint)


BAD_GROUPS: dict[str, tuple[str, str]] = {
    "no JSON": ("a.jpg b.jpg", "not readable as JSON"),
    "a number": ("3", "expected groups of images"),
    "images without groups": ('["other.png", "shots/x.png"]', "the group 1 is 'other.png', expected a list"),
    "numbers": ('{"a": [1, 2]}', r"the group 'a' is \[1, 2\], expected a list"),
    "a group twice": ('{"a": ["other.png"], "a": ["shots/x.png"]}', "a group is there twice"),
    "an image in two": (
        '{"a": ["other.png", "shots/x"], "b": ["other"]}',
        "'other' is named twice, in the group 'group a' and in 'group b'",
    ),
    "an image twice": ('[["other.png", "other"]]', "'other' is named twice, in the group 'group 1'$"),
    "unknown": ('[["other.png", "nobody.png"]]', r"names 1 images .* 'nobody\.png'"),
    "the folder itself": ('[["other.png", "."]]', r"names 1 images .* '\.'"),
    "lone images": ('[["other.png"], ["shots/x.png"]]', "no instance has two images"),
}


@pytest.mark.parametrize("what", BAD_GROUPS)
def test_groups_that_are_wrong_are_named(root: Path, what: str) -> None:
    text, says = BAD_GROUPS[what]
    written(root / "groups.json", text)
    with pytest.raises(UserError) as refusal:
        folder.load(root)
    assert str(root / "groups.json") in refusal.value.message
    refusal.match(says.removesuffix("$"))


def test_two_files_that_say_what_is_right_are_refused_until_one_is_named(root: Path) -> None:
    written(root / "instances.csv", as_csv(*ROWS))
    written(root / "groups.json", json.dumps([["shots/x.png", "other.png"]]))
    with pytest.raises(UserError, match=r"instances\.csv and groups\.json say what is right") as refusal:
        folder.load(root)
    assert f"folder:{root / 'instances.csv'}" in str(refusal.value.hint)
    assert len(folder.load(root / "groups.json").queries) == 2


def test_a_ground_truth_file_is_named_as_its_folder_is(buildings: Path) -> None:
    whole, named = folder.load(buildings), folder.load(buildings / "gnd.json")
    assert named.name == f"folder:{buildings / 'gnd.json'}" and named.grades == whole.grades


def test_a_name_in_another_unicode_form_is_the_same_image(tmp_path: Path) -> None:
    for name in ("caf\u00e9.png", "b.png"):
        dot(tmp_path / unicodedata.normalize("NFD", name))
    written(tmp_path / "instances.csv", as_csv(("caf\u00e9.png", "x"), ("b.png", "x")))
    assert len(folder.load(tmp_path).queries) == 2


def test_two_images_that_differ_in_their_suffix_are_refused(root: Path) -> None:
    dot(root / "other.jpg")
    written(root / "mine.csv", as_csv(*ROWS, ("other.jpg", "lamp")))
    with pytest.raises(
        UserError, match=r"line 7: 'other\.jpg' is an image of the id 'other', as other\.png, in .*line 5"
    ):
        folder.load(root / "mine.csv")


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.permutations(range(6)))
def test_the_order_of_lines_changes_no_grade(
    tmp_path_factory: pytest.TempPathFactory, names: list[int], order: list[int]
) -> None:
    place = tmp_path_factory.mktemp("set")
    for image in IMAGES:
        dot(place / image)
    rows = [(image, str(name)) for image, name in zip(IMAGES, names, strict=True)]
    if len(set(names)) == 6:
        return
    one = folder.load(written(place / "a.csv", as_csv(*rows)))
    other = folder.load(written(place / "b.csv", as_csv(*(rows[i] for i in order))))
    assert {query.id for query in one.queries} == {query.id for query in other.queries}
    assert {image: dict(one.grades[image]) for image in one.gallery} == {
        image: dict(other.grades[image]) for image in other.gallery
    }


def test_a_run_on_a_list_prints_a_table(cli: Callable[..., Result], instances: Path, tmp_path: Path) -> None:
    files = sorted(path.relative_to(instances).as_posix() for path in instances.rglob("*.png"))
    place = tmp_path / "set"
    place.mkdir()
    (place / "images").symlink_to(instances)
    written(place / "mine.csv", as_csv(*((f"images/{file}", file[:7]) for file in files)))
    done = cli("run", "-m", "identity,oracle", "-d", f"folder:{place / 'mine.csv'}", "--max-side", "160", "-k", "8")
    assert done.exit_code == 0, done.output
    oracle = next(line for line in done.output.splitlines() if line.split()[:1] == ["oracle*"])
    assert oracle.split()[2] == "100.0"
