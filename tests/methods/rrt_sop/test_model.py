"""The whole product system, and which files of weights are taken for it."""

import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from bench.errors import UserError
from methods.rrt_sop.model import (
    FORMAT,
    GLOBAL,
    LOCAL,
    OPTIONAL,
    SOPConfig,
    SOPModel,
    fingerprint,
    load_model,
    load_trunk,
    save_model,
)

Small = Callable[[int], SOPModel]


# --- the system -----------------------------------------------------------------------------------------------------


def test_descriptors_are_the_remapped_mean_and_the_remapped_cells() -> None:
    model = SOPModel(SOPConfig("efficientnet-lite0", depth=1, feedforward=16))
    images = torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, local = model(images)
        maps = model.trunk((images * 255 - 127) / 128)  # the trunk's own normalisation
        assert maps.shape == (2, 1280, 7, 7) and local.shape == (2, 128, 7, 7)
        mean = model.remap(maps.mean(dim=(2, 3)))
        torch.testing.assert_close(whole, mean / mean.norm(dim=1, keepdim=True), atol=1e-4, rtol=0)
        cell = F.linear(maps[1, :, 2, 5], model.remap_local.weight[:, :, 0, 0], model.remap_local.bias)
        torch.testing.assert_close(local[1, :, 2, 5], cell, atol=1e-4, rtol=1e-4)


def test_an_unknown_trunk_is_refused() -> None:
    with pytest.raises(UserError, match="resnet5"):
        SOPConfig("resnet5")


def test_fingerprints_tell_apart_what_decides_the_descriptors(small: Small) -> None:
    one, two = small(0), small(0)
    assert fingerprint(one, LOCAL) == fingerprint(two, LOCAL)
    with torch.no_grad():
        two.matcher.classifier.bias.add_(1)
        two.remap.bias.add_(1)
    assert fingerprint(one, LOCAL) == fingerprint(two, LOCAL)
    assert fingerprint(one, GLOBAL) != fingerprint(two, GLOBAL)
    with torch.no_grad():
        next(two.trunk.parameters()).add_(1e-6)
    assert fingerprint(one, LOCAL) != fingerprint(two, LOCAL)


# --- our own files --------------------------------------------------------------------------------------------------


def test_round_trip(small: Small, tmp_path: Path) -> None:
    model = small(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    save_model(model, tmp_path / "new folder" / "w.safetensors", {"stage": "joint", "images": 3})
    again = load_model(tmp_path / "new folder" / "w.safetensors")
    assert again.config == model.config and again.card == {"stage": "joint", "images": 3}
    assert not again.training and again.without == ()
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


def test_weights_of_the_first_stage_hold_no_untrained_part(small: Small, tmp_path: Path) -> None:
    save_model(small(0), tmp_path / "w.safetensors", {"stage": "global"}, without=OPTIONAL)
    assert not any(name.startswith(OPTIONAL) for name in load_file(tmp_path / "w.safetensors"))
    again = load_model(tmp_path / "w.safetensors")
    assert again.without == OPTIONAL and fingerprint(again, GLOBAL) == fingerprint(small(0), GLOBAL)


# --- official checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    """Names and shapes of an official checkpoint: the trunk without prefix, a classifier of the training classes.

    Every tensor has a value of its own throughout (and so the files are small).
    """
    with torch.device("meta"):
        shapes = {name.removeprefix("trunk."): t for name, t in SOPModel().state_dict().items()}
    shapes |= {"classifier.weight": torch.empty(11318, 128), "classifier.bias": torch.empty(11318)}
    return {
        name: (torch.tensor(i) if t.dtype == torch.int64 else torch.tensor([i / 8]))
        .reshape((1,) * t.ndim)
        .expand(t.shape)
        for i, (name, t) in enumerate(shapes.items())
    }


def _write(path: Path, state: dict) -> Path:
    torch.save({"state": state, "optim": {"lr": 1e-4}, "scheduler": {"milestones": Counter({60: 1})}}, path)
    return path


def test_an_official_checkpoint_loads_whole(official: dict, tmp_path: Path) -> None:
    state = {**official, "mean": torch.tensor([0.1, 0.2, 0.3]), "std": torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)}
    model = load_model(_write(tmp_path / "rrt_r50_sop.pt", state))
    assert model.config == SOPConfig("resnet50", depth=6, feedforward=1024) and not model.card and not model.without
    found = model.state_dict()
    assert len(found) == len(official) - 2
    for name, tensor in official.items():
        ours = f"trunk.{name}" if name.startswith(("conv1", "bn1", "layer")) else name
        if name not in ("mean", "std", "classifier.weight", "classifier.bias"):
            assert torch.equal(found[ours], tensor), name
    assert found["mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert found["std"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert {"conv1.weight", "layer4.2.bn3.running_var", "remap.weight", "matcher.seg_encoder.weight"} <= set(official)


def test_an_official_first_stage_needs_no_matcher(official: dict, tmp_path: Path) -> None:
    state = {name: t for name, t in official.items() if not name.startswith(OPTIONAL)}
    assert load_model(_write(tmp_path / "global.pt", state)).without == OPTIONAL


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer3.4.bn2.running_mean": None}, r"1 weights are missing, first 'trunk.layer3.4.bn2.running_mean'"),
        ({"matcher.pos.weight": torch.zeros(1)}, "1 weights do not belong here, first 'matcher.pos.weight'"),
        ({"remap.weight": torch.zeros(128, 512)}, r"remap.weight has shape \(128, 512\), expected \(128, 2048\)"),
        ({"remap.bias": torch.full((128,), float("nan"))}, "remap.bias holds values that are not finite"),
    ],
)
def test_other_weights_are_refused_by_name(change: dict, said: str, official: dict, tmp_path: Path) -> None:
    state = {name: t for name, t in {**official, **change}.items() if t is not None}
    with pytest.raises(UserError, match=said) as caught:
        load_model(_write(tmp_path / "w.pt", state))
    assert "w.pt" in caught.value.message and caught.value.hint


class _Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("exit 1",)


def _bad(kind: str, folder: Path) -> Path:
    path, ours = folder / "w.pt", folder / "w.safetensors"
    match kind:
        case "code":
            torch.save({"state": {"remap.weight": torch.zeros(1)}, "scheduler": _Evil()}, path)
        case "plain pickled code":
            path.write_bytes(pickle.dumps({"state": _Evil()}))
        case "empty":
            path.write_bytes(b"")
        case "landmark variant":
            torch.save({"state": {"remap.weight": torch.zeros(128, 2048), "scale_encoder.weight": torch.ones(1)}}, path)
        case "foreign":
            save_file({"a": torch.zeros(1)}, ours, {"format": "rerankbench-rrt-1", "config": "{}"})
        case "sizes":
            save_file({"a": torch.zeros(1)}, ours, {"format": FORMAT, "config": '{"trunk": "resnet50", "depth": 0}'})
        case "trunk":
            save_file({"a": torch.zeros(1)}, ours, {"format": FORMAT, "config": '{"trunk": "vit"}'})
    return ours if ours.exists() else path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("none", "no such weights file"),
        ("empty", "empty"),
        ("code", "refused"),
        ("plain pickled code", "refused"),
        ("landmark variant", "another architecture"),
        ("foreign", f"expected '{FORMAT}'"),
        ("sizes", "configuration"),
        ("trunk", "vit"),
    ],
)
def test_bad_files_are_user_errors_naming_the_file(kind: str, said: str, tmp_path: Path) -> None:
    path = _bad(kind, tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        load_model(path)
    assert path.name in caught.value.message and caught.value.hint


# --- an ImageNet trunk ----------------------------------------------------------------------------------------------


def test_a_trunk_as_torchvision_saves_it(official: dict, tmp_path: Path) -> None:
    state = {name: t for name, t in official.items() if name.startswith(("conv1", "bn1", "layer"))}
    fc = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save({**state, **fc}, tmp_path / "resnet50.pth")
    model = SOPModel(SOPConfig(depth=1, feedforward=16))
    before = model.remap.weight.clone()
    load_trunk(model, tmp_path / "resnet50.pth")
    assert all(torch.equal(model.trunk.state_dict()[name], t) for name, t in state.items())
    assert torch.equal(model.remap.weight, before)
    torch.save({k: v for k, v in state.items() if k != "bn1.bias"}, tmp_path / "less.pth")
    with pytest.raises(UserError, match=r"trunk\.bn1\.bias"):
        load_trunk(model, tmp_path / "less.pth")
