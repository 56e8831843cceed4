"""Downloads from a real server that misbehaves: resumed, refused or retried, never a wrong file in place."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import Result

from bench.datasets.catalogue import sources, sources_of
from bench.datasets.official import download as downloads
from bench.datasets.official.download import Patience, download, verify
from bench.datasets.official.local import RECORD, image_set, read_record
from bench.datasets.official.sources import File, Source, Unpack
from bench.errors import UserError

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(stall=0.4, tries=3, pause=0.01)


@dataclass
class Behaviour:
    """What the server does with the next answers; each is used up once."""

    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    cut: list[int] = field(default_factory=list)  # close after so many bytes
    statuses: list[int] = field(default_factory=list)
    stalls: int = 0
    declared: int | None = None  # a wrong length
    redirect: str = ""
    asked: list[str] = field(default_factory=list)  # the ranges that were asked for


@pytest.fixture
def server() -> Iterator[tuple[str, Behaviour]]:
    behaviour, release = Behaviour(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(behaviour.content)))
            self.end_headers()

        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            behaviour.asked.append(asked)
            if behaviour.redirect and not self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", behaviour.redirect)
                self.end_headers()
                return
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            if behaviour.stalls:
                behaviour.stalls -= 1
                release.wait(5)
                return
            content, start = behaviour.content, 0
            if asked and behaviour.ranges and self.headers.get("If-Range") == behaviour.etag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            declared = behaviour.declared if behaviour.declared is not None else len(content) - start
            self.send_header("Content-Length", str(declared))
            self.send_header("ETag", behaviour.etag)
            self.end_headers()
            self.wfile.write(content[start:][: behaviour.cut.pop(0)] if behaviour.cut else content[start:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", behaviour
    release.set()
    server.shutdown()
    server.server_close()


def of(*urls: str, digest: str | None = f"sha256:{SHA256}", size: int | None = None, **more: object) -> Source:
    return Source("set", (File("set/file.bin", urls, size, digest, **more),), "images of a kind", "none")  # type: ignore[arg-type]


def test_a_file_is_fetched_once_and_recorded(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    wanted, told = of(f"{url}/f"), []
    assert download(wanted, tmp_path, lambda *call: told.append(call), QUICK).files == 1
    assert (tmp_path / "set" / "file.bin").read_bytes() == CONTENT
    assert told[-1] == ("set/file.bin", len(CONTENT), len(CONTENT))
    assert read_record(tmp_path / "set")["set/file.bin"]["sha256"] == SHA256
    assert download(wanted, tmp_path, patience=QUICK).files == 0 and len(behaviour.asked) == 1
    assert verify(wanted, tmp_path).sound
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [".lock", "downloads.json", "file.bin"]


def test_a_connection_that_is_cut_again_and_again_is_gone_on_with_by_range(
    server: tuple[str, Behaviour], tmp_path: Path
) -> None:
    url, behaviour = server
    behaviour.cut = [100_000, 50_000, 1, 7, 120_000]  # more often than there are tries, but each brings something
    download(of(f"{url}/f"), tmp_path, patience=QUICK)
    assert (tmp_path / "set" / "file.bin").read_bytes() == CONTENT
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in behaviour.asked[1:]]
    assert len(starts) == 5 and starts == sorted(starts) and starts[-1] > 0


def test_a_server_without_ranges_is_begun_anew(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.ranges, behaviour.cut = False, [300_000]
    download(of(f"{url}/f"), tmp_path, patience=QUICK)
    assert (tmp_path / "set" / "file.bin").read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_later_and_a_changed_file_is_begun_anew(
    server: tuple[str, Behaviour], tmp_path: Path
) -> None:
    url, behaviour = server
    for changed in (False, True):
        behaviour.cut, behaviour.content, behaviour.etag = [200_000, 0, 0, 0, 0], CONTENT, '"one"'
        with pytest.raises(UserError, match="no mirror gives it"):
            download(of(f"{url}/f"), tmp_path / str(changed), patience=QUICK)
        assert (tmp_path / str(changed) / "set" / "file.bin.part").stat().st_size > 0
        behaviour.cut, behaviour.asked = [], []
        if changed:
            behaviour.content, behaviour.etag = CONTENT[::-1], '"two"'
        expected = hashlib.sha256(behaviour.content).hexdigest()
        download(of(f"{url}/f", digest=f"sha256:{expected}"), tmp_path / str(changed), patience=QUICK)
        assert (tmp_path / str(changed) / "set" / "file.bin").read_bytes() == behaviour.content
        assert behaviour.asked[0].startswith("bytes=")


def test_wrong_bytes_are_thrown_away_and_the_next_mirror_asked(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.content = b"something else" * 99
    with pytest.raises(UserError, match=f"sha256 is .*, expected {SHA256}"):
        download(of(f"{url}/f"), tmp_path, patience=QUICK)
    assert not list((tmp_path / "set").glob("file.bin*"))
    behaviour.content, behaviour.statuses = CONTENT, [404]
    download(of(f"{url}/gone", f"{url}/there"), tmp_path, patience=QUICK)
    assert read_record(tmp_path / "set")["set/file.bin"]["url"] == f"{url}/there"


def test_md5_is_checked_too_and_one_published_beside_the_file_is_used(
    server: tuple[str, Behaviour], tmp_path: Path
) -> None:
    url, behaviour = server
    with pytest.raises(UserError, match="md5 is"):
        download(of(f"{url}/f", digest="md5:" + "0" * 32), tmp_path, patience=QUICK)
    for said, why in ((CONTENT, "no checksum of f"), (b"<html>", "is no md5 or sha256"), (b"", "is no md5 or sha256")):
        behaviour.content = said
        with pytest.raises(UserError, match=why):
            download(of(f"{url}/f", digest=None, digest_url=f"{url}/md5"), tmp_path, patience=QUICK)
    behaviour.content = hashlib.md5(b"x").hexdigest().encode()  # the same server gives file and checksum
    with pytest.raises(UserError, match="md5 is"):
        download(of(f"{url}/f", digest=None, digest_url=f"{url}/md5"), tmp_path, patience=QUICK)


@pytest.mark.parametrize("declared", [len(CONTENT) + 1000, len(CONTENT) - 1000])
def test_a_length_that_is_a_lie_is_no_file(server: tuple[str, Behaviour], tmp_path: Path, declared: int) -> None:
    url, behaviour = server
    behaviour.declared = declared
    with pytest.raises(UserError, match="no mirror gives it"):
        download(of(f"{url}/f"), tmp_path, patience=QUICK)
    assert not (tmp_path / "set" / "file.bin").exists()
    with pytest.raises(UserError, match=f"it is of {declared} bytes, expected {len(CONTENT)}"):
        download(of(f"{url}/f", size=len(CONTENT)), tmp_path / "new", patience=QUICK)


def test_a_stalling_server_and_one_in_trouble_are_tried_again(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.stalls, behaviour.statuses = 1, [503]
    download(of(f"{url}/f"), tmp_path, patience=QUICK)
    assert (tmp_path / "set" / "file.bin").read_bytes() == CONTENT
    behaviour.statuses = [500] * 10
    with pytest.raises(UserError, match="status 500"):
        download(of(f"{url}/f"), tmp_path / "other", patience=QUICK)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/f", "/again"])
def test_redirects_lead_nowhere_but_to_web_servers_and_not_in_circles(
    server: tuple[str, Behaviour], tmp_path: Path, to: str
) -> None:
    url, behaviour = server
    behaviour.redirect = to
    with pytest.raises(UserError, match="no mirror gives it"):
        download(of(f"{url}/f"), tmp_path, patience=QUICK)
    assert not list((tmp_path / "set").glob("file.bin*"))
    behaviour.redirect = f"{url}/moved"
    download(of(f"{url}/f"), tmp_path, patience=QUICK)
    assert (tmp_path / "set" / "file.bin").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_begun_anew(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, _ = server
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "file.bin.part").write_bytes(CONTENT + b"more")
    (tmp_path / "set" / "file.bin.part.json").write_text(json.dumps({"url": f"{url}/f", "validator": '"one"'}))
    download(of(f"{url}/f"), tmp_path, patience=QUICK)
    assert (tmp_path / "set" / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_known_of_a_file_that_is_whole_goes_also_after_a_kill(
    server: tuple[str, Behaviour], tmp_path: Path, packed: bool
) -> None:
    url, behaviour = server
    if packed:
        behaviour.content = tarred(one=b"1" * 50)
    wanted = of(f"{url}/f", digest=None, unpack=Unpack("set/jpg", flat=True) if packed else None)
    download(wanted, tmp_path, patience=QUICK)
    state = tmp_path / "set" / "file.bin.part.json"
    for record in ("finished", "not written yet"):
        state.write_text("{}")
        if record != "finished":  # the file is in its place, and nothing says so
            (tmp_path / "set" / "file.bin").write_bytes(behaviour.content)
            (tmp_path / "set" / RECORD).unlink()
        download(wanted, tmp_path, patience=QUICK)
        assert not state.exists()


def test_a_checksum_is_pinned_on_first_use(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    wanted = of(f"{url}/f", digest=None)
    (note,) = download(wanted, tmp_path, patience=QUICK).notes
    assert SHA256 in note and "pinned" in note and "first use" in note
    (tmp_path / "set" / "file.bin").unlink()
    behaviour.content, behaviour.etag = b"another", '"two"'
    with pytest.raises(UserError, match="pinned on first use"):
        download(wanted, tmp_path, patience=QUICK)


def test_a_disk_without_room_is_said_before_anything_is_fetched(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    with pytest.raises(UserError, match=r"GB needed, .* GB free"):
        download(of(f"{url}/f", size=10**17), tmp_path, patience=QUICK)
    assert not behaviour.asked


def test_two_downloads_of_one_set_do_not_meet(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, _ = server
    with downloads._alone(tmp_path / "set"), pytest.raises(UserError, match="another download"):
        download(of(f"{url}/f"), tmp_path, patience=QUICK)


def tarred(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/") + ".jpg")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_archives_are_unpacked_recorded_verified_and_removed(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.content = tarred(paris__a__one=b"1" * 50, paris__b__two=b"2" * 60, paris__bad=b"<html>")
    unpack = Unpack("set/jpg", flat=True, leave_out=frozenset({"bad.jpg"}))
    wanted = of(f"{url}/f", digest=None, unpack=unpack)
    notes = download(wanted, tmp_path, patience=QUICK).notes
    assert any("left out" in note and "bad.jpg" in note for note in notes)
    assert sorted(path.name for path in (tmp_path / "set" / "jpg").iterdir()) == ["one.jpg", "two.jpg"]
    assert not (tmp_path / "set" / "file.bin").exists()
    assert download(wanted, tmp_path, patience=QUICK).files == 0
    (tmp_path / "set" / "file.bin").write_bytes(behaviour.content)  # as a kill just after the unpacking leaves it
    assert download(wanted, tmp_path, patience=QUICK).files == 0
    assert not (tmp_path / "set" / "file.bin").exists()
    assert image_set(tmp_path / "set", "as found") == "images of a kind"
    assert image_set(tmp_path / "none", "as found") == "as found"
    assert verify(wanted, tmp_path).sound
    (tmp_path / "set" / "jpg" / "one.jpg").write_bytes(b"1" * 49 + b"x")
    (tmp_path / "set" / "jpg" / "two.jpg").unlink()
    (tmp_path / "set" / "jpg" / "three.jpg").write_bytes(b"3")
    found = verify(wanted, tmp_path)
    assert (found.damaged, found.missing, found.extra) == (
        ("set/jpg/one.jpg",),
        ("set/jpg/two.jpg",),
        ("set/jpg/three.jpg",),
    )


def test_every_known_data_set_is_listed_without_asking_a_server(cli: Callable[..., Result]) -> None:
    for name, parts in sources().items():
        shown = cli("datasets", "download", name, "--dry-run")
        assert shown.exit_code == 0
        for wanted in parts:
            for file in wanted.files:
                assert all(url in shown.output for url in file.urls)
            assert wanted.image_set in shown.output and wanted.licence in shown.output
    files = {name: [len(part.files) for part in sources_of(name)] for name in sources()}
    assert files["gldv2"] == files["gldv2-public"] == [3 + 100 + 20] and files["revisitop1m"] == [101]
    assert files["roxford"] == files["roxford5k"] == [2] and files["rparis+1m"] == [3, 101] and files["sop"] == [1]
    assert files["gpr1200"] == files["ilias"] == [1] and files["met"] == [5]
    unknown = cli("datasets", "download", "roxfort")
    assert unknown.exit_code == 1 and "did you mean 'roxford'" in unknown.output
    nothing = cli("datasets", "verify", "roxford")
    assert nothing.exit_code != 0
