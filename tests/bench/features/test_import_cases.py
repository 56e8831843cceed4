"""What real files did: other files under one name, scores by other names, logs, types, folders in names, gaps."""

from __future__ import annotations

import json
import shutil
import sqlite3
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.datasets import Dataset, folder
from bench.errors import UserError
from bench.features.importing import check_foreign, import_foreign, without_order
from bench.features.items import items
from bench.features.store import FeatureStore
from third_party.foreign_features import Colmap, Hloc

N, D, G = 12, 16, 6
GALLERY, QUERIES = ("a0", "a1", "b0", "b1"), ("q1", "q2")
NAMES = [*(f"gallery/{name}.jpg" for name in GALLERY), *(f"queries/{name}.jpg" for name in QUERIES)]
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four gallery images and two queries without boxes. Read only."""
    return data_set(tmp_path_factory.mktemp("plain") / "set")


def data_set(root: Path, gallery: Sequence[str] = GALLERY, queries: Sequence[str] = QUERIES, **more: object) -> Path:
    for where, names in (("gallery", gallery), ("queries", queries)):
        for number, name in enumerate(names):
            path = root / where / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw = np.random.default_rng((len(where), number))
            Image.fromarray(draw.integers(0, 255, (120, 160, 3), np.uint8)).save(path)
    grades = [{"query": q, "easy": [gallery[i]], **more} for i, q in enumerate(queries)]
    (root / "gnd.json").write_text(json.dumps({"gallery": list(gallery), "queries": grades}))
    return root


def features(number: int, seed: int = 0) -> Arrays:
    draw = np.random.default_rng((seed, number))
    rows, whole = draw.normal(size=(N, D)), draw.normal(size=G)
    return {
        "keypoints": draw.uniform(2, 100, (N, 2)).astype(np.float32),
        "descriptors": (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        "scores": draw.permutation(N).astype(np.float32) + 1,
        "image_size": np.array([160, 120]),
        "global_descriptor": (whole / np.linalg.norm(whole)).astype(np.float32),
    }


def everything(seed: int = 0, names: Sequence[str] = NAMES) -> dict[str, Arrays]:
    return {name: features(number, seed) for number, name in enumerate(names)}


def hloc(path: Path, images: Mapping[str, Arrays], renamed: Mapping[str, str] = {}, kind: type = np.float32) -> Path:
    with h5py.File(path, "w") as file:
        for image, arrays in images.items():
            for name, values in arrays.items():
                stored = values if name == "image_size" else values.astype(kind)
                file[f"{image}/{renamed.get(name, name)}"] = stored.T if name == "descriptors" else stored
    return path


def without(images: Mapping[str, Arrays], *names: str) -> dict[str, Arrays]:
    return {image: {k: v for k, v in arrays.items() if k not in names} for image, arrays in images.items()}


def content(dataset: Dataset, store: Path) -> str:
    return FeatureStore(store).content(item.key for item in items(dataset))


def rows_of(output: str) -> list[str]:
    """What a run says of its methods, without times."""
    return [" ".join(line.split()[:4]) for line in output.splitlines() if line.split()[:1] == ["mnn@hloc"]]


@pytest.fixture
def imported(cli: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    """`imported(kind, place, dataset, …)` by the command line, into this test's own cache."""

    def go(kind: str, place: Path, dataset: Path, *more: str) -> Result:
        where = ("-d", f"folder:{dataset}", "--cache-dir", str(tmp_path / "cache"))
        return cli("features", "import", kind, str(place), *where, *more)

    return go


# other files under one name


def test_another_file_replaces_what_was_imported_and_is_run_anew(
    cli: Callable[..., Result], imported: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    first = {name: features("ab".index(name[8]) if name[8] in "ab" else int(name[9]) - 1) for name in NAMES}
    paths = [hloc(tmp_path / "first.h5", first), hloc(tmp_path / "second.h5", everything(1))]
    tables = []
    for path in paths:
        done = imported("hloc", path, plain)
        assert done.exit_code == 0 and "6 images imported" in done.output
        assert ("read anew" in done.output) == (path == paths[1])
        ran = cli("run", "-m", "mnn", "-d", f"folder:{plain}", "-f", "hloc", "--cache-dir", str(tmp_path / "cache"))
        assert ran.exit_code == 0, ran.output
        tables.append(rows_of(ran.output))
    assert tables[0] and tables[0] != tables[1]


def test_the_same_file_elsewhere_is_not_read_again(plain: Path, tmp_path: Path) -> None:
    dataset, store = folder.load(plain), tmp_path / "store"
    first = hloc(tmp_path / "first.h5", everything())
    import_foreign("hloc", dataset, first, store)
    shutil.copy(first, tmp_path / "copy.h5")
    assert import_foreign("hloc", dataset, tmp_path / "copy.h5", store).extracted == 0
    first.unlink()
    assert check_foreign("hloc", dataset, store).extracted == 0  # neither is any file needed
    import_foreign("hloc", dataset, tmp_path / "copy.h5", tmp_path / "other")
    assert content(dataset, store) == content(dataset, tmp_path / "other")


def test_a_place_that_changed_is_noticed_by_a_run_and_by_an_import(
    cli: Callable[..., Result], imported: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    place = hloc(tmp_path / "features.h5", everything())
    assert imported("hloc", place, plain).exit_code == 0
    hloc(place, everything(1))
    run = ("run", "-m", "identity", "-d", f"folder:{plain}", "-f", "hloc", "--cache-dir", str(tmp_path / "cache"))
    refused = cli(*run)
    assert refused.exit_code == 1 and "is not what was imported" in refused.output
    assert f"features import hloc {place}" in " ".join(refused.output.split())
    assert "6 images imported" in imported("hloc", place, plain).output
    assert cli(*run).exit_code == 0


def test_the_file_of_global_descriptors_counts_too(plain: Path, tmp_path: Path) -> None:
    dataset, store = folder.load(plain), tmp_path / "store"
    place = hloc(tmp_path / "local.h5", without(everything(), "global_descriptor"))
    for seed in (0, 1):
        whole = hloc(tmp_path / f"{seed}.h5", without(everything(seed), "descriptors", "keypoints", "scores"))
        report = import_foreign("hloc", dataset, place, store, globals_=whole)
        assert report.extracted == 6
        assert any("read anew" in note for note in report.notes) == bool(seed)


def test_an_import_that_was_interrupted_goes_on(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.features.fill.SHARD_IMAGES", 2)
    dataset, store = folder.load(plain), tmp_path / "store"
    old, place = hloc(tmp_path / "old.h5", everything(1)), hloc(tmp_path / "new.h5", everything())
    import_foreign("hloc", dataset, old, store)
    before = content(dataset, store)

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_foreign("hloc", dataset, place, store, interrupt)
    check_foreign("hloc", dataset, store)
    assert content(dataset, store) == before  # the finished import is there until the other is whole
    report = import_foreign("hloc", dataset, place, store)
    assert report.extracted == 2
    import_foreign("hloc", dataset, place, tmp_path / "at once")
    assert content(dataset, store) == content(dataset, tmp_path / "at once") != before
    assert check_foreign("hloc", dataset, store).caveats == check_foreign("hloc", dataset, tmp_path / "at once").caveats


def test_bad_files_do_not_lose_what_was_imported(plain: Path, tmp_path: Path) -> None:
    dataset, store = folder.load(plain), tmp_path / "store"
    import_foreign("hloc", dataset, hloc(tmp_path / "good.h5", everything()), store)
    bad = everything(1)
    bad[NAMES[2]]["descriptors"][3, 5] = np.nan
    with pytest.raises(UserError, match=rf"bad.h5: '{NAMES[2]}': values of descriptors .* \(3, 5\)"):
        import_foreign("hloc", dataset, hloc(tmp_path / "bad.h5", bad), store)
    check_foreign("hloc", dataset, store)


def test_a_changed_file_of_one_image_is_read_again(plain: Path, tmp_path: Path) -> None:
    dataset, store, place = folder.load(plain), tmp_path / "store", tmp_path / "files"
    for name, arrays in everything().items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(place / f"{name}.npz", **arrays)
    assert import_foreign("arrays", dataset, place, store).extracted == 6
    assert check_foreign("arrays", dataset, store).caveats == ()
    np.savez(place / f"{NAMES[1]}.npz", **features(77))
    with pytest.raises(UserError, match=r"1 of 6 are not what was imported: .*a1\.jpg\.npz changed"):
        check_foreign("arrays", dataset, store)
    report = import_foreign("arrays", dataset, place, store)
    assert report.extracted == 1 and "a1.jpg.npz changed" in report.notes[0]
    check_foreign("arrays", dataset, store)


# what is not there is said


def test_files_without_global_descriptors_need_a_shortlist(
    imported: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    done = imported("hloc", hloc(tmp_path / "no.h5", without(everything(), "global_descriptor")), plain)
    assert done.exit_code == 0 and "no global descriptors" in done.output
    assert "--shortlist" in done.output and "--globals" in done.output
    (stored,) = (tmp_path / "cache" / "features").iterdir()
    assert (FeatureStore(stored).identity or {})["global_dim"] == 0


def test_scores_missing_from_some_images_are_refused(plain: Path, tmp_path: Path) -> None:
    for name in ("scores", "global_descriptor"):
        images = {**everything(), **without({NAMES[3]: features(3)}, name)}
        with pytest.raises(UserError, match=rf"5 of 6 images have {name.replace('_', ' ')}"):
            import_foreign("hloc", folder.load(plain), hloc(tmp_path / f"{name}.h5", images), tmp_path / "store")


@pytest.mark.parametrize("name", ["keypoint_scores", "detection_scores", "score", "confidence"])
def test_scores_are_read_under_the_names_that_extractors_use(plain: Path, tmp_path: Path, name: str) -> None:
    dataset = folder.load(plain)
    import_foreign("hloc", dataset, hloc(tmp_path / "usual.h5", everything()), tmp_path / "usual")
    report = import_foreign("hloc", dataset, hloc(tmp_path / "x.h5", everything(), {"scores": name}), tmp_path / "x")
    assert any(f"'{name}' of 6 images is read as scores" in note for note in report.notes)
    assert content(dataset, tmp_path / "usual") == content(dataset, tmp_path / "x")


def test_without_scores_a_budget_is_refused_unless_the_order_is_said_to_be_that_of_quality(
    plain: Path, tmp_path: Path
) -> None:
    dataset, store = folder.load(plain), tmp_path / "store"
    place = hloc(tmp_path / "no.h5", everything(), {"scores": "goodness"})
    report = import_foreign("hloc", dataset, place, store)
    assert any("not read: goodness (6)" in note for note in report.notes)
    assert any("no scores" in caveat for caveat in check_foreign("hloc", dataset, store).caveats)
    keys, some = list(dataset.gallery), {"mnn": lambda count: min(count, 5)}
    assert not without_order(FeatureStore(store), {"maxsim": lambda count: count, "identity": lambda count: 0}, keys)
    reasons = without_order(FeatureStore(store), some, keys)
    assert "reads 5 of up to 12 local descriptors" in reasons["mnn"] and "no scores" in reasons["mnn"]
    report = import_foreign("hloc", dataset, place, store, ordered=True)
    assert report.extracted == 6 and any("--ordered" in caveat for caveat in report.caveats)
    assert not without_order(FeatureStore(store), some, keys)
    with pytest.raises(UserError, match="--ordered"):
        import_foreign("hloc", dataset, hloc(tmp_path / "some.h5", everything()), store, ordered=True)


def test_what_a_file_holds_besides_is_named(imported: Callable[..., Result], plain: Path, tmp_path: Path) -> None:
    images = everything()
    for arrays in images.values():
        arrays["uncertainty"] = np.zeros(3)
    images["gallery/other.jpg"] = features(9)
    done = imported("hloc", hloc(tmp_path / "more.h5", images), plain)
    assert done.exit_code == 0
    assert "not read: uncertainty (6)" in done.output and "1 of 7 images" in done.output
    assert "gallery/other.jpg" in done.output


def test_options_that_a_kind_does_not_take_are_refused(
    imported: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    place = hloc(tmp_path / "a.h5", everything())
    for kind, option in (("colmap", "--globals"), ("hloc", "--queries"), ("arrays", "--query-globals")):
        done = imported(kind, tmp_path if kind == "arrays" else place, plain, option, str(place))
        assert done.exit_code == 1 and f"{option}: {kind} does not take it" in done.output
    assert imported("delg", tmp_path, plain, "--globals", str(place)).exit_code == 2


def test_a_place_of_the_wrong_sort_is_told_what_to_be(
    imported: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    done = imported("arrays", hloc(tmp_path / "a.h5", everything()), plain)
    assert done.exit_code == 1 and "arrays expects a folder" in done.output
    assert "PLACE is a folder with one .npz or .safetensors an image" in done.output


def test_descriptors_that_are_all_zero_are_counted(plain: Path, tmp_path: Path) -> None:
    images = everything()
    images[NAMES[0]]["descriptors"][:2] = 0
    images[NAMES[1]]["global_descriptor"][:] = 0
    images[NAMES[2]]["keypoints"][:] = 50
    report = import_foreign("hloc", folder.load(plain), hloc(tmp_path / "zero.h5", images), tmp_path / "store")
    assert [caveat.partition(" have ")[2] for caveat in report.caveats] == [
        "local descriptors that are all zero: 2 in all",
        "global descriptors that are all zero: 1 in all",
        "all keypoints in one place",
    ]
    assert check_foreign("hloc", folder.load(plain), tmp_path / "store").caveats == report.caveats


def test_global_descriptors_may_be_rows_of_an_npz_with_the_names_of_their_images(
    imported: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    images, dataset = everything(), folder.load(plain)
    place = hloc(tmp_path / "local.h5", without(images, "global_descriptor"))
    names, rows = NAMES[::-1], np.array([images[name]["global_descriptor"] for name in NAMES[::-1]])
    whole = import_foreign("hloc", dataset, hloc(tmp_path / "all.h5", images), tmp_path / "whole")
    for kind, written in {"text": np.array(names), "bytes": np.array([name.encode() for name in names])}.items():
        np.savez(tmp_path / f"{kind}.npz", what=written, vectors=rows, note=np.float32(1))
        report = import_foreign("hloc", dataset, place, tmp_path / kind, globals_=tmp_path / f"{kind}.npz")
        assert report.extracted == whole.extracted and not report.caveats
        assert content(dataset, tmp_path / kind) == content(dataset, tmp_path / "whole")
    bad = {
        "holds a () of float64": {"a": np.float64(1)},
        "holds a (6,) of <U14, b (5, 6)": {"a": np.array(names), "b": rows[:5]},
        "1 names of images stand there twice": {"a": np.array([*names[:5], names[0]]), "b": rows},
        f"no image '{NAMES[4]}'": {"a": np.array([f"x/{name}" for name in names]), "b": rows},
        "not readable": {"a": np.array(names, object), "b": rows},
    }
    for said, arrays in bad.items():
        np.savez(tmp_path / "bad.npz", **arrays)
        done = imported("hloc", place, plain, "--globals", str(tmp_path / "bad.npz"))
        assert done.exit_code == 1 and said in done.output and "0 images" not in done.output, done.output


def test_a_folder_of_an_import_is_told_from_a_name_of_a_feature_set(
    cli: Callable[..., Result], imported: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    into = tmp_path / "mine"
    done = imported("hloc", hloc(tmp_path / "a.h5", everything()), plain, "--into", str(into))
    assert done.exit_code == 0 and "6 images imported: " in done.output
    assert f"--dataset folder:{plain} --cache-dir {tmp_path / 'cache'}\n" in done.output  # the next command finds it
    again = imported("hloc", tmp_path / "a.h5", plain, "--into", str(into))
    assert "0 images imported, all were up to date: " in again.output
    for row in (("-f", str(into), "-m", "mnn"), ("-m", f"mnn@{into}")):
        ran = cli("run", "-d", f"folder:{plain}", *row)
        assert ran.exit_code == 1 and "is a folder" in ran.output and "import without --into" in ran.output


def test_keypoints_beyond_the_image_are_counted_and_a_swap_is_suspected(plain: Path, tmp_path: Path) -> None:
    """Of an image of 160 x 120 pixels; a keypoint may lie on its border."""
    images = everything()
    images[NAMES[0]]["keypoints"][0] = (159.9, 119.9)
    images[NAMES[1]]["keypoints"][0] = (5, 150)
    images[NAMES[2]]["keypoints"][0] = (5, 150)

    def said(name: str) -> list[str]:
        place = hloc(tmp_path / f"{name}.h5", images)
        return list(import_foreign("hloc", folder.load(plain), place, tmp_path / name).caveats)

    assert said("swapped") == [
        "2 of 6 images have keypoints beyond their width or height: x and y, or width and height, may be swapped"
    ]
    images[NAMES[2]]["keypoints"][1] = (150, 5)
    assert said("mixed") == ["2 of 6 images have keypoints beyond their width or height"]
    assert not import_foreign(
        "hloc", folder.load(plain), hloc(tmp_path / "u.h5", without(images, "image_size")), tmp_path / "unknown"
    ).caveats


def test_a_group_that_lacks_an_array_is_named(plain: Path, tmp_path: Path) -> None:
    for name in ("keypoints", "descriptors"):
        images = {**everything(), **without({NAMES[3]: features(3)}, name)}
        with pytest.raises(UserError, match=rf"{name} of '{NAMES[3]}': not there"):
            import_foreign("hloc", folder.load(plain), hloc(tmp_path / f"{name}.h5", images), tmp_path / "store")
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        file["a.jpg/b.jpg/matches0"] = np.zeros(3)
    with pytest.raises(UserError, match=r"no group holds keypoints .*'a\.jpg'"):
        Hloc(tmp_path / "matches.h5").names()


def test_descriptors_with_an_image_row_first_are_read_if_all_of_them_are_so(plain: Path, tmp_path: Path) -> None:
    dataset, usual = folder.load(plain), everything()
    other = {name: {**arrays, "descriptors": arrays["descriptors"].T} for name, arrays in usual.items()}
    for name, images in (("usual", usual), ("other", other)):
        report = import_foreign("hloc", dataset, hloc(tmp_path / f"{name}.h5", images), tmp_path / name)
        assert any("(n, d) in every image" in note for note in report.notes) == (name == "other")
    assert content(dataset, tmp_path / "usual") == content(dataset, tmp_path / "other")
    mixed = hloc(tmp_path / "mixed.h5", {**usual, NAMES[3]: other[NAMES[3]]})
    with pytest.raises(UserError, match=rf"'{NAMES[3]}' has {N} keypoints and descriptors \({N}, {D}\)"):
        import_foreign("hloc", dataset, mixed, tmp_path / "store")


def test_half_precision_is_read_without_a_warning(plain: Path, tmp_path: Path) -> None:
    place = hloc(tmp_path / "half.h5", without(everything(), "image_size"), kind=np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_foreign("hloc", folder.load(plain), place, tmp_path / "store")
    found = FeatureStore(tmp_path / "store").read("a0")
    assert found.image_size.tolist() == np.ceil(features(0)["keypoints"].astype(np.float16).max(0)).tolist()


def test_values_beyond_single_precision_are_refused_and_large_ones_are_normalised(plain: Path, tmp_path: Path) -> None:
    images = everything()
    images[NAMES[0]]["descriptors"] = images[NAMES[0]]["descriptors"] * np.float32(1e30)
    report = import_foreign("hloc", folder.load(plain), hloc(tmp_path / "big.h5", images), tmp_path / "store")
    assert any("not of unit length" in caveat for caveat in report.caveats)
    assert np.allclose(FeatureStore(tmp_path / "store").read("a0").descriptors.norm(dim=1), 1)


# names


def test_the_whole_path_tells_images_of_one_name_apart(imported: Callable[..., Result], tmp_path: Path) -> None:
    numbers = [f"{number:03}" for number in range(3)]
    root = data_set(tmp_path / "numbered", numbers, numbers)
    names = [f"{where}/{number}.jpg" for where in ("queries", "gallery") for number in numbers]
    done = imported("hloc", hloc(tmp_path / "numbered.h5", everything(names=names)), root)
    assert done.exit_code == 0, done.output
    (stored,) = (tmp_path / "cache" / "features").iterdir()
    for key, name in (("query/001/", "queries/001.jpg"), ("001", "gallery/001.jpg")):
        best = np.argsort(-features(names.index(name))["scores"])
        assert np.allclose(FeatureStore(stored).read(key).keypoints, features(names.index(name))["keypoints"][best])
    half = hloc(tmp_path / "half.h5", {k: v for k, v in everything(names=names).items() if k.startswith("gallery")})
    done = imported("hloc", half, root)
    assert done.exit_code == 1 and "fits two images" in done.output


def test_the_longest_common_end_of_a_name_wins(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set", ("x/a", "y/a", "b"), ("q",))
    names = ["db/x/a.png", "db/y/a.png", "a.png", "db/z/b", "q.JPG"]
    import_foreign("hloc", folder.load(root), hloc(tmp_path / "f.h5", everything(names=names)), tmp_path / "store")
    found = FeatureStore(tmp_path / "store")
    for number, key in enumerate(("x/a", "y/a", None, "b", "query/q/")):
        if key is not None:
            best = np.argsort(-features(number)["scores"])
            assert np.allclose(found.read(key).keypoints, features(number)["keypoints"][best])


def test_names_that_share_an_end_alone_with_the_files_are_said(tmp_path: Path) -> None:
    """Features of other images whose names are equal are read, for folders are moved: the user must know better."""
    root = data_set(tmp_path / "set", ("x/a", "y/a"), ("q",))
    ways = {
        "whole": (["set/gallery/x/a.jpg", "gallery/y/a.png", "q"], None),
        "other": (["gallery/x/a.jpg", "theirs/y/a.jpg", "their/q.jpg"], ("their/q.jpg", "queries/q.jpg")),
    }
    for way, (names, said) in ways.items():
        place = hloc(tmp_path / f"{way}.h5", everything(names=names))
        notes = [
            note
            for note in import_foreign("hloc", folder.load(root), place, tmp_path / way).notes
            if "share an end alone" in note
        ]
        assert len(notes) == (said is not None)
        if said is not None:
            assert "names of 2 images" in notes[0] and said[0] in notes[0] and f"{root}/{said[1]}" in notes[0]


def test_a_missing_image_is_said_where_others_have_its_name(tmp_path: Path) -> None:
    root, names = data_set(tmp_path / "set", ("x/a", "y/a", "z/a"), ("q",)), ["x/a.jpg", "y/a.jpg", "q.jpg"]
    with pytest.raises(UserError, match=r"more than one image .* fits 'z/a'") as error:
        import_foreign("hloc", folder.load(root), hloc(tmp_path / "f.h5", everything(names=names)), tmp_path / "store")
    assert str(error.value.hint).endswith("if it is none of these, it is missing there")


def test_names_in_another_unicode_form_are_the_same_names(tmp_path: Path) -> None:
    name = "café"
    root = data_set(tmp_path / "set", (unicodedata.normalize("NFD", name), "b"), ("q",))
    names = [f"gallery/{unicodedata.normalize('NFC', name)}.jpg", "gallery/b.jpg", "queries/q.jpg"]
    report = import_foreign(
        "hloc", folder.load(root), hloc(tmp_path / "f.h5", everything(names=names)), tmp_path / "store"
    )
    assert report.extracted == 3


# COLMAP


def colmap(path: Path, columns: int = 6, type_: int | None = 0, names: Sequence[str | bytes] = NAMES) -> Path:
    """A database as COLMAP writes it, keypoints small to large; without a type where `type_` is None."""
    path.unlink(missing_ok=True)
    database = sqlite3.connect(path)
    typed = "" if type_ is None else "type INTEGER, "
    database.executescript(
        "CREATE TABLE images (image_id INTEGER PRIMARY KEY, name TEXT UNIQUE, camera_id INTEGER);"
        "CREATE TABLE keypoints (image_id INTEGER PRIMARY KEY, rows INTEGER, cols INTEGER, data BLOB);"
        f"CREATE TABLE descriptors (image_id INTEGER PRIMARY KEY, {typed}rows INTEGER, cols INTEGER, data BLOB);"
    )
    for number, name in enumerate(names):
        draw = np.random.default_rng(number)
        size, angle = np.linspace(1, 12, N), draw.uniform(-3, 3, N)
        shape = [size * np.cos(angle), -size * np.sin(angle), size * np.sin(angle), size * np.cos(angle)]
        more = np.array({2: [], 4: [size, angle], 6: shape}.get(columns, [size] * (columns - 2)))
        points = np.concatenate([draw.uniform(2, 99, (N, 2)), more.T.reshape(N, -1)], axis=1).astype(np.float32)
        rows = draw.normal(size=(N, 128)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        data = rows.tobytes() if type_ else np.rint(np.abs(rows) * 512).clip(0, 255).astype(np.uint8).tobytes()
        database.execute("INSERT INTO images VALUES (?, CAST(? AS TEXT), 1)", (number + 1, name))
        database.execute("INSERT INTO keypoints VALUES (?, ?, ?, ?)", (number + 1, N, columns, points.tobytes()))
        values = (number + 1, *([] if type_ is None else [type_]), N, len(data) // N, data)
        database.execute(f"INSERT INTO descriptors VALUES ({', '.join('?' * len(values))})", values)
    database.commit()
    database.close()
    return path


@pytest.mark.parametrize("type_", ["SIFT", "ALIKED_N16ROT", "ALIKED_N32", "LOMA_B", "LOMA_B128"])
def test_descriptors_that_pycolmap_wrote_are_read_by_their_type(tmp_path: Path, type_: str) -> None:
    import pycolmap

    kind = getattr(pycolmap.FeatureExtractorType, type_)
    rows = np.random.default_rng(0).normal(size=(N, 128)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if type_ == "SIFT":
        stored = pycolmap.FeatureDescriptors(type=kind, data=np.rint(np.abs(rows) * 512).clip(0, 255).astype(np.uint8))
        expected = stored.data / 512
    else:
        stored, expected = pycolmap.FeatureDescriptorsFloat(type=kind, data=rows).to_bytes(), rows
    shapes = [pycolmap.FeatureKeypoint.from_shape_parameters(i, 2, 3 + i, 4, 0.5, 0.2) for i in range(N)]
    points = np.array([[k.x, k.y, k.a11, k.a12, k.a21, k.a22] for k in shapes], np.float32)
    database = pycolmap.Database.open(str(tmp_path / "db"))
    model = pycolmap.Camera(model="SIMPLE_PINHOLE", width=160, height=120, params=[100, 80, 60])
    number = database.write_image(pycolmap.Image(name="a.png", camera_id=database.write_camera(model)))
    database.write_keypoints(number, points)
    database.write_descriptors(number, stored)
    database.close()
    found = Colmap(tmp_path / "db").read("a.png")
    assert np.allclose(found["descriptors"], expected, atol=1e-6)
    assert np.allclose(found["scales"], [k.compute_scale() for k in shapes], rtol=1e-5)
    assert np.allclose(found["orientations"], [k.compute_orientation() for k in shapes], atol=1e-5)
    assert found["image_size"].tolist() == [160, 120]
    assert ("scores" in found) == (type_ == "SIFT")


def test_types_that_are_not_known_are_refused_by_name(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"descriptors of type 9(.|\n)*1 ALIKED_N16ROT"):
        import_foreign("colmap", folder.load(plain), colmap(tmp_path / "db", type_=9), tmp_path / "store")


@pytest.mark.parametrize("columns", [2, 4, 6])
def test_the_larger_keypoints_of_colmap_are_taken_as_the_better(plain: Path, tmp_path: Path, columns: int) -> None:
    dataset, store = folder.load(plain), tmp_path / "store"
    report = import_foreign("colmap", dataset, colmap(tmp_path / "db", columns, None), store)
    scored = (FeatureStore(store).identity or {})["scores"]
    assert scored == ("none" if columns == 2 else "scale")
    assert any("larger keypoints" in caveat for caveat in report.caveats) == (columns > 2)
    if columns > 2:
        assert (np.diff(FeatureStore(store).read("a0").scales) < 0).all()


def test_keypoints_of_other_columns_are_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 columns, expected 2, 4 or 6"):
        import_foreign("colmap", folder.load(plain), colmap(tmp_path / "db", 5), tmp_path / "store")


def test_a_database_of_keypoints_alone_is_refused(plain: Path, tmp_path: Path) -> None:
    path = colmap(tmp_path / "db")
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM descriptors")
    with pytest.raises(UserError, match=rf"has {N} keypoints and 0 descriptors"):
        import_foreign("colmap", folder.load(plain), path, tmp_path / "store")


def test_a_place_that_cannot_be_written_is_named(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        import_foreign("colmap", folder.load(plain), colmap(tmp_path / "db"), tmp_path / "file" / "store")


def test_bytes_of_sift_are_normalised_and_nothing_else(plain: Path, tmp_path: Path) -> None:
    """COLMAP stores 512 times a unit vector whose root it has taken already."""
    import_foreign("colmap", folder.load(plain), colmap(tmp_path / "db", 2), tmp_path / "store")
    rows = np.random.default_rng(0)
    rows.uniform(-3, 3, N), rows.uniform(2, 99, (N, 2))
    values = np.abs(rows.normal(size=(N, 128)).astype(np.float32))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    assert np.allclose(FeatureStore(tmp_path / "store").read("a0").descriptors, values, atol=2e-3)


def test_a_log_that_was_not_merged_is_read_and_left_as_it_is(plain: Path, tmp_path: Path) -> None:
    path = colmap(tmp_path / "db")
    open_ = sqlite3.connect(path)
    open_.execute("PRAGMA journal_mode = WAL")
    open_.execute("PRAGMA wal_autocheckpoint = 0")
    open_.execute("UPDATE images SET name = 'gallery/late.jpg' WHERE image_id = 1")
    open_.commit()
    copied = tmp_path / "copied"
    copied.mkdir()
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", copied / f"db{end}")
    open_.close()
    before = {file.name: file.read_bytes() for file in copied.iterdir()}
    assert Colmap(copied / "db").names()[0] == "gallery/late.jpg"
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before
    (copied / "db-wal").unlink()
    assert Colmap(copied / "db").names()[0] == NAMES[0]


def test_a_journal_that_was_left_is_rolled_back(tmp_path: Path) -> None:
    path = colmap(tmp_path / "db")
    open_ = sqlite3.connect(path, isolation_level=None)
    open_.execute("PRAGMA cache_size = 1")
    open_.execute("PRAGMA cache_spill = 1")
    open_.execute("BEGIN IMMEDIATE")
    for number in range(200):
        open_.execute("UPDATE images SET name = name || 'x' WHERE image_id = 1")
        open_.execute("INSERT INTO images VALUES (?, ?, 1)", (100 + number, "y" * 2000 + str(number)))
    copied = tmp_path / "copied"
    copied.mkdir()
    for end in ("", "-journal"):
        shutil.copy(f"{path}{end}", copied / f"db{end}")
    open_.close()
    assert Colmap(copied / "db").names() == NAMES


def test_a_log_that_comes_later_is_noticed(plain: Path, tmp_path: Path) -> None:
    dataset, store = folder.load(plain), tmp_path / "store"
    import_foreign("colmap", dataset, colmap(tmp_path / "db"), store)
    check_foreign("colmap", dataset, store)
    (tmp_path / "db-wal").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match="db-wal is not what was imported"):
        check_foreign("colmap", dataset, store)


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    path = colmap(tmp_path / "db", names=[b"gallery/caf\xe9.jpg"])
    assert Colmap(path).names() == ["gallery/caf\udce9.jpg"]
    assert len(Colmap(path).read("gallery/caf\udce9.jpg")["keypoints"]) == N
    with h5py.File(tmp_path / "f.h5", "w") as file:
        group = file.create_group(b"caf\xe9.jpg")
        group["keypoints"], group["descriptors"] = np.zeros((3, 2)), np.zeros((4, 3))
    (name,) = Hloc(tmp_path / "f.h5").names()
    assert name == "caf\udce9.jpg" and Hloc(tmp_path / "f.h5").read(name)["descriptors"].shape == (3, 4)


# query crops


@pytest.mark.parametrize(("size", "words"), [((160, 120), "beyond their box"), (None, "do not tell"), ((80, 60), "")])
def test_queries_that_were_not_or_may_not_have_been_cropped_are_named(
    imported: Callable[..., Result], tmp_path: Path, size: tuple[int, int] | None, words: str
) -> None:
    root = data_set(tmp_path / "set", box=[10, 10, 90, 70])
    images = everything()
    for arrays in images.values():
        arrays["keypoints"] = arrays["keypoints"] / 2
        arrays["image_size"] = np.array(size or (0, 0))
    done = imported("hloc", hloc(tmp_path / "f.h5", images if size else without(images, "image_size")), root)
    assert done.exit_code == 0
    said = [line for line in done.output.splitlines() if "as the protocol asks" in line]
    assert (len(said) == 1 and words in said[0] and "2 of 2 queries" in said[0]) if words else not said


# AMES


def ames(place: Path, names: Sequence[str], stem: str, split: str, globals_: str = "raw") -> None:
    rows = np.zeros((len(names), N + 3, 5 + D), np.float32)
    rows[:, N:, 3] = 1  # padding
    for row, name in zip(rows, names, strict=True):
        found = features(NAMES.index(name))
        row[:N, :2], row[:N, 4], row[:N, 5:] = found["keypoints"], found["scores"], found["descriptors"]
    with h5py.File(place / f"{stem}_{split}_local.hdf5", "w") as file:
        file["features"] = rows
    whole = np.stack([features(NAMES.index(name))["global_descriptor"] for name in names])
    path = place / f"{stem}_{split}_global.pt"
    if globals_ == "raw":
        path.write_bytes(whole.tobytes())
    else:
        torch.save(torch.from_numpy(whole), path, _use_new_zipfile_serialization=globals_ == "zip")


@pytest.mark.parametrize("globals_", ["raw", "zip", "legacy"])
def test_what_ames_extraction_writes_is_read_as_a_folder_or_as_files(
    imported: Callable[..., Result], plain: Path, tmp_path: Path, globals_: str
) -> None:
    place = tmp_path / "ames"
    place.mkdir()
    ames(place, NAMES[:4], "dinov2", "gallery", globals_)
    ames(place, NAMES[4:], "dinov2", "query", globals_)
    done = imported("ames", place, plain)
    assert done.exit_code == 0 and "6 images imported" in done.output
    (stored,) = (tmp_path / "cache" / "features").iterdir()
    for key, number in (("b0", 2), ("query/q2/", 5)):
        found, expected = FeatureStore(stored).read(key), features(number)
        assert np.allclose(found.keypoints, expected["keypoints"][np.argsort(-expected["scores"])])
        assert np.allclose(found.global_descriptor, expected["global_descriptor"])
    local = [place / f"dinov2_{split}_local.hdf5" for split in ("gallery", "query")]
    whole = [place / f"dinov2_{split}_global.pt" for split in ("gallery", "query")]
    files = ("--queries", str(local[1]), "--globals", str(whole[0]), "--query-globals", str(whole[1]))
    assert "0 images imported" in imported("ames", local[0], plain, *files).output
    refused = imported("ames", local[0], plain, *files[:4])
    assert refused.exit_code == 1 and "--query-globals" in refused.output
    refused = imported("ames", local[0], plain)
    assert refused.exit_code == 1 and "--queries" in refused.output


def test_a_pt_that_holds_code_or_no_tensor_is_refused(plain: Path, tmp_path: Path) -> None:
    ames(tmp_path, NAMES[:4], "m", "gallery")
    ames(tmp_path, NAMES[4:], "m", "query")
    whole = tmp_path / "m_gallery_global.pt"
    for content_ in ({"a": torch.zeros(1)}, Path("x")):
        torch.save(content_, whole)
        with pytest.raises(UserError, match=r"m_gallery_global\.pt: not readable as global descriptors"):
            import_foreign("ames", folder.load(plain), tmp_path, tmp_path / "store")


# properties


def permuted(arrays: Arrays, name: str) -> None:
    arrays[name] = np.roll(arrays[name], 1, axis=0)


def scaled(arrays: Arrays, name: str) -> None:
    arrays[name] = arrays[name] * 2


def bit(arrays: Arrays, name: str) -> None:
    values = arrays[name].astype(np.int64 if name == "image_size" else np.float32)
    values.flat[0] = values.flat[0] * 1.25
    arrays[name] = values


def renamed(arrays: Arrays, name: str) -> None:
    arrays[f"{name}_of_mine"] = arrays.pop(name)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([permuted, scaled, bit, renamed]),
    st.sampled_from(["keypoints", "descriptors", "scores", "image_size", "global_descriptor"]),
    st.sets(st.sampled_from(NAMES), min_size=1),
    st.booleans(),
)
def test_no_change_of_a_file_leaves_features_as_they_were_without_a_note(
    plain: Path,
    tmp_path_factory: pytest.TempPathFactory,
    change: Callable[[Arrays, str], None],
    name: str,
    images: set[str],
    again: bool,
) -> None:
    dataset, place = folder.load(plain), tmp_path_factory.mktemp("p")
    path, store = hloc(place / "f.h5", everything()), place / "store"
    import_foreign("hloc", dataset, path, store)
    before = content(dataset, store)
    usual = check_foreign("hloc", dataset, store).caveats
    changed = everything()
    for image in images:
        change(changed[image], name)
    if not again:
        store = place / "other"
    try:
        report = import_foreign("hloc", dataset, hloc(path, changed), store)
    except UserError:
        return
    if content(dataset, store) == before:
        assert set(report.caveats) - set(usual)
    if again:
        assert any("read anew" in note for note in report.notes)


@pytest.fixture(scope="module")
def files(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place of each kind. Read only."""
    root = tmp_path_factory.mktemp("files")
    for kind in ("hloc", "colmap", "arrays", "ames"):
        (root / kind).mkdir()
    hloc(root / "hloc" / "f.h5", everything())
    colmap(root / "colmap" / "f.db")
    ames(root / "ames", NAMES[:4], "m", "gallery")
    ames(root / "ames", NAMES[4:], "m", "query")
    for name, arrays in everything().items():
        np.savez(root / "arrays" / f"{Path(name).stem}.npz", **arrays)
    return root


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["hloc", "colmap", "arrays", "ames"]), st.data())
def test_no_changed_byte_leaves_features_as_they_were_without_a_note(
    plain: Path, files: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    dataset, root = folder.load(plain), tmp_path_factory.mktemp("p")
    place = shutil.copytree(files / kind, root / "place")
    given_ = place / {"hloc": "f.h5", "colmap": "f.db"}.get(kind, "")
    import_foreign(kind, dataset, given_, root / "store")
    before = content(dataset, root / "store")
    path = data.draw(st.sampled_from(sorted(place.iterdir())))
    changed = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    with pytest.raises(UserError, match=r"not what was imported|have not been imported|damaged|readable|no |expected"):
        check_foreign(kind, dataset, root / "store")
    try:
        report = import_foreign(kind, dataset, given_, root / "store")
    except UserError:
        return
    assert content(dataset, root / "store") != before or any("anew" in note or "again" in note for note in report.notes)
    check_foreign(kind, dataset, root / "store")


def test_a_method_that_would_read_some_of_unordered_descriptors_does_not_run_and_the_others_do(
    cli: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    place = hloc(tmp_path / "no.h5", everything(), {"scores": "goodness"})
    here = ("-d", f"folder:{plain}", "--cache-dir", str(tmp_path / "cache"))
    assert cli("features", "import", "hloc", str(place), *here).exit_code == 0
    done = cli("run", *here, "-f", "hloc", "-m", "mnn,identity", "-o", "mnn.descriptors=5")
    assert done.exit_code == 0 and "mnn did not run: it reads 5 of up to 12" in " ".join(done.output.split())
    assert (
        "no scores: the order of local descriptors" in " ".join(done.output.split()) or "hold no scores" in done.output
    )
    assert cli("run", *here, "-f", "hloc", "-m", "mnn", "-o", "mnn.descriptors=5").exit_code == 1
    assert cli("run", *here, "-f", "hloc", "-m", "mnn", "-o", f"mnn.descriptors={N}").exit_code == 0


def test_features_without_global_descriptors_have_no_first_stage_and_skip_what_reads_them(
    cli: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    place = hloc(tmp_path / "no.h5", without(everything(), "global_descriptor"))
    here = ("-d", f"folder:{plain}", "--cache-dir", str(tmp_path / "cache"))
    imported = cli("features", "import", "hloc", str(place), *here)
    assert imported.exit_code == 0 and "--shortlist" in imported.output
    refused = cli("run", *here, "-f", "hloc", "-m", "mnn")
    assert refused.exit_code == 1 and "has no global descriptors" in refused.output
    assert "--shortlist FILE" in refused.output and "--globals FILE" in refused.output
    dataset = folder.load(plain)
    lines = [
        f"{query.id} Q0 {image} {rank} {9 - rank} x\n"
        for query in dataset.queries
        for rank, image in enumerate(dataset.gallery, 1)
    ]
    (tmp_path / "theirs.run").write_text("".join(lines))
    done = cli("run", *here, "-f", "hloc", "-m", "mnn,aqe", "--shortlist", str(tmp_path / "theirs.run"))
    assert done.exit_code == 0
    assert "aqe did not run: it reads global descriptors, and the feature set has none" in " ".join(done.output.split())


def test_other_features_under_the_same_name_are_another_run(
    cli: Callable[..., Result], plain: Path, tmp_path: Path
) -> None:
    """Two caches and one folder of runs: what differs is the local features alone."""
    runs = []
    for number, change in enumerate((1.0, -1.0)):
        images = everything()
        for image in list(images)[:2]:
            images[image] = {**images[image], "descriptors": images[image]["descriptors"] * change}
        place = hloc(tmp_path / f"{number}.h5", images)
        here = ("-d", f"folder:{plain}", "--cache-dir", str(tmp_path / f"cache{number}"))
        assert cli("features", "import", "hloc", str(place), *here).exit_code == 0
        done = cli("run", *here, "-f", "hloc", "-m", "maxsim")
        assert done.exit_code == 0 and "already finished" not in done.output
        runs.append(done.output.splitlines()[-1])
    assert runs[0].startswith("run: ") and runs[0] != runs[1]
