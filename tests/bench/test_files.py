"""Files are written whole, and what cannot be written is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.files import new_map


def test_the_room_of_an_array_that_is_mapped_is_taken_before_it_is_written_to(tmp_path: Path) -> None:
    array = new_map(tmp_path / "a.npy", np.dtype(np.float16), (1000, 1000))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes == 2_000_000  # else a full disk kills later
    array[3] = 1
    array.flush()
    found = np.load(tmp_path / "a.npy")
    assert (found[3] == 1).all() and not found[4:].any()
