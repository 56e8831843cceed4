"""The weight files of SSCD (Pizzi et al., CVPR 2022): a torchvision ResNet-50 whose `fc` makes the descriptor."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bench.errors import UserError
from third_party import checkpoints

PAGE = "https://dl.fbaipublicfiles.com/sscd-copy-detection"
HINT = f"expected a *.torchvision.pt file, such as {PAGE}/sscd_disc_mixup.torchvision.pt"
LAST = "fc.weight"


def read(path: Path) -> Mapping[str, Tensor]:
    """The weights by torchvision's names, the descriptor's layer under `fc`. UserError naming the file and the cure."""
    checkpoints.require(path, HINT)
    if _is_program(path):
        raise UserError(f"{path}: refused: a TorchScript archive is a program, which would be run", hint=HINT)
    state = checkpoints.read_torch(path, HINT)
    state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    if LAST not in state or state[LAST].ndim != 2:
        raise UserError(f"{path}: no weights of torchvision's ResNet-50 with a layer {LAST}", hint=HINT)
    return state


def _is_program(path: Path) -> bool:
    """Whether an archive holds code: TorchScript's has a folder `code`, a file of weights has none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
