"""Training on frozen features of landmarks: a made set, of noisy copies of the prototypes of each label."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from bench.datasets.gldv2 import read_list
from bench.errors import UserError
from bench.features.store import FeatureStore
from methods._landmarks import triplets
from methods.rrt.model import RRT, RRTConfig, TokenBatch, load_checkpoint, save_checkpoint
from methods.rrt.training import gld
from methods.rrt.training.gld import TrainOptions

REPOSITORY = Path(__file__).resolve().parents[4]
LOCAL, GLOBAL, SCALE = 32, 16, (0.5, 0.70710677, 1, 1.4142135, 2, 2.828427, 4)  # as the fixture makes them


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


SMALL = {
    "descriptors": 12,
    "depth": 2,
    "dim": LOCAL,
    "heads": 4,
    "feedforward": 64,
    "neighbours": 60,
    "least_positives": 2,
    "held_out": 0.25,
    "checked": 120,
    "check_every": 60,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def made(write_landmarks: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and its list: 40 labels of 8 images. Read only."""
    return write_landmarks(tmp_path_factory.mktemp("landmarks"), 40, 8)


def options(made: Path, cache: Path, **more: object) -> TrainOptions:
    return TrainOptions(**{"store": made / "store", "list": made / "list.txt", "cache": cache, **SMALL, **more})


def images_in(made: Path) -> tuple[FeatureStore, triplets.Images]:
    store = FeatureStore(made / "store")
    return store, triplets.images_of(store, read_list(made / "list.txt"))


# --- images ----------------------------------------------------------------------------------------------------------


def test_an_image_stored_once_and_listed_with_two_labels_is_refused(made: Path) -> None:
    store = FeatureStore(made / "store")
    with pytest.raises(UserError, match=r"stored as 'i000_0', which is listed twice, with labels '7' and '9'"):
        triplets.images_of(store, {"one/i000_0.jpg": "7", "two/i000_0.jpg": "9"})


@pytest.mark.parametrize("form", ["{}", "{}.jpg", "jpg/{}.jpg", "a/b/{}"])
def test_stored_images_are_found_under_their_listed_names(form: str, made: Path) -> None:
    store = FeatureStore(made / "store")
    found = triplets.images_of(store, {form.format("i001_2"): "b", form.format("i000_1"): "c", "absent": "a", ".": "a"})
    assert list(found.keys) == ["i000_1", "i001_2"]  # in the store's order
    assert found.labels[0] != found.labels[1]


def test_a_list_of_other_images_is_refused(made: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 1 listed images .*\(listed: 'jpg/z\.jpg'; stored: 'i000_0'\)"):
        triplets.images_of(FeatureStore(made / "store"), {"jpg/z.jpg": "1"})


def test_no_label_is_in_both_parts(made: Path) -> None:
    _, images = images_in(made)
    for seed in (0, 1):
        train, held = triplets.split(images, 0.25, seed)
        assert len(set(held.labels.tolist())) == 10 and not set(held.labels) & set(train.labels)
        assert sorted([*train.keys, *held.keys]) == sorted(images.keys)
    assert list(triplets.split(images, 0.25, 0)[1].keys) != list(held.keys)
    assert (
        len(set(triplets.split(images, 1e-6, 0)[1].labels)) == len(set(triplets.split(images, 0.999, 0)[0].labels)) == 1
    )


# --- neighbours ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triplets, "BLOCK", (7, 11))


@pytest.mark.parametrize("n,k", [(50, 9), (23, 22), (11, 3), (7, 6)])
def test_nearest_are_those_of_brute_force(n: int, k: int, small_blocks: None) -> None:
    vectors = np.random.default_rng(n).normal(size=(n, 6)).astype(np.float32) * np.arange(1, n + 1)[:, None]
    similar = _unit(vectors.astype(np.float64)) @ _unit(vectors.astype(np.float64)).T
    np.fill_diagonal(similar, -np.inf)
    found = np.full((n, k), -1, np.int32)
    triplets.nearest(vectors, k, found, torch.device("cpu"))
    assert np.array_equal(found, np.argsort(-similar, axis=1)[:, :k])


def test_a_search_goes_on_with_the_blocks_that_are_left(small_blocks: None) -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    whole = np.full((30, 4), -1, np.int32)
    triplets.nearest(vectors, 4, whole, torch.device("cpu"))
    begun = np.full((30, 4), -1, np.int32)
    begun[:7] = 99  # a block that is done is not searched again
    begun[7] = whole[7]  # one that broke off is
    triplets.nearest(vectors, 4, begun, torch.device("cpu"))
    assert (begun[:7] == 99).all() and np.array_equal(begun[7:], whole[7:])


def test_neighbours_are_kept_and_an_interrupted_search_goes_on(
    made: Path, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, images = images_in(made)
    cpu = torch.device("cpu")
    whole = np.array(triplets.neighbours(store, images, 5, tmp_path / "whole", cpu))
    seen: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        if what == "searching neighbours" and (seen.append(done) or len(seen) == 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        triplets.neighbours(store, images, 5, tmp_path / "cut", cpu, stop)
    part = np.load(next((tmp_path / "cut").glob("*.part.npy")))
    assert np.array_equal(part[:21], whole[:21]) and (part[21:] == -1).all()
    assert np.array_equal(triplets.neighbours(store, images, 5, tmp_path / "cut", cpu), whole)
    assert [path.suffixes for path in (tmp_path / "cut").iterdir()] == [[".npy"]]
    monkeypatch.setattr(triplets, "nearest", None)  # not called again
    assert np.array_equal(triplets.neighbours(store, images, 5, tmp_path / "cut", cpu), whole)
    with pytest.raises(TypeError):
        triplets.neighbours(store, images, 6, tmp_path / "cut", cpu)
    with pytest.raises(TypeError):
        triplets.neighbours(store, images.take(np.arange(320) > 0), 5, tmp_path / "cut", cpu)


def test_an_image_alone_has_no_neighbours(made: Path, tmp_path: Path) -> None:
    store, images = images_in(made)
    with pytest.raises(UserError, match="1 images are too few"):
        triplets.neighbours(store, images.take(np.arange(320) == 3), 5, tmp_path, torch.device("cpu"))


# --- triplets -----------------------------------------------------------------------------------------------------


def _read(store: FeatureStore, chosen: TrainOptions, keys: list[str], step: int) -> TokenBatch:
    return gld.tokens(store, keys, chosen)


@pytest.fixture(scope="module")
def drawn(made: Path, tmp_path_factory: pytest.TempPathFactory) -> triplets.Triplets:
    store, images = images_in(made)
    chosen = options(made, Path("unused"), neighbours=30, least_positives=4, triplets=10)
    near = triplets.neighbours(store, images, 30, tmp_path_factory.mktemp("near"), torch.device("cpu"))
    return triplets.Triplets(partial(_read, store, chosen), images, near, chosen, "train")


def test_anchors_have_enough_positives_among_their_neighbours(drawn: triplets.Triplets) -> None:
    labels = drawn.images.labels
    expected = [i for i, row in enumerate(drawn.near) if (labels[row] == labels[i]).sum() >= 4]
    assert drawn.anchors.tolist() == expected and 0 < len(expected) < len(labels)
    assert drawn.epoch == len(expected) // 10


def test_positives_and_negatives_are_neighbours_and_an_epoch_has_each_anchor_once(drawn: triplets.Triplets) -> None:
    labels, orders = drawn.images.labels, []
    for epoch in range(2):
        steps = np.concatenate([drawn.choose(epoch * drawn.epoch + s) for s in range(drawn.epoch)], axis=1)
        for anchor, positive, negative in steps.T:
            assert positive in drawn.near[anchor] and negative in drawn.near[anchor] and positive != anchor
            assert labels[positive] == labels[anchor] != labels[negative]
        orders.append(steps[0].tolist())
        assert len(set(orders[-1])) == len(orders[-1]) == drawn.epoch * 10  # fewer than 10 anchors are left out
    assert orders[0] != orders[1]


def test_every_positive_and_negative_is_drawn_about_equally_often(drawn: triplets.Triplets) -> None:
    anchor = drawn.anchors[0]
    rows = [drawn.choose(step) for step in range(1200)]
    of_anchor = np.concatenate([row[:, row[0] == anchor] for row in rows], axis=1)
    same = drawn.images.labels[drawn.near[anchor]] == drawn.images.labels[anchor]
    for drawn_ones, possible in ((of_anchor[1], drawn.near[anchor][same]), (of_anchor[2], drawn.near[anchor][~same])):
        counts = np.array([(drawn_ones == one).sum() for one in possible])
        assert counts.sum() == len(drawn_ones) > 40
        spread = np.sqrt(len(drawn_ones) / len(possible))
        assert (abs(counts - len(drawn_ones) / len(possible)) < 5 * spread).all()


def test_a_step_depends_on_the_seed_and_its_number_alone(drawn: triplets.Triplets) -> None:
    again = triplets.Triplets(drawn.read, drawn.images, drawn.near, drawn.options, "train")
    for step in (50, 3, 0):
        assert np.array_equal(again.choose(step), drawn.choose(step))
    other = triplets.Triplets(drawn.read, drawn.images, drawn.near, replace(drawn.options, seed=1), "train")
    assert not np.array_equal(other.choose(3), drawn.choose(3))


def test_too_few_anchors_are_reported(drawn: triplets.Triplets) -> None:
    hungry = replace(drawn.options, least_positives=29)
    with pytest.raises(UserError, match=r"to train on: of 320 images of 40 labels, 0 have 29 of their label"):
        triplets.Triplets(drawn.read, drawn.images, drawn.near, hungry, "train")


def test_a_batch_holds_the_stored_tokens_and_both_sides_of_each_pair(drawn: triplets.Triplets) -> None:
    batch, chosen = drawn.draw(3), drawn.choose(3)
    query, candidate, labels = gld.pairs(batch)
    assert labels.tolist() == [1.0] * 10 + [0.0] * 10
    rows = [*zip(*chosen[[0, 1]], strict=True), *zip(*chosen[[0, 2]], strict=True)]
    for pair, both in enumerate(rows):
        for side, image in zip((query, candidate), both, strict=True):
            stored = FeatureStore(drawn.options.store).read(drawn.images.keys[image])
            n = len(stored)
            assert torch.equal(side.local[pair, :n], stored.descriptors) and not side.local[pair, n:].any()
            assert side.mask[pair].tolist() == [False] * n + [True] * (side.mask.shape[1] - n)
            assert torch.equal(side.global_[pair], stored.global_descriptor)
            nominal = np.abs(np.log(np.array(SCALE)) - np.log(stored.scales.numpy())[:, None]).argmin(axis=1)
            assert side.scale_ids[pair, :n].tolist() == nominal.tolist()


@pytest.mark.parametrize("how,ids", [("fixed", {0, 1, 2, 3, 4, 5, 6}), ("released", {0, 2, 4, 6}), (None, {3})])
def test_scale_ids_are_those_asked_for(how: str | None, ids: set[int], drawn: triplets.Triplets) -> None:
    batch = gld.tokens(FeatureStore(drawn.options.store), drawn.images.keys[:40], replace(drawn.options, scale_ids=how))
    assert set(batch.scale_ids[~batch.mask].tolist()) == ids


def test_only_the_best_descriptors_are_read(drawn: triplets.Triplets) -> None:
    batch = gld.tokens(FeatureStore(drawn.options.store), drawn.images.keys[:4], replace(drawn.options, descriptors=3))
    assert batch.local.shape == (4, 3, LOCAL) and not batch.mask.any()
    assert torch.equal(batch.local[1], FeatureStore(drawn.options.store).read(drawn.images.keys[1]).descriptors[:3])


# --- training -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers(made: Path) -> None:
    paper = TrainOptions(store=made / "store", list=made / "list.txt")
    assert (paper.triplets, paper.lr, paper.weight_decay, paper.epochs) == (12, 1e-4, 5e-4, 15)
    assert (paper.neighbours, paper.least_positives, paper.descriptors, paper.clip) == (100, 5, 500, 0.0)
    assert (paper.warmup, paper.decay, paper.milestones, paper.auxiliary) == (0, 0.0, (), 0.0)
    assert gld.initial(paper, 128, 2048).config == RRTConfig()


@pytest.mark.parametrize(
    "bad",
    [
        {"store": None},
        {"list": None},
        {"triplets": 0},
        {"checked": 0},
        {"descriptors": 0},
        {"least_positives": 60},
        {"held_out": 0.0},
        {"held_out": 1.0},
        {"epochs": 0.0},
        {"epochs": float("inf")},
        {"weight_decay": -1.0},
        {"auxiliary": -1.0},
        {"heads": 5},
        {"depth": 0},
    ],
)
def test_wrong_options_are_refused(bad: dict, made: Path) -> None:
    with pytest.raises(UserError):
        options(made, Path("unused"), **bad)


LEARNS = {"lr": 4e-3, "epochs": 10.0, "auxiliary": 1.0, "clip": 1.0}


@pytest.fixture(scope="session")
def trained(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("trained")
    return folder / "w.safetensors", gld.train(options(made, folder / "near", **LEARNS), folder / "w.safetensors")


def test_training_beats_the_first_stage_on_landmarks_it_has_not_seen(trained: tuple[Path, dict]) -> None:
    out, card = trained
    best = card["validation"]["best"]
    assert best["triplets"] > best["triplets_first_stage"] + 0.15 and best["auc"] > 0.8, best
    assert 0.4 < best["triplets_first_stage"] < 0.75
    assert card["validation"]["chosen by"] == "triplets"
    assert (card["labels"], card["images"]["listed"]) == ({"trained on": 30, "held out": 10}, 320)
    assert load_checkpoint(out).card == card
    assert (out.with_name(out.name + ".curves") / "curves.png").stat().st_size > 5000
    assert (card["descriptors"], card["scale_ids"], card["features"]) == (12, "fixed", "made")


def test_the_papers_loss_alone_is_a_cross_entropy_that_falls(made: Path, tmp_path: Path) -> None:
    plain = options(made, tmp_path / "near", lr=1e-3, epochs=0.5)
    recipe = gld.recipe(plain)
    model, batch = recipe.module["model"], recipe.draw(0)
    query, candidate, labels = gld.pairs(batch)
    with torch.no_grad():
        p = torch.sigmoid(model(query, candidate))
    expected = -torch.where(labels > 0, p, 1 - p).log().mean()
    assert recipe.loss(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)
    optimizer = recipe.optimizer()
    assert [g["weight_decay"] for g in optimizer.param_groups] == [5e-4]
    for _ in range(60):
        optimizer.zero_grad()
        recipe.loss(batch, 0).backward()
        optimizer.step()
    assert recipe.loss(batch, 0).item() < 0.5 * expected.item()


KILLED = f"""
import os, signal, sys
sys.path[:0] = [{str(REPOSITORY)!r}]
import methods.rrt.training.gld as gld
real, drawn = gld.loss_of, iter(range(1000))
def loss_of(*given):
    if next(drawn) == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)
gld.loss_of = loss_of
from cli import main
main()
"""


@pytest.mark.skipif(
    os.environ.get("RERANKBENCH_SLOW") != "1", reason="as in test_training, from features: RERANKBENCH_SLOW=1"
)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_the_command_killed_and_given_again_ends_at_the_weights_of_an_unkilled_one(
    made: Path, cli: Callable[..., Result], tmp_path: Path
) -> None:
    given = {**SMALL, "store": made / "store", "list": made / "list.txt", "cache": tmp_path / "near"}
    given |= {"epochs": 2, "save_every": 7, "check_every": 10, "checked": 24, "clip": 1.0}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    command = ("train", "rrt", "--recipe", "gld", *words, "--out")

    assert cli(*command, str(whole)).exit_code == 0
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    died = subprocess.run([sys.executable, "-c", KILLED, *command, killed], capture_output=True, env=environment)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not killed.exists() and killed.with_name("killed.safetensors.training").exists()
    again = cli(*command, str(killed))
    assert again.exit_code == 0 and f"weights: {killed}" in again.output and "triplets_first_stage" in again.output

    one, two = (load_checkpoint(path).state_dict() for path in (whole, killed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    curves = [(path.with_name(path.name + ".curves") / "curves.csv").read_bytes() for path in (whole, killed)]
    assert curves[0] == curves[1]


def test_training_goes_on_from_a_released_checkpoint(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    sizes = RRTConfig(depth=2, feedforward=64, heads=4, dim=LOCAL, local_dim=LOCAL, global_dim=GLOBAL)
    model = RRT(sizes)
    start = tmp_path / "r50.pt"
    torch.save({"state": {f"module.{k}": v for k, v in model.state_dict().items()}}, start)
    given = {"start": start, "scale_ids": "released"}
    first = gld.initial(options(made, tmp_path, **given), LOCAL, GLOBAL).state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match="trained with scale ids released, to go on with fixed") as caught:
        gld.initial(options(made, tmp_path, start=start), LOCAL, GLOBAL)
    assert caught.value.hint == "--scale-ids released"
    with pytest.raises(UserError, match=r"r50\.pt: has RRTConfig\(depth=2"):
        gld.initial(options(made, tmp_path, **given, depth=3), LOCAL, GLOBAL)
    ours = tmp_path / "ours.safetensors"
    save_checkpoint(model, ours, {"scale_ids": "fixed", "descriptors": 12})
    gld.initial(options(made, tmp_path, start=ours), LOCAL, GLOBAL)
    with pytest.raises(UserError, match="trained with scale ids fixed, to go on with none"):
        gld.initial(options(made, tmp_path, start=ours, scale_ids=None), LOCAL, GLOBAL)


def test_a_state_of_other_labels_is_refused(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    given = options(made, tmp_path / "near", epochs=1.0, save_every=2)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "training" and done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gld.train(given, out, interrupt)
    other = tmp_path / "other.txt"
    other.write_text((made / "list.txt").read_text().replace(",i000,", ",i001,"))
    with pytest.raises(UserError, match=r"other options \(data\)"):
        gld.train(replace(given, list=other), out)
