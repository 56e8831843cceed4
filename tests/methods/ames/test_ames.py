"""AMES against torch's own attention, hand-made masks, and files in the authors' layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.conformance import batch_of, check_reranker, example
from bench.errors import UserError
from bench.features.sets import card_of
from methods._local_weights import save_checkpoint
from methods.ames import AsymmetricSimilarity
from methods.ames.model import FORMAT, Ames, AmesConfig, Binarization, load

SMALL = AmesConfig(depth=2, feedforward=32, heads=2, dim=16, local_dim=8)


def a_network(config: AmesConfig = SMALL, seed: int = 0) -> Ames:
    torch.manual_seed(seed)
    model = Ames(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or name == "mtc_token":
                parameter.normal_()
    return model.eval()


def unit(n: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@torch.no_grad()
def naive(model: Ames, one: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """The logit, and the mean attention of the match token in the last layer's two attentions and their heads.

    With `torch.nn.MultiheadAttention`, whose masks say what is NOT attended to.
    """
    w, config = model.state_dict(), model.config

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def remap(x: Tensor) -> Tensor:
        if config.binary:
            x = torch.where(F.normalize(x, dim=1) @ w["remap_local.0.W"] > 0, 1.0, -1.0)
        first = int(config.binary)
        return norm(f"remap_local.{first + 1}", linear(f"remap_local.{first}", x))

    query, candidate = remap(one), remap(other)
    if not config.binary:
        candidate = candidate.half().float()
    n, m = len(one), len(other)
    x = torch.cat([w["mtc_token"][None], query, candidate])
    own, across = torch.ones(2, 1 + n + m, 1 + n + m, dtype=torch.bool)
    own[0] = own[:, 0] = across[0] = across[:, 0] = False
    own[1 : 1 + n, 1 : 1 + n] = own[1 + n :, 1 + n :] = False
    across[1 : 1 + n, 1 + n :] = across[1 + n :, 1 : 1 + n] = False
    for i in range(config.depth):
        looked = []
        for number, (name, mask) in enumerate((("self_attn", own), ("cross_attn", across)), 1):
            attention = nn.MultiheadAttention(config.dim, config.heads, batch_first=True)
            prefix = f"decoder.layers.{i}.{name}."
            attention.load_state_dict({k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)})
            seen, weights = attention(x[None], x[None], x[None], attn_mask=mask)
            looked.append(weights[0, 0])
            x = norm(f"decoder.layers.{i}.norm{number}", x + seen[0])
        hidden = torch.relu(linear(f"decoder.layers.{i}.linear1", x))
        x = norm(f"decoder.layers.{i}.norm3", x + linear(f"decoder.layers.{i}.linear2", hidden))
    return float(linear("classifier", x[0])), torch.stack(looked).mean(dim=0)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("n", "m"), [(5, 7), (1, 1), (9, 2)])
def test_scores_and_attention_are_those_of_torchs_own_attention(n: int, m: int, binary: bool) -> None:
    model = a_network(AmesConfig(depth=2, feedforward=32, heads=2, dim=16, local_dim=8, binary=binary))
    one, other = unit(n, 8, 1), unit(m, 8, 2)
    logit, attention = naive(model, one, other)
    assert float(model.score(one, [other])[0]) == pytest.approx(logit, abs=1e-5)
    torch.testing.assert_close(model.attention(one, other), attention, atol=1e-5, rtol=0)


def test_pairs_of_one_batch_score_as_they_do_alone() -> None:
    model = a_network()
    query, candidates = model.embed(unit(5, 8, 0)), [model.embed(unit(6, 8, seed)) for seed in (1, 2, 3)]
    together = model(query.expand(3, -1, -1), torch.stack(candidates))
    alone = torch.cat([model(query[None], candidate[None]) for candidate in candidates])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_order_of_descriptors_does_not_matter() -> None:
    model, one, other = a_network(), unit(5, 8, 1), unit(7, 8, 2)
    expected = float(model.score(one, [other])[0])
    assert float(model.score(one.flip(0), [other.roll(3, 0)])[0]) == pytest.approx(expected, abs=1e-5)


def test_binary_descriptors_are_read_by_their_signs_alone() -> None:
    model = a_network(AmesConfig(depth=1, feedforward=8, heads=2, dim=16, local_dim=8, binary=True))
    one, other = unit(5, 8, 1), unit(7, 8, 2)
    assert torch.equal(model.score(one, [other]), model.score(3 * one, [0.1 * other]))
    layer = Binarization(8, 16)
    assert set(layer.eval()(one).unique().tolist()) == {-1.0, 1.0}
    smooth = layer.train()(one.requires_grad_())
    assert smooth.abs().max() <= 1 and torch.equal(smooth.sign(), layer.eval()(one))


@pytest.mark.parametrize(("binary", "parameters"), [(False, 2_079_745), (True, 2_096_129)])
def test_the_network_has_as_many_parameters_as_the_authors(binary: bool, parameters: int) -> None:
    assert sum(p.numel() for p in Ames(AmesConfig(binary=binary)).parameters()) == parameters


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
def test_an_authors_file_is_read_with_its_sizes(tmp_path: Path, binary: bool) -> None:
    model = a_network(AmesConfig(depth=3, feedforward=32, dim=16, local_dim=8, binary=binary))
    state = {name: tensor[None, None] if name == "mtc_token" else tensor for name, tensor in model.state_dict().items()}
    torch.save({"state": state}, tmp_path / "ames.pt")
    read, _ = load(tmp_path / "ames.pt")
    assert read.config == model.config
    pair = unit(5, 8, 1), [unit(6, 8, 2)]
    assert torch.equal(read.score(*pair), model.score(*pair))


@pytest.mark.parametrize("wrong", ["other", "cut", "nan", "noise"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, wrong: str) -> None:
    path, state = tmp_path / "w.pt", dict(a_network().state_dict())
    if wrong == "other":
        state = {"encoder.layers.0.linear1.weight": torch.zeros(8, 8)}  # RRT's
    if wrong == "cut":
        state.pop("decoder.layers.1.norm3.bias")
    if wrong == "nan":
        state["classifier.bias"] = torch.full((1,), torch.nan)
    torch.save(state, path)
    if wrong == "noise":
        path.write_bytes(b"noise")
    with pytest.raises(UserError, match=r"w\.pt"):
        load(path)


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = a_network(AmesConfig(depth=2, feedforward=32, dim=16, local_dim=64))
    save_checkpoint(model, FORMAT, tmp_path / "w.safetensors", {"features": "xfeat", "descriptors": 40})
    return tmp_path / "w.safetensors"


def test_it_keeps_the_promises_of_a_reranker(weights: Path) -> None:
    check_reranker(AsymmetricSimilarity, AsymmetricSimilarity.Options(weights=weights))


def test_weights_of_other_descriptors_are_refused_the_shipped_ones_too(weights: Path) -> None:
    assert AsymmetricSimilarity().skip(card_of("xfeat")) is None
    assert "-o ames.weights=FILE" in str(AsymmetricSimilarity().skip(card_of("aliked")))
    method = AsymmetricSimilarity(AsymmetricSimilarity.Options(weights=weights))
    assert "reads 64-d descriptors, sift" in str(method.skip(card_of("sift")))
    assert method.made_for() == "xfeat" and method.descriptors_used(500) == 40
    assert "full precision" in str(method.card().trained_on)


def test_its_explanation_is_the_attention_to_the_descriptors_that_it_reads(weights: Path) -> None:
    method = AsymmetricSimilarity(AsymmetricSimilarity.Options(weights=weights))
    method.load()
    query, candidate = example(60, card_of("xfeat"), 0), example(7, card_of("xfeat"), 1)
    found = method.explain(query, candidate)
    expected = naive(load(weights)[0], query.descriptors[:40], candidate.descriptors)[1]
    assert found is not None and not found.adds_up and found.what == "attention"
    torch.testing.assert_close(torch.cat([found.query, found.candidate]), expected[1:], atol=1e-5, rtol=0)
    assert found.elsewhere == {"the match token": pytest.approx(float(expected[0]), abs=1e-5)}


@pytest.mark.parametrize(("n", "m"), [(0, 3), (1, 1), (3, 0), (0, 0)])
def test_images_of_one_descriptor_or_none_are_explained_where_the_network_scores_them(
    weights: Path, n: int, m: int
) -> None:
    method = AsymmetricSimilarity(AsymmetricSimilarity.Options(weights=weights))
    method.load()
    found = method.explain(example(n, card_of("xfeat"), 0), example(m, card_of("xfeat"), 1))
    if m == 0:
        assert found is None
    else:
        assert found is not None and found.rows == (n, m)
        assert sum(found.totals) + sum(found.elsewhere.values()) == pytest.approx(1, abs=1e-5)


def test_odd_images_have_finite_scores(weights: Path) -> None:
    method = AsymmetricSimilarity(AsymmetricSimilarity.Options(weights=weights, descriptors=5000))
    method.load()
    query = example(50, card_of("xfeat"), 0)
    many, one, none = (example(n, card_of("xfeat"), 1) for n in (1000, 1, 0))
    same = example(20, card_of("xfeat"), 2)
    same.descriptors[:] = same.descriptors[0]  # all equal
    scores = method.score(query, batch_of([many, one, same, none]))
    assert torch.isfinite(scores).all() and int(scores.argmin()) == 3
    assert torch.isfinite(method.score(none, batch_of([many, one]))).all()


@pytest.mark.parametrize("binary", [False, True])
def test_pairs_together_are_scored_as_they_are_alone(binary: bool) -> None:
    model = a_network(AmesConfig(depth=2, feedforward=32, heads=2, dim=16, local_dim=8, binary=binary))
    query, candidates = unit(5, 8, 0), torch.stack([unit(7, 8, seed) for seed in (1, 2, 3)])
    with torch.inference_mode():
        together = model._stack(model.embed(query)[None], candidates)
    assert torch.allclose(together, model.score(query, list(candidates)), atol=1e-5)


def test_the_shipped_weights_keep_its_promises_and_say_what_they_are() -> None:
    check_reranker(AsymmetricSimilarity)
    method = AsymmetricSimilarity()
    assert method.made_for() == "xfeat" and method.descriptors_used(500) == 100
    assert "methods/ames/CARD.md, for 100 descriptors an image" in str(method.card().trained_on)


def test_weights_in_half_precision_are_read_as_those_that_were_written(tmp_path: Path) -> None:
    model = a_network()
    for half in (False, True):
        save_checkpoint(model, FORMAT, tmp_path / f"{half}.safetensors", half=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (False, True)]
    read, expected = load(tmp_path / "True.safetensors")[0].state_dict(), model.state_dict()
    assert sizes[1] < 0.7 * sizes[0]
    assert all(torch.equal(read[name], tensor.half().float()) for name, tensor in expected.items())
