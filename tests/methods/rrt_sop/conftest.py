"""Small product weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from methods.rrt_sop.model import SOPConfig, SOPModel, save_model


@pytest.fixture(scope="session")
def small(tiny: str) -> Callable[[int], SOPModel]:
    """`small(seed)`: a matcher of one layer; other seeds give other weights throughout."""

    def make(seed: int = 0) -> SOPModel:
        torch.manual_seed(seed)
        return SOPModel(SOPConfig(tiny, depth=1, feedforward=16), {"stage": "joint"})

    return make


@pytest.fixture(scope="session")
def weights(small: Callable[[int], SOPModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of them. Read only."""
    path = tmp_path_factory.mktemp("sop") / "joint.safetensors"
    save_model(small(0), path, {"stage": "joint"})
    return path
