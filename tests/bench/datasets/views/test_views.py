"""A data set made from unlabelled photographs: whole, the same every time, and graded by what views share."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.datasets import views
from bench.datasets.catalogue import load as load_named
from bench.datasets.views import ViewsSpec
from bench.errors import UserError
from bench.places import Places

SMALL = ViewsSpec(landmarks=3, views=4, distractors=5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 photographs of noise in four colours."""
    place = tmp_path_factory.mktemp("photographs")
    for number in range(12):
        small = np.random.default_rng(number).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(small).resize((120, 90)).save(place / f"{number}.png")
    return place


def test_landmarks_have_views_and_others_are_distractors(photos: Path, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    dataset = views.load(photos, tmp_path, lambda done, total: said.append((done, total)), SMALL)
    assert len(dataset.queries) == 3 and len(dataset.gallery) == 3 * 4 + 5
    assert said == [(n, 20) for n in range(1, 21)]
    graded = [image for grades in dataset.grades.values() for image in grades]
    assert len(graded) == len(set(graded)) == 12 and not any("other" in image for image in graded)
    used = {image.split("-")[0] for image in dataset.gallery}
    assert len(used) == 3 + 5  # no photograph is both a landmark and a distractor
    kinds = [kind for grades in dataset.grades.values() for kind in grades.values()]
    assert {"easy", "hard"} <= set(kinds)


def test_stricter_grades_make_no_view_easier(photos: Path, tmp_path: Path) -> None:
    loose, strict = (
        views.load(photos, tmp_path, None, ViewsSpec(3, 4, 5, easy, hard)) for easy, hard in ((0.2, 0.1), (0.9, 0.6))
    )
    worth = {"easy": 2, "hard": 1, "junk": 0}
    for query, grades in strict.grades.items():
        assert all(worth[kind] <= worth[loose.grades[query][image]] for image, kind in grades.items())
    assert strict.grades != loose.grades


def test_the_same_photographs_give_the_same_views_anywhere(photos: Path, tmp_path: Path) -> None:
    one, other = (views.load(photos, tmp_path / name, None, SMALL) for name in ("a", "b"))
    assert one.image_set == other.image_set and one.grades == other.grades
    assert views.load(photos, tmp_path / "a", None, SMALL).image_set == one.image_set
    assert views.load(photos, tmp_path / "a", None, ViewsSpec(3, 4, 5, seed=1)).image_set != one.image_set


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_named(f"views:{tmp_path}/none", places)
    with pytest.raises(UserError, match="0 photographs, at least 8"):
        load_named(f"views:{tmp_path}", places)


def test_it_has_a_name_for_the_command_line(photos: Path, tmp_path: Path) -> None:
    dataset = load_named(f"views:{photos}", Places(tmp_path, tmp_path, tmp_path))
    assert dataset.name == f"views:{photos}" and dataset.protocol == "revisited" and len(dataset.queries) == 3


def test_what_is_left_out_of_the_photographs_is_said(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "photographs"
    shutil.copytree(photos, place / "inner")
    before = views.load(place, tmp_path / "cache", None, SMALL)
    (place / "raw.cr2").write_bytes(b"x")
    after = views.load(place, tmp_path / "cache", None, SMALL)
    assert before.notes == () and after.notes == ("Files that were not read: 1 .cr2.",)
    assert after.image_set == before.image_set
