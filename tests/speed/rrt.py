"""RRT's scoring against the same network built plainly, and bf16 against fp32."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.places import Places
from bench.rows import Row as MethodRow
from bench.shortlist import UNION
from methods._transformer import Layer
from methods.rrt import RerankingTransformer
from methods.rrt.model import RRT, SINGLE_SCALE, RRTConfig, TokenBatch, Tokens, pad
from tests.speed import demo_scorer, interleaved, rank_changes
from tests.speed.table import Probe, Row, Work, show

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
    probe = Probe()
    calls: dict[str, Callable[[], object]] = {name: partial(call, images[:n]) for name, (call, n) in timed.items()}
    expected, found = unfused.score(query, images, 10), model.score(query, images)  # these also warm up
    for call in probe.calls.values():
        call()
    medians = interleaved({**calls, **probe.calls}, rounds, warm_up=False)
    seconds = {name: medians.seconds[name] / n for name, (_, n) in timed.items()}
    best = min((name for name in seconds if name.startswith("naive")), key=lambda name: seconds[name])
    flops = float(np.mean([pair_flops(config, 4 + descriptors + n, True, 2 + descriptors) for n in lengths]))
    bound = probe.peaks(medians).bound(Work(flops), seconds["score"])
    rows = []
    for name in (name for name in timed if name != "score"):
        targets = [TARGETS[name]] if name in TARGETS else []
        targets += [TARGETS["naive at its best batch size"]] if name == best else []
        what = f"rrt {config.depth}x{config.feedforward}, {descriptors}"
        against = name.removeprefix("naive, ").replace("unfused naive, batch", "unfused,")
        ratio = seconds[name] / seconds["score"]
        rows.append(Row(what, seconds["score"], against, ratio, max(targets, default=None), bound))
    gap, changes = (found - expected).abs().max().item(), rank_changes(found.tolist(), expected.tolist())
    same = changes == 0 and gap <= LOGITS_MAY_DIFFER
    show([replace(row, same=same) for row in rows], medians)
    print(f"  {flops / 1e9:.2f} GFLOP a pair; {changes} of {len(images)} ranks differ, logits by {gap:.1e} at most")
    return same


def bench_precision(places: Places, queries: int = 20) -> None:
    """bf16 against fp32 with the shipped weights on the demo's shortlists, where its features are there."""
    found = demo_scorer(places)
    if found is None:
        print("rrt, bf16: no features of the demo data set; run `make demo` first to count rank changes")
        return
    scorer, store = found
    methods = [RerankingTransformer(RerankingTransformer.Options(precision=p)) for p in ("fp32", "bf16")]
    plain, bf16 = (MethodRow("rrt", method, store) for method in methods)
    for row in (plain, bf16):
        row.method.load()
        scorer.score(row, 0)
    pairs = [
        (scorer.score(plain, i), scorer.score(bf16, i)) for i in range(min(queries, len(scorer.shortlist.queries)))
    ]
    changes = sum(rank_changes(two.scores[UNION], one.scores[UNION]) for one, two in pairs)
    ms = {
        name: [side.score_ms / side.pairs for side in sides]
        for name, sides in zip(("fp32", "bf16"), zip(*pairs, strict=True), strict=True)
    }
    ratio = statistics.median(one / two for one, two in zip(ms["fp32"], ms["bf16"], strict=True))
    print(Row("rrt bf16, demo", statistics.median(ms["bf16"]) / 1e3, "fp32", ratio))
    print(f"  it changes the rank of {changes} of {sum(one.pairs for one, _ in pairs)} candidates")
