"""The product matcher against the reference, and its positions against values worked out by hand."""

from math import cos, sin
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from methods._transformer import EncoderConfig
from methods.rrt_sop.matcher import Matcher, sine_positions, tokens


def _small(seed: int = 0) -> Matcher:
    torch.manual_seed(seed)
    return Matcher(EncoderConfig(depth=2, feedforward=32, dim=128)).eval()


def _maps(b: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn((b, 49, 128), generator=draw), torch.randn((b, 49, 128), generator=draw)


def test_logits_equal_those_of_the_reference(reference: Path) -> None:
    data = load_file(reference / "rrt_sop.safetensors")
    matcher = Matcher().eval()
    prefix = "state.matcher."
    matcher.load_state_dict({k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)})
    with torch.inference_mode():
        logits = matcher(tokens(data["src.local"]), tokens(data["tgt.local"]))
    assert (logits - data["logits"]).abs().max() < 1e-5


def test_size_is_that_of_the_released_checkpoints() -> None:
    assert sum(p.numel() for p in Matcher().parameters()) == 1_979_777  # docs/protocols.md
    assert "positions" not in Matcher().state_dict()


def test_positions_of_a_small_grid_by_hand() -> None:
    """Side 2 and scale 2: coordinates 1 and 2; 8 channels: wavelengths 1 and 10,000 ** (1 / 2) = 100."""

    def half(at: float) -> list[float]:
        return [sin(at), cos(at), sin(at / 100), cos(at / 100)]

    expected = torch.tensor([half(row) + half(column) for row in (1, 2) for column in (1, 2)])
    torch.testing.assert_close(sine_positions(8, side=2), expected, atol=1e-5, rtol=0)


def test_tokens_are_the_cells_row_by_row() -> None:
    local = torch.arange(2 * 3 * 49, dtype=torch.float32).view(2, 3, 7, 7)
    found = tokens(local)
    assert found.shape == (2, 49, 3)
    assert torch.equal(found[1, 7 * 4 + 2], local[1, :, 4, 2])


def test_a_pair_scores_the_same_in_any_batch() -> None:
    matcher, (one, two) = _small(), _maps()
    with torch.inference_mode():
        torch.testing.assert_close(matcher(one[1:2], two[1:2]), matcher(one, two)[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("moved", ["query", "candidate", "both"])
def test_the_place_of_a_descriptor_matters(moved: str) -> None:
    matcher, (one, two) = _small(), _maps()
    order = torch.arange(49).roll(1)
    with torch.inference_mode():
        before = matcher(one, two)
        after = matcher(one[:, order] if moved != "candidate" else one, two[:, order] if moved != "query" else two)
    assert (before - after).abs().min() > 1e-5


def test_which_image_is_the_query_matters() -> None:
    matcher, (one, two) = _small(), _maps()
    with torch.inference_mode():
        assert (matcher(one, two) - matcher(two, one)).abs().min() > 1e-5


def test_the_length_of_descriptors_matters() -> None:
    """They are not normalised."""
    matcher, (one, two) = _small(), _maps()
    with torch.inference_mode():
        assert (matcher(one, two) - matcher(3 * one, two)).abs().min() > 1e-4
