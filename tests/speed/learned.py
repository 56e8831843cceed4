"""Learned matching: SuperGlue against a plain transcription of the paper, LightGlue against kornia's network."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.conformance import batch_of, example
from bench.features import Features
from bench.features.sets import card_of
from methods._sinkhorn import transport
from methods.lightglue import LightGlue
from methods.superglue.model import HEADS, Keypoints, SuperGlue, SuperGlueConfig, matches
from tests.speed import interleaved
from tests.speed.table import Probe, Row, Work, flops_of, show
from third_party import lightglue_weights

TARGETS = {500: 1.4, 1000: 2.2}  # keypoints -> times as fast
TIMES_KORNIA = 1.5  # LighterGlue, 200 descriptors
ITERATIONS, THRESHOLD = 20, 0.2
CANDIDATES = 4


def mlp(*sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes), 2):
        parts.append(nn.Conv1d(inputs, outputs, 1))
        if i < len(sizes):
            parts += [nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*parts)


class PlainAttention(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.merge = nn.Conv1d(dim, dim, 1)
        self.proj = nn.ModuleList(nn.Conv1d(dim, dim, 1) for _ in range(3))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        b, dim, n = x.shape
        parts = zip(self.proj, (x, source, source), strict=True)
        q, k, v = (project(side).view(b, dim // HEADS, HEADS, -1) for project, side in parts)
        weights = torch.softmax(torch.einsum("bdhn,bdhm->bhnm", q, k) / math.sqrt(dim // HEADS), dim=-1)
        return self.merge(torch.einsum("bhnm,bdhm->bdhn", weights, v).reshape(b, dim, n))


class PlainLayer(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.attn, self.mlp = PlainAttention(dim), mlp(2 * dim, 2 * dim, dim)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, self.attn(x, source)], dim=1))


class PlainSuperGlue(nn.Module):
    """The network as the paper describes it; its weights have the official names."""

    def __init__(self, config: SuperGlueConfig):
        super().__init__()
        self.config = config
        self.kenc = nn.ModuleDict({"encoder": mlp(3, *config.encoder, config.dim)})
        self.gnn = nn.ModuleDict({"layers": nn.ModuleList(PlainLayer(config.dim) for _ in range(config.layers))})
        self.final_proj = nn.Conv1d(config.dim, config.dim, 1)
        self.bin_score = nn.Parameter(torch.tensor(1.0))
        self.eval()

    @torch.inference_mode()
    def log_assignment(self, query: Keypoints, candidate: Keypoints) -> Tensor:
        """(n + 1, m + 1), as that of `methods.superglue.model`."""
        x, y = self._encode(query), self._encode(candidate)
        for number, layer in enumerate(self.gnn["layers"].children()):
            sources = (x, y) if number % 2 == 0 else (y, x)
            x, y = x + layer(x, sources[0]), y + layer(y, sources[1])
        scores = torch.einsum("bdn,bdm->bnm", self.final_proj(x), self.final_proj(y)) / math.sqrt(self.config.dim)
        return self._transport(scores)[0]

    def _encode(self, image: Keypoints) -> Tensor:
        size = image.image_size.float()
        places = (image.keypoints - size / 2) / (0.7 * size.max())
        inputs = torch.cat([places.T, image.scores[None]])[None]
        return image.descriptors.T[None] + self.kenc["encoder"](inputs)

    def _transport(self, scores: Tensor) -> Tensor:
        b, n, m = scores.shape
        bins = [self.bin_score.expand(b, *shape) for shape in ((n, 1), (1, m), (1, 1))]
        couplings = torch.cat([torch.cat([scores, bins[0]], 2), torch.cat([bins[1], bins[2]], 2)], 1)
        norm = -math.log(n + m)
        log_rows = torch.tensor([norm] * n + [math.log(m) + norm]).expand(b, -1)
        log_columns = torch.tensor([norm] * m + [math.log(n) + norm]).expand(b, -1)
        u, v = torch.zeros_like(log_rows), torch.zeros_like(log_columns)
        for _ in range(ITERATIONS):
            u = log_rows - torch.logsumexp(couplings + v[:, None], dim=2)
            v = log_columns - torch.logsumexp(couplings + u[:, :, None], dim=1)
        return couplings + u[:, :, None] + v[:, None] - norm


def random_state(config: SuperGlueConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights in the official layout, small enough that images' own descriptors decide their matches."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in config.shapes().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=draw)
        elif name.endswith("weight") and len(shape) == 3:
            state[name] = torch.randn(shape, generator=draw) * (0.2 / shape[1] ** 0.5)
        else:
            state[name] = 0.1 * torch.randn(shape, generator=draw)
    state["final_proj.weight"] += 3 * config.dim**0.25 * torch.eye(config.dim)[:, :, None]
    return state


def random_keypoints(n: int, dim: int, seed: int, like: Keypoints | None = None) -> Keypoints:
    """Of a 640x480 image; the first half are those of `like`, moved a little."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.rand(n, 2, generator=draw) * torch.tensor([639.0, 479.0])
    descriptors = torch.randn(n, dim, generator=draw)
    if like is not None:
        half = min(n, len(like.keypoints)) // 2
        places[:half] = like.keypoints[:half] * 0.95 + 8
        descriptors[:half] = dim**0.5 * like.descriptors[:half] + 0.1 * descriptors[:half]
    normal = nn.functional.normalize(descriptors, dim=1)
    return Keypoints(places, torch.rand(n, generator=draw), normal, torch.tensor([640.0, 480.0]))


def bench_superglue(descriptors: int, rounds: int = 3, config: SuperGlueConfig = SuperGlueConfig()) -> bool:
    """A query against a few candidates, random weights; whether the matches are those of the plain network."""
    state = random_state(config)
    plain, ours = PlainSuperGlue(config), SuperGlue(state)
    plain.load_state_dict(state)
    query = random_keypoints(descriptors, config.dim, 0)
    images = [random_keypoints(descriptors, config.dim, i, query) for i in range(1, CANDIDATES + 1)]

    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: [plain.log_assignment(query, image) for image in images],
        "score": lambda: ours.score(query, images, ITERATIONS, THRESHOLD),
    }
    expected = [matches(plain.log_assignment(query, image), THRESHOLD)[0] for image in images]
    found = [places for places, _ in ours.score(query, images, ITERATIONS, THRESHOLD)]
    same = all(map(torch.equal, found, expected))
    probe, size = Probe(), descriptors + 1
    couplings = torch.randn(size, size)
    iterating: dict[str, Callable[[], object]] = {"Sinkhorn": lambda: transport(couplings, ITERATIONS)}
    medians = interleaved({**calls, **iterating, **probe.calls}, rounds)
    peaks, seconds = probe.peaks(medians), medians.seconds["score"] / CANDIDATES
    ratio, held = medians.seconds["plain"] / medians.seconds["score"], "plain network"
    bound = peaks.bound(Work(flops_of(calls["score"]) / CANDIDATES), seconds)
    # both kinds of an iteration pass over the matrix, a multiplication and an addition an element
    passes = Work(4 * ITERATIONS * size**2, 2 * ITERATIONS * couplings.nbytes)
    alone = medians.seconds["Sinkhorn"]
    rows = [
        Row(f"superglue {descriptors}", seconds, held, ratio, TARGETS.get(descriptors), bound, same),
        Row(f"  {ITERATIONS} Sinkhorn of it", alone, bound=peaks.bound(passes, alone)),
    ]
    return show(rows, medians)


def bench_lightglue(descriptors: int, rounds: int = 3) -> bool:
    """LighterGlue against kornia's network, one by one, as one batch and adaptive; whether the counts are kornia's."""
    card = card_of("xfeat")
    query = example(descriptors, card, 0)
    images = [example(descriptors, card, i, query) for i in range(1, CANDIDATES + 1)]
    exact, adaptive = (LightGlue(LightGlue.Options(descriptors, adaptive=adaptive)) for adaptive in (False, True))
    for method in (exact, adaptive):
        method.load()
    kornia = lightglue_weights.load(exact.weights(), "xfeat", torch.device("cpu"))

    @torch.inference_mode()
    def counts(size: int) -> Tensor:
        found = []
        for at in range(0, len(images), size):
            some = images[at : at + size]
            pairs = kornia({"image0": _stacked([query] * len(some)), "image1": _stacked(some)})["matches"]
            found += [len(of) for of in pairs]
        return torch.tensor(found, dtype=torch.float32)

    probe = Probe()
    plain, several = "kornia", f"kornia, {CANDIDATES} at once"
    calls: dict[str, Callable[[], object]] = {
        "score": lambda: exact.score(query, batch_of(images)),
        plain: lambda: counts(1),
        several: lambda: counts(CANDIDATES),
        "adaptive": lambda: adaptive.score(query, batch_of(images)),  # other counts
    }
    medians = interleaved({**calls, **probe.calls}, rounds)
    same = torch.equal(exact.score(query, batch_of(images)).scores, counts(1))
    seconds = {name: medians.seconds[name] / CANDIDATES for name in calls}
    bound = probe.peaks(medians).bound(Work(flops_of(calls["score"]) / CANDIDATES), seconds["score"])
    target = TIMES_KORNIA if descriptors == 200 else None
    rows = [
        Row(f"lightglue {descriptors}", seconds["score"], plain, seconds[plain] / seconds["score"], target, bound, same)
    ]
    rows += [
        Row(f"  {name}", seconds[name], "score", seconds["score"] / seconds[name]) for name in (several, "adaptive")
    ]
    return show(rows, medians)


def _stacked(images: list[Features]) -> dict[str, Tensor]:
    """Images of equally many descriptors as one batch."""
    return {
        name: torch.stack([getattr(image, name) for image in images])
        for name in ("keypoints", "descriptors", "image_size")
    }
