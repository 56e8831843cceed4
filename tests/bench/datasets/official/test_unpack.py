"""Archives are unpacked below their target or not at all."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.datasets.official.sources import Unpack
from bench.datasets.official.unpack import unpack
from bench.errors import UserError

Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
    return info, content


def tarred(path: Path, *entries: Entry, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("mode", ["w", "w:gz", "zip"])
def test_files_come_with_their_folders_or_without(tmp_path: Path, mode: str) -> None:
    names = {"jpg/a/1.jpg": b"one", "jpg/b/2.jpg": b"two"}
    if mode == "zip":
        archive = zipped(tmp_path / "a.zip", *names.items())
    else:
        folder = entry("jpg/", kind=tarfile.DIRTYPE)
        archive = tarred(tmp_path / "a.tar", folder, *(entry(*item) for item in names.items()), mode=mode)
    manifest = tmp_path / "manifest.jsonl"
    assert unpack(archive, tmp_path, Unpack("deep", strip="jpg/"), manifest)[0] == 2
    assert unpack(archive, tmp_path, Unpack("flat", flat=True), manifest) == (2, [])
    assert files(tmp_path / "deep") == ["a/1.jpg", "b/2.jpg"] and files(tmp_path / "flat") == ["1.jpg", "2.jpg"]
    assert [json.loads(line)["path"] for line in manifest.read_text().splitlines()][2:] == ["flat/1.jpg", "flat/2.jpg"]
    assert not (tmp_path / "deep.unpacking").exists()


def test_a_manifest_that_a_kill_tore_is_whole_again(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar", entry("1.jpg"), entry("2.jpg"))
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"path": "other/1.jpg", "bytes": 1, "sha256": "0"}\n')
    unpack(archive, tmp_path, Unpack("set"), manifest)
    whole = manifest.read_text()
    manifest.write_text(whole[:-30])
    unpack(archive, tmp_path, Unpack("set"), manifest)
    assert manifest.read_text() == whole and whole.count("\n") == 3


def link_in_zip() -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    return info, b"/etc/passwd"


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "an absolute path": lambda p: tarred(p, entry("good"), entry("/tmp/evil")),
    "a path above": lambda p: tarred(p, entry("good"), entry("a/../../evil")),
    "a backslash": lambda p: tarred(p, entry("..\\evil")),
    "a symbolic link": lambda p: tarred(p, entry("good"), entry("l", kind=tarfile.SYMTYPE, link="/etc/passwd")),
    "a hard link": lambda p: tarred(p, entry("good"), entry("l", kind=tarfile.LNKTYPE, link="good")),
    "a device": lambda p: tarred(p, entry("d", kind=tarfile.CHRTYPE)),
    "a pipe": lambda p: tarred(p, entry("d", kind=tarfile.FIFOTYPE)),
    "the same file twice": lambda p: tarred(p, entry("a"), entry("a")),
    "too many files": lambda p: tarred(p, *(entry(str(i)) for i in range(51))),
    "a bomb": lambda p: tarred(p, entry("zeros", b"\0" * 30_000_000), mode="w:gz"),
    "a zip bomb": lambda p: zipped(p, ("zeros", b"\0" * 30_000_000), how=zipfile.ZIP_DEFLATED),
    "a zip with a path above": lambda p: zipped(p, ("../evil", b"x")),
    "a zip with a link": lambda p: zipped(p, link_in_zip()),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_leaves_nothing(tmp_path: Path, what: str) -> None:
    place = tmp_path / "root"
    place.mkdir()
    archive = HOSTILE[what](tmp_path / "archive")
    with pytest.raises(UserError, match=r"archive: refused"):
        unpack(archive, place, Unpack("set", most_files=50), place / "manifest.jsonl")
    assert files(tmp_path) == ["archive"] and not Path("/tmp/evil").exists()


@pytest.mark.parametrize("keep", [0.3, 0.7])
@pytest.mark.parametrize("kind", ["w", "w:gz", "zip"])
def test_a_truncated_archive_leaves_nothing(tmp_path: Path, kind: str, keep: float) -> None:
    content = bytes(range(256)) * 400
    if kind == "zip":
        archive = zipped(tmp_path / "archive", *((str(i), content) for i in range(4)))
    else:
        archive = tarred(tmp_path / "archive", *(entry(str(i), content) for i in range(4)), mode=kind)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * keep)])
    with pytest.raises(UserError, match="refused"):
        unpack(archive, tmp_path, Unpack("set"), tmp_path / "manifest.jsonl")
    assert files(tmp_path) == ["archive"]
