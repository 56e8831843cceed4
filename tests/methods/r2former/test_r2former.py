"""R2Former against torch's own layers and a loop over tokens, hand-made places, and files in the authors' layout."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.conformance import batch_of, check_reranker, example, scores_of
from bench.errors import UserError
from bench.features.sets import card_of
from methods._local_weights import save_checkpoint
from methods.r2former import RetrievalAndReranking
from methods.r2former.model import FORMAT, R2Former, R2FormerConfig, correlated, load, tokens, waves

SMALL = R2FormerConfig(depth=2, pair_depth=1, feedforward=16, heads=4, dim=8, local_dim=6)


def a_network(config: R2FormerConfig = SMALL, seed: int = 0) -> R2Former:
    torch.manual_seed(seed)
    model = R2Former(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.eval()


def rows(n: int, seed: int, dim: int = 6) -> Tensor:
    """(n, 3 + dim) places and attentions in [0, 1], and unit descriptors."""
    draw = torch.Generator().manual_seed(seed)
    return torch.cat([torch.rand(n, 3, generator=draw), F.normalize(torch.randn(n, dim, generator=draw), dim=1)], dim=1)


def layer_of(model: R2Former, prefix: str) -> nn.TransformerEncoderLayer:
    config, w = model.config, model.state_dict()
    layer = nn.TransformerEncoderLayer(
        config.dim, config.heads, config.feedforward, 0, "gelu", 1e-6, batch_first=True, norm_first=True
    )
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1."}
    names |= {"linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2."}
    state = {
        ours + part: w[f"{prefix}.{theirs}{part}"] for ours, theirs in names.items() for part in ("weight", "bias")
    }
    layer.load_state_dict(state)
    return layer.eval()


@torch.no_grad()
def naive(model: R2Former, one: Tensor, other: Tensor) -> float:
    """Token by token, in the words of the paper and the shapes of the authors' code."""
    w, config = model.state_dict(), model.config

    def linear(name: str, x: Tensor) -> Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def place(x: float, y: float) -> Tensor:
        quarter = config.dim // 4
        rates = [10000 ** (-i / quarter) for i in range(quarter)]
        return torch.tensor([f(c * r) for c in (x, y) for f in (math.sin, math.cos) for r in rates])

    def read(first: Tensor, rest: list[Tensor], name: str, depth: int) -> Tensor:
        x = torch.stack([first, *rest])[None]
        for i in range(depth):
            x = layer_of(model, f"{name}.{i}")(x)
        return F.layer_norm(x[0, 0], (config.dim,), w["decoder_norm.weight"], w["decoder_norm.bias"], 1e-6)

    cosine = (one[:, 3:] @ other[:, 3:].T).tolist()
    found = []
    for image, count, opposite in ((0, len(one), len(other)), (1, len(other), len(one))):
        for i in range(count):
            pairs = [(i, j) if image == 0 else (j, i) for j in range(opposite)]
            best = sorted(pairs, key=lambda pair: -cosine[pair[0]][pair[1]])[:5]
            seen = [
                linear("pair_head", torch.cat([one[a, :3], other[b, :3], torch.tensor([cosine[a][b]])]))
                + place(float(other[b, 0]), float(other[b, 1]))
                for a, b in best
            ]
            token = linear("pair_head_2", read(w["cls_token_2"][0, 0], seen, "blocks_2", config.pair_depth))
            found.append(token + place(float(one[best[0][0], 0]), float(one[best[0][0], 1])))
    other_, same = linear("decoder_pred", read(w["cls_token"][0, 0], found, "blocks", config.depth))
    return float(same - other_)


@pytest.mark.parametrize(("n", "m"), [(7, 9), (5, 5), (3, 8), (1, 1), (12, 2)])
def test_scores_are_those_of_a_loop_with_torchs_own_layers(n: int, m: int) -> None:
    model = a_network()
    one, other = rows(n, 1), rows(m, 2)
    assert float(model.score(one, [other])[0]) == pytest.approx(naive(model, one, other), abs=1e-4)


def test_the_order_of_descriptors_does_not_matter() -> None:
    model, one, other = a_network(), rows(7, 1), rows(9, 2)
    expected = float(model.score(one, [other])[0])
    assert float(model.score(one.flip(0), [other.roll(4, 0)])[0]) == pytest.approx(expected, abs=1e-4)


def test_a_candidate_scores_as_it_does_alone() -> None:
    model, query, candidates = a_network(), rows(7, 1), [rows(9, 2), rows(4, 3), rows(6, 4)]
    alone = torch.cat([model.score(query, [candidate]) for candidate in candidates])
    assert torch.equal(model.score(query, candidates), alone) and len(set(alone.tolist())) == 3


def test_correlations_are_the_best_of_each_token_the_querys_values_first() -> None:
    query = torch.tensor([[0.1, 0.2, 1.0, 1, 0], [0.3, 0.4, 0.5, 0, 1]])
    candidate = torch.tensor([[0.5, 0.6, 1.0, 0.6, 0.8], [0.7, 0.8, 0.4, 1, 0], [0.9, 1.0, 0.2, 0, -2]])
    of_query, of_candidate = correlated(query, candidate, 2)
    expected = [[0.1, 0.2, 1, 0.7, 0.8, 0.4, 1], [0.1, 0.2, 1, 0.5, 0.6, 1, 0.6]]
    assert of_query[0].tolist() == [pytest.approx(row) for row in expected]
    assert of_query[1, :, 6].tolist() == pytest.approx([0.8, 0])
    assert of_candidate.shape == (3, 2, 7)
    assert of_candidate[0].tolist() == [
        pytest.approx([0.3, 0.4, 0.5, 0.5, 0.6, 1, 0.8]),
        pytest.approx([0.1, 0.2, 1, 0.5, 0.6, 1, 0.6]),
    ]
    assert of_candidate[2, :, 6].tolist() == [0, -1]  # of unit length, whatever is given


def test_waves_by_hand() -> None:
    """Of two values a coordinate and two rates, 1 and 1/100: sines, then cosines, of x, then of y."""
    found = waves(torch.tensor([0.5, 2.0]), 8)
    expected = [f(c * r) for c in (0.5, 2.0) for f in (math.sin, math.cos) for r in (1, 0.01)]
    assert found.tolist() == pytest.approx(expected)


def test_tokens_have_shares_of_the_longer_side_and_of_the_largest_attention() -> None:
    descriptors = torch.eye(3)
    found = tokens(
        descriptors,
        torch.tensor([[320.0, 240.0], [0.0, 480.0], [700.0, -1.0]]),
        torch.tensor([4.0, 1.0, -2.0]),
        torch.tensor([640.0, 480.0]),
    )
    assert found[:, :3].tolist() == [[0.5, 0.375, 1], [0, 0.75, 0.25], [1, 0, 0]]
    assert torch.equal(found[:, 3:], descriptors)
    nothing = tokens(torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(0), torch.tensor([640.0, 480.0]))
    assert nothing.shape == (0, 6)
    flat = tokens(descriptors, torch.zeros(3, 2), torch.zeros(3), torch.tensor([640.0, 480.0]))
    assert torch.equal(flat[:, :3], torch.zeros(3, 3))


# --- files -----------------------------------------------------------------------------------------------------------


def as_the_authors_keep_it(model: R2Former) -> dict[str, Tensor]:
    """The state of the whole network under DataParallel: backbone, head of the descriptors, and the reranker."""
    dim, local_dim = model.config.dim, model.config.local_dim
    more = {"ratio": torch.ones(1) / 2, "decoder_pos_embed": torch.zeros(1, 1001, dim)}
    reranker = {f"module.Reranker.{name}": tensor for name, tensor in {**model.state_dict(), **more}.items()}
    return {
        "module.backbone.cls_token": torch.zeros(1, 1, 384),
        "module.local_head.weight": torch.zeros(local_dim, 384),
        "module.local_head.bias": torch.zeros(local_dim),
        **reranker,
    }


@pytest.mark.parametrize("config", [SMALL, R2FormerConfig()])
def test_an_authors_file_is_read_with_its_sizes(tmp_path: Path, config: R2FormerConfig) -> None:
    model, path = a_network(config), tmp_path / "CVPR23_DeitS_Rerank.pth"
    torch.save({"epoch_num": 3, "model_state_dict": as_the_authors_keep_it(model)}, path)
    read, card = load(path)
    assert read.config == config and card["descriptors"] == 500
    pair = rows(5, 1, config.local_dim), [rows(6, 2, config.local_dim)]
    assert torch.equal(read.score(*pair), model.score(*pair))


def test_the_released_sizes_are_those_of_the_authors_code() -> None:
    """Shapes as `model/R2Former.py` of bytedance/R2Former declares them for its released model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in R2Former().state_dict().items()}
    assert shapes["pair_head.weight"] == (32, 7) and shapes["pair_head_2.weight"] == (32, 32)
    assert shapes["decoder_pred.weight"] == (2, 32) and shapes["cls_token"] == shapes["cls_token_2"] == (1, 1, 32)
    assert shapes["blocks.5.attn.qkv.weight"] == (96, 32) and shapes["blocks_2.1.mlp.fc1.weight"] == (128, 32)
    blocks = {".".join(name.split(".")[:2]) for name in shapes if name.startswith("blocks")}
    assert blocks == {*(f"blocks.{i}" for i in range(6)), *(f"blocks_2.{i}" for i in range(2))}


def test_a_file_that_holds_more_than_tensors_is_refused_and_what_to_keep_is_said(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model_state_dict": as_the_authors_keep_it(a_network()), "recalls": np.zeros(5)}, path)
    with pytest.raises(UserError, match=r"w\.pth: refused") as refusal:
        load(path)
    assert "keep its model_state_dict alone" in str(refusal.value.hint)


@pytest.mark.parametrize("wrong", ["other", "cut", "nan", "three classes", "noise"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, wrong: str) -> None:
    path, state = tmp_path / "w.pth", as_the_authors_keep_it(a_network())
    if wrong == "other":
        state = {"encoder.layers.0.linear1.weight": torch.zeros(8, 8)}  # RRT's
    if wrong == "cut":
        state.pop("module.Reranker.decoder_norm.bias")
    if wrong == "nan":
        state["module.Reranker.pair_head.bias"] = torch.full((8,), torch.nan)
    if wrong == "three classes":
        state["module.Reranker.decoder_pred.weight"] = torch.zeros(3, 8)
    torch.save({"model_state_dict": state}, path)
    if wrong == "noise":
        path.write_bytes(b"noise")
    with pytest.raises(UserError, match=r"w\.pth"):
        load(path)


def test_sizes_without_room_for_two_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match="dim 6: expected a multiple of 4"):
        R2FormerConfig(dim=6, heads=2)


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = a_network(R2FormerConfig(depth=2, pair_depth=1, feedforward=16, dim=8, local_dim=64))
    save_checkpoint(model, FORMAT, tmp_path / "w.safetensors", {"features": "xfeat", "descriptors": 40})
    return tmp_path / "w.safetensors"


def test_it_keeps_the_promises_of_a_reranker(weights: Path) -> None:
    check_reranker(RetrievalAndReranking, RetrievalAndReranking.Options(weights=weights))


def test_without_weights_or_with_those_of_other_descriptors_it_says_so(weights: Path) -> None:
    assert "-o r2former.weights=FILE" in str(RetrievalAndReranking().skip(card_of("xfeat")))
    method = RetrievalAndReranking(RetrievalAndReranking.Options(weights=weights))
    assert "reads 64-d descriptors, sift" in str(method.skip(card_of("sift")))
    assert method.made_for() == "xfeat" and method.descriptors_used(500) == 40


def test_it_reads_places_and_attention_and_no_more_descriptors_than_it_says(weights: Path) -> None:
    method = RetrievalAndReranking(RetrievalAndReranking.Options(weights=weights))
    method.load()
    query, candidate = (example(60, card_of("xfeat"), seed) for seed in (1, 2))
    expected = scores_of(method, query, batch_of([candidate]))
    assert torch.equal(scores_of(method, query.top(40), batch_of([candidate.top(40)])), expected)
    for name in ("keypoints", "scores"):
        moved = example(60, card_of("xfeat"), 2)
        getattr(moved, name)[:40] *= torch.linspace(1, 0.5, 40)[:, None] if name == "keypoints" else 0.9
        if name == "scores":
            moved.scores[0] = 1.0
        assert not torch.equal(scores_of(method, query, batch_of([moved])), expected), name


def test_odd_images_have_finite_scores(weights: Path) -> None:
    method = RetrievalAndReranking(RetrievalAndReranking.Options(weights=weights, descriptors=5000))
    method.load()
    query = example(50, card_of("xfeat"), 0)
    many, one, none = (example(n, card_of("xfeat"), 1) for n in (300, 1, 0))
    same = example(20, card_of("xfeat"), 2)
    same.descriptors[:] = same.descriptors[0]  # all equal
    scores = method.score(query, batch_of([many, one, same, none]))
    assert torch.isfinite(scores).all() and int(scores.argmin()) == 3
    assert torch.isfinite(method.score(none, batch_of([many, one, none]))).all()
