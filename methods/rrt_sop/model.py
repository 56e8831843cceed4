"""The whole product system: a trunk, its global and local descriptors, and the matcher; and its checkpoints.

Official checkpoints hold a ResNet-50; EfficientNet-lite0 is the trunk whose ImageNet weights come as a package.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError, unknown
from methods._transformer import EncoderConfig
from methods.rrt_sop.matcher import Matcher
from methods.rrt_sop.resnet import ResNet50
from third_party.checkpoints import check, read_safetensors, read_torch, require

DIM = 128  # of global and local descriptors
FORMAT = "rerankbench-rrt-sop-1"
GLOBAL = ("mean", "std", "trunk.", "remap.")  # the weights that decide the global descriptor…
LOCAL = ("mean", "std", "trunk.", "remap_local.")  # …and the local ones
OPTIONAL = ("remap_local.", "matcher.")  # what weights of the first stage may lack
HINT = "give a file of `train rrt-sop` or an official Stanford Online Products checkpoint"


@dataclass(frozen=True)
class TrunkKind:
    """A convolutional network of stride 32 and how its pixels are normalised."""

    make: Callable[[], nn.Module]
    channels: int
    mean: tuple[float, float, float]  # of pixels in [0, 1]
    std: tuple[float, float, float]


def _lite0() -> nn.Module:
    from third_party.efficientnet_lite import Trunk

    return Trunk()


TRUNKS: Mapping[str, TrunkKind] = {
    "resnet50": TrunkKind(ResNet50, 2048, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "efficientnet-lite0": TrunkKind(_lite0, 1280, (127 / 255,) * 3, (128 / 255,) * 3),
}


@dataclass(frozen=True)
class SOPConfig:
    """Sizes of the system; the defaults are those of the official checkpoints."""

    trunk: str = "resnet50"
    depth: int = 6  # layers of the matcher
    feedforward: int = 1024

    def __post_init__(self) -> None:
        if self.trunk not in TRUNKS:
            raise unknown("trunk", self.trunk, TRUNKS)
        self.matcher()

    def matcher(self) -> EncoderConfig:
        return EncoderConfig(depth=self.depth, feedforward=self.feedforward, dim=DIM)


class SOPModel(nn.Module):
    """Images to descriptors, and pairs of descriptors to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: SOPConfig = SOPConfig(), card: Mapping[str, Any] | None = None):
        super().__init__()
        self.config = config
        self.card: dict[str, Any] = dict(card or {})  # stage and recipe of our own weights; empty for official ones
        self.without: tuple[str, ...] = ()  # those of OPTIONAL that the loaded weights lack and that are random here
        kind = TRUNKS[config.trunk]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(kind, name)).view(1, 3, 1, 1))
        self.trunk = kind.make()
        self.trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
        self.remap = nn.Linear(kind.channels, DIM)
        self.remap_local = nn.Conv2d(kind.channels, DIM, 1)
        self.matcher = Matcher(config.matcher())
        self.eval()

    def blocks(self) -> list[nn.Module]:
        """The trunk in order: applied one after the other to normalised images they give `maps`."""
        return cast(Any, self.trunk).blocks()

    def maps(self, images: Tensor) -> Tensor:
        """(b, channels, h / 32, w / 32) of RGB images (b, 3, h, w) in [0, 1]."""
        return self.trunk(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def global_descriptors(self, maps: Tensor) -> Tensor:
        """(b, 128) unit norm: the mean over the map, remapped."""
        return F.normalize(self.remap(maps.mean(dim=(2, 3))).float(), dim=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 128) global descriptors of unit norm and (b, 128, 7, 7) local maps of images (b, 3, 224, 224)."""
        maps = self.maps(images)
        return self.global_descriptors(maps), self.remap_local(maps)


def fingerprint(model: SOPModel, parts: Iterable[str]) -> str:
    """sha256 of the weights whose names begin with one of `parts`: equal ones give equal descriptors."""
    digest = hashlib.sha256(model.config.trunk.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(tuple(parts)) and not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_model(model: SOPModel, path: Path, card: Mapping[str, Any], without: tuple[str, ...] = ()) -> None:
    """Write the weights (float32, safetensors) with their config and card, atomically; some of OPTIONAL may be left
    out."""
    state = {name: t.cpu().contiguous() for name, t in model.state_dict().items() if not name.startswith(without)}
    metadata = {"format": FORMAT, "config": json.dumps(asdict(model.config)), "card": json.dumps(dict(card))}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(state, metadata=metadata))
    part.replace(path)


def load_model(path: Path) -> SOPModel:
    """In eval mode, from our safetensors or an official `.pt`; every problem is a UserError naming file and weight.

    Weights of the first stage may lack the local map and the matcher: the model names them under `without`.
    """
    require(path, HINT)
    card: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        state, sizes, card = read_safetensors(path, FORMAT, HINT)
    else:
        state = _official(read_torch(path, HINT), path)
        sizes = _matcher_sizes(state)
    try:
        config = SOPConfig(**sizes)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{path}: its configuration cannot be used ({error})", hint=HINT) from error
    model = SOPModel(config, card)
    model.without = tuple(part for part in OPTIONAL if not any(name.startswith(part) for name in state))
    expected = {name: t for name, t in model.state_dict().items() if not name.startswith(model.without)}
    for name in ("mean", "std"):  # of any shape that holds a value a channel
        if name in state and state[name].numel() == 3:
            state[name] = state[name].reshape(expected[name].shape)
    check(expected, state, path)
    model.load_state_dict(state, strict=not model.without)
    return model.eval()


def load_trunk(model: SOPModel, path: Path) -> None:
    """Take the trunk's weights from an ImageNet ResNet-50 as torchvision saves it (a plain dictionary of tensors)."""
    require(path, HINT)
    state = {f"trunk.{k}": v for k, v in read_torch(path, HINT).items() if not k.startswith("fc.")}
    check({name: tensor for name, tensor in model.state_dict().items() if name.startswith("trunk.")}, state, path)
    model.load_state_dict(state, strict=False)


def _official(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Official names to ours: the trunk has no prefix there, and the classifier of training classes is left out."""
    if not any(name.startswith("layer4.") for name in state):
        some = ", ".join(sorted(state)[:3]) or "nothing"
        raise UserError(
            f"{path}: another architecture: expected a ResNet-50 (conv1, bn1, layer1 to layer4), remap, remap_local "
            f"and matcher; found {some}, …",
            hint=f"{HINT}; checkpoints of the landmark variant are for --method rrt",
        )
    return {
        f"trunk.{name}" if re.match(r"(conv1|bn1|layer[1-4])\.", name) else name: tensor
        for name, tensor in state.items()
        if not name.startswith("classifier.")
    }


def _matcher_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Depth and feed-forward width of the matcher; where they cannot be read, `check` says what is wrong."""
    layers = {m[1] for name in state if (m := re.match(r"matcher\.encoder\.layers\.(\d+)\.", name))}
    width = state.get("matcher.encoder.layers.0.linear1.weight")
    return {"depth": len(layers), "feedforward": len(width)} if width is not None and width.ndim == 2 else {}
