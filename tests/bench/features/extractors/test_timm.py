"""Backbones of timm. A stand-in has those functions of it that are called: timm itself imports torchvision."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.conformance import check_extractor
from bench.errors import UserError
from bench.features.extract import Part
from bench.features.extractors.timm import Timm
from bench.features.sets import FeatureExtractor, SetName

CPU = torch.device("cpu")
PATCH, DIM = 8, 6


class Vit(nn.Module):
    """A CLS token, two registers and the patches; its own pooling is the patches' mean, as timm's of DINOv3."""

    feature_info = ({"reduction": PATCH},)

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.registers = nn.Parameter(100 * torch.randn(1, 2, DIM))

    def forward_features(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.registers)]
        prefix[0] = prefix[0] + patches.mean(dim=1, keepdim=True) ** 2
        return torch.cat([*prefix, patches], dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor:
        assert pre_logits
        return x[:, 3:].mean(dim=1)


class Conv(nn.Module):
    """A map with its channels last, as timm's Swin has them."""

    feature_info = ({"reduction": 4}, {"reduction": PATCH})
    output_fmt = "NHWC"

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, PATCH, PATCH)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.patch(x).permute(0, 2, 3, 1)

    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor:
        return x.amax(dim=(1, 2))


KINDS = {"vit_tiny.here": Vit, "conv_tiny.here": Conv}
LICENCES = {"vit_tiny.here": "apache-2.0", "conv_tiny.here": "fair-noncommercial"}


def create_model(name: str, pretrained: bool, pretrained_cfg_overlay: dict, num_classes: int, **more: Any) -> nn.Module:
    assert pretrained and num_classes == 0
    if KINDS[name] is Conv and more:
        raise TypeError("unexpected keyword argument")
    assert KINDS[name] is Conv or more == {"dynamic_img_size": True}
    model = KINDS[name]()
    model.load_state_dict(load_file(pretrained_cfg_overlay["file"]))
    return model


@pytest.fixture(autouse=True)
def _timm(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("timm")
    made.__spec__ = ModuleSpec("timm", None)
    configs = {
        name: SimpleNamespace(license=LICENCES[name], hf_hub_id=f"timm/{name}", hf_hub_filename=None) for name in KINDS
    }
    functions = {
        "__version__": "1.0",
        "is_model": lambda name: name in {full.partition(".")[0] for full in KINDS},
        "list_pretrained": lambda: list(KINDS),
        "get_pretrained_cfg": configs.get,
        "create_model": create_model,
        "data": SimpleNamespace(
            resolve_model_data_config=lambda model: {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
        ),
    }
    for name, value in functions.items():
        setattr(made, name, value)
    monkeypatch.setitem(sys.modules, "timm", made)


@pytest.fixture
def weights(tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        torch.manual_seed(0)
        save_file(KINDS[name]().state_dict(), tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return write


@pytest.mark.parametrize("name", KINDS)
def test_it_conforms(name: str, weights: Callable[[str], Path]) -> None:
    check_extractor(Timm, Timm.Options(name, weights=weights(name)))


def test_the_cls_token_is_taken_though_the_model_pools_its_patches(weights: Callable[[str], Path]) -> None:
    file = weights("vit_tiny.here")
    model = create_model("vit_tiny.here", True, {"file": file}, 0, dynamic_img_size=True)
    image = np.random.default_rng(0).integers(0, 256, (4 * PATCH, 5 * PATCH, 3), np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    pixels = (pixels - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    with torch.inference_mode():
        tokens = model.forward_features(pixels[None])[0]
    expected = {"own": tokens[0], "mean": tokens[3:].mean(0), "max": tokens[3:].amax(0), "pooler": tokens[3:].mean(0)}
    for how, vector in expected.items():
        found = Timm(Timm.Options("vit_tiny.here", how, weights=file), CPU)(image)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, torch.nn.functional.normalize(vector, dim=0).numpy(), atol=1e-5)


def test_a_map_with_its_channels_last_is_pooled_over_its_cells(weights: Callable[[str], Path]) -> None:
    file = weights("conv_tiny.here")
    image = np.random.default_rng(0).integers(0, 256, (6 * PATCH, 6 * PATCH, 3), np.uint8)  # as many cells as channels
    own, most = (Timm(Timm.Options("conv_tiny.here", how, weights=file), CPU)(image) for how in ("own", "max"))
    np.testing.assert_allclose(own, most, atol=1e-6)
    with pytest.raises(UserError, match="no CLS token"):
        Timm(Timm.Options("conv_tiny.here", "cls", weights=file), CPU)(image)


def test_licence_and_weights_are_part_of_what_is_known_before_anything_is_loaded(
    weights: Callable[[str], Path],
) -> None:
    vit, conv = (SetName.parse(f"timm:{name}:weights={weights(name)}") for name in ("vit_tiny.here", "conv_tiny.here"))
    assert isinstance(vit.global_, Part) and vit.global_.spec.card.licence == "apache-2.0" and not vit.terms
    assert conv.terms == ("fair-noncommercial",)
    assert vit.name.startswith("timm-vit_tiny.here-")
    torch.manual_seed(1)
    file = weights("vit_tiny.here").with_name("other.safetensors")
    save_file(Vit().state_dict(), file)
    assert SetName.parse(f"timm:vit_tiny.here:weights={file}").name != vit.name


def test_weights_come_from_the_hubs_cache(
    weights: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra hf is not installed")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") as error:
        SetName.parse("timm:vit_tiny.here")
    assert "weights=FILE.safetensors" in str(error.value)
    file = weights("vit_tiny.here")
    place = tmp_path / "hub" / "models--timm--vit_tiny.here"
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (place / "snapshots" / ("0" * 40) / "model.safetensors").write_bytes(file.read_bytes())
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    assert SetName.parse("timm:vit_tiny.here").name == SetName.parse(f"timm:vit_tiny.here:weights={file}").name


def test_what_cannot_be_used_is_refused_with_what_to_do(weights: Callable[[str], Path], tmp_path: Path) -> None:
    file = weights("conv_tiny.here")
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    for text, message, hint in (
        ("timm", "needs weights", "timm:NAME"),
        ("timm:vit_tinny.here", "no such model", "vit_tiny.here"),
        ("timm:vit_tiny.elsewhere", "knows no safetensors", "weights=FILE"),
        (f"timm:vit_tiny.here:weights={tmp_path / 'none.safetensors'}", "no such file", "weights=FILE"),
        (f"timm:vit_tiny.here:weights={tmp_path / 'weights.pth'}", "not a .safetensors file", "weights=FILE"),
        (f"timm:vit_tiny.here:weights={file}", "cannot load as vit_tiny.here", "another model"),
    ):
        with pytest.raises(UserError, match=message) as error:
            FeatureExtractor(text)
        assert hint in str(error.value)


def test_without_the_package_rows_are_left_out_with_the_reason(
    instances: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as Python says that it cannot be imported
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    outcome = run(instances, "identity,aqe@timm:vit_tiny.here")
    (reason,) = outcome.run.record.skipped.values()
    assert "needs the package timm" in reason
    with pytest.raises(UserError, match="needs the package timm"):
        run(instances, "identity", features="timm:vit_tiny.here")
