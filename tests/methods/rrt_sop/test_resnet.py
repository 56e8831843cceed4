"""ResNet-50 against an independent implementation under the same names."""

import pytest
import torch
from kornia.feature.defmo import Bottleneck, ResNet
from torch import nn

from methods.rrt_sop.resnet import ResNet50


@pytest.fixture(scope="module")
def trunk() -> ResNet50:
    torch.manual_seed(0)
    return ResNet50().eval()


def test_parameters_are_those_of_the_whole_network_less_its_last_layer(trunk: ResNet50) -> None:
    fc = 2048 * 1000 + 1000
    assert sum(p.numel() for p in trunk.parameters()) == 25_557_032 - fc == 23_508_032


def test_names_shapes_and_outputs_are_the_fields(trunk: ResNet50) -> None:
    other = ResNet(Bottleneck, [3, 4, 6, 3]).eval()
    torch.manual_seed(0)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh ones would all be alike
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1)
            module.bias.data.normal_(0, 0.1)
    state = {k: v for k, v in other.state_dict().items() if not k.startswith("fc.")}
    trunk.load_state_dict(state, strict=True)
    images = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        stem = other.maxpool(other.relu(other.bn1(other.conv1(images))))
        expected = other.layer4(other.layer3(other.layer2(other.layer1(stem))))
        found = trunk(images)
    assert found.shape == (1, 2048, 3, 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_blocks_one_after_the_other_are_the_trunk(trunk: ResNet50) -> None:
    blocks = trunk.blocks()
    assert len(blocks) == 17  # the stem and 3 + 4 + 6 + 3
    x = images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for block in blocks:
            x = block(x)
        assert torch.equal(x, trunk(images))
    assert {id(p) for block in blocks for p in block.parameters()} == {id(p) for p in trunk.parameters()}
