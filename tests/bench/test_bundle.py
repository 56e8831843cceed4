"""A run in one file: what comes out is the run that went in, and anything else is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import bundle
from bench.blend import Blend
from bench.bundle import MANIFEST, MEMBERS, opened, unpack
from bench.errors import UserError
from bench.exports import export
from bench.report.formats import FORMATS
from bench.report.tables import compare
from bench.results import Run
from bench.shortlist import Shortlist

Members = dict[str, bytes]


@pytest.fixture
def done(finished: Callable, instances: Path) -> Run:
    return finished(instances, "identity,mnn,rrt", top_k=5)


@pytest.fixture
def packed(done: Run, tmp_path: Path) -> Path:
    (path,) = export(done, "bundle", tmp_path / "out")
    return path


def members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path: Path, content: Members, how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def signed(content: Members) -> Members:
    """With a manifest that fits, as one who changes a run on purpose would write it."""
    manifest = json.loads(content[MANIFEST])
    manifest["sha256"] = {name: hashlib.sha256(content[name]).hexdigest() for name in MEMBERS}
    return {**content, MANIFEST: json.dumps(manifest).encode()}


def refusal(path: Path) -> str:
    """Why a file is refused; the message names it, and there is something to do."""
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UserError) as caught:
        unpack(path, Path(folder) / "into")
    assert str(path) in caught.value.message and caught.value.hint
    assert folder not in caught.value.message
    return caught.value.message.removeprefix(f"{path}: ")


# --- what comes out -------------------------------------------------------------------------------------------------


def test_a_bundle_has_the_runs_files_and_the_runs_tables(done: Run, packed: Path) -> None:
    assert packed.name == f"{done.folder.name}.rerankbench.zip"
    content = members(packed)
    assert list(content) == [MANIFEST, *MEMBERS]
    assert all(content[name] == (done.folder / name).read_bytes() for name in MEMBERS)
    with opened([packed]) as (out,):
        assert (out.seal, out.record, out.folder.name) == (done.seal, done.record, done.folder.name)
        for mine, theirs in ((done.scores, out.scores), (done.details, out.details), (done.ledger, out.ledger)):
            pd.testing.assert_frame_equal(mine, theirs)
        for blend in (Blend(), Blend.parse("add:0.5")):
            assert [write(compare([done], blend)) for write in FORMATS.values()] == [
                write(compare([out], blend)) for write in FORMATS.values()
            ]


def test_the_same_run_gives_the_same_bytes(done: Run, packed: Path, tmp_path: Path) -> None:
    for name in MEMBERS:
        (done.folder / name).touch()
    (again,) = export(done, "bundle", tmp_path / "again")
    assert again.read_bytes() == packed.read_bytes()


def test_what_is_unpacked_lasts_as_long_as_it_is_used(packed: Path) -> None:
    with opened([packed, packed]) as (one, two):
        assert one.folder != two.folder and one.folder.is_dir() and two.folder.is_dir()
    assert not one.folder.exists() and not two.folder.exists() and packed.is_file()
    with opened([]) as none:
        assert none == []


def test_a_bundle_never_shows_a_file_that_it_merely_names(done: Run, packed: Path) -> None:
    with opened([packed]) as (out,):
        mine, theirs = done.dataset, out.dataset
        assert theirs.grades == mine.grades and theirs.gallery.keys() == mine.gallery.keys()
        assert [query.id for query in theirs.queries] == [query.id for query in mine.queries]
        files = [*theirs.gallery.values(), *(query.image for query in theirs.queries)]
        assert all(file.is_absolute() and not file.exists() for file in files)
        assert len(set(files)) == len({*mine.gallery.values(), *(query.image for query in mine.queries)})


def test_a_bundle_has_no_blend(done: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--blend add:1: a bundle"):
        export(done, "bundle", tmp_path, Blend.parse("add:1"))


def test_a_run_that_no_one_could_read_is_not_packed(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum((done.folder / name).stat().st_size for name in MEMBERS)
    for name, value in (("LARGEST", size - 1), ("MOST_ROWS", len(done.scores) - 1)):
        with monkeypatch.context() as patch:
            patch.setattr(bundle, name, value)
            with pytest.raises(UserError, match="too large for a bundle") as refused:
                export(done, "bundle", tmp_path / "out")
            assert str(done.folder) in refused.value.message and not list((tmp_path / "out").iterdir())


# --- what is refused ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_is_refused_or_changes_nothing(packed: Path, data: st.DataObject) -> None:
    """Times of members, for one, are in no checksum and read by nobody."""
    whole = packed.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "changed.zip"
        path.write_bytes(changed)
        try:
            out = unpack(path, Path(folder) / "into")
        except UserError as error:
            assert str(path) in error.message
        else:
            expected = members(packed)
            kept = [name for name in MEMBERS if name != "dataset.json"]  # its files are named anew
            assert all((out.folder / name).read_bytes() == expected[name] for name in kept)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_that_is_not_what_the_manifest_says_is_named(packed: Path, tmp_path: Path, name: str) -> None:
    content = members(packed)
    data = bytearray(content[name])
    data[len(data) // 2] ^= 1
    assert f"{name}: its sha256" in refusal(written(tmp_path / "a.zip", {**content, name: bytes(data)}))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(packed: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.zip"
    path.write_bytes(packed.read_bytes()[: int(share * packed.stat().st_size)])
    assert "its end is missing" in refusal(path)


@pytest.mark.parametrize("name", [MANIFEST, *MEMBERS])
def test_a_member_that_is_missing_is_named(packed: Path, tmp_path: Path, name: str) -> None:
    content = members(packed)
    del content[name]
    assert f"{name} is missing" in refusal(written(tmp_path / "a.zip", content))


@pytest.mark.parametrize("name", ["journal.jsonl", "../x", "/etc/x", "run.json/", "./run.json", "run.json\0x", "a\\b"])
def test_a_member_too_many_is_named_and_not_written(packed: Path, tmp_path: Path, name: str) -> None:
    path, before = tmp_path / "a.zip", set(tmp_path.rglob("*"))
    written(path, members(packed))
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name  # the constructor would mend it
        archive.writestr(entry, b"x")
    with pytest.raises(UserError, match="is no member of a bundle"):
        unpack(path, tmp_path / "into" / "deep")
    assert set(tmp_path.rglob("*")) <= before | {path}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_named(packed: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "a.zip", members(packed))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("dataset.json", b"{}")
    assert "dataset.json is there twice" in refusal(path)


def test_a_member_that_declares_too_much_is_refused_before_it_is_unpacked(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    for name, size, said in (("scores.parquet", 3 * 2**30, "expected at most 1073741824"), (MANIFEST, 2**17, "65536")):
        data = bytearray(packed.read_bytes())
        at = data.rindex(name.encode()) - 46  # its entry in the directory
        assert data[at : at + 4] == b"PK\x01\x02"
        data[at + 24 : at + 28] = size.to_bytes(4, "little")
        path.write_bytes(data)
        why = refusal(path)
        assert f"{name}: {size} " in why and said in why


def test_a_member_that_unpacks_to_more_than_it_declares_is_cut_there(packed: Path, tmp_path: Path) -> None:
    data = bytearray(written(tmp_path / "a.zip", {**members(packed), "dataset.json": bytes(10_000_000)}).read_bytes())
    at = data.rindex(b"dataset.json") - 46
    data[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    assert "dataset.json" in refusal(tmp_path / "a.zip")


def test_a_directory_that_declares_too_much_is_not_read(packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    data[-10:-6] = (2**16 + 1).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    assert "its directory has more than 65536 bytes" in refusal(tmp_path / "a.zip")
    large = packed.read_bytes()  # a record for large archives, which zipfile would believe
    (tmp_path / "a.zip").write_bytes(large[:-22] + b"PK\x06\x07" + bytes(16) + large[-22:])
    assert "its directory has more than 65536 bytes" in refusal(tmp_path / "a.zip")


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(packed: Path, tmp_path: Path, how: int) -> None:
    assert "neither stored nor deflated" in refusal(written(tmp_path / "a.zip", members(packed), how))


def test_an_archive_that_was_packed_again_is_read(packed: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "a.zip", dict(reversed(members(packed).items())), zipfile.ZIP_STORED)
    with opened([path, packed]) as (one, two):
        assert one.record == two.record


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b'{"format": 2}', "format 2, expected 1"),
        (b"[]", "format null, expected 1"),
        (b'{"format": 1, "sha256": {"run.json": ""}}', "sha256 of every member"),
        (b"{", "manifest.json: "),
        (b"[" * 60_000, "manifest.json: "),
        (b"\xff\xfe{", "manifest.json: "),
    ],
)
def test_a_manifest_of_another_kind_is_refused(packed: Path, tmp_path: Path, manifest: bytes, said: str) -> None:
    assert said in refusal(written(tmp_path / "a.zip", {**members(packed), MANIFEST: manifest}))


def test_a_file_of_another_kind_is_refused(done: Run, tmp_path: Path) -> None:
    assert "not a zip archive" in refusal(done.folder / "run.json")
    assert "'about.npy' is no member" in refusal(done.folder / "shortlist.npz")
    assert "No such file" in refusal(tmp_path / "none")
    assert "not a file" in refusal(tmp_path)


def changed_record(content: Members, **values: object) -> Members:
    return {**content, "run.json": json.dumps({**json.loads(content["run.json"]), **values}).encode()}


def test_a_record_or_a_seal_that_does_not_fit_is_refused_as_in_a_folder(
    run: Callable, buildings: Path, packed: Path, tmp_path: Path
) -> None:
    content, path = members(packed), tmp_path / "a.zip"
    other = run(buildings, "identity", top_k=5).run
    deep = b"[" * 100_000
    for changed, said in (
        (changed_record(content, status="running"), "run.json: running, format 3, expected a finished run"),
        (changed_record(content, format=2), "run.json: finished, format 2, expected a finished run"),
        (changed_record(content, costs=None), "run.json: costs is null, expected an object"),
        ({**content, "run.json": deep}, "run.json: "),
        ({**content, "dataset.json": deep}, "dataset.json: "),
        ({**content, "dataset.json": b"{}"}, "dataset.json: "),
        (
            {**content, "shortlist.npz": (other.folder / "shortlist.npz").read_bytes()},
            "shortlist.npz: its seal is not that of run.json",
        ),
        ({**content, "shortlist.npz": b"PK"}, "shortlist.npz: "),
        ({**content, "scores.parquet": b"PAR1"}, "scores.parquet: "),
        ({**content, "scores.parquet": content["ledger.parquet"]}, "scores.parquet: its columns are not method, list"),
    ):
        assert said in refusal(written(path, signed(changed))), said


def test_a_list_that_was_changed_no_longer_fits_its_seal(done: Run, packed: Path, tmp_path: Path) -> None:
    shortlist = Shortlist.load(done.folder / "shortlist.npz")
    lists = {name: values[:, ::-1] for name, values in shortlist.lists.items()}
    replace(shortlist, lists=lists).save(tmp_path / "other.npz")
    changed = {**members(packed), "shortlist.npz": (tmp_path / "other.npz").read_bytes()}
    assert "shortlist.npz: its seal is not" in refusal(written(tmp_path / "a.zip", signed(changed)))


def test_a_table_of_too_many_rows_is_refused(packed: Path, done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MOST_ROWS", len(done.scores) - 1)
    assert f"scores.parquet: {len(done.scores)} rows, expected at most" in refusal(packed)


def test_arrays_that_are_small_only_while_packed_are_refused(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, arrays = members(packed), io.BytesIO()
    largest = sum(map(len, content.values())) + 10_000
    np.savez_compressed(arrays, about=np.zeros(2 * largest, np.uint8))
    monkeypatch.setattr(bundle, "LARGEST", largest)
    path = written(tmp_path / "a.zip", signed({**content, "shortlist.npz": arrays.getvalue()}))
    assert f"shortlist.npz: arrays of more than {largest} bytes" in refusal(path)


# --- in a report ----------------------------------------------------------------------------------------------------

SMALL = ("--max-side", "160", "--keep-descriptors", "150", "-k", "5")


def report(cli: Callable[..., Result], *more: str) -> list[dict]:
    shown = cli("report", "--format", "json", *more)
    assert shown.exit_code == 0, shown.output
    return [json.loads(line) for line in shown.stdout.splitlines() if line.strip()]


def rows(table: dict) -> set[str]:
    return {row["method"] for row in table["rows"]}


@pytest.fixture
def elsewhere(cli: Callable[..., Result], instances: Path, tmp_path: Path) -> Callable[..., Path]:
    """The bundle of a run that this machine does not have."""

    def go(method: str, *more: str) -> Path:
        runs, out = str(tmp_path / f"runs of {method}"), tmp_path / f"bundle of {method}"
        made = cli("run", "-m", method, "-d", f"folder:{instances}", "--runs", runs, *SMALL, *more)
        assert made.exit_code == 0, made.output
        assert cli("export", "--format", "bundle", "--runs", runs, "--out", str(out)).exit_code == 0
        (path,) = out.iterdir()
        return path

    return go


def test_a_report_shows_added_runs_beside_those_of_the_same_seal(
    cli: Callable[..., Result], elsewhere: Callable[..., Path], instances: Path, tmp_path: Path
) -> None:
    added = elsewhere("mnn")
    (alone,) = report(cli, "--add", str(added))
    assert rows(alone) == {"mnn"} and not (tmp_path / "runs").exists()
    assert cli("run", "-m", "reverse", "-d", f"folder:{instances}", *SMALL).exit_code == 0
    before = set((tmp_path / "runs").rglob("*"))
    (table,) = report(cli, "--add", str(added), "--add", str(elsewhere("identity")))
    assert rows(table) == {"mnn", "reverse", "identity"} and table["seal"] == alone["seal"]
    assert next(row for row in table["rows"] if row["method"] == "mnn")["mAP All"] == alone["rows"][0]["mAP All"]
    assert set((tmp_path / "runs").rglob("*")) == before
    assert rows(report(cli)[0]) == {"reverse"}


def test_a_run_that_is_here_and_added_is_one_row(
    cli: Callable[..., Result], elsewhere: Callable[..., Path], tmp_path: Path
) -> None:
    added = elsewhere("mnn")
    here = ("--runs", str(tmp_path / "runs of mnn"))
    assert report(cli, *here, "--add", str(added), "--add", str(added)) == report(cli, *here)


def test_an_added_run_of_other_hardware_has_its_own_table(
    cli: Callable[..., Result], elsewhere: Callable[..., Path], instances: Path, tmp_path: Path
) -> None:
    content = members(elsewhere("mnn"))
    record = json.loads(content["run.json"])
    record["identity"]["hardware"]["cpu"] = "another"
    path = written(tmp_path / "other.zip", signed({**content, "run.json": json.dumps(record).encode()}))
    assert cli("run", "-m", "reverse", "-d", f"folder:{instances}", *SMALL).exit_code == 0
    tables = report(cli, "--add", str(path))
    assert len(tables) == 2 and tables[0]["seal"] == tables[1]["seal"]
    of = {table["hardware"]["cpu"]: rows(table) for table in tables}
    assert of.pop("another") == {"mnn"} and list(of.values()) == [{"reverse"}]


def test_added_runs_are_narrowed_as_others_are(cli: Callable[..., Result], elsewhere: Callable[..., Path]) -> None:
    added = str(elsewhere("mnn"))
    (table,) = report(cli, "--add", added)
    assert rows(report(cli, "--add", added, "--seal", table["seal"][:8])[0]) == {"mnn"}
    for more in (("--seal", "zz"), ("--dataset", "demo")):
        refused = cli("report", "--add", added, *more)
        assert refused.exit_code == 1 and "no finished run of that kind" in refused.output


def test_a_report_that_cannot_read_a_bundle_says_which(
    cli: Callable[..., Result], elsewhere: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK")
    refused = cli("report", "--add", str(elsewhere("mnn")), "--add", str(tmp_path / "bad.zip"))
    assert refused.exit_code == 1 and "bad.zip: not a bundle" in refused.output.replace("\n", "")
    missing = cli("report", "--add", str(tmp_path / "none.zip"))
    assert missing.exit_code == 1 and "none.zip: not a bundle" in missing.output.replace("\n", "")


def test_pictures_are_of_images_that_are_here(
    cli: Callable[..., Result], elsewhere: Callable[..., Path], tmp_path: Path
) -> None:
    plots = ("--plots", str(tmp_path / "plots"), "--worst", "mnn")
    refused = cli("report", "--add", str(elsewhere("mnn")), *plots)
    assert refused.exit_code == 1 and "images of runs that are added are not here" in refused.output
