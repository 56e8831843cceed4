"""Tiny backbones with random weights, saved as their library saves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SMALL, "intermediate_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
SIZES = {"hidden_sizes": [4, 8, 12, 16], "depths": [1, 1, 1, 1]}
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]

FAMILIES: Mapping[str, Callable[[], Any]] = {
    "dinov2-with-registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SMALL, patch_size=14, image_size=56, num_register_tokens=4)
    ),
    "dinov3-vit": lambda: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**VISION, image_size=32, num_register_tokens=2)
    ),
    "dinov3-convnext": lambda: transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**SIZES)),
    "convnextv2": lambda: transformers.ConvNextV2Model(transformers.ConvNextV2Config(**SIZES)),
    "clip-vision-model": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(text_config=TEXT, vision_config={**VISION, "image_size": 32})
    ),
    "siglip-vision-model": lambda: transformers.SiglipModel(
        transformers.SiglipConfig(text_config=TEXT, vision_config={**VISION, "image_size": 32})
    ),
    "siglip2-vision-model": lambda: transformers.Siglip2Model(
        transformers.Siglip2Config(text_config=TEXT, vision_config={**VISION, "num_patches": 16})
    ),
}


def save(family: str, folder: Path) -> Path:
    """The folder of a model of that family; a norm's weights are random too, so that none stands for another."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.3 * torch.randn(weights.shape)
    model.save_pretrained(folder)
    said = {"image_mean": MEAN, "image_std": STD, "do_rescale": True, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder
