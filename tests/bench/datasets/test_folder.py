"""A user's own folder: both layouts are read, and whatever is wrong with it is said with its file and its id."""

from __future__ import annotations

import json
import os
import shutil
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.datasets import Dataset, Instances, Query, folder, grade
from bench.errors import UserError
from bench.results import load_dataset, save_dataset

EXTRACTED = ("--max-side", "160", "--keep-descriptors", "150", "--threads", "1")
SMALL = ("run", "--method", "identity,mnn", *EXTRACTED, "--dataset")


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


@pytest.mark.parametrize("text", ["", "{", "not json", "\ufeff\ufeff{}", '{"gallery": [], }'])
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
    "key in capitals": (
        lambda t: t["queries"][0].update(Easy=[], HARD=[]),
        r"unknown keys 'Easy', 'HARD' in query 'query0'\n.*did you mean 'easy' by 'Easy' and 'hard' by 'HARD'\?",
    ),
    "key of another data set": (
        lambda t: t["queries"][1].update(bbx=[1, 2, 30, 40]),
        r"unknown key 'bbx' in query 'query1'(.|\n)*did you mean 'box' by 'bbx'\?",
    ),
    "key that nobody knows": (
        lambda t: t["queries"][1].update(zzz=1),
        r"unknown key 'zzz' in query 'query1'\n.*hint: known: query, box, easy, hard, junk",
    ),
    "key of another form": (
        lambda t: t.update(imlist=[], qimlist=[]),
        r"unknown keys 'imlist', 'qimlist'\n.*did you mean 'gallery' by 'imlist' and 'queries' by 'qimlist'\?",
    ),
    "query under another key": (
        lambda t: t["queries"][0].update(image=t["queries"][0].pop("query")),
        r"unknown key 'image' in an entry of 'queries'\n.*did you mean 'query' by 'image'\?",
    ),
    "name with its suffix": (lambda t: t["gallery"].append("other1.png"), r"holds no image(.|\n)*suffix: 'other1'"),
    "no gallery": (
        lambda t: (t["gallery"].clear(), [q.update(easy=[], hard=[], junk=[]) for q in t["queries"]]),
        "2 queries and 0 gallery images",
    ),
    "box of three": (lambda t: t["queries"][0].update(box=[1, 2, 3]), r"box of query 'query0' is \[1, 2, 3\]"),
    "box of words": (lambda t: t["queries"][0].update(box=["a", 2, 3, 4]), "expected .x1, y1, x2, y2. in pixels"),
    "box that is a number": (lambda t: t["queries"][0].update(box=5), "expected .x1, y1, x2, y2. in pixels"),
    "empty box": (lambda t: t["queries"][0].update(box=[5, 5, 5, 9]), "is empty"),
    "box backwards": (lambda t: t["queries"][0].update(box=[50, 5, 10, 90]), "is empty"),
    "box of truths": (lambda t: t["queries"][0].update(box=[False, False, True, True]), "in pixels"),
    "box of a number that no float holds": (lambda t: t["queries"][0].update(box=[1, 5, 10**400, 90]), "in pixels"),
    "box without a number": (lambda t: t["queries"][0].update(box=[float("nan"), 5, 10, 90]), "box"),
    "box without an end": (lambda t: t["queries"][0].update(box=[1, 5, float("inf"), 90]), "box"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_ground_truth_is_refused_and_says_what(edit: Callable, what: str) -> None:
    change, said = WRONG[what]
    with pytest.raises(UserError, match=said):
        folder.load(edit(change))


def test_missing_folders_are_named(guarded: Path) -> None:
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
    path = edit(lambda t: t["queries"][0].update(box=[500, 500, 600, 600]))
    with pytest.raises(UserError, match=r"query0.png: the query box .* lies outside the image of 160x120"):
        run(path, "identity")
    Image.new("RGB", (800, 800)).save(path / "queries" / "query0.png")
    assert folder.load(path).notes == ()


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


# --- what real folders hold -----------------------------------------------------------------------------------------


@given(key=st.text(min_size=1, max_size=12), where=st.sampled_from(["top", "query"]))
def test_a_key_that_is_not_known_is_refused_by_its_name(key: str, where: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("set")
    for name in ("gallery/a.png", "queries/q.png"):
        dot(path / name)
    query = {"query": "q", "easy": ["a"]}
    truth = {"gallery": ["a"], "queries": [query]}
    place = truth if where == "top" else query
    renamed = key in place or (where == "query" and key in folder.QUERY_KEYS)
    place.setdefault(key, [])
    (path / "gnd.json").write_text(json.dumps(truth))
    if renamed:
        return
    with pytest.raises(UserError) as refusal:
        folder.load(path)
    assert f"unknown key {key!r}" in refusal.value.message and "known: " in str(refusal.value.hint)


@pytest.mark.parametrize("key", ["easy", "query", "gallery"])
def test_a_key_given_twice_is_refused(guarded: Path, key: str) -> None:
    text = (guarded / "gnd.json").read_text()
    (guarded / "gnd.json").write_text(text.replace(f'"{key}":', f'"{key}": [], "{key}":', 1))
    with pytest.raises(UserError, match=f"an object has the key '{key}' twice"):
        folder.load(guarded)


def test_the_command_line_names_an_unknown_key_and_the_known_ones(cli: Callable[..., Result], edit: Callable) -> None:
    result = cli(*SMALL, f"folder:{edit(lambda t: t['queries'][0].update(ok=t['queries'][0].pop('hard')))}")
    assert result.exit_code == 1 and "gnd.json: unknown key 'ok' in query 'query0'" in result.output
    assert "did you mean 'hard' by 'ok'? known: query, box, easy, hard, junk" in result.output


def test_gallery_and_queries_without_ground_truth_are_no_instances(cli: Callable[..., Result], guarded: Path) -> None:
    outer = guarded.parent / "outer"
    shutil.copytree(guarded, outer / "inner")
    result = cli(*SMALL, f"folder:{outer}")
    assert result.exit_code == 1 and f"gnd.json is in {outer / 'inner'}" in result.output
    (guarded / "gnd.json").unlink()
    result = cli(*SMALL, f"folder:{guarded}")
    assert result.exit_code == 1 and "gallery/ and queries/ without gnd.json" in result.output
    assert f'write {guarded / "gnd.json"}, {{"gallery": ["a", "b"], "queries": [{{"query": "q1"' in result.output


@pytest.mark.parametrize("names", [("Gallery", "Query"), ("database", "queries"), ("x/index", "x/query")])
def test_other_names_of_queries_and_gallery_are_no_instances_either(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        for number in range(2):
            dot(tmp_path / name / f"{number}.png")
    with pytest.raises(UserError, match=r"without gnd\.json"):
        folder.load(tmp_path)


def test_an_instance_may_be_called_gallery(tmp_path: Path) -> None:
    for name in ("gallery/1.png", "gallery/2.png", "museum/1.png", "museum/2.png"):
        dot(tmp_path / name)
    assert len(folder.load(tmp_path).queries) == 4


def test_boxes_in_fractions_are_refused(cli: Callable[..., Result], edit: Callable) -> None:
    path = edit(lambda t: [query.update(box=[0.1, 0.1, 0.9, 0.9]) for query in t["queries"]])
    result = cli(*SMALL, f"folder:{path}")
    assert result.exit_code == 1 and "every box of a query lies within 0..1, as fractions" in result.output
    path = edit(lambda t: t["queries"][0].update(box=[10, 5, 150, 115]))
    result = cli(*SMALL, f"folder:{path}")
    assert result.exit_code == 1 and "query1.png: the query box (0.1, 0.1, 0.9, 0.9) has 1x1 pixels" in result.output
    assert "not fractions and not x, y, width, height" in result.output


def test_a_box_beyond_the_image_is_cut_with_a_note_that_names_the_query(edit: Callable, run: Callable) -> None:
    dataset = folder.load(edit(lambda t: t["queries"][1].update(box=[-8, 5, 150.4, 500])))
    assert dataset.notes == (
        "Query boxes that reach beyond their image were cut to it: query1 [-8.0, 5.0, 150.4, 500.0] in 160x120 pixels.",
    )
    assert dataset.queries[1].box == (-8.0, 5.0, 150.4, 500.0)  # as it was given; reading cuts it


def test_a_box_is_in_pixels_of_the_upright_image(edit: Callable) -> None:
    path = edit(lambda t: t["queries"][1].update(box=[0, 0, 120, 160]))
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path / "queries" / "query1.png") as image:
        image.copy().save(path / "queries" / "query1.png", exif=exif)
    assert folder.load(path).notes == ()


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.images.heif_here", lambda: False)


@pytest.mark.usefixtures("no_heif")
def test_files_that_are_not_read_are_counted_by_suffix(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.gif", "b/1.jp2", "b/2.TGA", ".thumbnails/1.png", "@eaDir/x/1.png", "__MACOSX/1.png"):
        dot(tmp_path / name)
    for name in ("a/IMG_1.HEIC", "a/IMG_2.heic", "b/raw.cr2", "b/3", "a/._1.png", "a/1.png~", "b/notes.txt", "README"):
        (tmp_path / name).write_bytes(b"x")
    dot(tmp_path / "b~" / "1.png")
    dataset = folder.load(tmp_path)
    assert list(dataset.gallery) == ["a/1", "a/2", "b/1", "b/2"]
    assert dataset.notes == (
        "Files that were not read: 1 .cr2, 2 .heic, 1 without a suffix.",
        "HEIC files are read where the package pillow-heif is installed.",
        "Folders left out, as their names are those of copies: b~.",
    )


@pytest.mark.usefixtures("no_heif")
def test_files_beside_those_of_the_ground_truth_are_counted(guarded: Path, edit: Callable) -> None:
    (guarded / "gallery" / "IMG_1.HEIC").write_bytes(b"x")
    dot(guarded / "gallery" / "more.png")
    notes = folder.load(guarded).notes
    assert notes == (
        "Files that were not read below gallery/: 1 .heic.",
        "HEIC files are read where the package pillow-heif is installed.",
        "Images below gallery/ that gnd.json does not name, left out: 1 (more).",
    )
    with pytest.raises(UserError, match=r"IMG_1\.HEIC is there; HEIC files are read where .* pillow-heif"):
        folder.load(edit(lambda t: t["gallery"].append("IMG_1")))


@pytest.mark.usefixtures("no_heif")
def test_a_folder_of_files_that_are_not_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no images found. Files that were not read: 1 .heic. HEIC files"):
        folder.load(tmp_path)


def test_linked_folders_are_instances(cli: Callable[..., Result], instances: Path, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "linked").mkdir(exist_ok=True)
        (tmp_path / "linked" / f"thing{number}").symlink_to(instances / f"object{number}")
    (tmp_path / "linked" / "thing0b").symlink_to(instances / "object0")
    (tmp_path / "linked" / "lost").symlink_to(tmp_path / "nowhere")
    dataset = folder.load(tmp_path / "linked")
    assert list(dataset.gallery) == [f"thing{i}/view{v}" for i in range(2) for v in range(3)]
    assert dataset.notes == (
        "Links that lead to nothing, left out: lost.",
        "Linked folders left out, as they are read under another name: thing0b.",
    )
    assert cli(*SMALL, f"folder:{tmp_path / 'linked'}").exit_code == 0


def test_a_name_that_is_not_utf8_is_shown_escaped(cli: Callable[..., Result], tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png"):
        dot(tmp_path / "set" / name)
    odd = os.fsencode(tmp_path / "set" / "a") + b"/caf\xe9.png"
    shutil.copy(tmp_path / "set" / "a" / "1.png", odd)
    result = cli(*SMALL, f"folder:{tmp_path / 'set'}")
    assert result.exit_code == 1 and r"a/caf\xe9.png: the name is not UTF-8" in result.output
    os.rename(odd, odd.replace(b".png", b".xyz"))
    assert "1 .xyz" in folder.load(tmp_path / "set").notes[0]
    os.rename(odd.replace(b".png", b".xyz"), odd.replace(b".png", b".x\xe9"))
    assert r"1 .x\xe9" in folder.load(tmp_path / "set").notes[0]
    os.rename(odd.replace(b".png", b".x\xe9"), tmp_path / "x")
    moved = os.fsencode(tmp_path) + b"/\xe9"
    os.rename(tmp_path / "set", moved)
    for kind in ("folder", "views"):
        result = cli(*SMALL, f"{kind}:{os.fsdecode(moved)}")
        assert result.exit_code == 1 and r"/\xe9: the path is not UTF-8" in result.output
        assert r"/\xe9/none: no such folder" in cli(*SMALL, f"{kind}:{os.fsdecode(moved)}/none").output


def test_a_byte_order_mark_changes_nothing(guarded: Path) -> None:
    before = folder.load(guarded)
    (guarded / "gnd.json").write_bytes(b"\xef\xbb\xbf" + (guarded / "gnd.json").read_bytes())
    assert folder.load(guarded) == before


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_truth", ["NFC", "NFD"])
def test_names_match_in_either_unicode_form(tmp_path: Path, on_disk: str, in_truth: str) -> None:
    file, named = (unicodedata.normalize(form, "café") for form in (on_disk, in_truth))
    for name in (f"gallery/{file}.png", "gallery/b.png", f"queries/{file}.png"):
        dot(tmp_path / name)
    queries = [{"query": named, "easy": [named], "hard": ["b"]}]
    (tmp_path / "gnd.json").write_text(json.dumps({"gallery": [named, "b"], "queries": queries}))
    dataset = folder.load(tmp_path)
    assert list(dataset.gallery) == [file, "b"] and dataset.grades == {file: {file: "easy", "b": "hard"}}
    truth = {"gallery": [named, file, "b"], "queries": queries}
    (tmp_path / "gnd.json").write_text(json.dumps(truth))
    with pytest.raises(UserError, match="appears more than once"):
        folder.load(tmp_path)


def test_two_files_whose_names_are_one_text_are_told_apart(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    for name in (f"gallery/{forms[0]}.png", f"gallery/{forms[1]}.png", "queries/q.png"):
        dot(tmp_path / name)
    truth = {"gallery": forms, "queries": [{"query": "q", "easy": forms[:1], "junk": forms[1:]}]}
    (tmp_path / "gnd.json").write_text(json.dumps(truth))
    assert folder.load(tmp_path).grades == {"q": {forms[0]: "easy", forms[1]: "junk"}}


# --- instances as instances -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_grades_of_instances_are_every_other_member(sizes: list[int]) -> None:
    groups = [[f"{number}/{image}" for image in range(size)] for number, size in enumerate(sizes)]
    grades = Instances(groups)
    assert grades == {i: {other: "easy" for other in group if other != i} for group in groups for i in group}
    assert len(grades) == sum(sizes) and "none" not in grades and grades.get("none", ()) == ()


def test_an_image_in_two_instances_is_refused() -> None:
    with pytest.raises(ValueError, match="in two instances"):
        Instances([["a", "b"], ["b"]])
    with pytest.raises(UserError, match="'b', which is not in the gallery"):
        Dataset("d", "instance", "v", (Query("a", Path("a")),), {"a": Path("a")}, Instances([["a", "b"]]))


def test_two_thousand_images_in_one_folder_are_saved_and_read_back_small_and_soon(tmp_path: Path) -> None:
    paths = {f"one/{number:04}": tmp_path / f"one/{number:04}.jpg" for number in range(2000)}
    began = time.perf_counter()
    queries = tuple(Query(image, path) for image, path in paths.items())
    dataset = Dataset("d", "instance", "v", queries, paths, Instances([list(paths)]))
    save_dataset(tmp_path / "dataset.json", dataset, paths)
    back = load_dataset(tmp_path / "dataset.json")
    assert time.perf_counter() - began < 5 and (tmp_path / "dataset.json").stat().st_size < 1_000_000
    assert back.queries == dataset.queries and back.gallery == paths and back.grades["one/0007"].keys() < paths.keys()
    assert len(back.grades["one/0007"]) == 1999 and "one/0007" not in back.grades["one/0007"]


def test_a_data_set_saved_with_a_grade_for_each_pair_still_loads(instances: Path, tmp_path: Path) -> None:
    dataset = folder.load(instances)
    save_dataset(tmp_path / "new.json", dataset, dataset.gallery)
    content = json.loads((tmp_path / "new.json").read_text())
    del content["instances"]
    content["grades"] = {query: dict(grades) for query, grades in dataset.grades.items()}
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert load_dataset(tmp_path / "old.json") == load_dataset(tmp_path / "new.json") == dataset
