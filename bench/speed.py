"""Speed of the program's own parts (`make bench`): medians of interleaved rounds, compared as ratios.

Ratios depend on the machine and are printed against their targets; what must hold anywhere (the ranking of the plain
network, the time of `--help`) decides the exit status.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.conformance import batch_of, example
from bench.datasets.catalogue import load as load_dataset
from bench.features.extractors import CARDS
from bench.places import PROJECT, Places
from bench.run import Request, feature_folder, features_of, seal_shortlist
from bench.scores import UNION, Scorer
from methods.lightglue import LightGlue
from methods.ransac import Ransac
from methods.rrt import RerankingTransformer
from methods.rrt.model import RRT, SINGLE_SCALE, Layer, RRTConfig, TokenBatch, Tokens, pad

CANDIDATES = 20  # one round of `ragged`, so that their mean length is that of the hundred
SECONDS_ALLOWED_FOR_HELP = 0.5
LOGITS_MAY_DIFFER = 1e-5
TARGETS = {"naive, batch 100": 5.0, "naive at its best batch size": 2.0}


@dataclass(frozen=True)
class Medians:
    """Median seconds of each call, and how many samples other load disturbed; those are left out where others exist."""

    seconds: Mapping[str, float]
    disturbed: int
    samples: int

    def __str__(self) -> str:
        return f"{self.samples - self.disturbed} of {self.samples} samples undisturbed by other load"


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int = 5, warm_up: bool = True) -> Medians:
    """Times of the calls, which take turns, after one call each to warm up."""
    samples: dict[str, list[tuple[bool, float]]] = {name: [] for name in calls}
    for call in calls.values() if warm_up else ():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start, busy, own = time.perf_counter(), _busy_seconds(), time.process_time()
            call()
            seconds = time.perf_counter() - start
            others = _busy_seconds() - busy - (time.process_time() - own)
            free = (os.cpu_count() or 1) - torch.get_num_threads()
            samples[name].append((others > (free + 0.1) * seconds + 0.02, seconds))
    return Medians(
        {name: statistics.median(sorted(s for d, s in v if d == min(v)[0])) for name, v in samples.items()},
        sum(d for v in samples.values() for d, _ in v),
        rounds * len(calls),
    )


def _busy_seconds() -> float:
    """Processor seconds that all programs of the machine have used; 0 where the system does not say."""
    try:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


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


def pair_flops(config: RRTConfig, tokens: int, first_token_last: bool) -> int:
    """Floating-point operations of the encoder's matrix products for one pair of `tokens` tokens in all.

    A multiplication and an addition are two. With `first_token_last` the last layer computes the first token alone,
    from the tokens themselves instead of their keys and values (`methods.rrt.engine.pair_logits`).
    """
    d, wide = config.dim, config.feedforward
    layer = 2 * tokens * d * (4 * d + 2 * wide) + 4 * tokens**2 * d
    first = 2 * d * (4 * d + 2 * wide) + 4 * tokens * config.heads * d
    return (config.depth - 1) * layer + (first if first_token_last else layer)


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


def rank_changes(scores: Sequence[float], reference: Sequence[float]) -> int:
    """How many candidates have another rank by `scores` than by `reference`; ties keep the candidates' order."""
    orders = [np.argsort(-np.asarray(values), kind="stable") for values in (scores, reference)]
    return int((orders[0] != orders[1]).sum())


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
    flops, whole = (np.mean([pair_flops(config, 4 + descriptors + n, f) for n in lengths]) for f in (True, False))
    peak = 2 * 2048**3 / min(medians.seconds["peak, MKL"], medians.seconds["peak, oneDNN"])
    rate = flops / ms["score"] * 1e3
    print(
        f"  {flops / 1e9:.2f} GFLOP a pair ({whole / 1e9:.2f} with every token in the last layer), "
        f"{rate / 1e9:.0f} GFLOP/s: {100 * rate / peak:.0f} % of the {peak / 1e9:.0f} that a product of "
        "2048x2048 matrices reaches here"
    )
    gap, changes = (found - expected).abs().max().item(), rank_changes(found.tolist(), expected.tolist())
    print(f"  against naive: {changes} of {len(images)} ranks differ, logits by at most {gap:.1e} (allowed: 1e-05)")
    return changes == 0 and gap <= LOGITS_MAY_DIFFER


def bench_precision(places: Places, queries: int = 20, top_k: int = 50) -> None:
    """bf16 against fp32 with the shipped weights on the demo's shortlists, where its features are there."""
    request = Request("demo", ("rrt",), top_k=top_k)
    if not feature_folder("demo", request.features, request.extract, places).is_dir():
        print("rrt, bf16: no features of the demo data set; run `make demo` first to count rank changes")
        return
    device = torch.device("cpu")
    dataset = load_dataset("demo", places)
    store, _ = features_of(dataset, request.features, request.extract, device, places)
    scorer = Scorer(dataset, seal_shortlist(dataset, store, request, None, []), store, device)
    plain, bf16 = (RerankingTransformer(RerankingTransformer.Options(precision=p)) for p in ("fp32", "bf16"))
    for method in (plain, bf16):
        method.load()
        scorer.score(method, 0)
    pairs = [(scorer.score(plain, i), scorer.score(bf16, i)) for i in range(min(queries, len(dataset.queries)))]
    changes = sum(rank_changes(two.scores[UNION], one.scores[UNION]) for one, two in pairs)
    ratio = statistics.median(one.score_ms / two.score_ms for one, two in pairs)
    print(
        f"rrt, shipped weights, demo, {len(pairs)} queries: bf16 is {ratio:.2f} x as fast as fp32 and changes the rank "
        f"of {changes} of {sum(one.pairs for one, _ in pairs)} candidates"
    )


def bench_others() -> None:
    """The other methods' pairs a second at 500 descriptors."""
    card = CARDS["xfeat"]
    query = example(500, card, 0)
    batch = batch_of([example(500, card, i, query if i % 2 else None) for i in range(1, CANDIDATES + 1)])
    lightglue = LightGlue()
    lightglue.load()
    medians = interleaved(
        {"ransac": lambda: Ransac().score(query, batch), "lightglue": lambda: lightglue.score(query, batch)}
    )
    for name, seconds in medians.seconds.items():
        print(
            f"{name}, 500 descriptors: {CANDIDATES / seconds:.0f} pairs/s, "
            f"{seconds / medians.seconds['ransac']:.1f} x ransac's time; {medians}"
        )


def bench_help() -> bool:
    """The time of `cli.py --help`; whether it is short enough."""
    command = [sys.executable, str(PROJECT / "cli.py"), "--help"]
    seconds = interleaved({"help": lambda: subprocess.run(command, check=True, capture_output=True)}).seconds["help"]
    print(f"cli.py --help: {seconds:.2f} s (allowed: {SECONDS_ALLOWED_FOR_HELP})")
    return seconds < SECONDS_ALLOWED_FOR_HELP


def main() -> None:
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} processors")
    shipped = RRTConfig(depth=3, feedforward=256, global_dim=1280, local_dim=64)
    released = RRTConfig(global_dim=1280, local_dim=64)
    held = [bench_rrt(shipped, 100, rounds=5), bench_rrt(released, 500, rounds=2)]
    bench_precision(Places.of())
    bench_others()
    held.append(bench_help())
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
