"""Checkpoints of the rerankers that read local descriptors alone: ours in safetensors, and the authors' `.pt`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save
from torch import Tensor, nn

from bench.errors import UserError
from third_party.checkpoints import check, read_safetensors, read_torch, require

N = TypeVar("N", bound=nn.Module)


def save_checkpoint(
    model: nn.Module, form: str, path: Path, card: Mapping[str, Any] | None = None, half: bool = False
) -> None:
    """Write the weights (safetensors) with the config and card of `model`, whole or not at all.

    In float32, or with `half` in float16, of which about three digits remain.
    """
    state = {name: tensor.detach().float().contiguous().cpu() for name, tensor in model.state_dict().items()}
    if half:
        state = {name: tensor.half() for name, tensor in state.items()}
    metadata = {
        "format": form,
        "config": json.dumps(asdict(model.config)),  # type: ignore[call-overload]
        "card": json.dumps(dict(card or {})),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(state, metadata=metadata))
    part.replace(path)


def load_checkpoint(
    path: Path,
    form: str,
    make: Callable[[Mapping[str, Any]], N],
    official: Callable[[Mapping[str, Tensor]], tuple[Mapping[str, Any], Mapping[str, Tensor]]],
    hint: str,
    key: str = "state",
) -> tuple[N, Mapping[str, Any]]:
    """The network of a file in eval mode, and its card; every problem is a UserError that names the file.

    `make` builds the network of a config; `official` gives the config that the shapes of an authors' file imply, and
    its weights (there under `key`) under our names. Both raise ValueError for what is of another architecture.
    """
    require(path, hint)
    card: Mapping[str, Any] = {}
    try:
        if path.suffix == ".safetensors":
            state, config, card = read_safetensors(path, form, hint)
            model = make(config)
        else:
            implied, weights = official(read_torch(path, hint, key))
            state, model = dict(weights), make(implied)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: weights of another architecture ({error})", hint=hint) from error
    check(model.state_dict(), state, path)
    model.load_state_dict(state)
    return model.eval(), card


def go_on(path: Path, load: Callable[[Path], tuple[N, Mapping[str, Any]]], config: Any) -> N:
    """The network of weights that a training goes on from; UserError where its sizes are not those of `config`."""
    model = load(path)[0]
    if model.config != config:
        raise UserError(
            f"{path}: has {model.config}, expected {config}", hint="set the sizes to those of the weights to start from"
        )
    return model
