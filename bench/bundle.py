"""A finished run in one file, to be shown beside the runs of another machine.

A bundle is a zip archive of the files that a run's tables are made from, and of `manifest.json`, which has the sha256
of each. It holds no image and no feature, and the same run gives the same bytes.

Bundles come from elsewhere. Names, sizes, checksums, the seal and the record are checked before a table sees a row.
Checksums find damage; they do not say who measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bench.blend import Blend
from bench.datasets import Dataset
from bench.errors import UserError
from bench.files import file_hash, read_npz, whole, writing
from bench.names import shown
from bench.record import FILE, Unfinished, read_record
from bench.results import TABLES, Run, run_name, save_dataset

SUFFIX = ".rerankbench.zip"
MANIFEST = "manifest.json"
MEMBERS = (FILE, "shortlist.npz", "dataset.json", *(f"{name}.parquet" for name in TABLES))
FORMAT = 1  # of the archive; a run's folder has a format of its own
LARGEST = 2**30  # bytes of all members unpacked, and of the arrays in one of them
LARGEST_MANIFEST = LARGEST_DIRECTORY = 2**16  # bytes
MOST_ROWS = 50_000_000  # of one table
CHUNK = 2**20  # bytes that are held at a time
END, END64 = b"PK\x05\x06", b"PK\x06\x07"  # begin an archive's last 22 bytes, and what only large archives have
WHEN = (1980, 1, 1, 0, 0, 0)  # of every member


def export_bundle(run: Run, folder: Path, blend: Blend) -> list[Path]:
    """The run's files, as they are, in `folder/<run name>.rerankbench.zip`.

    UserError for a blend, which the reader of a bundle chooses, and for a run that is too large. OSError.
    """
    if blend != Blend():
        raise UserError(
            f"--blend {blend}: a bundle has the scores as the methods gave them",
            hint="leave it out, and give it to report",
        )
    size = sum((run.folder / name).stat().st_size for name in MEMBERS)
    try:
        if size > LARGEST:
            raise ValueError(f"{size} bytes, and a bundle has {LARGEST} at most")
        _bounded(run.folder)
    except ValueError as error:
        raise UserError(f"{run.folder}: too large for a bundle ({error})", hint="--format parquet") from error
    hashes = {name: file_hash(run.folder / name) for name in MEMBERS}
    manifest = json.dumps({"format": FORMAT, "sha256": hashes}, indent=1, sort_keys=True).encode()
    path = folder / f"{run_name(run.record.identity)}{SUFFIX}"
    with whole(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=False) as archive:
        with archive.open(_entry(MANIFEST, len(manifest)), "w") as target:
            target.write(manifest)
        for name in MEMBERS:
            with (run.folder / name).open("rb") as source:
                entry = _entry(name, os.fstat(source.fileno()).st_size)
                with archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, CHUNK)
    return [path]


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    """A member that says nothing of when and where it was written."""
    entry = zipfile.ZipInfo(name, WHEN)
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
    entry.file_size = size
    return entry


@contextmanager
def opened(paths: Sequence[Path]) -> Iterator[list[Run]]:
    """The runs in bundles, in the order given; their files last as long as the context. UserError as `unpack`."""
    if not paths:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="rerankbench-") as folder:
        yield [unpack(path, Path(folder) / str(number)) for number, path in enumerate(paths)]


def unpack(path: Path, into: Path) -> Run:
    """The run in a bundle, its files in a new folder below `into`, which is made.

    Its images are files that do not exist, for their names are those of another machine, and here name other files.
    UserError that names the file and the member, for anything that is not a whole bundle of a finished, sound run.
    """
    inside = into / "run"
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        with path.open("rb") as file:
            _check_end(file)
            with zipfile.ZipFile(file) as archive, writing(into):
                entries = _entries(archive)
                hashes = _hashes(b"".join(_chunks(archive, entries[MANIFEST])))
                inside.mkdir(parents=True)
                for name in MEMBERS:
                    _unpack(archive, entries[name], inside / name, hashes[name])
        _bounded(inside)
        run = Run(inside, read_record(inside))
        if damage := run.damage():
            raise ValueError(damage)
        with writing(into):
            dataset = _elsewhere(run.dataset, into / "elsewhere")
            save_dataset(inside / "dataset.json", dataset, dataset.gallery)
    except Unfinished as error:
        raise _refused(path, f"{error}, expected a finished run of this version") from error
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise _refused(path, str(error)) from error
    named = into / run_name(run.record.identity)  # notes of a table compare the names of folders
    inside.rename(named)
    return Run(named, run.record)


def _elsewhere(dataset: Dataset, nowhere: Path) -> Dataset:
    """With files in a folder that does not exist, so that no picture shows what a bundle merely names."""

    def file(known: Path) -> Path:
        return nowhere / hashlib.sha256(os.fsencode(known)).hexdigest()

    queries = tuple(replace(query, image=file(query.image)) for query in dataset.queries)
    return replace(dataset, queries=queries, gallery={image: file(known) for image, known in dataset.gallery.items()})


def _refused(path: Path, why: str) -> UserError:
    hint = "a bundle is written by `export --format bundle`; have it written again, and copy it whole"
    return UserError(f"{shown(path)}: not a bundle that can be read: {shown(why)}", hint=hint)


def _check_end(file: BinaryIO) -> None:
    """ValueError for a file that does not end as a small archive does, before its directory is read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 42))
    before, end = (tail := file.read())[:-22], tail[-22:]
    if len(end) < 22 or not end.startswith(END) or end[-2:] != b"\0\0":
        raise ValueError("not a zip archive, or its end is missing")
    directory = int.from_bytes(end[12:16], "little")
    if before.startswith(END64) or directory > LARGEST_DIRECTORY:
        raise ValueError(f"its directory has more than {LARGEST_DIRECTORY} bytes")


def _entries(archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """Exactly the members of a bundle, none larger than it may be. ValueError."""
    expected = (MANIFEST, *MEMBERS)
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.orig_filename
        if name not in expected:
            raise ValueError(f"{name!r} is no member of a bundle, which has {', '.join(expected)}")
        if name in found:
            raise ValueError(f"{name} is there twice")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 0x1:
            raise ValueError(f"{name}: neither stored nor deflated, or encrypted")
        found[name] = entry
    if lacking := [name for name in expected if name not in found]:
        raise ValueError(f"{lacking[0]} is missing")
    if found[MANIFEST].file_size > LARGEST_MANIFEST:
        raise ValueError(f"{MANIFEST}: {found[MANIFEST].file_size} bytes, expected at most {LARGEST_MANIFEST}")
    if (total := sum(entry.file_size for entry in found.values())) > LARGEST:
        largest = max(found, key=lambda name: found[name].file_size)
        raise ValueError(f"{largest}: {found[largest].file_size} of {total} bytes unpacked, expected at most {LARGEST}")
    return found


def _chunks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of a member, as many as its entry declares. ValueError."""
    try:
        with archive.open(entry) as source:
            while chunk := source.read(CHUNK):
                yield chunk
    except Exception as error:  # zipfile and zlib raise many kinds
        raise ValueError(f"{entry.filename}: {error or type(error).__name__}") from error


def _hashes(text: bytes) -> Mapping[str, str]:
    """Member -> sha256, from the text of the manifest. ValueError."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(f"{MANIFEST}: format {json.dumps(found):.20}, expected {FORMAT}")
    hashes = content.get("sha256")
    if not isinstance(hashes, dict) or hashes.keys() != set(MEMBERS):
        raise ValueError(f"{MANIFEST}: it does not have the sha256 of every member")
    return hashes


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, expected: str) -> None:
    """Write a member whose sha256 is the one expected. ValueError, or OSError of writing."""
    digest = hashlib.sha256()
    with path.open("xb") as target:
        for chunk in _chunks(archive, entry):
            digest.update(chunk)
            target.write(chunk)
    if digest.hexdigest() != expected:
        raise ValueError(f"{entry.filename}: its sha256 is not that of {MANIFEST}")


def _bounded(folder: Path) -> None:
    """ValueError for files of a run that hold more than their bytes say, or columns that are not those of a table."""
    try:
        read_npz(folder / "shortlist.npz", LARGEST)
    except (OSError, ValueError) as error:
        raise ValueError(f"shortlist.npz: {error}") from error
    for name, schema in TABLES.items():
        try:
            with pq.ParquetFile(folder / f"{name}.parquet") as file:
                rows, columns = file.metadata.num_rows, file.schema_arrow.remove_metadata()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{name}.parquet: {error}") from error
        if not columns.equals(schema):
            raise ValueError(f"{name}.parquet: its columns are not {', '.join(schema.names)}")
        if rows > MOST_ROWS:
            raise ValueError(f"{name}.parquet: {rows} rows, expected at most {MOST_ROWS}")
