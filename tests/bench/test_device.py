"""Which device is meant, and what is said where there is none."""

import pytest
import torch

from bench.device import resolve_device
from bench.errors import UserError


def test_devices_are_known_by_torchs_names() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("name", "said"), [("gpu", "--device gpu: not a device"), ("", "not a device")])
def test_an_unknown_device_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match="cuda:1: torch sees no CUDA device"):
        resolve_device("cuda:1")
