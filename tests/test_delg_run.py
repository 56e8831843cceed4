"""The paper's experiment from files to table: DELG features imported, a released kind of checkpoint, policy paper.

Run on a part of Revisited Oxford, and with RERANKBENCH_SLOW=1 on all of it (4,993 + 70 file pairs).
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import nn

from bench.datasets import revisited
from bench.evaluation import FIRST_STAGE
from bench.results import Run
from bench.shortlist import reranked
from methods.rrt.model import RRT

SLOW = os.environ.get("RERANKBENCH_SLOW") == "1"
slow = (pytest.mark.skipif(not SLOW, reason="minutes long: set RERANKBENCH_SLOW=1"), pytest.mark.timeout(3600))
NOMINAL = 2 ** (np.arange(-2, 5) / 2)  # DELG's scales
RELEASED = np.array([0, 0, 2, 2, 4, 4, 6])
IGNORED = {"Easy": ("junk", "hard"), "Medium": ("junk",), "Hard": ("junk", "easy")}
POSITIVE = {"Easy": ("easy",), "Medium": ("easy", "hard"), "Hard": ("hard",)}


@dataclass(frozen=True)
class Image:
    """What the files of one image hold."""

    whole: np.ndarray
    descriptors: np.ndarray
    scalars: np.ndarray  # (n, 5) x, y, scale, orientation, strength


@dataclass(frozen=True)
class Oxford:
    """A data root without photographs, its DELG files, and what is in both."""

    data: Path
    files: Path
    truth: dict
    images: dict[str, Image]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def part_of(truth: dict, queries: list[int], size: int) -> dict:
    """The official ground truth of some queries, on a gallery of their graded images and others."""
    graded = {i for q in queries for grade in ("easy", "hard", "junk") for i in truth["gnd"][q][grade]}
    others = [i for i in range(len(truth["imlist"])) if i not in graded]
    kept = sorted([*graded, *others[: size - len(graded)]])
    new = {old: i for i, old in enumerate(kept)}
    return {
        "imlist": [truth["imlist"][i] for i in kept],
        "qimlist": [truth["qimlist"][q] for q in queries],
        "gnd": [
            {
                "bbx": truth["gnd"][q]["bbx"],
                **{grade: [new[i] for i in truth["gnd"][q][grade]] for grade in ("easy", "hard", "junk")},
            }
            for q in queries
        ],
    }


def write_oxford(root: Path, truth: dict, delg) -> Oxford:
    """Every image gets a global descriptor and 3 to 5 local ones (some none); graded ones resemble their query."""
    draw = np.random.default_rng(7)
    n, nq = len(truth["imlist"]), len(truth["gnd"])
    directions = unit(draw.normal(size=(nq, 2048)))
    looks, where = unit(draw.normal(size=(nq, 5, 128))), draw.uniform(10, 60, (nq, 5, 2))
    gallery = unit(draw.normal(size=(n, 2048)))
    like: dict[int, int] = {}
    for q, graded in enumerate(truth["gnd"]):
        for grade, strength in (("easy", 0.15), ("hard", 0.08), ("junk", 0.1)):
            gallery[graded[grade]] += strength * draw.uniform(0, 1, (len(graded[grade]), 1)) * directions[q]
            like |= dict.fromkeys(graded[grade], q)

    def image(whole: np.ndarray, query: int | None, count: int, spread: float) -> Image:
        local, xy = unit(draw.normal(size=(count, 128))), draw.uniform(10, 60, (count, 2))
        if query is not None:
            local, xy = unit(looks[query][:count] + spread * local), where[query][:count] + draw.uniform(0, 9)
        scales = np.nextafter(draw.choice(NOMINAL, count).astype(np.float32), np.float32(draw.choice([0, 9])))
        strengths = np.sort(draw.uniform(200, 500, count))[::-1]
        scalars = np.column_stack([xy, scales, np.zeros(count), strengths]).astype(np.float32)
        return Image(unit(whole), local, scalars)

    images = {
        name: image(gallery[i], like.get(i), 0 if i % 97 == 5 else int(draw.integers(3, 6)), 0.9)
        for i, name in enumerate(truth["imlist"])
    }
    images |= {name: image(directions[q], q, 5, 0.1) for q, name in enumerate(truth["qimlist"])}
    for name, one in images.items():
        folder = "query" if name in truth["qimlist"] else "index"
        delg.pair(root / "delg" / folder / name, one.whole, one.descriptors, one.scalars)
    base = root / "data" / "roxford5k"
    base.mkdir(parents=True)
    (base / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, 3))
    return Oxford(root / "data", root / "delg", truth, images)


def released_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Random weights of the paper's size, in a file of the layout of the released ones."""
    torch.manual_seed(5)
    state = RRT().state_dict()
    torch.save({"state": {f"module.{k}": v for k, v in state.items()}, "optim": {"param_groups": []}}, path)
    return state


def torch_encoder(state: dict[str, torch.Tensor]) -> nn.Module:
    """The paper's encoder made of torch's own layers."""
    layer = nn.TransformerEncoderLayer(128, 4, 1024, dropout=0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).eval()
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    return encoder


def logit(encoder: nn.Module, state: dict[str, torch.Tensor], query: Image, candidate: Image) -> float:
    """The logit of a pair from what its files hold."""
    segments, scales = state["seg_encoder.weight"], state["scale_encoder.weight"]
    tokens = [segments[2:3]]
    for one, of_local, of_global in ((query, 0, 4), (candidate, 1, 5)):
        whole = torch.tensor(one.whole) @ state["remap.weight"].T + state["remap.bias"]
        distance = np.abs(np.log(one.scalars[:, 2:3]) - np.log(NOMINAL))
        ids = RELEASED[distance.argmin(axis=1)]
        tokens += [nn.functional.normalize(whole[None], dim=1) + segments[of_global]]
        tokens += [torch.tensor(one.descriptors) + scales[ids] + segments[of_local], segments[3:4]]
    with torch.no_grad():
        first = encoder(torch.cat(tokens[:-1])[None])[0, 0]
    return float(first @ state["classifier.weight"][0] + state["classifier.bias"][0])


def average_precision(ranking: np.ndarray, positives: list[int], ignored: list[int]) -> float:
    """Trapezoidal, as revisitop defines it, on a ranking without the ignored images."""
    if not positives:
        return float("nan")
    hits = np.flatnonzero(np.isin(ranking[~np.isin(ranking, ignored)], positives))
    found = np.arange(len(hits))
    before = np.where(hits == 0, 1.0, found / np.maximum(hits, 1))
    return float((before + (found + 1) / (hits + 1)).sum() / 2 / len(positives))


@pytest.mark.parametrize("size", [200, pytest.param(None, marks=slow)])
def test_the_papers_experiment_on_revisited_oxford(
    official: Path, cli: Callable[..., Result], delg, tmp_path: Path, size: int | None
) -> None:
    truth = revisited.read_ground_truth(official / "roxford5k" / "gnd_roxford5k.pkl")
    oxford = write_oxford(tmp_path, truth if size is None else part_of(truth, [11, 25, 64], size), delg)
    truth, images, k = oxford.truth, oxford.images, 100 if size is None else 30
    state = released_checkpoint(tmp_path / "r50_gldv2.pt")
    here = ("-d", "roxford", "--data-root", str(oxford.data), "--cache-dir", str(tmp_path / "cache"))
    command = ("run", "-m", "identity,rrt,ransac", *here, "-f", "delg", "--policy", "paper", "-k", str(k))
    command += ("-o", f"rrt.weights={tmp_path / 'r50_gldv2.pt'}", "--threads", "1")

    refused = cli(*command)
    assert refused.exit_code == 1 and "features import delg DIR --dataset roxford" in refused.output
    imported = cli("features", "import", "delg", str(oxford.files), *here)
    assert imported.exit_code == 0, imported.output
    assert f"{len(images)} images imported" in imported.output
    assert "0 images imported" in cli("features", "import", "delg", str(oxford.files), *here).output
    done = cli(*command)
    assert done.exit_code == 0, done.output
    run = Run.load(Path(re.findall(r"^run: (.*)$", done.output, re.MULTILINE)[0]))
    shortlist, metrics, scores = run.shortlist, run.metrics(), run.scores
    print(done.output)

    header = shortlist.header
    assert (header.first_stage, header.policy, header.k, header.query_crop) == ("delg", "paper", k, True)
    assert header.gallery_size == len(truth["imlist"]) and list(shortlist.queries) == truth["qimlist"]
    assert not run.record.failed and not run.record.skipped

    # the first stage: inner products of the files' global descriptors, ignored images behind, junk dropped when scored
    gallery = np.stack([images[name].whole for name in truth["imlist"]]).astype(np.float64)
    similarities = np.stack([images[name].whole for name in truth["qimlist"]]).astype(np.float64) @ gallery.T
    at = np.array([truth["imlist"].index(image) for image in shortlist.gallery])
    for difficulty in ("Easy", "Medium", "Hard"):
        expected = []
        for q, graded in enumerate(truth["gnd"]):
            ignored = [i for grade in IGNORED[difficulty] for i in graded[grade]]
            positives = [i for grade in POSITIVE[difficulty] for i in graded[grade]]
            order = np.argsort(-similarities[q].astype(np.float32), kind="stable")
            candidates = at[shortlist.candidates(difficulty, q)]
            assert np.array_equal(candidates, order[~np.isin(order, ignored)][:k])
            np.testing.assert_allclose(shortlist.similarities[difficulty][q], similarities[q][candidates], atol=1e-6)
            expected.append(average_precision(order, positives, ignored))
        for name in ("identity", FIRST_STAGE):
            chosen = metrics[(metrics.method == name) & (metrics.difficulty == difficulty) & (metrics.measure == "mAP")]
            np.testing.assert_allclose(chosen.set_index("query").loc[truth["qimlist"], "value"], expected, rtol=1e-9)
        assert 0.02 < np.nanmean(expected) < 0.98, "the lists say nothing"

    # one query's reranking, with torch's own layers
    q, difficulty = 1, "Hard"
    name, candidates = truth["qimlist"][q], at[shortlist.candidates(difficulty, q)]
    of_rrt = scores[(scores.method == "rrt@delg") & (scores["query"] == name)].set_index("candidate").score
    encoder = torch_encoder(state)
    logits = np.array([logit(encoder, state, images[name], images[truth["imlist"][c]]) for c in candidates])
    empty = [len(images[truth["imlist"][c]].descriptors) == 0 for c in candidates]
    logits[empty] = np.finfo(np.float32).min
    found = of_rrt.loc[[truth["imlist"][c] for c in candidates]].to_numpy()
    np.testing.assert_allclose(found, logits, atol=1e-5)
    assert np.ptp(logits[~np.array(empty)]) > 1e-3
    ours, theirs = (reranked(candidates, values) for values in (found, logits))
    in_order = dict(zip(candidates, logits, strict=True))
    assert all(in_order[a] - in_order[b] < 1e-5 for a, b in zip(theirs, ours, strict=True))
    order = np.argsort(-similarities[q].astype(np.float32), kind="stable")
    ours = np.r_[ours, order[~np.isin(order, ours)]]
    graded = truth["gnd"][q]
    value = average_precision(ours, graded["hard"], [*graded["junk"], *graded["easy"]])
    chosen = metrics[(metrics.method == "rrt@delg") & (metrics["query"] == name) & (metrics.difficulty == difficulty)]
    assert float(chosen[chosen.measure == "mAP"]["value"].iloc[0]) == pytest.approx(value, rel=1e-12)

    # spatial verification finds the displaced copies of the query's descriptors
    of_ransac = scores[scores.method == "ransac@delg"]
    assert 0 < (of_ransac.score >= 4).mean() < 1

    # what is stored: all in single precision, 3 to 5 descriptors of 128, their scales and scores
    mean = np.mean([len(images[name].descriptors) for name in truth["imlist"]])
    cost = run.record.costs["rrt@delg"]
    assert (cost.descriptors_mean, cost.descriptors_max) == (pytest.approx(mean), 5)
    assert cost.kib_per_image == pytest.approx((2048 * 4 + mean * (128 * 4 + 4 + 4)) / 1024)
