"""What `torch.save` wrote, read without trusting it: tensors and plain values alone, in memory that the file bounds."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

from bench.errors import UserError

ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save begin


def load(path: Path) -> Any:
    """What the file holds, on the CPU.

    UserError where its parts say that they are larger than the file: torch packs none, and would make room for what
    is said. Otherwise what zipfile and torch raise: UnpicklingError, RuntimeError, EOFError, KeyError, …
    """
    import torch

    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if zipped:
        with zipfile.ZipFile(path) as archive:
            said = sum(entry.file_size for entry in archive.infolist())
        if said > (size := path.stat().st_size):
            raise UserError(
                f"{path}: {size:,} bytes, its parts say that they have {said:,}",
                hint="torch.save packs nothing: copy or download the file again",
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols, just before it refuses the file
        return torch.load(path, map_location="cpu", weights_only=True)
