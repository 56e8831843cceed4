"""The official layout: the real pickles load, missing photographs are named, and no pickle runs anything."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.datasets import revisited
from bench.errors import UserError

COUNTS = {"roxford": (70, 4993), "rparis": (70, 6322)}


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    """A data root with a pickle of the official form, three gallery images and one query; the images are empty."""
    base = tmp_path / "root" / "roxford5k"
    (base / "jpg").mkdir(parents=True)
    write(
        base,
        {
            "imlist": ["a", "b", "c"],
            "qimlist": ["q"],
            "gnd": [{"bbx": [1, 2.5, 30, 40], "easy": [0], "hard": [2], "junk": [1]}],
        },
    )
    for name in "abcq":
        (base / "jpg" / f"{name}.jpg").write_bytes(b"")
    return tmp_path / "root"


def write(base: Path, content: Any, protocol: int = 3) -> None:
    (base / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("name", list(COUNTS))
def test_the_official_ground_truth_loads(official: Path, tmp_path: Path, name: str) -> None:
    base = tmp_path / revisited.FOLDERS[name]
    (base / "jpg").mkdir(parents=True)
    shutil.copy(official / base.name / f"gnd_{base.name}.pkl", base)
    content = revisited.read_ground_truth(base / f"gnd_{base.name}.pkl")
    for image in {*content["imlist"], *content["qimlist"]}:
        (base / "jpg" / f"{image}.jpg").touch()
    dataset = revisited.load(name, tmp_path)
    queries, gallery = COUNTS[name]
    assert (len(dataset.queries), len(dataset.gallery)) == (queries, gallery)
    assert dataset.protocol == "revisited" and all(q.box is not None for q in dataset.queries)
    for query, truth in zip(dataset.queries, content["gnd"], strict=True):
        grades = list(dataset.grades[query.id].values())
        assert [grades.count(key) for key in ("easy", "hard", "junk")] == [
            len(truth[key]) for key in ("easy", "hard", "junk")
        ]
    victim = dataset.queries[3].image
    victim.unlink()
    with pytest.raises(UserError, match=f"1 of .* photographs are missing .*{victim.name}"):
        revisited.load(name, tmp_path)


def test_a_small_set_of_the_official_form_loads(small_set: Path) -> None:
    dataset = revisited.load("roxford", small_set)
    assert dataset.queries[0].box == (1.0, 2.5, 30.0, 40.0)
    assert dataset.grades == {"q": {"a": "easy", "c": "hard", "b": "junk"}}


@pytest.mark.parametrize("name", list(COUNTS))
def test_without_the_files_the_error_says_which_and_where_to_get_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as refusal:
        revisited.load(name, tmp_path)
    text = str(refusal.value)
    assert f"gnd_{revisited.FOLDERS[name]}.pkl" in text and "jpg" in text
    assert "http://cmp.felk.cvut.cz" in text and "robots.ox.ac.uk" in text and "--data-root" in text


def test_every_missing_photograph_is_named(small_set: Path) -> None:
    for name in "bq":
        (small_set / "roxford5k" / "jpg" / f"{name}.jpg").unlink()
    with pytest.raises(UserError) as refusal:
        revisited.load("roxford", small_set)
    assert "2 of 4 photographs are missing" in str(refusal.value)
    assert "b.jpg, q.jpg" in str(refusal.value) and "--data-root" in str(refusal.value)


def test_many_missing_photographs_are_all_named_in_a_file(small_set: Path) -> None:
    base = small_set / "roxford5k"
    images = [f"image{i:03d}" for i in range(50)]
    write(
        base, {"imlist": images, "qimlist": ["q"], "gnd": [{"bbx": [0, 0, 9, 9], "easy": [0], "hard": [], "junk": []}]}
    )
    with pytest.raises(UserError, match=r"50 of 51 photographs are missing .* \(all of them are named in "):
        revisited.load("roxford", small_set)
    assert (base / "missing.txt").read_text().splitlines() == [str(base / "jpg" / f"{image}.jpg") for image in images]


def test_without_its_images_a_data_set_needs_the_ground_truth_alone(small_set: Path) -> None:
    """For features that others extracted; where photographs are to be read, those missing are named as ever."""
    whole = revisited.load("roxford", small_set)
    shutil.rmtree(small_set / "roxford5k" / "jpg")
    assert revisited.load("roxford", small_set, images=False) == whole
    with pytest.raises(UserError, match="4 of 4 photographs are missing"):
        revisited.load("roxford", small_set)
    with pytest.raises(UserError, match=r"gnd_rparis6k\.pkl"):
        revisited.load("rparis", small_set, images=False)


class Runs:
    """Unpickling this creates a file."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    small_set: Path, tmp_path: Path, protocol: int
) -> None:
    witness = tmp_path / "it ran"
    write(small_set / "roxford5k", {"imlist": [], "qimlist": [], "gnd": [Runs(witness)]}, protocol)
    with pytest.raises(UserError, match=r"gnd_roxford5k.pkl: the file wants to run \w+.mkdir: refused"):
        revisited.load("roxford", small_set)
    assert not witness.exists()


@pytest.mark.parametrize(
    "code", [b"cos\nsystem\n(S'true'\ntR.", b"(S'true'\nios\nsystem\n.", b"Psomewhere\n.", b"\x80\x02\x82\x01."]
)
def test_no_opcode_reaches_code_or_objects_outside(small_set: Path, code: bytes) -> None:
    (small_set / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(code)
    with pytest.raises(UserError, match=r"gnd_roxford5k.pkl"):
        revisited.load("roxford", small_set)


@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, 0.99])
def test_a_truncated_pickle_is_refused(small_set: Path, keep: float) -> None:
    path = small_set / "roxford5k" / "gnd_roxford5k.pkl"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 or keep == 0 else keep * len(whole))])
    with pytest.raises(UserError, match=r"gnd_roxford5k.pkl: not a readable pickle"):
        revisited.load("roxford", small_set)


def test_a_huge_file_is_not_even_opened(small_set: Path) -> None:
    os.truncate(small_set / "roxford5k" / "gnd_roxford5k.pkl", revisited.LARGEST_PICKLE + 1)
    with pytest.raises(UserError, match="expected at most"):
        revisited.load("roxford", small_set)


GOOD = {"bbx": [0, 0, 9, 9], "easy": [0], "hard": [], "junk": []}
WRONG: dict[str, Any] = {
    "a list": [1, 2],
    "no queries": {"imlist": ["a"], "gnd": []},
    "fewer truths than queries": {"imlist": ["a"], "qimlist": ["q", "a"], "gnd": [GOOD]},
    "an index beyond the gallery": {"imlist": ["a"], "qimlist": ["q"], "gnd": [{**GOOD, "easy": [5]}]},
    "a negative index": {"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [{**GOOD, "easy": [-1]}]},
    "an index that is text": {"imlist": ["a"], "qimlist": ["q"], "gnd": [{**GOOD, "easy": ["a"]}]},
    "no box": {"imlist": ["a"], "qimlist": ["q"], "gnd": [{"easy": [0], "hard": [], "junk": []}]},
    "a box of three": {"imlist": ["a"], "qimlist": ["q"], "gnd": [{**GOOD, "bbx": [1, 2, 3]}]},
    "an empty box": {"imlist": ["a"], "qimlist": ["q"], "gnd": [{**GOOD, "bbx": [5, 5, 5, 5]}]},
    "an image twice": {"imlist": ["a", "a"], "qimlist": ["q"], "gnd": [GOOD]},
    "a gallery of numbers": {"imlist": 3, "qimlist": ["q"], "gnd": [GOOD]},
    "easy and junk": {"imlist": ["a"], "qimlist": ["q"], "gnd": [{**GOOD, "junk": [0]}]},
}


@pytest.mark.parametrize("what", list(WRONG))
def test_ground_truth_of_another_form_is_refused(small_set: Path, what: str) -> None:
    write(small_set / "roxford5k", WRONG[what])
    with pytest.raises(UserError):
        revisited.load("roxford", small_set)


# --- among a million distractors ----------------------------------------------------------------------------------


@pytest.fixture
def distracted(small_set: Path) -> Path:
    """The small set with three distractors, one of them called as an image of the gallery is."""
    more = small_set / "revisitop1m"
    names = ["0/first.jpg", "0/second one.jpg", "a.jpg"]
    for name in names:
        (more / "jpg" / name).parent.mkdir(parents=True, exist_ok=True)
        (more / "jpg" / name).write_bytes(b"x")
    (more / "revisitop1m.txt").write_text("\n".join(["jpg/" + names[0], *names[1:]]))
    return small_set


def test_distractors_follow_the_gallery_and_keep_the_grades(distracted: Path) -> None:
    plain, more = revisited.load("roxford", distracted), revisited.load("roxford+1m", distracted)
    assert list(more.gallery) == [*plain.gallery, "1m/0/first", "1m/0/second one", "1m/a"]
    assert more.grades == plain.grades and more.queries == plain.queries and more.protocol == plain.protocol
    assert more.gallery["1m/0/second one"] == distracted / "revisitop1m" / "jpg" / "0" / "second one.jpg"
    assert all(more.gallery[image] == path for image, path in plain.gallery.items())
    assert "revisitop1m" in more.image_set and more.name == "roxford+1m"


def test_without_the_distractors_the_error_says_how_to_get_them(small_set: Path, distracted: Path) -> None:
    (distracted / "revisitop1m" / "jpg" / "0" / "first.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 photographs are missing.*first.jpg"):
        revisited.load("roxford+1m", distracted)
    (distracted / "revisitop1m" / "revisitop1m.txt").unlink()
    with pytest.raises(UserError, match=r"missing .*revisitop1m.txt") as refusal:
        revisited.load("roxford+1m", distracted)
    assert "datasets download revisitop1m" in str(refusal.value.hint)


@pytest.mark.parametrize("line", ["../x.jpg", "/etc/x.jpg", "x.png", "", "a//b.jpg", "./../b.jpg"])
def test_a_distractor_that_is_no_path_of_a_photograph_is_named_by_its_line(distracted: Path, line: str) -> None:
    (distracted / "revisitop1m" / "revisitop1m.txt").write_text(f"a.jpg\n{line}\n")
    with pytest.raises(UserError, match=r"revisitop1m.txt, line 2"):
        revisited.load("roxford+1m", distracted)


def test_a_byte_order_mark_does_not_change_the_distractors(distracted: Path) -> None:
    listed = distracted / "revisitop1m" / "revisitop1m.txt"
    before = list(revisited.read_distractors(listed))
    listed.write_bytes(b"\xef\xbb\xbf" + listed.read_bytes())
    assert list(revisited.read_distractors(listed)) == before != []


def test_boxes_are_compared_with_the_photographs_where_these_are_read(small_set: Path) -> None:
    query = small_set / "roxford5k" / "jpg" / "q.jpg"
    Image.new("RGB", (60, 50)).save(query)
    assert revisited.load("roxford", small_set).notes == ()
    Image.new("RGB", (25, 50)).save(query)
    (note,) = revisited.load("roxford", small_set).notes
    assert "q [1.0, 2.5, 30.0, 40.0] in 25x50 pixels" in note
    Image.new("RGB", (3, 50)).save(query)
    with pytest.raises(UserError, match=r"q.jpg: the query box .* has 2x38 pixels in the image of 3x50"):
        revisited.load("roxford", small_set)
    assert revisited.load("roxford", small_set, images=False).notes == ()
