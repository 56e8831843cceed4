"""Files of torch.save are read in no more memory than they have bytes."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from bench.errors import UserError
from third_party import torch_file
from third_party.checkpoints import read_torch


def packed(path: Path) -> Path:
    """A file of torch.save whose parts were packed afterwards: 8 MB of zeros in some kilobytes."""
    plain = io.BytesIO()
    torch.save({"state": {"weight": torch.zeros(2_000_000)}}, plain)
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_wrote_is_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.arange(6).reshape(2, 3)}, path, _use_new_zipfile_serialization=zipped)
    assert torch_file.load(path)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_parts_that_say_more_than_the_file_has_are_refused_before_room_is_made_for_them(tmp_path: Path) -> None:
    path = packed(tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt: {path.stat().st_size:,} bytes, its parts say that they have 8,000,"):
        torch_file.load(path)
    with pytest.raises(UserError, match="its parts say"):
        read_torch(path, "hint")
