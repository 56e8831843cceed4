"""SuperPoint's network from the package `transformers`, with weights from a file instead of a hub.

Either the hub's model.safetensors (magic-leap-community/superpoint) or Magic Leap's superpoint_v1.pth; both are for
academic and non-profit research only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.errors import UserError
from third_party import checkpoints

HINT = (
    "expected model.safetensors of huggingface.co/magic-leap-community/superpoint or superpoint_v1.pth of "
    "github.com/magicleap/SuperGluePretrainedNetwork, models/weights"
)
# Magic Leap's name of a convolution -> that of the package
NAMES: Mapping[str, str] = {
    **{f"conv{i}{ab}": f"encoder.conv_blocks.{i - 1}.conv_{ab}" for i in (1, 2, 3, 4) for ab in "ab"},
    **{f"convP{ab}": f"keypoint_decoder.conv_score_{ab}" for ab in "ab"},
    **{f"convD{ab}": f"descriptor_decoder.conv_descriptor_{ab}" for ab in "ab"},
}


def load_superpoint(path: Path, device: torch.device) -> Any:
    """The network, ready to run. UserError, naming the file, if it does not hold its weights."""
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    model = SuperPointForKeypointDetection(SuperPointConfig()).eval()
    state = _read(path)
    checkpoints.check(model.state_dict(), state, path)
    model.load_state_dict(state)
    return model.to(device)


def _read(path: Path) -> dict[str, Tensor]:
    checkpoints.require(path, HINT)
    if path.suffix != ".safetensors":
        parts = ((name.partition("."), tensor) for name, tensor in checkpoints.read_torch(path, HINT).items())
        return {f"{NAMES.get(layer, layer)}.{rest}": tensor for (layer, _, rest), tensor in parts}
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})", hint=HINT) from error
