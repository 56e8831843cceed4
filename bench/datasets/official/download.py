"""Fetching official data sets: resumed by range, from one mirror after another, checked, unpacked, and recorded."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.datasets.official.local import RECORD, read_record
from bench.datasets.official.sources import File, Source
from bench.datasets.official.unpack import MANIFEST, unpack
from bench.errors import UserError
from bench.files import file_hash, read_json, write_whole

CHECKSUMS = {32: "md5", 64: "sha256"}  # by their hexadecimal digits
MOST_CHECKSUMS = 4 * 2**20  # characters of a list of them that are read
Progress = Callable[[str, int, int], None]  # what, bytes so far, bytes in all (0 where not known)


@dataclass(frozen=True)
class Patience:
    """How long a server may be silent, in seconds, and how often in a row a try may bring nothing."""

    stall: float = 60.0
    tries: int = 5
    pause: float = 1.0  # before the second try; twice as long before each further one


@dataclass(frozen=True)
class Fetched:
    """What a download did."""

    files: int
    notes: tuple[str, ...]


class _Failed(Exception):
    """This mirror does not give the file; the reason."""


def download(source: Source, root: Path, progress: Progress | None = None, patience: Patience = Patience()) -> Fetched:
    """Fetch and unpack what is not yet there. Finished files are kept whatever happens; the same call goes on.

    UserError where no mirror gives a file, for one that is not what its checksum says, and where the disk has not
    room enough.
    """
    folder = root / source.folder
    notes: list[str] = []
    with _alone(folder), httpx.Client(timeout=patience.stall, follow_redirects=True, max_redirects=5) as client:
        record = read_record(folder)
        todo = [file for file in source.files if not _finished(file, root, record)]
        for file in source.files:
            if file not in todo and file.unpack is not None and _is_fetched(root / file.path, record[file.path]):
                # an archive that a killed download had unpacked already
                (root / file.path).unlink()
            part = _part(root / file.path)
            if not part.is_file():  # it was whole, and a kill left what was known of it
                _state(part).unlink(missing_ok=True)
        notes += _require_room(client, todo, root)
        for file in todo:
            before = record.get(file.path, {})
            path = root / file.path
            if not path.is_file():
                digest, url = _fetch(client, file, path, before, progress, patience)
            else:  # an archive that was fetched but not unpacked
                digest, url = file_hash(path), str(before.get("url", "unknown"))
            entry = {"sha256": digest, "url": url, "bytes": path.stat().st_size, "image_set": source.image_set}
            if file.digest is None and file.digest_url is None and "sha256" not in before:
                notes.append(f"{file.path}: no checksum is known; pinned sha256 {digest} on first use")
            record[file.path] = entry
            _write(folder, record)
            if file.unpack is not None:
                name = file.path
                tell = None if progress is None else (lambda n, name=name: progress(f"unpacking {name}", n, 0))
                count, left_out = unpack(path, root, file.unpack, folder / MANIFEST, tell)
                if left_out:
                    notes.append(f"{file.path}: left out, known to be no photographs: {', '.join(sorted(left_out))}")
                record[file.path] = {**entry, "unpacked": count}
                _write(folder, record)
                path.unlink()
    return Fetched(len(todo), tuple(notes))


def _part(path: Path) -> Path:
    """Where a file is while it is not whole."""
    return path.with_name(path.name + ".part")


def _state(part: Path) -> Path:
    """What is known of the server's file that `part` is the beginning of."""
    return part.with_name(part.name + ".json")


def _finished(file: File, root: Path, record: Mapping[str, Mapping[str, Any]]) -> bool:
    entry = record.get(file.path, {})
    return "unpacked" in entry if file.unpack is not None else "sha256" in entry and (root / file.path).is_file()


def _is_fetched(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry.get("bytes")


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_whole(folder / RECORD, json.dumps(record, indent=1, sort_keys=True))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No two downloads of one data set at a time; a disk that cannot be written to is the user's to mend."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{folder}: another download of it is running", hint="wait for it to end") from error
            yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write ({error.strerror or error})", hint="finished files are kept; make room and go on"
        ) from error


def _require_room(client: httpx.Client, files: list[File], root: Path) -> list[str]:
    """Refuse to begin what the disk cannot hold: the files, and the photographs of the largest archive beside it."""
    sizes, unknown = {}, []
    for file in files:
        size = file.size
        if size is None:
            with suppress(httpx.HTTPError, ValueError, KeyError):
                size = int(client.head(file.urls[0]).raise_for_status().headers["content-length"])
        if size is None:
            unknown.append(file.path)
        else:
            sizes[file.path] = size
    needed = sum(sizes.values()) + max((sizes[f.path] for f in files if f.unpack and f.path in sizes), default=0)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"{root}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
            hint="make room or name another --data-root",
        )
    return [f"the sizes of {len(unknown)} files are not known, so room was not checked for them"] if unknown else []


def _fetch(
    client: httpx.Client,
    file: File,
    path: Path,
    before: Mapping[str, Any],
    progress: Progress | None,
    patience: Patience,
) -> tuple[str, str]:
    """sha256 and address of the file, which is then in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in file.urls:
        part = _part(path)
        try:
            expected = file.digest or _published(client, file)
            _receive(client, url, file, part, progress, patience)
            found = file_hash(part)
            kind, _, wanted = (expected or f"sha256:{before.get('sha256', found)}").partition(":")
            actual = found if kind == "sha256" else _hash(part, kind)
            if actual != wanted:
                part.unlink()
                _state(part).unlink(missing_ok=True)
                pinned = "" if expected else " pinned on first use"
                raise _Failed(f"{kind} is {actual}, expected {wanted}{pinned}")
            os.replace(part, path)
            _state(part).unlink(missing_ok=True)
            return found, url
        except (_Failed, httpx.HTTPError, httpx.InvalidURL) as error:
            reasons.append(f"{url}: {error or type(error).__name__}")
    raise UserError(
        f"{file.path}: no mirror gives it\n" + "\n".join(f"  {reason}" for reason in reasons),
        hint="what was received is kept; run the same command again, or fetch it by hand to that place",
    )


def _published(client: httpx.Client, file: File) -> str | None:
    """The md5 or sha256 that the server publishes beside the file, alone or in a list of files or addresses."""
    if file.digest_url is None:
        return None
    answer = client.get(file.digest_url).raise_for_status()
    rows = [line.split() for line in answer.text[:MOST_CHECKSUMS].splitlines() if line.strip()]
    name = file.urls[0].rpartition("/")[2]
    named = [row[0] for row in rows if len(row) == 2 and row[1].lstrip("*").rpartition("/")[2] == name]
    if not named and len(rows) > 1:
        raise _Failed(f"{file.digest_url}: no checksum of {name}")
    word = (named or [row[0] for row in rows] or [""])[0].lower()
    if len(word) not in CHECKSUMS or set(word) - set("0123456789abcdef"):
        raise _Failed(f"{file.digest_url}: {word[:40]!r} is no md5 or sha256")
    return f"{CHECKSUMS[len(word)]}:{word}"


def _receive(
    client: httpx.Client, url: str, file: File, part: Path, progress: Progress | None, patience: Patience
) -> None:
    """Bring the whole file into `part`, going on where an earlier try ended if the server's file is still the same."""
    state = _state(part)
    vain, pause, most = 0, patience.pause, part.stat().st_size if part.is_file() else 0
    while True:
        begun = part.stat().st_size if part.is_file() else 0
        try:
            _once(client, url, file, part, state, begun, progress)
            return
        except (httpx.TransportError, _Again) as error:
            now = part.stat().st_size if part.is_file() else 0
            # more than ever before: a server that only ever gives the same part is not gone on with for ever
            vain, pause = (0, patience.pause) if now > most else (vain + 1, pause)
            most = max(most, now)
            if vain >= patience.tries:
                raise _Failed(f"{type(error).__name__}: {error} ({patience.tries} tries brought nothing)") from error
            time.sleep(pause)
            pause *= 2


class _Again(Exception):
    """Try once more; says why."""


def _once(
    client: httpx.Client, url: str, file: File, part: Path, state: Path, begun: int, progress: Progress | None
) -> None:
    headers = {"Accept-Encoding": "identity"}
    validator = _validator(state, url) if begun else None
    if validator:
        headers |= {"Range": f"bytes={begun}-", "If-Range": validator}
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code >= 500 or answer.status_code == 429:
            raise _Again(f"status {answer.status_code}")
        if answer.status_code == 416:  # what is here is not the beginning of what is there
            part.unlink(missing_ok=True)
            raise _Again("status 416")
        if answer.status_code not in (200, 206):
            raise _Failed(f"status {answer.status_code}")
        at = begun if answer.status_code == 206 and validator else 0
        total = _total(answer, at)
        if file.size is not None and total is not None and total != file.size:
            raise _Failed(f"it is of {total} bytes, expected {file.size}")
        _remember(state, url, answer.headers)
        with part.open("r+b" if at else "wb") as out:
            out.seek(at)
            for piece in answer.iter_raw():  # as it comes: what a cut leaves behind is kept
                out.write(piece)
                at += len(piece)
                if at > (file.size or total or at):
                    raise _Failed(f"more than the {file.size or total} bytes that were declared arrive")
                if progress:
                    progress(file.path, at, file.size or total or 0)
        if total is not None and at < total:
            raise _Again(f"{at} of {total} bytes arrived")
        if file.size is not None and at != file.size:
            part.unlink()
            raise _Failed(f"{at} bytes arrived, expected {file.size}")


def _total(answer: httpx.Response, at: int) -> int | None:
    """Bytes of the whole file, where the server says so."""
    if answer.status_code == 206:
        span, _, total = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")
        if span.partition("-")[0] != str(at):
            raise _Failed(f"asked for bytes from {at}, got {span or 'none'}")
        return int(total) if total.isdigit() else None
    length = answer.headers.get("content-length", "")
    return int(length) if length.isdigit() else None


def _remember(state: Path, url: str, headers: httpx.Headers) -> None:
    etag = headers.get("etag", "")
    # a weak tag does not promise equal bytes
    validator = etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")
    write_whole(state, json.dumps({"url": url, "validator": validator}))


def _validator(state: Path, url: str) -> str | None:
    try:
        content = read_json(state)
        return str(content["validator"]) or None if content["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


@dataclass(frozen=True)
class Verdict:
    """Paths below the data root that are not as they should be."""

    checked: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    damaged: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return not (self.missing or self.extra or self.damaged)


def verify(source: Source, root: Path, progress: Progress | None = None) -> Verdict:
    """Compare what is in a data set's folder with what was fetched and unpacked, byte by byte."""
    folder = root / source.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", hint="python cli.py datasets download NAME")
    record, expected = read_record(folder), {}
    for file in source.files:
        entry = record.get(file.path, {})
        if file.unpack is None:
            known = file.digest if file.digest and file.digest.startswith("sha256") else None
            expected[file.path] = (known or f"sha256:{entry.get('sha256', '')}").partition(":")[2]
    with suppress(FileNotFoundError), (folder / MANIFEST).open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                expected[str(row["path"])] = str(row["sha256"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{folder / MANIFEST}, line {number}: not of our form", hint="download again"
                ) from error
    archives = [file.path for file in source.files if file.unpack]
    missing = [f"{name} (not downloaded)" for name in archives if "unpacked" not in record.get(name, {})]
    damaged = []
    for number, (name, digest) in enumerate(expected.items(), 1):
        path = root / name
        if not path.is_file():
            missing.append(name)
        elif digest and file_hash(path) != digest:
            damaged.append(name)
        if progress:
            progress("verifying", number, len(expected))
    targets = {root / file.unpack.target for file in source.files if file.unpack} - {folder}
    extra = [
        name
        for target in sorted(targets)
        for path in sorted(target.rglob("*"))
        if path.is_file() and (name := path.relative_to(root).as_posix()) not in expected
    ]
    return Verdict(len(expected), tuple(missing), tuple(extra), tuple(damaged))
