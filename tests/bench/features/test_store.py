"""The feature store keeps what was extracted, notices what changed and loses nothing that was finished."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bench.datasets import Dataset, folder
from bench.errors import UserError
from bench.extractor import waits
from bench.features import Features
from bench.features import extract as extracting
from bench.features import fill as filling
from bench.features.extract import extract
from bench.features.fill import ExtractReport
from bench.features.items import Item, items, query_key
from bench.features.sets import EXTRACTORS, ExtractOptions, FeatureExtractor, FeatureSet, SetName, part_folder
from bench.features.store import FeatureStore
from bench.locks import alone
from bench.places import Places
from bench.run import Outcome
from bench.shortlist import BLIND_LIST
from tests.programs import Start

EXTRACT = ExtractOptions(160, 150)
XFEAT = SetName.parse("xfeat").parts[0]
IDENTITY = XFEAT.identity(EXTRACT)  # type: ignore[union-attr]
# not: those with weights to be given, or to be fetched
READY = [
    name
    for name in EXTRACTORS.names()
    if not (spec := (cls := EXTRACTORS.get(name)).spec).takes
    and spec.gives == "local"
    and (spec.skip() or waits(cls, cls.Options())) is None
]
REPOSITORY = Path(__file__).resolve().parents[3]


class Whole(FeatureExtractor):
    """Both parts of a set in one store, as an import has them."""

    def empty(self) -> dict[str, np.ndarray]:
        return {name: array for part in self._parts for name, array in part.empty().items()}


@pytest.fixture(scope="module")
def extractor() -> Whole:
    return Whole("xfeat", EXTRACT)


@pytest.fixture
def fill(extractor: FeatureExtractor, tmp_path: Path) -> Callable[..., ExtractReport]:
    """`fill(images)` brings the store in tmp_path/store up to date with a folder of images."""

    def go(images: Path | Dataset, **more: object) -> ExtractReport:
        dataset = folder.load(images) if isinstance(images, Path) else images
        return extract(
            items(dataset),
            tmp_path / "store",
            more.pop("make", lambda: extractor),  # type: ignore[arg-type]
            more.pop("identity", IDENTITY),
            **more,
        )  # type: ignore[arg-type]

    return go


@pytest.fixture
def small(write_instances: Callable[..., Path], tmp_path: Path) -> Path:
    """2 instances of 2 views, to be changed by the test."""
    return write_instances(tmp_path / "images", 2, 2)


@pytest.fixture
def guarded(write_buildings: Callable[..., Path], tmp_path: Path) -> Path:
    """The layout with gnd.json, to be changed by the test."""
    return write_buildings(tmp_path / "images")


def no_extractor() -> FeatureExtractor:
    raise AssertionError("nothing is to be extracted")


def features_equal(a: Features, b: Features) -> bool:
    return all(torch.equal(getattr(a, name), value) for name, value in vars(b).items())


# --- what is stored -----------------------------------------------------------------------------------------------


def test_features_read_are_the_features_extracted_to_half_precision(
    stored: tuple[Dataset, FeatureSet], extractor: FeatureExtractor
) -> None:
    dataset, store = stored
    key = "object1/view2"
    made = extractor(np.asarray(Image.open(dataset.gallery[key]).convert("RGB")))
    read = store.read(key)
    assert len(read) == len(made["scores"]) > 50
    for name, value in made.items():
        found = getattr(read, name).numpy()
        exact = name in ("keypoints", "image_size")
        np.testing.assert_allclose(found, value, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-3, err_msg=name)
        assert found.dtype == np.float32
    assert read.image_size.tolist() == [160, 120]
    assert torch.allclose(read.descriptors.norm(dim=1), torch.ones(len(read)), atol=2e-3)
    assert (read.keypoints[:, 0] <= 159).all() and (read.keypoints >= 0).all()


def test_only_what_is_needed_is_read(stored: tuple[Dataset, FeatureSet]) -> None:
    store = stored[1]
    whole = store.read("object0/view0")
    nothing = store.read("object0/view0", frozenset())
    assert (
        len(nothing) == 0 and len(nothing.global_descriptor) == 0 and torch.equal(nothing.image_size, whole.image_size)
    )
    local = store.read("object0/view0", frozenset({"local"}))
    assert torch.equal(local.descriptors, whole.descriptors) and local.keypoints.abs().sum() == 0
    assert len(local.global_descriptor) == 0
    with_points = store.read("object0/view0", frozenset({"local", "keypoints"}), top=7)
    assert torch.equal(with_points.keypoints, whole.keypoints[:7]) and len(with_points) == 7
    only_global = store.read("object0/view0", frozenset({"global"}))
    assert torch.equal(only_global.global_descriptor, whole.global_descriptor) and len(only_global) == 0


def test_the_first_rows_are_the_best(stored: tuple[Dataset, FeatureSet]) -> None:
    store = stored[1]
    whole, best = store.read("object2/view0"), store.read("object2/view0", top=10)
    assert torch.equal(best.scores, whole.scores[:10]) and (whole.scores.diff() <= 0).all()
    assert features_equal(whole.top(10), best)


def test_bytes_per_image_count_what_a_method_reads(stored: tuple[Dataset, FeatureSet]) -> None:
    store = stored[1]
    assert store.bytes_per_image(frozenset({"global"})) == (2560, 0)
    assert store.bytes_per_image(frozenset({"local"})) == (0, 64 * 2 + 2 + 2)
    assert store.bytes_per_image(frozenset({"local", "keypoints"})) == (0, 64 * 2 + 2 + 2 + 8 + 2)
    assert store.bytes_per_image(frozenset({"truth"})) == (0, 0)


def test_reading_cannot_change_the_store(stored: tuple[Dataset, FeatureSet]) -> None:
    store = stored[1]
    before = store.read("object0/view1")
    store.read("object0/view1").descriptors.zero_()
    assert features_equal(store.read("object0/view1"), before)


def test_nothing_stored_is_a_pickle(stored: tuple[Dataset, FeatureSet]) -> None:
    for file in (path for store in (stored[1].local, stored[1].globals_) for path in store.folder.rglob("*.npy")):
        np.load(file, allow_pickle=False)


def test_a_query_with_a_box_is_stored_apart_and_cropped(guarded: Path, fill: Callable, tmp_path: Path) -> None:
    dataset = folder.load(guarded)
    assert [i.key for i in items(dataset)][:2] == [query_key(dataset, 0), query_key(dataset, 1)]
    assert fill(guarded).extracted == 14
    store = FeatureStore(tmp_path / "store")
    assert store.read(query_key(dataset, 0)).image_size.tolist() == [140, 110]
    truth = json.loads((guarded / "gnd.json").read_text())
    truth["queries"][1]["box"] = [0, 0, 80, 120]
    (guarded / "gnd.json").write_text(json.dumps(truth))
    report = fill(guarded)
    assert report.extracted == 1 and "another query box" in report.notes[0]
    assert FeatureStore(tmp_path / "store").read(query_key(dataset, 1)).image_size.tolist() == [80, 120]


def test_a_gallery_folder_called_query_is_not_mistaken_for_queries(
    guarded: Path, fill: Callable, view: Callable, tmp_path: Path
) -> None:
    """gallery/query/query0 and queries/query0 are two images."""
    (guarded / "gallery" / "query").mkdir()
    Image.fromarray(view(55, 0)).save(guarded / "gallery" / "query" / "query0.png")
    truth = json.loads((guarded / "gnd.json").read_text())
    truth["gallery"].append("query/query0")
    (guarded / "gnd.json").write_text(json.dumps(truth))
    assert fill(guarded).extracted == 15
    dataset, store = folder.load(guarded), FeatureStore(tmp_path / "store")
    assert store.read("query/query0").image_size.tolist() == [160, 120]
    assert store.read(query_key(dataset, 0)).image_size.tolist() == [140, 110]


# --- odd images ---------------------------------------------------------------------------------------------------


def odd_images(root: Path) -> dict[str, bool]:
    """Writes odd files into an instance; name -> whether an image can be read from it."""
    rgb = np.asarray(Image.open(root / "gallery" / "other0.png").convert("RGB"))
    image, whole = Image.fromarray(rgb), (root / "gallery" / "other0.png").read_bytes()
    save: dict[str, Callable[[Path], object]] = {
        "corrupt.png": lambda p: p.write_bytes(whole[:60] + b"\x55" * 400 + whole[460:]),
        "truncated.png": lambda p: p.write_bytes(whole[: len(whole) // 3]),
        "empty.jpg": lambda p: p.write_bytes(b""),
        "text.jpg": lambda p: p.write_text("not an image"),
        "pixel.png": lambda p: Image.new("RGB", (1, 1), "red").save(p),
        "sliver.png": lambda p: Image.fromarray(rgb[:1]).save(p),
        "thread.png": lambda p: Image.fromarray(np.tile(rgb[:, :1], (20, 1, 1))).save(p),
        "grey.png": lambda p: image.convert("L").save(p),
        "rgba.png": lambda p: image.convert("RGBA").save(p),
        "palette.png": lambda p: image.convert("P").save(p),
        "cmyk.jpg": lambda p: image.convert("CMYK").save(p),
        "deep.png": lambda p: Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(p),
        "flat.png": lambda p: Image.new("RGB", (160, 120), (90, 90, 90)).save(p),
        "black.png": lambda p: Image.new("RGB", (160, 120)).save(p),
    }
    for name, write in save.items():
        write(root / "gallery" / name)
    truth = json.loads((root / "gnd.json").read_text())
    truth["gallery"] += [Path(name).stem for name in save]
    (root / "gnd.json").write_text(json.dumps(truth))
    return {Path(n).stem: n not in ("corrupt.png", "truncated.png", "empty.jpg", "text.jpg") for n in save}


@pytest.mark.parametrize("features", READY)
def test_odd_images_are_read_or_reported_and_all_stay_in_the_gallery(
    guarded: Path, run: Callable[..., Outcome], features: str
) -> None:
    odd = odd_images(guarded)
    outcome = run(guarded, "identity,ransac,constant", features=features)
    assert not outcome.run.record.failed
    unreadable = outcome.run.record.unreadable
    assert set(unreadable) == {name for name, readable in odd.items() if not readable}
    assert all(f"{name}." in reason for name, reason in unreadable.items())
    assert any("4 images cannot be read" in note for note in outcome.notes)
    short = outcome.run.shortlist
    assert set(odd) <= set(short.gallery)
    for name in unreadable:
        candidate = short.lists[BLIND_LIST] == short.gallery.index(name)
        assert candidate.any() and (short.similarities[BLIND_LIST][candidate] == 0).all()
    scores = outcome.run.scores
    assert (
        scores[(scores.method == "ransac") & scores.candidate.isin([*unreadable, "flat", "black"])].score == 0
    ).all()


def test_modes_of_one_picture_have_like_features(guarded: Path, fill: Callable, tmp_path: Path) -> None:
    odd_images(guarded)
    fill(guarded)
    store = FeatureStore(tmp_path / "store")
    original = store.read("other0")
    for name in ("grey", "rgba", "palette", "cmyk", "deep"):
        other = store.read(name)
        assert len(other) > 50 and float(other.global_descriptor @ original.global_descriptor) > 0.6, name
    assert features_equal(store.read("rgba"), original)


def test_a_photograph_decoded_at_half_its_size_has_its_features_in_pixels_of_the_file(
    tmp_path: Path, view: Callable, extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Image.fromarray(view(0, 0)).resize((960, 720), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.jpg", quality=95)
    for box in (None, (96.0, 60.0, 900.0, 690.0)):
        item = Item("photo", (tmp_path / "photo.jpg",), box)
        whole = extracting._extract_one(item, extractor).arrays
        monkeypatch.setattr("bench.images.WHOLE", 480 * 360)
        half = extracting._extract_one(item, extractor).arrays
        monkeypatch.undo()
        assert (
            half["image_size"].tolist() == whole["image_size"].tolist() == ([960, 720] if box is None else [804, 630])
        )
        assert half["keypoints"].max() > 480 and (half["keypoints"] < half["image_size"]).all()
        assert np.median(half["scales"]) == pytest.approx(np.median(whole["scales"]), rel=0.02)
        assert half["global_descriptor"] @ whole["global_descriptor"] > 0.98
        best = half["descriptors"] @ whole["descriptors"].T
        near = np.linalg.norm(half["keypoints"] - whole["keypoints"][best.argmax(1)], axis=1)
        assert np.median(near) < 6  # one pixel of the 160 that features are made of


def test_photographs_of_108_megapixels_are_read_and_the_limit_is_an_option(
    cli: Callable, small: Path, tmp_path: Path
) -> None:
    run = ("run", "-m", "identity", "--max-side", "160", "--keep-descriptors", "150", "--threads", "1", "-d")
    Image.new("L", (12_000, 9_000), 90).save(small / "object0" / "phone.jpg", quality=20)
    assert cli(*run, f"folder:{small}").exit_code == 0
    refused = cli(*run, f"folder:{small}", "--max-megapixels", "100")
    assert refused.exit_code == 1
    assert "phone.jpg: 108 megapixels (12000x9000), the limit is 100 (--max-megapixels)" in refused.output
    assert cli(*run, f"folder:{small}", "--max-megapixels", "108").exit_code == 0


def test_the_limit_is_part_of_what_features_are_unless_it_is_the_usual_one() -> None:
    other = ExtractOptions(160, 150, max_megapixels=100)
    assert "max_megapixels" not in IDENTITY
    assert XFEAT.identity(other) == {**IDENTITY, "max_megapixels": 100}  # type: ignore[union-attr]
    places = Places(Path("c"), Path("d"), Path("r"))
    usual, low = (part_folder("demo", XFEAT, options, places).name for options in (EXTRACT, other))
    assert (usual, low) == ("demo-xfeat-160px-150", "demo-xfeat-160px-150-100mp")
    with pytest.raises(UserError, match="max_megapixels 0: expected at least 1"):
        ExtractOptions(max_megapixels=0)


@pytest.mark.parametrize("features", ["sift", "xfeat"])  # others find some in noise of their own
def test_an_image_without_keypoints_has_a_global_descriptor_and_no_rows(
    guarded: Path, run: Callable[..., Outcome], features: str, places
) -> None:
    Image.new("RGB", (160, 120), (90, 90, 90)).save(guarded / "queries" / "query0.png")
    methods = "identity,ransac" + (",lightglue" if features == "xfeat" else "")
    outcome = run(guarded, methods, features=features, top_k=2)
    assert not outcome.run.record.failed
    scores = outcome.run.scores
    flat = scores[(scores["query"] == "query0") & (scores.method != "identity")]
    assert len(flat) and (flat.score == 0).all()


def test_an_unreadable_query_is_an_error_that_names_it(guarded: Path, fill: Callable, small: Path) -> None:
    (guarded / "queries" / "query1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 query image cannot be read:\s+.*query1.png") as refusal:
        fill(guarded)
    assert refusal.value.hint


def test_an_unreadable_image_of_an_instance_is_a_query_and_so_an_error(small: Path, fill: Callable) -> None:
    (small / "object1" / "view0.png").write_bytes(b"garbage")
    for _ in range(2):
        with pytest.raises(UserError, match=r"1 query image cannot be read:\s+.*view0.png"):
            fill(small)


def test_an_unreadable_distractor_of_an_instance_set_is_kept(small: Path, fill: Callable, tmp_path: Path) -> None:
    (small / "alone").mkdir()
    (small / "alone" / "broken.png").write_bytes(b"garbage")
    report = fill(small)
    assert list(report.unreadable) == ["alone/broken"]
    read = FeatureStore(tmp_path / "store").read("alone/broken")
    assert len(read) == 0 and read.global_descriptor.abs().sum() == 0 and len(read.global_descriptor) == 1280


def test_a_mended_image_is_read_again(small: Path, fill: Callable, view: Callable, tmp_path: Path) -> None:
    (small / "alone").mkdir()
    (small / "alone" / "broken.png").write_bytes(b"garbage")
    fill(small)
    Image.fromarray(view(9, 9)).save(small / "alone" / "broken.png")
    report = fill(small)
    assert report.extracted == 1 and not report.unreadable
    assert len(FeatureStore(tmp_path / "store").read("alone/broken")) > 50


def test_an_image_that_vanished_after_it_was_listed_is_unreadable(small: Path, fill: Callable) -> None:
    (small / "alone").mkdir()
    gone = small / "alone" / "gone.png"
    Image.new("RGB", (50, 50)).save(gone)
    dataset = folder.load(small)
    gone.unlink()
    assert "alone/gone" in fill(dataset).unreadable


# --- up to date ---------------------------------------------------------------------------------------------------


def test_nothing_is_read_twice(small: Path, fill: Callable) -> None:
    assert fill(small).extracted == 4
    again = fill(small, make=no_extractor)
    assert again.extracted == 0 and again.notes == ()


def test_a_touched_image_is_not_read_again(small: Path, fill: Callable) -> None:
    fill(small)
    os.utime(small / "object0" / "view0.png", (1, 1))
    assert fill(small, make=no_extractor).extracted == 0


def test_a_new_image_is_added(small: Path, fill: Callable, view: Callable, tmp_path: Path) -> None:
    fill(small)
    before = FeatureStore(tmp_path / "store").read("object0/view0")
    Image.fromarray(view(0, 8)).save(small / "object0" / "view8.png")
    assert fill(small).extracted == 1
    store = FeatureStore(tmp_path / "store")
    assert len(store) == 5 and features_equal(store.read("object0/view0"), before)


def test_a_changed_image_is_noticed_read_again_and_changes_the_seal(
    small: Path, run: Callable[..., Outcome], view: Callable
) -> None:
    before = run(small, "identity").run
    Image.fromarray(view(77, 0)).save(small / "object0" / "view1.png")
    outcome = run(small, "identity")
    assert outcome.run.seal != before.seal and outcome.run.folder != before.folder
    (note,) = [note for note in outcome.notes if "read again" in note]
    assert "view1.png changed since its features were stored" in note
    assert before.seal == type(before).load(before.folder).shortlist.seal  # the old run is as it was


def test_a_changed_image_of_the_same_size_and_name_changes_the_seal_too(
    small: Path, run: Callable[..., Outcome], view: Callable
) -> None:
    """The image set is listed by name and size; contents are under the seal through the features."""
    for path in sorted(small.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    before = run(small, "identity").run
    Image.fromarray(view(77, 0)).save(small / "object0" / "view1.bmp")
    after = run(small, "identity").run
    assert folder.load(small).image_set == before.dataset.image_set == after.dataset.image_set
    assert before.seal != after.seal


def test_the_content_covers_settings_keys_images_and_boxes_and_not_where_they_are_stored(
    small: Path, fill: Callable, two_a_shard: None, tmp_path: Path
) -> None:
    """The same picture in other bytes gives the same similarities, and is another content all the same."""
    fill(small)
    keys = list(folder.load(small).gallery)

    def content() -> str:
        return FeatureStore(tmp_path / "store").content(keys)

    before = content()
    assert FeatureStore(tmp_path / "store").content(keys[:3]) != before
    assert FeatureStore(tmp_path / "store").content(keys[::-1]) != before
    original = (small / "object0" / "view0.png").read_bytes()
    Image.open(small / "object0" / "view0.png").save(small / "object0" / "view0.png", compress_level=1)
    assert fill(small).extracted == 1 and content() != before
    (small / "object0" / "view0.png").write_bytes(original)
    assert fill(small).extracted == 1 and content() == before  # in another shard now
    settings = tmp_path / "store" / "set.json"
    settings.write_text(json.dumps({**IDENTITY, "max_side": 161}, sort_keys=True))
    assert content() != before


def test_other_settings_extract_anew(small: Path, fill: Callable) -> None:
    fill(small)
    report = fill(small, identity={**IDENTITY, "version": 0})
    assert report.extracted == 4 and "other settings" in report.notes[0]


# --- damage and interruption --------------------------------------------------------------------------------------


@pytest.fixture
def two_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SHARD_IMAGES", 2)


@pytest.mark.parametrize(
    "damage", ["truncated array", "missing array", "empty list", "cut list", "missing list", "list of another kind"]
)
def test_a_damaged_shard_is_reported_set_aside_and_read_again(
    small: Path, fill: Callable, two_a_shard: None, tmp_path: Path, damage: str
) -> None:
    fill(small)
    intact = {key: FeatureStore(tmp_path / "store").read(key) for key in folder.load(small).gallery}
    shard = tmp_path / "store" / "shards" / "000001"
    array, listed = shard / "descriptors.npy", shard / "shard.json"
    {
        "truncated array": lambda: os.truncate(array, array.stat().st_size // 2),
        "missing array": array.unlink,
        "empty list": lambda: os.truncate(listed, 0),
        "cut list": lambda: os.truncate(listed, 60),
        "missing list": listed.unlink,
        "list of another kind": lambda: listed.write_text("[1, 2]"),
    }[damage]()
    report = fill(small)
    assert report.extracted == 2
    assert "000001 was damaged" in report.notes[0] and "set aside as damaged-000001" in report.notes[0]
    store = FeatureStore(tmp_path / "store")
    assert all(features_equal(store.read(key), value) for key, value in intact.items())
    assert fill(small, make=no_extractor).notes == ()
    shard = sorted((tmp_path / "store" / "shards").glob("[0-9]*"))[-1]  # and a second time
    (shard / "shard.json").unlink()
    assert fill(small).extracted == 2


def test_an_unfinished_shard_of_a_killed_process_is_swept_away(small: Path, fill: Callable, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "store" / "shards" / f"tmp-{gone.pid}").mkdir(parents=True)
    (tmp_path / "store" / "shards" / f"tmp-{gone.pid}" / "scores.npy").write_bytes(b"half")
    fill(small)
    assert [p.name for p in (tmp_path / "store" / "shards").iterdir()] == ["000000"]


def test_an_interrupted_extraction_goes_on_without_reading_finished_images(
    small: Path, fill: Callable, two_a_shard: None, extractor: FeatureExtractor
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(small, progress=interrupt)
    read: list[str] = []
    real = extracting._extract_one

    def counted(item: Item, with_: FeatureExtractor) -> tuple:
        read.append(item.key)
        return real(item, with_)

    extracting._extract_one = counted
    try:
        report = fill(small)
    finally:
        extracting._extract_one = real
    assert read == ["object1/view0", "object1/view1"] and report.extracted == 2


def test_a_torn_record_of_the_settings_does_not_lock_the_store(small: Path, fill: Callable, tmp_path: Path) -> None:
    fill(small)
    (tmp_path / "store" / "set.json").write_text("")
    assert fill(small).extracted == 4
    (tmp_path / "store" / "set.json").unlink()
    assert fill(small).extracted == 4


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import bench.features.fill as filling
from bench.features.items import items
from bench.datasets import folder
from bench.errors import UserError
from bench.extractor import waits
from bench.features.extract import ExtractOptions, PartExtractor, extract
from bench.features.sets import SetName
filling.SHARD_IMAGES = 2
options = ExtractOptions(160, 150)
part = SetName.parse("xfeat").parts[0]
made = PartExtractor(part, options)
def progress(done, total):
    if done == 3:  # the first shard is written
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    extract(items(folder.load(Path(sys.argv[1]))), Path(sys.argv[2]), lambda: made,
            part.identity(options), progress)
except UserError as error:
    print(error)
    sys.exit(7)
"""


def test_a_disk_that_takes_no_more_is_a_clear_error_and_finished_shards_survive(
    program: Start, small: Path, fill: Callable, two_a_shard: None, tmp_path: Path
) -> None:
    """The operating system refuses to write (a limit on file sizes, as a full disk or a quota does)."""
    done = program("-c", FULL, str(small), str(tmp_path / "store")).finish()
    assert done.returncode == 7, done.stderr[-2000:]
    assert "cannot write" in done.stdout and "finished shards are kept" in done.stdout
    assert [p.name for p in (tmp_path / "store" / "shards").iterdir()] == ["000000"]
    report = fill(small)
    assert report.extracted == 2 and report.notes == ()


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A real file system of 256 KiB; root only."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True
        ).returncode
        != 0
    ):
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # an error that is held holds open files


def test_a_full_disk_is_a_clear_error_and_making_room_goes_on(
    tiny_disk: Path, instances: Path, two_a_shard: None, extractor: FeatureExtractor
) -> None:
    """Shards of two images of about 45 kB: two fit beside what fills the disk, a third does not."""
    place, wanted = tiny_disk / "store", list(items(folder.load(instances)))
    filler = tiny_disk / "other people's files"
    filler.write_bytes(b"x" * 60_000)
    with pytest.raises(UserError, match="No space left on device"):
        extract(wanted, place, lambda: extractor, IDENTITY)
    kept = sorted(p.name for p in (place / "shards").iterdir())
    assert kept and all(name.isdigit() for name in kept)
    with pytest.raises(UserError, match="No space left on device"):  # still full: still clear, still nothing lost
        extract(wanted, place, lambda: extractor, IDENTITY)
    assert sorted(p.name for p in (place / "shards").iterdir())[: len(kept)] == kept
    filler.unlink()
    some = extract(wanted[: 2 * len(kept)], place, no_extractor, IDENTITY)
    assert some.extracted == 0


def test_a_disk_full_anywhere_in_a_run_is_a_clear_error_and_no_query_is_scored_twice(
    tiny_disk: Path, run: Callable[..., Outcome], instances: Path, places: Places
) -> None:
    """With more and more room, the run fails in the shortlist, the journal, the tables, and at last succeeds."""
    filler, names, kept_counts, wanted = tiny_disk / "filler", "identity,reverse,constant,random,oracle", [], None
    for room in range(4, 80, 6):
        filler.write_bytes(b"x" * 1024 * (256 - room))
        here = Places(places.cache, places.data, tiny_disk / "runs")
        try:
            run(instances, names, here)
            kept_counts.append(-1)
        except UserError as error:
            assert "No space left on device" in str(error) and error.hint
            journals = list(here.runs.glob("*/journal.jsonl"))
            kept = [line for path in journals for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")]
            kept_counts.append(len(kept))
            filler.unlink()
            done = run(instances, names, here).run
            lines = (done.folder / "journal.jsonl").read_bytes().splitlines(True)
            assert len(lines) == 45 and lines[: len(kept)] == kept
            wanted = done.scores if wanted is None else wanted
            columns = ["method", "query", "candidate"]
            pd.testing.assert_frame_equal(
                *(t.sort_values(columns, ignore_index=True) for t in (done.scores, wanted)), check_exact=True
            )
        shutil.rmtree(here.runs)
    assert kept_counts[0] == 0 and any(0 < n < 45 for n in kept_counts) and kept_counts[-1] == -1, kept_counts


def test_an_unfinished_shard_of_a_running_process_is_left_alone(tmp_path: Path, small: Path, fill: Callable) -> None:
    """Whoever writes one holds the lock, on this machine or in another container; nobody looks at its pid."""
    alive = tmp_path / "store" / "shards" / "tmp-7-of another container"
    with alone(tmp_path / "store", "extracting into"):
        alive.mkdir(parents=True)
        waiting = threading.Thread(target=fill, args=(small,))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive() and alive.is_dir()
    waiting.join(60)
    assert not waiting.is_alive() and not alive.exists() and len(FeatureStore(tmp_path / "store")) == 4


def test_what_a_killed_merging_left_goes_although_every_image_is_there(
    tmp_path: Path, small: Path, fill: Callable
) -> None:
    fill(small)
    left = tmp_path / "store" / "shards" / "tmp-7-left"
    left.mkdir()
    with alone(tmp_path / "store", "extracting into"):
        fill(small)  # it does not wait, since nothing is to be written
        assert left.is_dir()
    fill(small)
    assert not left.exists() and len(FeatureStore(tmp_path / "store")) == 4


def test_opening_a_store_while_its_shards_are_merged_finds_every_image(program: Start, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from bench.features import fill, shards\nfrom bench.features.items import Item\n"
        "fill.SHARD_IMAGES, shards.MERGED = 1, 2\n"
        "made = dict(global_descriptor=np.ones(2), descriptors=np.ones((1, 2)), keypoints=np.zeros((1, 2)),\n"
        "  scales=np.ones(1), orientations=np.zeros(1), scores=np.ones(1), image_size=np.ones(2))\n"
        "for i in range(60):\n"
        "    made_ = shards.Entry('', made)\n"
        "    fill.fill([Item(str(i), ())], Path(sys.argv[1]), lambda: lambda item: made_, {'a': 1})\n"
    )
    place = tmp_path / "merging"
    writer, seen = program("-c", code, str(place)), 0
    while writer.poll() is None:
        store = FeatureStore(place)
        assert not store.damaged and len(store) >= seen
        seen = len(store)
    assert writer.finish().returncode == 0 and len(FeatureStore(place)) == 60


def resident_kib(folder: Path) -> int:
    """KiB of the arrays below `folder` that this process holds in memory."""
    held, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            inside = bool(rest) and str(folder) in line and line.endswith(".npy")
        elif inside and name == "Rss:":
            held += int(rest[0])
    return held


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system does not say what a process holds")
def test_what_is_read_leaves_no_page_of_the_store_in_memory(small: Path, fill: Callable, tmp_path: Path) -> None:
    fill(folder.load(small))
    mapped = np.load(next((tmp_path / "store").rglob("descriptors.npy")), mmap_mode="r")
    assert mapped.sum() != 0 and resident_kib(tmp_path) > 0  # a map would be seen
    del mapped
    store = FeatureStore(tmp_path / "store")
    keys = list(store)
    once, counts = store.read_all(keys), store.counts(keys)
    in_a_row = store.global_descriptors(keys)
    assert np.array_equal(store.global_descriptors(keys[::-2]), in_a_row[::-2])
    assert counts.tolist() == [len(image) for image in once] == [store.count(key) for key in keys]
    assert all(store.stored(row).arrays["scores"].shape == (store.count(row.key),) for row in store.rows())
    assert all(features_equal(a, b) for a, b in zip(once, store.read_all(keys), strict=True))
    assert resident_kib(tmp_path) == 0
