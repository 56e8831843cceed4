"""Where torch computes."""

from __future__ import annotations

import torch

from bench.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. UserError for a device that torch does not know or see."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no CUDA device", hint="use --device cpu, or see `doctor`")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device", hint="auto, cpu, cuda or cuda:N") from error
