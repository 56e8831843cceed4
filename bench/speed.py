"""Speed of the program's own parts (`make bench`): medians of interleaved rounds, compared as ratios."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import torch

from bench.conformance import batch_of, example
from bench.features.extractors import CARDS
from bench.places import PROJECT
from methods.lightglue import LightGlue
from methods.ransac import Ransac
from methods.rrt.model import RRT, SINGLE_SCALE, RRTConfig, TokenBatch, Tokens

ROUNDS = 5
CANDIDATES = 20
SECONDS_ALLOWED_FOR_HELP = 0.5


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, after one warm-up each."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in samples.items()}


def rrt_engines(depth: int, feedforward: int, descriptors: int) -> dict[str, Callable[[], object]]:
    """RRT over ragged candidates: one padded batch of all, against the unpadded path the method uses."""
    torch.manual_seed(0)
    model = RRT(RRTConfig(depth=depth, feedforward=feedforward, global_dim=1280, local_dim=64)).eval()
    images = []
    for i in range(CANDIDATES + 1):
        n = descriptors - (i * descriptors // 5) % (descriptors // 2)
        images.append(Tokens(torch.randn(n, 64), torch.full((n,), SINGLE_SCALE), torch.randn(1280)))
    query, candidates = images[0], images[1:]
    n = max(len(c.local) for c in candidates)

    def padded(tokens: list[Tokens]) -> TokenBatch:
        batch = TokenBatch(
            torch.zeros(len(tokens), n, 64),
            torch.zeros(len(tokens), n, dtype=torch.long),
            torch.stack([t.global_ for t in tokens]),
            torch.ones(len(tokens), n, dtype=torch.bool),
        )
        for row, t in enumerate(tokens):
            m = min(n, len(t.local))
            batch.local[row, :m], batch.scale_ids[row, :m] = t.local[:m], t.scale_ids[:m]
            assert batch.mask is not None
            batch.mask[row, :m] = False
        return batch

    @torch.inference_mode()
    def naive() -> object:
        return model(padded([query] * CANDIDATES), padded(candidates))

    return {"padded batch": naive, "unpadded pairs": lambda: model.score(query, candidates)}


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {CANDIDATES} candidates, median of {ROUNDS} interleaved rounds")
    for depth, feedforward, descriptors in ((3, 256, 100), (6, 1024, 500)):
        found = interleaved(rrt_engines(depth, feedforward, descriptors))
        ratio = found["padded batch"] / found["unpadded pairs"]
        print(
            f"rrt {depth}x{feedforward}, {descriptors} descriptors: unpadded pairs "
            f"{CANDIDATES / found['unpadded pairs']:.0f} pairs/s, {ratio:.2f} x the padded batch"
        )
    card = CARDS["xfeat"]
    query = example(500, card, 0)
    batch = batch_of([example(500, card, i, query if i % 2 else None) for i in range(1, CANDIDATES + 1)])
    lightglue = LightGlue()
    lightglue.load()
    found = interleaved(
        {"ransac": lambda: Ransac().score(query, batch), "lightglue": lambda: lightglue.score(query, batch)}
    )
    for name, seconds in found.items():
        print(
            f"{name}, 500 descriptors: {CANDIDATES / seconds:.0f} pairs/s, "
            f"{seconds / found['ransac']:.1f} x ransac's time"
        )
    command = [sys.executable, str(PROJECT / "cli.py"), "--help"]
    seconds = interleaved({"help": lambda: subprocess.run(command, check=True, capture_output=True)})["help"]
    print(f"cli.py --help: {seconds:.2f} s (allowed: {SECONDS_ALLOWED_FOR_HELP})")
    sys.exit(0 if seconds < SECONDS_ALLOWED_FOR_HELP else 1)


if __name__ == "__main__":
    main()
