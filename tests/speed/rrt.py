"""RRT's scoring against the same network built plainly, and bf16 against fp32."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.places import Places
from bench.rows import Row
from bench.shortlist import UNION
from methods._transformer import Layer
from methods.rrt import RerankingTransformer
from methods.rrt.model import RRT, SINGLE_SCALE, RRTConfig, TokenBatch, Tokens, pad
from tests.speed import demo_scorer, interleaved, rank_changes

CANDIDATES = 20  # one round of `ragged`, so that their mean length is that of the hundred
LOGITS_MAY_DIFFER = 1e-5
TARGETS = {"naive, batch 100": 5.0, "naive at its best batch size": 2.0}


class NaiveLayer(nn.Module):
    """A plain transcription of the layer: `nn.MultiheadAttention` over every token, with a padding mask."""

    def __init__(self, layer: Layer):
        super().__init__()
        self.layer = layer
        dim = layer.self_attn.out_proj.in_features
        self.attention = nn.MultiheadAttention(dim, layer.self_attn.heads, batch_first=True)
        self.attention.load_state_dict(layer.self_attn.state_dict())

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        seen = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        x = self.layer.norm1(x + seen)
        return self.layer.norm2(x + self.layer.linear2(F.relu(self.layer.linear1(x))))


class Naive(nn.Module):
    """RRT's logits from padded batches through `NaiveLayer`, all tokens in all layers."""

    def __init__(self, model: RRT, fused: bool = True):
        super().__init__()
        self.model, self.fused = model, fused  # fused: PyTorch's inference path of nn.MultiheadAttention, its default
        self.layers = nn.ModuleList(NaiveLayer(cast(Layer, layer)) for layer in model.encoder.layers)
        self.eval()

    @torch.inference_mode()
    def score(self, query: Tokens, candidates: Sequence[Tokens], batch: int) -> Tensor:
        """(k,) logits, `batch` candidates at a time."""
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(self.fused)
        try:
            return torch.cat(
                [self._logits(query, candidates[at : at + batch]) for at in range(0, len(candidates), batch)]
            )
        finally:
            torch.backends.mha.set_fastpath_enabled(before)

    def _logits(self, query: Tokens, candidates: Sequence[Tokens]) -> Tensor:
        cpu = torch.device("cpu")
        sides = pad([query] * len(candidates), cpu), pad(candidates, cpu)
        x = self.model._join(self.model.embed(sides[0], "src"), self.model.embed(sides[1], "tgt"))
        never = torch.zeros(len(candidates), 2, dtype=torch.bool)
        padding = torch.cat([part for side in sides for part in (never, _padding(side))], dim=1)
        for layer in self.layers:
            x = layer(x, padding)
        return self.model.classifier(x[:, 0]).squeeze(-1)


def _padding(side: TokenBatch) -> Tensor:
    """(b, n) bool, True = padding; also where nothing is padded, since the naive network always reads a mask."""
    return torch.zeros(side.local.shape[:2], dtype=torch.bool) if side.mask is None else side.mask


def pair_flops(config: RRTConfig, tokens: int, first_token_last: bool, projected: int = 0) -> int:
    """Floating-point operations of the encoder's matrix products for one pair of `tokens` tokens in all.

    A multiplication and an addition are two. With `first_token_last` the last layer computes the first token alone,
    from the tokens themselves instead of their keys and values, and the first of several layers has the queries, keys
    and values of `projected` tokens, the query image's, from another pair (`methods.rrt.engine.pair_logits`).
    """
    d, wide = config.dim, config.feedforward
    layer = 2 * tokens * d * (4 * d + 2 * wide) + 4 * tokens**2 * d
    first = 2 * d * (4 * d + 2 * wide) + 4 * tokens * config.heads * d
    known = 2 * projected * d * 3 * d if config.depth > 1 else 0
    return (config.depth - 1) * layer - known + (first if first_token_last else layer)


def ragged(descriptors: int, count: int) -> list[int]:
    """Numbers of descriptors of `count` images: three in five have all, the others from half of them evenly on."""
    fewer = np.linspace(0.51, 1, 8)
    return [round(descriptors * float(share)) for share in ([*[1.0] * 12, *fewer] * count)[:count]]


def example_tokens(descriptors: Sequence[int], config: RRTConfig) -> list[Tokens]:
    draw = torch.Generator().manual_seed(0)
    return [
        Tokens(
            torch.randn(n, config.local_dim, generator=draw),
            torch.full((n,), SINGLE_SCALE),
            torch.randn(config.global_dim, generator=draw),
        )
        for n in descriptors
    ]


def bench_rrt(config: RRTConfig, descriptors: int, rounds: int) -> bool:
    """RRT's scoring against the naive baselines on random weights; whether logits and ranking agree."""
    torch.manual_seed(0)
    model = RRT(config).eval()
    query, *images = example_tokens([descriptors, *ragged(descriptors, 100)], config)
    lengths = [len(image.local) for image in images]
    naive, unfused = Naive(model), Naive(model, fused=False)
    timed: dict[str, tuple[Callable[[Sequence[Tokens]], Tensor], int]] = {
        "naive, batch 100": (partial(naive.score, query, batch=100), 100),
        "naive, batch 10": (partial(naive.score, query, batch=10), CANDIDATES),
        "naive, batch 1": (partial(naive.score, query, batch=1), CANDIDATES),
        "unfused naive, batch 10": (partial(unfused.score, query, batch=10), CANDIDATES),
        "unfused naive, batch 1": (partial(unfused.score, query, batch=1), CANDIDATES),
        "score": (partial(model.score, query), CANDIDATES),
    }
    square = torch.randn(2048, 2048)
    image, kernel = square.T[None, :, :, None], square[:, :, None, None]
    calls: dict[str, Callable[[], object]] = {name: partial(call, images[:n]) for name, (call, n) in timed.items()}
    calls["peak, MKL"], calls["peak, oneDNN"] = partial(torch.mm, square, square), partial(F.conv2d, image, kernel)
    expected, found = unfused.score(query, images, 10), model.score(query, images)  # these also warm up
    medians = interleaved(calls, rounds, warm_up=False)
    ms = {name: 1e3 * medians.seconds[name] / n for name, (_, n) in timed.items()}
    print(
        f"rrt {config.depth}x{config.feedforward}, fp32, query of {descriptors} descriptors, candidates of "
        f"{min(lengths)} to {max(lengths)} (mean {np.mean(lengths):.0f}); median of {rounds} rounds, {medians}"
    )
    for name, value in ms.items():
        print(f"  {name + ':':26s}{value:8.2f} ms a pair ({timed[name][1]} pairs)")
    best = min((name for name in ms if name.startswith("naive")), key=lambda name: ms[name])
    fastest = min((name for name in ms if name != "score"), key=lambda name: ms[name])
    for name, baseline in (
        ("naive, batch 100", "naive, batch 100"),
        ("naive at its best batch size", best),
        ("the fastest naive of all", fastest),
    ):
        ratio, target = ms[baseline] / ms["score"], TARGETS.get(name)
        verdict = "" if target is None else f"; target {target:g}: {'met' if ratio >= target else 'missed'}"
        print(f"  score is {ratio:.2f} x as fast as {name} ({baseline.rpartition(', ')[2]}){verdict}")
    flops = np.mean([pair_flops(config, 4 + descriptors + n, True, 2 + descriptors) for n in lengths])
    whole = np.mean([pair_flops(config, 4 + descriptors + n, False) for n in lengths])
    peak = 2 * 2048**3 / min(medians.seconds["peak, MKL"], medians.seconds["peak, oneDNN"])
    rate = flops / ms["score"] * 1e3
    print(
        f"  {flops / 1e9:.2f} GFLOP a pair ({whole / 1e9:.2f} of whole layers), "
        f"{rate / 1e9:.0f} GFLOP/s: {100 * rate / peak:.0f} % of the {peak / 1e9:.0f} that a product of "
        "2048x2048 matrices reaches here"
    )
    gap, changes = (found - expected).abs().max().item(), rank_changes(found.tolist(), expected.tolist())
    print(f"  against naive: {changes} of {len(images)} ranks differ, logits by at most {gap:.1e} (allowed: 1e-05)")
    return changes == 0 and gap <= LOGITS_MAY_DIFFER


def bench_precision(places: Places, queries: int = 20) -> None:
    """bf16 against fp32 with the shipped weights on the demo's shortlists, where its features are there."""
    found = demo_scorer(places)
    if found is None:
        print("rrt, bf16: no features of the demo data set; run `make demo` first to count rank changes")
        return
    scorer, store = found
    methods = [RerankingTransformer(RerankingTransformer.Options(precision=p)) for p in ("fp32", "bf16")]
    plain, bf16 = (Row("rrt", method, store) for method in methods)
    for row in (plain, bf16):
        row.method.load()
        scorer.score(row, 0)
    pairs = [
        (scorer.score(plain, i), scorer.score(bf16, i)) for i in range(min(queries, len(scorer.shortlist.queries)))
    ]
    changes = sum(rank_changes(two.scores[UNION], one.scores[UNION]) for one, two in pairs)
    ratio = statistics.median(one.score_ms / two.score_ms for one, two in pairs)
    print(
        f"rrt, shipped weights, demo, {len(pairs)} queries: bf16 is {ratio:.2f} x as fast as fp32 and changes the rank "
        f"of {changes} of {sum(one.pairs for one, _ in pairs)} candidates"
    )
