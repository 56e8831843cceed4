"""Vision backbones of the package `timm`, with weights of its hub or of a file; safetensors alone are read."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from bench.errors import UserError
from third_party.backbones import Tokens, as_maps, probe

FILE = "model.safetensors"
EXAMPLE = "vit_base_patch14_reg4_dinov2.lvd142m"


@dataclass(frozen=True)
class Found:
    """A model by name, and the file of its weights."""

    file: Path
    licence: str | None  # as its configuration has it


def find(name: str, weights: Path | None) -> Found:
    """The model of that name; its weights are a file given, in the hub's cache, or downloaded. UserError else."""
    import timm

    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_pretrained(), 1)
        raise UserError(
            f"timm:{name}: timm {timm.__version__} has no such model",
            hint=f"did you mean {near[0]}?" if near else f"for example {EXAMPLE}",
        )
    config = timm.get_pretrained_cfg(name)
    licence = getattr(config, "license", None)
    if weights is not None:
        if not weights.is_file() or weights.suffix != ".safetensors":
            what = "no such file" if not weights.is_file() else "not a .safetensors file, which alone is read"
            raise UserError(f"{weights}: {what}", hint=f"timm:{name}:weights=FILE.safetensors")
        return Found(weights, licence)
    place, file = getattr(config, "hf_hub_id", None), getattr(config, "hf_hub_filename", None) or FILE
    if not place or not file.endswith(".safetensors"):
        raise UserError(
            f"timm:{name}: timm knows no safetensors file of weights of that name",
            hint=f"name weights, as in {EXAMPLE}, or give a file: timm:{name}:weights=FILE.safetensors",
        )
    return Found(_from_hub(name, place, file), licence)


def _from_hub(name: str, place: str, file: str) -> Path:
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(place, file, local_files_only=True))
    except (OSError, ValueError):
        pass  # it is not in the cache
    copy = f"download {file} of {place} elsewhere and give it: timm:{name}:weights=FILE.safetensors"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"timm:{name}: not in the hub's local cache, and HF_HUB_OFFLINE is set", hint=copy)
    try:
        return Path(hf_hub_download(place, file))
    except Exception as error:  # of the network, of a proxy, of a page that is closed or gone
        line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"timm:{name}: its weights cannot be downloaded ({type(error).__name__}: {line})", hint=copy
        ) from error


class TimmBackbone:
    """A vision model of timm without its classifier, ready to run. UserError where its weights do not fit."""

    def __init__(self, name: str, weights: Path | None, device: torch.device):
        import timm

        self.name = name
        self._model = _load(name, find(name, weights).file).eval().to(device)
        said = timm.data.resolve_model_data_config(self._model)
        self.mean, self.std = (255 * torch.tensor(said[key])[:, None, None] for key in ("mean", "std"))
        self.stride = int(self._model.feature_info[-1]["reduction"])
        self._has_cls = getattr(self._model, "cls_token", None) is not None
        self._channels_last = getattr(self._model, "output_fmt", "NCHW") == "NHWC"
        probe(self, device)

    def __call__(self, pixels: Tensor) -> Tokens:
        found = self._model.forward_features(pixels)
        own = self._model.forward_head(found, pre_logits=True)
        if found.ndim == 4:
            return Tokens(found.permute(0, 3, 1, 2) if self._channels_last else found, None, own)
        maps, prefix = as_maps(found, (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride), self.name)
        return Tokens(maps, prefix[:, 0] if self._has_cls and prefix.shape[1] else None, own)


def _load(name: str, file: Path) -> Any:
    import timm

    more: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}, "num_classes": 0}
    try:
        try:
            return timm.create_model(name, **more, dynamic_img_size=True).float()
        except TypeError:  # a convolutional model takes any size and knows no such argument
            return timm.create_model(name, **more).float()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{file}: weights that timm cannot load as {name} ({type(error).__name__}: {line})",
            hint="the file belongs to another model or is damaged",
        ) from error
