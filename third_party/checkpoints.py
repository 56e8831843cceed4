"""Reading files of weights without trusting them; every problem is a UserError that names the file and the weight."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.errors import UserError
from third_party import torch_file

AGAIN = "copy or download it again"


def require(path: Path, hint: str) -> None:
    """Refuse a file that is not there or is empty."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file", hint=hint)
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the weights file is empty (0 bytes)", hint=AGAIN)


def read_safetensors(path: Path, form: str, hint: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Weights, config and card of one of our files whose format is `form`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})", hint=AGAIN) from error
    if metadata.get("format") != form:
        raise UserError(f"{path}: format {metadata.get('format')!r}, expected {form!r}", hint=hint)
    try:
        return state, dict(json.loads(metadata["config"])), dict(json.loads(metadata.get("card", "{}")))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its configuration cannot be used ({error})", hint=hint) from error


def read_torch(path: Path, hint: str, key: str = "state") -> dict[str, Tensor]:
    """The weights of a torch checkpoint, under `key` or at the top; only tensors and plain values are loaded."""
    try:
        content = torch_file.load(path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise UserError(
                f"{path}: refused: it holds pickled objects other than tensors, which could run code", hint=hint
            ) from error
        raise UserError(f"{path}: not a readable torch checkpoint", hint=AGAIN) from error
    except Exception as error:  # RuntimeError, EOFError, KeyError, … of damaged files
        raise UserError(f"{path}: truncated or not a torch checkpoint ({type(error).__name__})", hint=AGAIN) from error
    state = content.get(key, content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{path}: expected a dictionary with the weights under {key!r}, found {found}", hint=hint)
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def check(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse other names, shapes or kinds of numbers than expected, and values that are not finite."""
    hint = "the file belongs to another architecture or is damaged"
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(f"{path}: {len(missing)} weights are missing, first {missing[0]!r}", hint=hint)
    if extra := sorted(found.keys() - expected.keys()):
        raise UserError(f"{path}: {len(extra)} weights do not belong here, first {extra[0]!r}", hint=hint)
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}", hint=hint
            )
        if found[name].is_floating_point() != tensor.is_floating_point() or not math.isfinite(found[name].sum()):
            raise UserError(f"{path}: {name} holds values that are not finite numbers of its kind", hint=hint)
