"""Unpacking archives that others made: everything below the target, within bounds, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from bench.datasets.official.sources import Unpack
from bench.errors import UserError
from bench.files import write_whole

MOST_RATIO = 20  # times the archive's own size; photographs do not shrink
MANIFEST = "manifest.jsonl"
PIECE = 2**20


def unpack(
    archive: Path, root: Path, how: Unpack, manifest: Path, progress: Callable[[int], None] | None = None
) -> tuple[int, list[str]]:
    """Files written, and the names of those left out. The files appear when all of them are whole; the manifest
    then lists path, bytes and sha256 of each.

    UserError for an archive that is damaged, names a place outside of the target, holds a link, a device or the same
    file twice, or more files or bytes than `how` allows.
    """
    target, temporary = root / how.target, root / f"{how.target}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    room = min(how.most_bytes, MOST_RATIO * archive.stat().st_size + PIECE)
    written: dict[str, tuple[int, str]] = {}
    left_out, entries = [], 0
    try:
        for name, content in _entries(archive):
            entries += 1
            if entries > how.most_files:
                raise _refused(archive, f"more than {how.most_files} entries")
            place = _place(name, how, archive)
            if place.name in how.leave_out:
                left_out.append(place.name)
                continue
            if str(place) in written:
                raise _refused(archive, f"{place} twice")
            path = temporary / place
            path.parent.mkdir(parents=True, exist_ok=True)
            digest, size = hashlib.sha256(), 0
            with path.open("xb") as file:
                while piece := content.read(PIECE):
                    size += len(piece)
                    room -= len(piece)
                    if room < 0:
                        raise _refused(archive, f"more bytes than a set of photographs in {archive.stat().st_size}")
                    digest.update(piece)
                    file.write(piece)
            written[str(place)] = (size, digest.hexdigest())
            if progress:
                progress(len(written))
        for inside in written:
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / inside, target / inside)
        rows = [
            {"path": f"{how.target}/{inside}", "bytes": size, "sha256": sha256}
            for inside, (size, sha256) in written.items()
        ]
        lines = [*_others(manifest, {str(row["path"]) for row in rows}), *map(json.dumps, rows)]
        write_whole(manifest, "".join(f"{line}\n" for line in lines))
    except UserError:
        raise
    except OSError as error:
        if error.errno is None:  # the archive's own reader; the disk's errors have a number
            raise _refused(archive, f"damaged content ({error})") from error
        raise UserError(
            f"{target}: cannot write ({error.strerror})", hint="make room and run the same command again"
        ) from error
    except Exception as error:  # tarfile, zipfile, zlib and lzma raise many kinds
        raise _refused(archive, f"damaged content ({type(error).__name__}: {error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(written), left_out


def _others(manifest: Path, paths: Collection[str]) -> list[str]:
    """Its lines on other files, as they are: an unpacking that was killed may have written ours, or a torn one."""
    lines = manifest.read_text().splitlines() if manifest.is_file() else []
    return [line for line in lines if _path(line) not in {*paths, None}]


def _path(line: str) -> str | None:
    try:
        return str(json.loads(line)["path"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _refused(archive: Path, why: str) -> UserError:
    return UserError(f"{archive}: refused: it holds {why}", hint="nothing of it was kept; delete it and download again")


def _entries(archive: Path) -> Iterator[tuple[str, IO[bytes] | Any]]:
    """Name and content of every file, in the archive's order."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if entry.is_dir():
                    continue
                if kind not in (0, stat.S_IFREG):
                    raise _refused(archive, f"{entry.filename!r}, which is no file")
                with zipped.open(entry) as unzipped:
                    yield entry.filename, unzipped
        return
    with tarfile.open(archive, "r|*") as tarred:
        for member in tarred:
            if member.isdir():
                continue
            content = tarred.extractfile(member) if member.isreg() else None
            if content is None or member.issparse():
                raise _refused(archive, f"{member.name!r}, which is a link, a device or otherwise no plain file")
            yield member.name, content


def _place(name: str, how: Unpack, archive: Path) -> PurePosixPath:
    """Where the entry goes, below the target."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise _refused(archive, f"{name!r}, a place outside of its folder")
    with suppress(ValueError):
        path = path.relative_to(how.strip) if how.strip else path
    return PurePosixPath(path.name) if how.flat else path
