"""SSCD against the same network made of another library's trunk; random weights, in the authors' layout."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.feature.defmo import Bottleneck, ResNet
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bench.conformance import check_extractor
from bench.errors import UserError
from bench.features.extractors.sscd import Sscd, resized
from bench.features.sets import FeatureExtractor, SetName

DIMS = 12


class Reference(nn.Module):
    """As its authors put it together: pooling and the layer `fc` of a ResNet are replaced, its names are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(Bottleneck, [3, 4, 6, 3])
        self.backbone.fc = nn.Linear(2048, DIMS)

    def forward(self, images: Tensor) -> Tensor:
        trunk = self.backbone
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        x = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(x)))).clamp(min=1e-6).pow(3)
        x = F.avg_pool2d(x, x.shape[-2:]).pow(1 / 3).flatten(1)
        return F.normalize(trunk.fc(x))


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(0)
    model = Reference().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh ones would all be alike
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def weights(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sscd") / "sscd.torchvision.pt"
    torch.save(reference.state_dict(), path)
    return path


def test_the_descriptor_is_that_of_the_reference(reference: Reference, weights: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (288, 320, 3), np.uint8)
    pixels = torch.from_numpy(image / 255).permute(2, 0, 1)
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.inference_mode():
        expected = reference(pixels[None].float())[0].numpy()
    found = FeatureExtractor(f"sscd:{weights}")(image)["global_descriptor"]
    assert found.shape == (DIMS,)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "made"),
    [((600, 400), (432, 288)), ((400, 600), (288, 432)), ((100, 75), (384, 288)), ((7, 3), (672, 288))],
)
def test_the_shorter_side_is_288_pixels_whatever_the_image(size: tuple[int, int], made: tuple[int, int]) -> None:
    assert resized(np.zeros((*size, 3), np.uint8)).shape == (*made, 3)


def test_a_strip_stays_of_a_size_that_memory_holds() -> None:
    assert resized(np.zeros((2, 3000, 3), np.uint8)).shape == (2, 4096, 3)


def test_max_side_does_not_matter(weights: Path) -> None:
    from bench.features.extract import ExtractOptions

    image = np.asarray(Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3)).resize((500, 400)))
    one, other = (FeatureExtractor(f"sscd:{weights}", ExtractOptions(side))(image) for side in (64, 1000))
    np.testing.assert_array_equal(one["global_descriptor"], other["global_descriptor"])


def test_it_conforms(weights: Path) -> None:
    check_extractor(Sscd, Sscd.Options(weights))


def test_names_without_the_prefix_are_the_same_weights(reference: Reference, weights: Path, tmp_path: Path) -> None:
    torch.save(reference.backbone.state_dict(), tmp_path / "plain.pt")
    image = np.full((288, 288, 3), 90, np.uint8)
    one, other = (FeatureExtractor(f"sscd:{path}")(image) for path in (weights, tmp_path / "plain.pt"))
    np.testing.assert_array_equal(one["global_descriptor"], other["global_descriptor"])


def test_a_program_and_other_networks_are_refused_and_the_right_file_is_named(
    reference: Reference, tmp_path: Path
) -> None:
    script = tmp_path / "sscd.torchscript.pt"
    with zipfile.ZipFile(script, "w") as archive:  # as torch.jit.save writes it
        archive.writestr("sscd/code/__torch__.py", "class Model(Module): ...")
    others = {
        script: "is a program",
        tmp_path / "classy.pt": "no weights of torchvision",
        tmp_path / "large.pt": "shape",
    }
    torch.save({"backbone.initial_block.weight": torch.zeros(3)}, tmp_path / "classy.pt")
    state = reference.state_dict()
    torch.save({**state, "backbone.layer1.0.conv2.weight": torch.zeros(64, 2, 3, 3)}, tmp_path / "large.pt")
    for path, message in others.items():
        with pytest.raises(UserError, match=message) as error:
            FeatureExtractor(f"sscd:{path}")
        assert "torchvision.pt" in str(error.value) or "another architecture" in str(error.value)
    with pytest.raises(UserError, match="needs weights"):
        SetName.parse("sscd")
