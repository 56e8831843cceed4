"""Vision backbones of the package `transformers`, from a folder or from the local cache of its hub.

Weights are read from safetensors files alone, and no code of a model's repository is run.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from bench.errors import UserError
from bench.files import read_json, read_text
from third_party.backbones import Tokens, as_maps, probe

CONFIG = "config.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the older and the newer name
WEIGHTS, INDEX = "model*.safetensors", "model.safetensors.index.json"
WANTED = (CONFIG, *PREPROCESSORS, "README.md", WEIGHTS, INDEX)
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
EXAMPLE = "facebook/dinov2-base"


@dataclass(frozen=True)
class Found:
    """A model's folder, and what its configuration says before any weight is read."""

    folder: Path
    kind: str  # of its architecture, as its configuration has it
    dim: int | None  # channels of its last layer
    files: tuple[Path, ...]  # that decide what it gives
    licence: str | None  # as its own page says


def find(model: str) -> Found:
    """The model of a folder, or of a name on the hub. UserError that says what the folder lacks.

    A name is looked for in the hub's local cache. It is downloaded where that lacks it and HF_HUB_OFFLINE is not set.
    """
    place = Path(model).expanduser()
    folder = place if place.is_dir() else _from_hub(model)
    config = _config(folder, model)
    sizes = _sizes(config)
    dim = sizes[-1] if sizes else getattr(config, "hidden_size", None)
    weights = sorted(folder.glob(WEIGHTS))
    if not weights:
        pickled = sorted(path.name for form in PICKLED for path in folder.glob(form))
        raise UserError(
            f"{model}: no {WEIGHTS} file"
            + (f"; {pickled[0]} is a pickle or another framework's, which is not read" if pickled else ""),
            hint="convert it: load the model in transformers and save it by save_pretrained(folder)",
        )
    settings = [path for name in (CONFIG, *PREPROCESSORS) if (path := folder / name).is_file()]
    normalisation(folder)  # what it lacks is said before anything is extracted
    return Found(folder, config.model_type, dim, (*weights, *settings), _licence(folder / "README.md"))


def _from_hub(model: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not HUB_NAME.fullmatch(model):
        raise UserError(
            f"{model}: no such folder, and no name of a model on the hub",
            hint=f"give a folder with {CONFIG} and {WEIGHTS}, or OWNER/NAME, for example {EXAMPLE}",
        )
    cached = None
    with suppress(LocalEntryNotFoundError, OSError, ValueError):  # it is not in the cache
        cached = Path(snapshot_download(model, allow_patterns=list(WANTED), local_files_only=True))
    if cached is not None and (_complete(cached) or constants.HF_HUB_OFFLINE):
        return cached  # what it lacks is said where it is read
    copy = f"download its {CONFIG}, {PREPROCESSORS[0]} and {WEIGHTS} elsewhere and give their folder"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{model}: neither a folder nor in the hub's local cache, and HF_HUB_OFFLINE is set", hint=copy)
    try:
        return Path(snapshot_download(model, allow_patterns=list(WANTED)))
    except Exception as error:  # of the network, of a proxy, of a page that is closed or gone
        line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{model}: not in the hub's local cache, and it cannot be downloaded ({type(error).__name__}: {line})",
            hint=copy,
        ) from error


def _complete(folder: Path) -> bool:
    """Whether nothing of a cached model has to be downloaded: other programs may have asked for a part of it."""
    try:
        shards = set(read_json(folder / INDEX)["weight_map"].values()) if (folder / INDEX).is_file() else ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    weights = {path.name for path in folder.glob(WEIGHTS)}
    preprocessor = any((folder / name).is_file() for name in PREPROCESSORS)
    return (folder / CONFIG).is_file() and preprocessor and bool(weights) and weights.issuperset(shards)


def _config(folder: Path, model: str) -> Any:
    """The configuration of the vision part."""
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{model}: no {CONFIG} in this folder", hint="give the folder that save_pretrained of transformers wrote"
        )
    from transformers import AutoConfig

    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever is in the file: another library's model, code of its own, damage
        line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{folder / CONFIG}: no configuration that transformers knows ({line})",
            hint="take a model that transformers has without code of the model's repository",
        ) from error
    return getattr(config, "vision_config", None) or config


def _sizes(config: Any) -> list[int]:
    """Channels of each stage, of a model that has stages."""
    return list(getattr(config, "hidden_sizes", None) or getattr(config, "embed_dims", None) or [])


def _licence(page: Path) -> str | None:
    """What the first lines of a model's page say."""
    try:
        found = re.search(r"^license:\s*['\"]?([\w.+-]+)", read_text(page)[:5000], re.MULTILINE)
    except (OSError, ValueError):
        return None
    return None if found is None else found[1]


def normalisation(folder: Path) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) mean and deviation of pixel values 0 to 255, from the model's own preprocessor."""
    path = next((folder / name for name in PREPROCESSORS if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder}: no {PREPROCESSORS[0]}, so it is not known how the model wants its pixels",
            hint=f"copy {PREPROCESSORS[0]} from the model's page into the folder",
        )
    try:
        said = read_json(path)
        said = said.get("image_processor", said)
        factor = float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0
        plain = said.get("do_normalize", True) is False
        mean = torch.tensor([0.0] * 3 if plain else [float(value) for value in said["image_mean"]])
        std = torch.tensor([1.0] * 3 if plain else [float(value) for value in said["image_std"]])
        if mean.shape != (3,) or std.shape != (3,) or not (std > 0).all() or not factor > 0:
            raise ValueError(f"image_mean {mean.tolist()}, image_std {std.tolist()}, rescale_factor {factor}")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: no image_mean and image_std of three colours ({type(error).__name__}: {error})",
            hint="copy the file from the model's page again",
        ) from error
    return (mean / factor)[:, None, None], (std / factor)[:, None, None]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the reports and progress bars of loading, which name the text half of a model as unexpected."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class HfBackbone:
    """A vision model of transformers, ready to run. UserError where its weights do not fit or give no numbers."""

    def __init__(self, model: str, device: torch.device):
        found = find(model)
        config = _config(found.folder, model)
        self.name = found.kind
        self.mean, self.std = normalisation(found.folder)
        self.stride = _stride(config, model)
        self._model = _load(found.folder, config, model).to(device)
        takes = inspect.signature(self._model.forward).parameters
        self._patches = "spatial_shapes" in takes  # SigLIP 2 takes rows of patches
        self._more = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        self._registers = int(getattr(config, "num_register_tokens", 0) or 0)
        self._norm: Any = None
        seen = probe(self, device)
        self._norm = self._norm_of_cls(seen)

    def _norm_of_cls(self, seen: Tokens) -> Any:
        """The last normalisation, where the model (CLIP) applies it to its CLS token alone and not to the patches."""
        norm = getattr(getattr(self._model, "vision_model", self._model), "post_layernorm", None)
        if norm is None or seen.cls is None or seen.pooled is None or seen.pooled.shape != seen.cls.shape:
            return None
        if torch.allclose(seen.cls, seen.pooled, atol=1e-4):
            return None
        with torch.inference_mode():
            return norm if torch.allclose(norm(seen.cls), seen.pooled, atol=1e-4) else None

    def __call__(self, pixels: Tensor) -> Tokens:
        cells = (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride)
        if self._patches:
            out = self._model(**_rows_of_patches(pixels, self.stride))
        else:
            out = self._model(pixel_values=pixels, **self._more)
        hidden, pooled = out.last_hidden_state, getattr(out, "pooler_output", None)
        pooled = None if pooled is None else pooled.flatten(1)
        if hidden.ndim == 4:
            return Tokens(hidden, None, pooled)
        if self._norm is not None:
            hidden = self._norm(hidden)
        maps, prefix = as_maps(hidden, cells, self.name)
        return Tokens(maps, prefix[:, 0] if prefix.shape[1] > self._registers else None, pooled)


def _stride(config: Any, model: str) -> int:
    """Pixels of a side of a cell of the last layer: each stage but the first halves the sides."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, list | tuple):
        patch = patch[0] if len(set(patch)) == 1 else None
    stages = max(1, len(_sizes(config)))
    if patch is None and stages > 1:
        patch = 4  # of every convolutional model with stages here; one with another is refused by its map
    if not isinstance(patch, int) or patch < 1:
        raise UserError(
            f"{model}: a model of type {config.model_type!r} is no vision backbone (no patch_size)",
            hint=f"give a model that takes images, for example {EXAMPLE}",
        )
    return patch * 2 ** (stages - 1)


def _load(folder: Path, config: Any, model: str) -> Any:
    from transformers import AutoModel

    try:
        with _quiet():
            loaded, report = AutoModel.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{model}: its weights cannot be loaded ({type(error).__name__}: {line})",
            hint="copy or download the folder again",
        ) from error
    if getattr(loaded, "main_input_name", "") != "pixel_values":
        raise UserError(
            f"{model}: a model of type {config.model_type!r} does not read images",
            hint=f"give a vision backbone, for example {EXAMPLE}",
        )
    # a pooler is often absent, and is not asked then: it has weights drawn at random
    missing = sorted(str(name) for name in report["missing_keys"] if not str(name).startswith("pooler"))
    if missing:
        raise UserError(
            f"{model}: {len(missing)} weights are missing, first {missing[0]!r}",
            hint=f"the weights belong to another model than {folder / CONFIG}: copy both again",
        )
    if len(missing) < len(report["missing_keys"]):
        loaded.pooler = None
    return loaded.float().eval()


def _rows_of_patches(pixels: Tensor, patch: int) -> dict[str, Tensor]:
    """(b, n, patch * patch * 3) rows, all of them seen, of a grid of that many rows and columns."""
    grid = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (b, 3, h, patch, w, patch)
    rows, columns = grid.shape[2], grid.shape[4]
    patches = grid.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), rows * columns, -1)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int64, device=pixels.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * len(pixels), device=pixels.device),
    }
