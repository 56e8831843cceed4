"""Attention that is looked at is the attention that scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from methods._attention import first_attention
from methods._transformer import Attention
from methods.rrt.model import RRT, RRTConfig, Tokens, pad


def test_attention_of_three_tokens_by_hand() -> None:
    """In the first head logits are 1 and log 2 and log 4 more; the second head has the same key for all tokens."""
    attention = Attention(2, 2)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 0], [5, 5], [5, 5]]))
        attention.in_proj_bias[2:] = torch.tensor([9.0, 9, 9, 9])  # what all keys share changes nothing
    x = torch.tensor([[1.0, 7], [1 + math.log(2), 7], [1 + math.log(4), 7]])
    found = first_attention(attention, x)
    torch.testing.assert_close(found, torch.tensor([[1 / 7, 2 / 7, 4 / 7], [1 / 3, 1 / 3, 1 / 3]]), atol=1e-6, rtol=0)


@given(st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_values_weighted_by_it_are_what_the_fused_layer_gives(tokens: int, heads: int, seed: int) -> None:
    torch.manual_seed(seed)
    attention, x = Attention(16, heads), torch.randn(tokens, 16)
    with torch.no_grad():
        attention.in_proj_bias.normal_()
        attention.out_proj.bias.normal_()
        weights = first_attention(attention, x)
        values = F.linear(x, attention.in_proj_weight[32:], attention.in_proj_bias[32:]).view(tokens, heads, -1)
        seen = attention.out_proj(torch.einsum("ht,thd->hd", weights, values).flatten())
        torch.testing.assert_close(seen, attention(x[None], None, True)[0, 0], atol=1e-5, rtol=0)
    assert weights.shape == (heads, tokens) and bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(heads), atol=1e-5, rtol=0)


SMALL = RRTConfig(depth=2, feedforward=48, heads=4, dim=32, global_dim=40, local_dim=16)


def an_image(n: int, seed: int) -> Tokens:
    draw = torch.Generator().manual_seed(seed)
    local, global_ = torch.randn(n, 16, generator=draw), torch.randn(40, generator=draw)
    return Tokens(local, torch.randint(0, 7, (n,), generator=draw), global_)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (1, 1), (0, 3), (3, 0)])
def test_rrt_attends_as_torchs_own_attention_of_its_last_layer(
    spread_rrt: Callable[[RRTConfig], RRT], n: int, m: int
) -> None:
    model, one, other = spread_rrt(SMALL), an_image(n, 1), an_image(m, 2)
    found = model.attention(one, other)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(model.encoder.layers[-1].self_attn.state_dict())  # type: ignore[union-attr]
    with torch.no_grad():
        x, _ = model.encode(*(pad([image], torch.device("cpu")) for image in (one, other)))
        _, expected = theirs(x, x, x)  # the mean of all heads
    assert found.shape == (4 + n + m,)
    torch.testing.assert_close(found, expected[0, 0], atol=1e-5, rtol=0)


def test_tokens_that_are_alike_are_attended_to_alike_and_in_their_order(spread_rrt: Callable[[RRTConfig], RRT]) -> None:
    """The places of descriptors are after CLS and the global, and after SEP and the other global."""
    model, one, other = spread_rrt(SMALL), an_image(5, 1), an_image(7, 2)
    turned = Tokens(one.local.flip(0), one.scale_ids.flip(0), one.global_)
    plain, other_way = model.attention(one, other), model.attention(turned, other)
    torch.testing.assert_close(other_way[2:7], plain[2:7].flip(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(other_way[7:], plain[7:], atol=1e-6, rtol=0)
    assert plain[2:7].std() > 1e-3
