"""A slow server of a folder's files: ranges, an ETag, and a log of what it was asked for."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.torture.process import background

PIECE, PAUSE = 4096, 0.004  # bytes sent at once, and seconds between them


@dataclass(frozen=True)
class Server:
    """A process that serves; `log` has a JSON line a request: path and first byte."""

    pid: int
    address: str
    log: Path

    def asked(self, after: int) -> list[tuple[str, int]]:
        """File and first byte of every request after the first so many."""
        lines = self.log.read_text().splitlines()[after:] if self.log.exists() else []
        return [(line["path"], line["from"]) for line in map(json.loads, lines)]


def serve(folder: Path, log: Path) -> Server:
    listening = socket.create_server(("127.0.0.1", 0))
    pid = background(lambda: _serve(listening, folder, log), log.with_suffix(".out"))
    return Server(pid, f"http://127.0.0.1:{listening.getsockname()[1]}", log)


def _serve(listening: socket.socket, folder: Path, log: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(0)

        def do_GET(self) -> None:
            asked = self.headers.get("Range", "bytes=0-")
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            with log.open("a") as file:
                file.write(json.dumps({"path": self.path.strip("/"), "from": begin}) + "\n")
            content = self._answer(begin)
            for at in range(0, len(content), PIECE):
                self.wfile.write(content[at : at + PIECE])
                self.wfile.flush()
                time.sleep(PAUSE)

        def _answer(self, begin: int) -> bytes:
            content = (folder / os.path.basename(self.path)).read_bytes()
            self.send_response(206 if begin else 200)
            self.send_header("ETag", f'"{len(content)}"')
            self.send_header("Content-Length", str(len(content) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            return content[begin:]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.serve_forever()
