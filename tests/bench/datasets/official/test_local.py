"""Photographs that are missing are all named, in a file where there are many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.datasets.official.local import require_files
from bench.errors import UserError


def test_missing_photographs_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:02d}.jpg" for i in range(30)]
    for path in paths[:3]:
        path.write_bytes(b"x")
    require_files("d", paths[:3], tmp_path / "missing.txt", "get them")
    with pytest.raises(UserError, match=r"27 of 30 photographs are missing.*03.jpg") as refusal:
        require_files("d", paths, tmp_path / "missing.txt", "get them")
    assert refusal.value.hint == "get them"
    assert np.all([path.name in (tmp_path / "missing.txt").read_text() for path in paths[3:]])
