"""ELViS against a second, naive transcription of the paper, hand-computed cases, and files in the authors' layout."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bench.conformance import batch_of, check_reranker, example
from bench.errors import UserError
from bench.features.sets import card_of
from methods._local_weights import save_checkpoint
from methods._sinkhorn import transport
from methods.elvis import ElvisVotes
from methods.elvis.model import FORMAT, Elvis, ElvisConfig, load


def a_network(local_dim: int = 8, seed: int = 0) -> Elvis:
    """With biases, so that a term that is left out is noticed."""
    torch.manual_seed(seed)
    model = Elvis(ElvisConfig(local_dim))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or name == "corner":
                parameter.normal_()
    return model.eval()


def unit(n: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive(w: dict[str, Tensor], one: Tensor, other: Tensor) -> float:
    """Number by number, in float64 and Python loops where the paper has sums."""
    w = {name: tensor.double() for name, tensor in w.items()}

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        deviation = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / (deviation + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    tokens = []
    for x in (one.double(), other.double()):
        t = norm("remap.1", affine("remap.0", x), 1e-5)
        tokens.append(t / (t**2).sum(1, keepdim=True).sqrt())
    a, b = tokens
    bin_a, bin_b = (torch.tanh(affine("dustbin.2", gelu(affine("dustbin.0", t))))[:, 0] for t in (a, b))
    n, m = len(a), len(b)
    logits = torch.empty(n + 1, m + 1, dtype=torch.float64)
    for i in range(n):
        for j in range(m):
            logits[i, j] = (a[i] * b[j]).sum()
        logits[i, m] = bin_a[i]
    logits[n, :m], logits[n, m] = bin_b, w["corner"]
    logits = logits * 10
    mass_rows = [math.log(1 / (n + m))] * n + [math.log(m / (n + m))]
    mass_columns = [math.log(1 / (n + m))] * m + [math.log(n / (n + m))]
    u, v = [0.0] * (n + 1), [0.0] * (m + 1)
    for _ in range(10):
        u = [mass_rows[i] - float(torch.logsumexp(logits[i] + torch.tensor(v), 0)) for i in range(n + 1)]
        v = [mass_columns[j] - float(torch.logsumexp(logits[:, j] + torch.tensor(u), 0)) for j in range(m + 1)]
    plan = [[math.exp(float(logits[i, j]) + u[i] + v[j]) * (n + m) for j in range(m)] for i in range(n)]
    strengths = [max(row) for row in plan] + [max(row[j] for row in plan) for j in range(m)]
    votes = 0.0
    for strength in strengths:
        hidden = gelu(norm("vote.1", affine("vote.0", torch.tensor([strength], dtype=torch.float64)), 1e-6))
        votes += 1 / (1 + math.exp(-float(affine("vote.3", hidden))))
    return votes


@pytest.mark.parametrize(("n", "m"), [(5, 7), (1, 1), (1, 6), (9, 2)])
def test_scores_are_those_of_the_naive_transcription(n: int, m: int) -> None:
    model = a_network()
    one, other = unit(n, 8, 1), unit(m, 8, 2)
    expected = naive(dict(model.state_dict()), one, other)
    assert float(model(one, other).detach()) == pytest.approx(expected, abs=1e-5 * (n + m))
    assert float(model.score(one, [other])[0]) == pytest.approx(expected, abs=1e-5 * (n + m))


def test_one_token_each_is_assigned_by_hand() -> None:
    # [[s, a], [b, c]] with masses 1, 1: equal couplings give every cell a half
    assert transport(torch.zeros(2, 2), 10).exp() == pytest.approx(torch.full((2, 2), 0.5))
    # a pair that is e^2 times as likely as its dustbins takes e / (1 + e) of itself
    plan = transport(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), 100).exp()
    assert float(plan[0, 0]) == pytest.approx(math.e / (1 + math.e), abs=1e-6)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 9))
def test_tokens_give_away_all_of_their_mass_and_dustbins_the_rest(n: int, m: int, seed: int) -> None:
    couplings = torch.randn(n + 1, m + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plan = transport(couplings, 300).exp()
    torch.testing.assert_close(plan.sum(0), torch.tensor([*[1.0] * m, n], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.sum(1), torch.tensor([*[1.0] * n, m], dtype=torch.float64), atol=1e-6, rtol=0)


def test_what_is_likelier_than_its_dustbins_keeps_its_strength() -> None:
    model = a_network()
    shares = []
    for bias in (-9.0, 9.0):  # of dustbins as unlikely as a cosine of -1, and as likely as one of 1
        with torch.no_grad():
            model.dustbin[2].weight.zero_()
            model.dustbin[2].bias.fill_(bias)
            model.corner.fill_(-1.0)
            shares.append(float(model.assign(model.embed(unit(4, 8, 1)), model.embed(unit(4, 8, 2))).sum()))
    assert 0 < shares[1] < shares[0] < 4


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_a_score_lies_between_zero_and_the_number_of_tokens(n: int, m: int, seed: int) -> None:
    score = float(a_network()(unit(n, 8, seed), unit(m, 8, seed + 10)).detach())
    assert 0 < score < n + m


def test_both_directions_of_a_pair_score_nearly_alike() -> None:
    model, one, other = a_network(), unit(6, 8, 1), unit(9, 8, 2)
    assert float(model(one, other).detach()) == pytest.approx(
        float(model(other, one).detach()), rel=1e-2
    )  # after ten iterations


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_finite_differences(seed: int) -> None:
    model = a_network(4, seed).double()
    one, other = unit(3, 4, 1).double().requires_grad_(), unit(2, 4, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(model, (one, other), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize(("local_dim", "parameters"), [(64, 25_492), (128, 33_684), (768, 115_604), (1024, 148_372)])
def test_the_network_has_as_many_parameters_as_the_authors(local_dim: int, parameters: int) -> None:
    assert sum(p.numel() for p in Elvis(ElvisConfig(local_dim)).parameters()) == parameters


# --- files -----------------------------------------------------------------------------------------------------------


def theirs(model: Elvis, path: Path, with_loss: bool = True) -> Path:
    """The weights under other names: layers are told by their shapes."""
    names = {
        "remap.": "local_remap.",
        "dustbin.": "dust_bin_mlp.",
        "corner": "bin_corner",
        "vote.": "f.",
        "logit.": "g.",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        ours = next(each for each in names if name.startswith(each))
        if with_loss or ours != "logit.":
            state[name.replace(ours, names[ours], 1)] = tensor
    torch.save({"state": state}, path)
    return path


@pytest.mark.parametrize("local_dim", [64, 128, 768])
@pytest.mark.parametrize("with_loss", [True, False])
def test_an_authors_file_is_read_by_its_shapes(tmp_path: Path, local_dim: int, with_loss: bool) -> None:
    model = a_network(local_dim)
    read, card = load(theirs(model, tmp_path / "elvis.pt", with_loss))
    assert card == {} and read.config.local_dim == local_dim
    pair = unit(5, local_dim, 1), unit(6, local_dim, 2)
    assert float(read(*pair).detach()) == float(model(*pair).detach())


def test_our_files_keep_sizes_and_card(tmp_path: Path) -> None:
    model = a_network(16)
    save_checkpoint(model, FORMAT, tmp_path / "w.safetensors", {"features": "xfeat", "descriptors": 70})
    read, card = load(tmp_path / "w.safetensors")
    assert read.config == model.config and card == {"features": "xfeat", "descriptors": 70}
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("wrong", ["other", "cut", "nan", "noise", "empty", "none"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "w.pt"
    state = torch.load(theirs(a_network(), path))["state"]
    if wrong == "other":
        state = {"classifier.weight": torch.zeros(1, 128), "decoder.bias": torch.zeros(128)}
    if wrong == "cut":
        state.pop("f.3.bias")
    if wrong == "nan":
        state["f.3.bias"].fill_(torch.nan)
    torch.save(state, path)
    if wrong == "noise":
        path.write_bytes(b"noise")
    if wrong == "empty":
        path.write_bytes(b"")
    if wrong == "none":
        path.unlink()
    with pytest.raises(UserError, match=r"w\.pt"):
        load(path)


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_checkpoint(a_network(64), FORMAT, tmp_path / "w.safetensors", {"features": "xfeat", "descriptors": 40})
    return tmp_path / "w.safetensors"


def test_it_keeps_the_promises_of_a_reranker(weights: Path) -> None:
    check_reranker(ElvisVotes, ElvisVotes.Options(weights=weights))


def test_weights_of_other_descriptors_are_refused_the_shipped_ones_too(weights: Path) -> None:
    assert ElvisVotes().skip(card_of("xfeat")) is None
    assert "-o elvis.weights=FILE" in str(ElvisVotes().skip(card_of("aliked")))
    assert "reads 64-d descriptors, sift" in str(ElvisVotes(ElvisVotes.Options(weights=weights)).skip(card_of("sift")))
    method = ElvisVotes(ElvisVotes.Options(weights=weights))
    assert method.made_for() == "xfeat" and method.descriptors_used(500) == 40
    with pytest.raises(UserError, match="no such file"):
        ElvisVotes(ElvisVotes.Options(weights=weights.with_name("none.pt"))).skip(card_of("xfeat"))


def test_its_explanation_is_the_votes_of_the_descriptors_that_it_reads(weights: Path) -> None:
    method = ElvisVotes(ElvisVotes.Options(weights=weights))
    method.load()
    query, candidate = example(60, card_of("xfeat"), 0), example(7, card_of("xfeat"), 1)
    found, score = method.explain(query, candidate), float(method.score(query, batch_of([candidate]))[0])
    assert found is not None and found.adds_up and found.what == "votes" and found.rows == (40, 7)
    assert found.score == pytest.approx(score, rel=1e-5)
    every = torch.cat([found.query, found.candidate])
    assert 0 < float(every.min()) < float(every.max()) < 1
    turned = method.explain(query.top(40), replace(candidate, descriptors=candidate.descriptors.flip(0)))
    assert turned is not None
    torch.testing.assert_close(turned.candidate, found.candidate.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.query, found.query, atol=1e-5, rtol=0)


def test_votes_of_a_network_that_ignores_strengths_are_all_alike(tmp_path: Path) -> None:
    model = a_network(64)
    with torch.no_grad():
        model.vote[3].weight.zero_()
        model.vote[3].bias.fill_(math.log(3))
    save_checkpoint(model, FORMAT, tmp_path / "w.safetensors", {"descriptors": 40})
    method = ElvisVotes(ElvisVotes.Options(weights=tmp_path / "w.safetensors"))
    method.load()
    found = method.explain(example(3, card_of("xfeat"), 0), example(1, card_of("xfeat"), 1))
    assert found is not None and found.score == pytest.approx(3.0)
    assert found.query.tolist() == pytest.approx([0.75] * 3) and found.candidate.tolist() == pytest.approx([0.75])


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_votes_where_an_image_has_no_descriptors(weights: Path, n: int, m: int) -> None:
    method = ElvisVotes(ElvisVotes.Options(weights=weights))
    method.load()
    assert method.explain(example(n, card_of("xfeat"), 0), example(m, card_of("xfeat"), 1)) is None


def test_odd_images_have_finite_scores(weights: Path) -> None:
    method = ElvisVotes(ElvisVotes.Options(weights=weights, descriptors=5000))
    method.load()
    query = example(50, card_of("xfeat"), 0)
    many, one, none = (example(n, card_of("xfeat"), 1) for n in (2000, 1, 0))
    same = example(20, card_of("xfeat"), 2)
    same.descriptors[:] = same.descriptors[0]  # all equal
    scores = method.score(query, batch_of([many, one, same, none]))
    assert torch.isfinite(scores).all() and int(scores.argmin()) == 3
    assert torch.isfinite(method.score(none, batch_of([many, one]))).all()


def test_pairs_together_are_scored_as_they_are_alone() -> None:
    model = a_network()
    query, candidates = unit(5, 8, 0), torch.stack([unit(7, 8, seed) for seed in (1, 2, 3)])
    together = model(query.expand(3, -1, -1), candidates)
    assert torch.allclose(together, model.score(query, list(candidates)), atol=1e-5)
    assert torch.allclose(model._stack(query, candidates), together)
    assert model._stack(query, torch.empty(2, 0, 8)).tolist() == [0.0, 0.0]


def test_a_gradient_goes_through_the_assignment_and_matches_finite_differences() -> None:
    couplings = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transport(x, 10), (couplings,))


def test_the_shipped_weights_keep_its_promises_and_say_what_they_are() -> None:
    check_reranker(ElvisVotes)
    method = ElvisVotes()
    assert method.made_for() == "xfeat" and method.descriptors_used(500) == 100
    assert "methods/elvis/CARD.md, for 100 descriptors an image" in str(method.card().trained_on)
