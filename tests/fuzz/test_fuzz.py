"""Every parser reads its valid file, and gives a value or the project's own error for the hostile ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from bench.errors import UserError
from tests.fuzz.targets import CORPUS, TARGETS

MOST = 256 * 2**20  # bytes that Python and numpy may hold at once for a file of some kilobytes


@pytest.mark.parametrize("name", TARGETS)
def test_the_valid_file_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"valid{TARGETS[name].suffix}"
    path.write_bytes(TARGETS[name].seed())
    TARGETS[name].parse(path)


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_values_or_the_projects_own_error(name: str, tmp_path: Path) -> None:
    valid = TARGETS[name].seed()
    path = tmp_path / f"hostile{TARGETS[name].suffix}"
    files = [file.read_bytes() for file in sorted((CORPUS / name).glob("*"))]
    cuts = [valid[: len(valid) * part // 16] for part in range(16)]
    flips = [
        valid[:at] + bytes([valid[at] ^ 0x80]) + valid[at + 1 :] for at in range(0, len(valid), len(valid) // 40 + 1)
    ]
    tracemalloc.start()
    try:
        for data in (*files, *cuts, *flips, valid * 2, b"\0" * 4096, b"\xff" * 4096, b"[" * 4096, b"9" * 4096):
            path.write_bytes(data)
            try:
                TARGETS[name].parse(path)
            except UserError as error:
                assert str(path.name) in str(error) or "gnd.json" in str(error)  # it names the file
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
