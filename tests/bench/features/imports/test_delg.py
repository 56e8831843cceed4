"""Imported DELG features are the files' own values; what is missing, changed or malformed is said by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from bench.datasets import Dataset, Query
from bench.datasets.gldv2 import read_list
from bench.errors import UserError
from bench.features import fill as filling
from bench.features.imports import delg as imports
from bench.features.imports.delg import check_delg, import_delg, import_listed
from bench.features.items import Item, items, query_key
from bench.features.shards import Entry
from bench.features.store import FeatureStore
from methods._landmarks import triplets

GALLERY = ("a", "b", "c", "d", "e")
QUERIES = ("q", "r")
ROWS = 4


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Five gallery images and two queries with boxes, none of whose photographs is there."""
    image = tmp_path / "none.jpg"
    queries = tuple(Query(name, image, (10.0, 10.0, 410.0, 310.0)) for name in QUERIES)
    return Dataset("roxford", "revisited", "none", queries, dict.fromkeys(GALLERY, image), {})


def values(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Global descriptor, local ones and their scalars of an image: of its name alone, norms 1 to the last bits."""
    draw = np.random.default_rng(sum(name.encode()))
    whole, local = draw.normal(size=2048).astype(np.float32), draw.normal(size=(ROWS, 128)).astype(np.float32)
    scalars = np.zeros((ROWS, 5), np.float32)
    scalars[:, :2] = draw.uniform(1, 290, (ROWS, 2))
    scalars[:, 2] = draw.choice([0.5, 0.70710677, 1, 1.4142135, 2, 2.828427, 4], ROWS)
    scalars[:, 4] = np.sort(draw.uniform(100, 400, ROWS))[::-1]
    return whole / np.linalg.norm(whole), local / np.linalg.norm(local, axis=1, keepdims=True), scalars


@pytest.fixture
def files(delg, tmp_path: Path) -> Path:
    """A folder with the files of every image, side by side."""
    for name in (*GALLERY, *QUERIES):
        delg.pair(tmp_path / "delg" / name, *values(name))
    return tmp_path / "delg"


@pytest.fixture
def two_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SHARD_IMAGES", 2)


@pytest.fixture
def read_now(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images whose files were read, in turn."""
    names: list[str] = []
    real = imports._read

    def noted(item: Item) -> Entry:
        names.append(item.files[0].stem)
        return real(item)

    monkeypatch.setattr(imports, "_read", noted)
    return names


def content(dataset: Dataset, folder: Path) -> str:
    return FeatureStore(folder).content([item.key for item in items(dataset)])


# --- what is stored -----------------------------------------------------------------------------------------------


def test_the_values_are_those_of_the_files_to_the_bit(dataset: Dataset, files: Path, tmp_path: Path) -> None:
    report = import_delg(dataset, files, tmp_path / "store")
    assert report.extracted == 7 and not report.notes and not report.unreadable
    store = FeatureStore(tmp_path / "store")
    for name, key in [*zip(GALLERY, GALLERY, strict=True), ("q", query_key(dataset, 0)), ("r", query_key(dataset, 1))]:
        (whole, local, scalars), found = values(name), store.read(key)
        assert np.array_equal(found.global_descriptor.numpy(), whole)
        assert np.array_equal(found.descriptors.numpy(), local)
        columns = [found.scales, found.orientations, found.scores]
        assert np.array_equal(found.keypoints.numpy(), scalars[:, :2])
        assert np.array_equal(np.stack([c.numpy() for c in columns], axis=1), scalars[:, 2:])
        assert (store.global_descriptors([key]) == whole).all()


def test_bytes_per_image_are_those_of_single_precision(dataset: Dataset, files: Path, tmp_path: Path) -> None:
    import_delg(dataset, files, tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    assert store.bytes_per_image(frozenset({"global", "local"})) == (2048 * 4, 128 * 4 + 4 + 4)
    assert store.bytes_per_image(frozenset({"local", "keypoints"})) == (0, 128 * 4 + 4 + 4 + 8 + 4)


def test_rows_are_sorted_by_attention_score(dataset: Dataset, files: Path, delg, tmp_path: Path) -> None:
    whole, local, scalars = values("a")
    order = [2, 0, 3, 1]
    delg.pair(files / "a", whole, local[order], scalars[order])
    import_delg(dataset, files, tmp_path / "store")
    found = FeatureStore(tmp_path / "store").read("a")
    assert np.array_equal(found.descriptors.numpy(), local) and np.array_equal(found.scores.numpy(), scalars[:, 4])


def test_descriptors_of_another_length_than_one_are_normalised(
    dataset: Dataset, files: Path, delg, tmp_path: Path
) -> None:
    whole, local, scalars = values("a")
    delg.pair(files / "a", 7 * whole, local * [[3], [1], [0], [1]], scalars)
    import_delg(dataset, files, tmp_path / "store")
    found = FeatureStore(tmp_path / "store").read("a")
    np.testing.assert_allclose(found.global_descriptor, whole, rtol=1e-6)
    np.testing.assert_allclose(found.descriptors, local * [[1], [1], [0], [1]], rtol=1e-6)
    assert np.array_equal(found.descriptors[1].numpy(), local[1])


def test_an_image_without_local_descriptors_has_a_global_one(
    dataset: Dataset, files: Path, delg, tmp_path: Path
) -> None:
    delg.pair(files / "b", values("b")[0])
    import_delg(dataset, files, tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    assert store.count("b") == 0 and store.read("b").descriptors.shape == (0, 128) and store.count("a") == ROWS
    assert np.array_equal(store.read("b").global_descriptor.numpy(), values("b")[0])


# --- where the files are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_queries", [".", "query", "queries"])
@pytest.mark.parametrize("of_gallery", [".", "index", "gallery"])
def test_queries_and_gallery_may_have_folders_of_their_own(
    dataset: Dataset, delg, tmp_path: Path, of_queries: str, of_gallery: str
) -> None:
    """A query called as a gallery image has files of its own in its folder."""
    dataset = replace(dataset, queries=(*dataset.queries, replace(dataset.queries[0], id="a")))
    for name in GALLERY:
        delg.pair(tmp_path / "delg" / of_gallery / name, *values(name))
    for name in QUERIES:
        delg.pair(tmp_path / "delg" / of_queries / name, *values(name))
    if of_queries == ".":
        expected = "a" if of_gallery == "." else None
    else:
        delg.pair(tmp_path / "delg" / of_queries / "a", *values("another"))
        expected = "another"
    if expected is None:
        with pytest.raises(UserError, match=r"2 of 16 files of roxford are missing: a\.delg_global, a\.delg_local"):
            import_delg(dataset, tmp_path / "delg", tmp_path / "store")
        return
    import_delg(dataset, tmp_path / "delg", tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    for key, name in ((query_key(dataset, 2), expected), (query_key(dataset, 1), "r"), ("a", "a"), ("e", "e")):
        assert np.array_equal(store.read(key).global_descriptor.numpy(), values(name)[0]), key


def test_missing_files_are_counted_and_named_before_anything_is_imported(
    dataset: Dataset, files: Path, read_now: list[str], tmp_path: Path
) -> None:
    for name in ("b.delg_local", "d.delg_global", "q.delg_global", "q.delg_local"):
        (files / name).unlink()
    with pytest.raises(UserError) as refusal:
        import_delg(dataset, files, tmp_path / "store")
    assert "4 of 14 files of roxford are missing: q.delg_global, q.delg_local, b.delg_local" in refusal.value.message
    assert "index" in str(refusal.value.hint) and not (tmp_path / "store").exists() and not read_now


def test_of_many_missing_files_the_first_few_are_named(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"14 of 14 files .*, …") as refusal:
        import_delg(dataset, tmp_path / "empty", tmp_path / "store")
    assert refusal.value.message.count(".delg_") == 5
    with pytest.raises(UserError, match="no such folder"):
        import_delg(dataset, tmp_path / "nowhere", tmp_path / "store")


# --- files that are not what they should be -----------------------------------------------------------------------


def broken_scalars(column: int, value: float) -> Callable:
    def make(delg, stem: Path) -> None:
        whole, local, scalars = values("c")
        scalars[2, column] = value
        delg.pair(stem, whole, local, scalars)

    return make


WRONG: dict[str, tuple[Callable, str]] = {
    "cut": (lambda w, stem: os.truncate(f"{stem}.delg_local", 900), "c.delg_local"),
    "cut global": (lambda w, stem: os.truncate(f"{stem}.delg_global", 900), "c.delg_global"),
    "empty global": (lambda w, stem: os.truncate(f"{stem}.delg_global", 0), "c.delg_global"),
    "another global length": (lambda w, stem: w.pair(stem, np.ones(512), *values("c")[1:]), "c.delg_global"),
    "another local length": (lambda w, stem: w.pair(stem, values("c")[0], np.ones((1, 40)), [[1] * 5]), "c.delg_local"),
    "not finite": (lambda w, stem: w.pair(stem, np.full(2048, np.nan), *values("c")[1:]), "c.delg_global"),
    "infinite keypoint": (broken_scalars(0, np.inf), "c.delg_local"),
    "score that is no number": (broken_scalars(4, np.nan), "c.delg_local"),
    "scale of zero": (broken_scalars(2, 0), "c.delg_local"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_a_wrong_file_is_an_error_that_names_it_and_finished_shards_survive(
    dataset: Dataset, files: Path, delg, two_a_shard: None, read_now: list[str], tmp_path: Path, what: str
) -> None:
    spoil, name = WRONG[what]
    spoil(delg, files / "c")
    with pytest.raises(UserError, match=str(files / name)):
        import_delg(dataset, files, tmp_path / "store")
    delg.pair(files / "c", *values("c"))
    read_now.clear()
    assert import_delg(dataset, files, tmp_path / "store").extracted == 3
    assert read_now == ["c", "d", "e"]


def test_queries_that_were_not_cropped_are_noticed(dataset: Dataset, files: Path, delg, tmp_path: Path) -> None:
    """Boxes are 400 x 300 pixels: a keypoint at (390, 330) is not in the crop."""
    whole, local, scalars = values("q")
    scalars[1, :2] = 390, 330
    delg.pair(files / "q", whole, local, scalars)
    for notes in (
        import_delg(dataset, files, tmp_path / "store").caveats,
        check_delg(dataset, tmp_path / "store").caveats,
    ):
        (note,) = notes
        assert "1 of 2 queries" in note and "(q)" in note and "crop" in note


# --- up to date ---------------------------------------------------------------------------------------------------


def test_an_interrupted_import_goes_on_where_it_stopped(
    dataset: Dataset, files: Path, two_a_shard: None, read_now: list[str], tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        assert total == 7
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_delg(dataset, files, tmp_path / "store", interrupt)
    with pytest.raises(UserError, match="3 of 7 images have not been imported") as refusal:
        check_delg(dataset, tmp_path / "store")
    assert str(refusal.value.hint) == f"python cli.py features import delg {files} --dataset roxford"
    read_now.clear()
    assert import_delg(dataset, files, tmp_path / "store").extracted == 3 and read_now == ["c", "d", "e"]
    check_delg(dataset, tmp_path / "store")


def test_nothing_is_read_twice_and_what_changed_is_read_again(
    dataset: Dataset, files: Path, delg, read_now: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    import_delg(dataset, files, store)
    before = content(dataset, store)
    read_now.clear()
    for suffix in imports.SUFFIXES:  # of either file
        good = (files / f"b{suffix}").read_bytes()
        delg.pair(tmp_path / "other", *values("z"))
        shutil.copy(tmp_path / f"other{suffix}", files / f"b{suffix}")
        with pytest.raises(UserError, match=r"1 of 7 are not what was imported: .*/b changed\n"):
            check_delg(dataset, store)
        report = import_delg(dataset, files, store)
        assert report.extracted == 1 and "b.delg_global changed" in report.notes[0]
        assert content(dataset, store) != before
        check_delg(dataset, store)
        (files / f"b{suffix}").write_bytes(good)
        import_delg(dataset, files, store)
        assert content(dataset, store) == before
    assert read_now == ["b"] * 4
    os.utime(files / "a.delg_local", (1, 1))
    assert import_delg(dataset, files, store).extracted == 0


def test_a_changed_box_is_noticed_with_and_without_the_files(dataset: Dataset, files: Path, tmp_path: Path) -> None:
    import_delg(dataset, files, tmp_path / "store")
    moved = replace(dataset, queries=(replace(dataset.queries[0], box=(0.0, 0.0, 9.0, 9.0)), dataset.queries[1]))
    for _ in range(2):
        with pytest.raises(UserError, match=r"q.* has another query box"):
            check_delg(moved, tmp_path / "store")
        shutil.rmtree(files, ignore_errors=True)


def test_the_content_does_not_depend_on_where_the_files_are(dataset: Dataset, files: Path, tmp_path: Path) -> None:
    import_delg(dataset, files, tmp_path / "store")
    files.rename(tmp_path / "elsewhere")
    check_delg(dataset, tmp_path / "store")  # the files are not needed any more
    import_delg(dataset, tmp_path / "elsewhere", tmp_path / "second")
    assert content(dataset, tmp_path / "store") == content(dataset, tmp_path / "second")
    import_delg(dataset, tmp_path / "elsewhere", tmp_path / "store")  # and the store knows where they are now
    (tmp_path / "elsewhere" / "a.delg_local").write_bytes(b"")
    with pytest.raises(UserError, match="elsewhere"):
        check_delg(dataset, tmp_path / "store")


@pytest.mark.parametrize("damage", ["nothing imported", "another version", "no record", "damaged shard"])
def test_what_is_not_imported_whole_is_an_error_with_the_command_to_give(
    dataset: Dataset, files: Path, tmp_path: Path, damage: str
) -> None:
    store = tmp_path / "store"
    if damage != "nothing imported":
        import_delg(dataset, files, store)
    {
        "nothing imported": lambda: None,
        "another version": lambda: (store / "set.json").write_text(json.dumps({**imports.IDENTITY, "version": 0})),
        "no record": lambda: (store / "set.json").unlink(),
        "damaged shard": lambda: os.truncate(store / "shards" / "000000" / "scales.npy", 5),
    }[damage]()
    with pytest.raises(UserError, match="7 of 7 images have not been imported") as refusal:
        check_delg(dataset, store)
    assert "python cli.py features import delg" in str(refusal.value.hint) and "--dataset roxford" in str(refusal.value)
    assert ("damaged" in refusal.value.message) == (damage == "damaged shard")
    assert import_delg(dataset, files, store).extracted == 7
    check_delg(dataset, store)


def test_a_place_that_cannot_be_written_is_a_clear_error(dataset: Dataset, files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        import_delg(dataset, files, tmp_path / "file" / "store")


# --- training images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "jpg"])
def test_the_images_of_a_list_are_imported_and_found_by_training(
    below: str, delg, cli: Callable[..., Result], tmp_path: Path
) -> None:
    for name in GALLERY:
        delg.pair(tmp_path / "delg" / below / name, *values(name))
    labels = tmp_path / "list.txt"
    labels.write_text("".join(f"jpg/{name}.jpg,{label},64,48\n" for name, label in zip(GALLERY, "11122", strict=True)))
    done = cli("features", "import", "delg", str(tmp_path / "delg"), "--list", str(labels))
    assert done.exit_code == 0 and "5 images imported" in done.output
    folder = Path(re.findall(r"--store (\S+) --list", done.output)[0])
    store = FeatureStore(folder)
    images = triplets.images_of(store, read_list(labels))
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    for key, name in zip(images.keys, GALLERY, strict=True):
        assert np.array_equal(store.read(key).descriptors.numpy(), values(name)[1])
    assert (
        "0 images imported" in cli("features", "import", "delg", str(tmp_path / "delg"), "--list", str(labels)).output
    )


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "jpg/../../a.jpg"])
def test_a_list_reaches_no_file_outside_of_the_folder(name: str, files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the list names .*expected images in DIR"):
        import_listed(["a.jpg", name], files, tmp_path / "store")


def test_missing_files_of_a_list_are_named(files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 4 files of the list are missing: z\.delg_global, z\.delg_local"):
        import_listed(["jpg/a.jpg", "jpg/z.jpg"], files, tmp_path / "store")
    with pytest.raises(UserError, match="no images"):
        import_listed([], files, tmp_path / "store")


def test_a_data_set_or_a_list_must_be_given_and_not_both(files: Path, cli: Callable[..., Result]) -> None:
    for more in ((), ("--dataset", "roxford", "--list", "l.txt")):
        assert "give --dataset, or --list" in cli("features", "import", "delg", str(files), *more).output


def test_descriptors_that_are_all_zero_are_named(dataset: Dataset, files: Path, delg, tmp_path: Path) -> None:
    whole, local, scalars = values("b")
    delg.pair(files / "b", np.zeros_like(whole), local, scalars)
    report = import_delg(dataset, files, tmp_path / "store")
    assert report.notes == ("1 images have descriptors that are all zero: b",)
