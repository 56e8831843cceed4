"""Released weights: a package's file, else one that a real server gives, and never one of other bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from bench.errors import UserError
from third_party.released import OFFLINE, Released

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Gives CONTENT at /right.pth, other bytes at /wrong.pth, and nothing elsewhere; the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            body = {"/right.pth": CONTENT, "/wrong.pth": CONTENT[1:]}.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(OFFLINE, raising=False)


def of(*urls: str, **more: str) -> Released:
    return Released("Net", SHA256, urls, **more)


def kept() -> list[str]:
    return sorted(path.name for path in Path(torch.hub.get_dir()).rglob("*") if path.is_file())


def test_a_file_is_fetched_once_and_then_read_from_its_place(server: tuple[str, list[str]]) -> None:
    address, asked = server
    file = of(f"{address}/right.pth")
    assert file.here() is None and "fetched on first use" in str(file.waits())
    assert file.file().read_bytes() == CONTENT == file.file().read_bytes()
    assert asked == ["/right.pth"] and file.waits() is None


def test_the_next_address_is_asked_where_one_gives_nothing_or_other_bytes(server: tuple[str, list[str]]) -> None:
    address, asked = server
    found = of(f"{address}/none.pth", f"{address}/wrong.pth", f"{address}/right.pth").file()
    assert found.read_bytes() == CONTENT and asked == ["/none.pth", "/wrong.pth", "/right.pth"]
    assert kept() == [found.name]


def test_every_way_to_the_file_is_said_where_no_address_gives_it(server: tuple[str, list[str]]) -> None:
    address, _ = server
    wanted = of(f"{address}/none.pth", f"{address}/wrong.pth", package="no_such", place="w.pth", install="make models")
    with pytest.raises(UserError) as caught:
        wanted.file("--features net:weights=FILE")
    text = str(caught.value)
    for part in ("404", "sha256 is", "make models", "--features net:weights=FILE", SHA256[:12]):
        assert part in text
    assert kept() == []


def test_nothing_is_asked_for_where_the_machine_is_offline(
    server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OFFLINE, "1")
    with pytest.raises(UserError, match=f"{OFFLINE}=1"):
        of(f"{server[0]}/right.pth").file()
    assert server[1] == []


def test_a_packages_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list]) -> None:
    package = tmp_path / "weights_of_net"
    (package / "files").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is found without being imported')")
    (package / "files" / "w.pth").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = of(f"{server[0]}/right.pth", package="weights_of_net", place="files/w.pth", install="make models")
    assert wanted.file() == package / "files" / "w.pth" and server[1] == []
    (package / "files" / "w.pth").write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=r"w\.pth: sha256 is .*expected"):
        wanted.file()


def test_without_a_known_sum_the_first_fetch_decides(server: tuple[str, list[str]]) -> None:
    address, asked = server
    file = Released("Net", None, (f"{address}/right.pth",))
    assert "fetched on first use" in str(file.waits())
    path = file.file()
    pin = path.with_name(f"{path.name}.sha256")
    assert path.read_bytes() == CONTENT and pin.read_text().strip() == SHA256
    assert kept() == [path.name, pin.name] and file.waits() is None
    path.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=rf"right\.pth: sha256 is .*expected {SHA256[:12]}"):
        file.file()
    path.unlink()
    assert file.file().read_bytes() == CONTENT  # again, and of the same sum
    assert asked == ["/right.pth", "/right.pth"]


def test_an_address_that_gives_other_bytes_than_at_first_is_refused(server: tuple[str, list[str]]) -> None:
    file = Released("Net", None, (f"{server[0]}/right.pth",))
    path = file.file()
    pin = path.with_name(f"{path.name}.sha256")
    pin.write_text(hashlib.sha256(CONTENT[1:]).hexdigest())  # as if those bytes had come first
    path.unlink()
    with pytest.raises(UserError, match="of the first fetch") as caught:
        file.file()
    assert pin.name in str(caught.value) and kept() == [pin.name]


def test_what_is_not_known_by_its_sum_is_kept_apart_by_its_address(server: tuple[str, list[str]]) -> None:
    files = [Released("Net", None, (f"{server[0]}/{name}", f"{server[0]}/right.pth")) for name in ("a/w", "b/w")]
    assert files[0].file() != files[1].file()


def test_a_packages_file_without_a_known_sum_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_of_other_net"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "w.pth").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = Released("Net", None, ("http://none/w.pth",), package="weights_of_other_net", place="w.pth")
    assert wanted.file() == package / "w.pth" and kept() == []


@pytest.mark.parametrize(
    "wrong", [{"sha256": "abc"}, {"urls": ()}, {"package": "net"}, {"place": "w.pth"}, {"sha256": "G" * 64}]
)
def test_what_cannot_be_checked_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="Net"):
        Released(**{"what": "Net", "sha256": SHA256, "urls": ("http://a/b",), **wrong})
