"""The three stages of the product variant, on a trunk small enough to train in a test."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from bench.errors import UserError
from bench.training import Curves
from methods.rrt_sop.model import OPTIONAL, SOPModel, load_model, save_model
from methods.rrt_sop.training import sop
from methods.rrt_sop.training.sop import Training, TrainOptions, contrastive, rankings, recipe, samples, train


@pytest.fixture(scope="module", autouse=True)
def _fast(tiny: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Curves, "draw", lambda self: self.file)  # as conftest does for a test: pictures take long
        yield


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 instances of 3 images: patches of an instance's two colours, elsewhere in each image."""
    root = tmp_path_factory.mktemp("objects")
    for instance in range(10):
        colours = np.random.default_rng(instance).integers(0, 255, (2, 3))
        for number in range(3):
            rng = np.random.default_rng([instance, number])
            image = rng.integers(100, 150, (64, 64, 3))
            for patch in range(6):
                x, y = rng.integers(0, 44, 2)
                image[y : y + 20, x : x + 20] = colours[patch % 2]
            (root / f"o{instance}").mkdir(exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(root / f"o{instance}" / f"{number}.png")
    return root


def _options(objects: Path, **more: object) -> TrainOptions:
    given = {"images": objects, "trunk": "tiny", "depth": 1, "feedforward": 16, "epochs": 1, "batch": 8, "threads": 1}
    return TrainOptions(**{**given, "lr": 0.01, "save_every": 2, "check_every": 4, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def first(objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the first stage. Read only."""
    path = tmp_path_factory.mktemp("first") / "global.safetensors"
    train(_options(objects), path)
    return path


@pytest.fixture(scope="module")
def second(objects: Path, first: Path) -> Path:
    """Weights of the second stage on them. Read only."""
    path = first.with_name("frozen.safetensors")
    train(_options(objects, stage="frozen", start=first), path)
    return path


def _changed(one: Path, two: Path) -> set[str]:
    """First parts of the names of weights that differ."""
    before, after = load_model(one).state_dict(), load_model(two).state_dict()
    return {name.partition(".")[0] for name, t in before.items() if not torch.equal(t, after[name])}


# --- what a stage trains --------------------------------------------------------------------------------------------


def test_the_first_stage_trains_trunk_and_global_map_and_writes_no_more(objects: Path, first: Path) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        fresh = SOPModel(_options(objects).config())
    trained = load_model(first)
    assert trained.without == OPTIONAL and trained.card["stage"] == "global"
    for name, tensor in trained.state_dict().items():
        if name.startswith(("trunk.", "remap.")):
            statistics = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            assert torch.equal(tensor, fresh.state_dict()[name]) == statistics, name  # batch norms in eval mode


def test_the_frozen_stage_leaves_the_trunk_and_the_global_map_alone(first: Path, second: Path) -> None:
    assert _changed(first, second) == {"remap_local", "matcher"}


def test_the_joint_stage_trains_all_but_the_global_map(objects: Path, second: Path, tmp_path: Path) -> None:
    train(_options(objects, stage="joint", start=second), tmp_path / "joint.safetensors")
    assert _changed(second, tmp_path / "joint.safetensors") == {"trunk", "remap_local", "matcher"}
    assert not load_model(tmp_path / "joint.safetensors").without


def test_only_the_last_blocks_are_tuned(objects: Path, second: Path, tmp_path: Path) -> None:
    train(_options(objects, stage="joint", start=second, tuned=1), tmp_path / "joint.safetensors")
    before, after = (load_model(path).trunk for path in (second, tmp_path / "joint.safetensors"))
    assert all(torch.equal(t, after.one.state_dict()[name]) for name, t in before.one.state_dict().items())
    assert not torch.equal(before.two[0].weight, after.two[0].weight)


def test_crops_kept_behind_the_untrained_blocks_are_those_of_the_trunk(objects: Path) -> None:
    one, two = (Training(_options(objects, tuned=tuned, kept=3)) for tuned in (0, 1))
    indices = np.array([0, 5, 5])
    found = [t._maps(t._drawn(indices, np.random.default_rng(4))) for t in (one, two)]
    assert one.kept.shape[1:] == (3, 224, 224) and two.kept.shape[1:] == (8, 28, 28)
    torch.testing.assert_close(found[0], found[1], atol=5e-2, rtol=0)  # kept in half precision
    assert len({crop.sum().item() for crop in two.kept[15:18]}) == 3  # three crops of one image


# --- what it is trained on ------------------------------------------------------------------------------------------


def test_held_out_instances_are_never_drawn(objects: Path, first: Path) -> None:
    for stage, start in (("global", None), ("frozen", first)):
        training = Training(_options(objects, stage=stage, start=start, held_out=0.3))
        held = {sample.instance for sample in training.held_out}
        assert len(held) == 3 and len(training.held_out) == 9 and len(training.train_set) == 21
        assert held.isdisjoint(sample.instance for sample in training.train_set)
        drawn = np.concatenate([_drawn(training, step) for step in range(20)])
        assert {training.train_set[i].instance for i in drawn} == {f"o{i}" for i in range(10)} - held


def _drawn(training: Training, step: int) -> list[int]:
    """Which images a step reads."""
    found: list[int] = []
    training.views.random = lambda i, rng: found.append(i) or np.zeros((3, 224, 224), np.uint8)  # type: ignore
    training.draw(step)
    return found


def test_triplets_are_an_image_its_like_and_one_of_its_nearest_of_another_instance(objects: Path, first: Path) -> None:
    training = Training(_options(objects, stage="frozen", start=first, nearest=4))
    with torch.inference_mode():
        vectors = torch.cat([training.model.global_descriptors(maps) for maps in training._plain(training.views)])
    similar = (vectors @ vectors.T).numpy()
    instance = [sample.instance for sample in training.train_set]
    negatives = set()
    for step in range(30):
        for a, p, n in np.reshape(_drawn(training, step), (3, -1)).T:
            assert a != p and instance[a] == instance[p]
            assert instance[a] != instance[n]
            assert (similar[a] > similar[a, n] + 1e-6).sum() <= 4  # itself and at most three others are nearer
            negatives.add((a, n))
    assert len(negatives) > len({a for a, _ in negatives})  # not always the same one


def test_a_batch_of_the_first_stage_holds_each_instance_twice(objects: Path) -> None:
    training = Training(_options(objects, batch=12))
    pixels, names = training.draw(3)
    assert pixels.shape == (12, 3, 224, 224) and pixels.dtype == torch.uint8
    assert sorted(np.unique(names.numpy(), return_counts=True)[1].tolist()) == [2] * 6
    assert torch.equal(pixels, training.draw(3)[0]) and not torch.equal(pixels, training.draw(4)[0])


def test_photographs_are_instances_seen_in_views(objects: Path) -> None:
    options = replace(_options(objects), images=None, photos=objects / "o0", views=3)
    with pytest.raises(UserError, match="images of 3 instances"):
        samples(options)
    options = replace(options, photos=objects, limit=6)
    found = samples(options)
    assert len(found) == 18 and {s.view for s in found} == {0, 1, 2} and found[0].instance == "photo/o0/0"
    views = Training(options).views
    one, other = views.plain(0), views.plain(1)
    assert np.array_equal(one, views.plain(0)) and not np.array_equal(one, other)


def test_the_official_list(objects: Path) -> None:
    lines = [f"{i} {i // 3} 1 o{i // 3}/{i % 3}.png" for i in range(15)]
    path = objects / "Ebay_train.txt"
    path.write_text("\n".join(["image_id class_id super_class_id path", *lines, ""]))
    found = samples(_options(path))
    assert [s.instance for s in found[:4]] == ["0", "0", "0", "1"] and found[4].path == objects / "o1/1.png"
    path.write_text("\n".join(["image_id class_id super_class_id path", *lines, "15 5 o5/0.png"]))
    with pytest.raises(UserError, match=r"Ebay_train.txt:17: '15 5 o5/0.png'"):
        samples(_options(path))


# --- losses and figures ---------------------------------------------------------------------------------------------


def test_contrastive_loss_by_hand() -> None:
    """Two instances of two: cosines 0.6 within the first, 1 within the second, 0 and 0.8 across; temperature 0.5."""
    vectors = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1], [0, 1]])
    within = [
        math.exp(1.2) / (math.exp(1.2) + 2 * math.exp(0)),
        math.exp(1.2) / (math.exp(1.2) + 2 * math.exp(1.6)),
        math.exp(2) / (math.exp(2) + math.exp(0) + math.exp(1.6)),
        math.exp(2) / (math.exp(2) + math.exp(0) + math.exp(1.6)),
    ]
    loss = contrastive(vectors, torch.tensor([7, 7, 3, 3]), 0.5)
    assert loss.item() == pytest.approx(-sum(map(math.log, within)) / 4, abs=1e-6)


def test_rankings_leave_out_the_image_itself() -> None:
    vectors = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1], [0, 1]])
    assert rankings(vectors).tolist() == [[1, 2, 3], [2, 3, 0], [3, 1, 0], [2, 1, 0]]


def test_validation_reranks_the_first_stage_it_started_from(objects: Path, second: Path) -> None:
    """A trunk finetuned later reorders the same lists: recall beyond the reranked head stays as it was."""
    training = Training(_options(objects, stage="joint", start=second, checked=1, held_out=0.5))
    with torch.inference_mode():
        before = training.validate()
        for parameter in training.model.trunk.parameters():
            parameter.copy_(torch.randn_like(parameter))
        assert training.validate() == before  # one candidate cannot be reordered
        of_global = Training(_options(objects, start=None, held_out=0.5))
        of_global.model.load_state_dict(load_model(second).state_dict())
        assert of_global.validate() == before


def test_a_matcher_that_knows_reranks_to_the_front(objects: Path, second: Path) -> None:
    training = Training(_options(objects, stage="joint", start=second, checked=30, held_out=0.5))
    instances = [sample.instance for sample in training.held_out]
    rows = {name: i for i, name in enumerate(sorted(set(instances)))}
    marks = torch.tensor([rows[name] for name in instances]).float()

    def told(query: Tensor, candidate: Tensor) -> Tensor:
        return -(query[:, 0, 0] - candidate[:, 0, 0]).abs()

    training.model.matcher.forward = told  # type: ignore[method-assign]
    start = iter(marks)
    training._plain = lambda views: iter([torch.zeros(len(instances), 16, 7, 7)])  # type: ignore[method-assign]
    training.model.remap_local.forward = lambda maps: torch.stack(  # type: ignore[method-assign]
        [torch.full((128, 7, 7), float(next(start))) for _ in maps]
    )
    with torch.inference_mode():
        assert training.validate()["mAP"] == 1.0


# --- a training is repeatable and goes on ---------------------------------------------------------------------------


def _digest(path: Path) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for _, t in sorted(load_file(path).items()))).hexdigest()


@pytest.mark.parametrize(("stage", "kept"), [("global", 0), ("joint", 2)])
def test_a_resumed_training_ends_at_the_same_weights(
    stage: str, kept: int, objects: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _options(objects, stage=stage, start=second if stage == "joint" else None, kept=kept, batch=4)
    train(options, tmp_path / "whole.safetensors")
    honest = Training.loss

    def stop(self: Training, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        if step == 3:
            raise KeyboardInterrupt
        return honest(self, batch, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "loss", stop)
        train(options, tmp_path / "parts.safetensors")
    assert (tmp_path / "parts.safetensors.training").exists() and not (tmp_path / "parts.safetensors").exists()
    train(options, tmp_path / "parts.safetensors")
    assert _digest(tmp_path / "parts.safetensors") == _digest(tmp_path / "whole.safetensors")
    train(replace(options, seed=1), tmp_path / "other.safetensors")
    assert _digest(tmp_path / "other.safetensors") != _digest(tmp_path / "whole.safetensors")


def test_stages_learn_what_they_are_for(objects: Path, first: Path) -> None:
    """On colours that a few steps can tell apart, the loss falls well below chance."""
    for options in (
        _options(objects, lr=0.05, batch=12),
        _options(objects, stage="frozen", start=first, lr=0.003),
    ):
        training = Training(replace(options, kept=2))
        optimizer = recipe(options).optimizer()
        optimizer = type(optimizer)(training.module.parameters(), lr=options.lr)
        losses = []
        for step in range(24):
            loss = training.loss(training.draw(step), step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:3])


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": None}, "nothing to train on"),
        ({"stage": "frozen"}, "starts from weights of the stage global"),
        ({"stage": "joint"}, "starts from weights of the stage frozen"),
        ({"batch": 9}, "multiple of per_class"),
        ({"per_class": 1}, "per_class 1"),
        ({"views": 1}, "views 1"),
        ({"epochs": 0}, "epochs 0"),
        ({"nearest": 0}, "nearest 0"),
        ({"limit": 0}, "limit"),
        ({"tuned": -1}, "tuned"),
        ({"crop": 0.0}, "crop"),
        ({"flip": 1.5}, "flip"),
        ({"held_out": 1.0}, "held_out"),
        ({"temperature": 0.0}, "temperature"),
        ({"momentum": 1.0}, "momentum"),
        ({"depth": 0}, "depth"),
        ({"trunk": "vgg"}, "vgg"),
    ],
)
def test_wrong_options_are_refused(given: dict, said: str, objects: Path) -> None:
    with pytest.raises(UserError, match=said):
        _options(objects, **given)


def test_defaults_of_a_stage_are_the_papers(objects: Path) -> None:
    one, two = TrainOptions(images=objects), TrainOptions(images=objects, stage="joint", start=objects)
    assert (one.lr, one.batch, two.lr, two.batch) == (1e-3, 800, 1e-4, 100)
    assert one.weight_decay == two.weight_decay == 4e-4 and one.milestones == (60, 80) and one.epochs == 100


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tuned": 3}, "tuned 3: the trunk has 2 blocks"),
        ({"start": "self", "stage": "joint"}, "matcher is not trained"),
        ({"start": "self", "stage": "frozen", "trunk": "efficientnet-lite0"}, "trunk='tiny'.*expected"),
        ({"start": "self"}, "tiny starts from"),
        ({"start": "nowhere.safetensors", "stage": "frozen"}, "nowhere.safetensors: no such weights file"),
    ],
)
def test_weights_and_options_that_do_not_fit_are_refused(given: dict, said: str, objects: Path, first: Path) -> None:
    start = given.get("start")
    options = _options(objects, **{**given, "start": first if start == "self" else start and Path(start)})
    with pytest.raises(UserError, match=said):
        Training(options)


def test_images_outside_instances_are_refused(objects: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    with pytest.raises(UserError, match=r"loose\.png: lies outside any instance"):
        samples(_options(tmp_path))
    with pytest.raises(UserError, match="nowhere"):
        samples(_options(tmp_path / "nowhere"))


def test_images_without_near_negatives_cannot_train(objects: Path, first: Path, tmp_path: Path) -> None:
    for instance in range(6):
        (tmp_path / "copies" / str(instance)).mkdir(parents=True)
        for copy in range(2):
            with Image.open(objects / f"o{instance}" / "0.png") as image:
                image.save(tmp_path / "copies" / str(instance) / f"{copy}.png")
    options = _options(tmp_path / "copies", stage="frozen", start=first)
    with pytest.raises(UserError, match="no image has one of another instance among its 1 nearest"):
        Training(replace(options, nearest=1))
    assert {len(near) for near in Training(replace(options, nearest=2)).nearest} == {1}


def test_help_and_mistakes_on_the_command_line(cli: Callable[..., Result], objects: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "w.safetensors")
    told = cli("train", "rrt-sop", "--help")
    assert told.exit_code == 0 and "--stage" in told.output and "--per-class" in told.output
    for arguments, said in (
        (("--stage", "both"), "both"),
        (("--stage", "frozen", "--images", str(objects)), "--start FILE"),
        (("--pairs", "5"), "--pairs"),
        ((), "--images FOLDER"),
    ):
        result = cli("train", "rrt-sop", "--out", out, *arguments)
        assert result.exit_code != 0 and said in result.output, result.output
    assert sop.PAPER.keys() == {"global", "frozen", "joint"}


def test_saved_untrained_parts_are_not_taken_for_trained(objects: Path, tmp_path: Path) -> None:
    save_model(SOPModel(_options(objects).config()), tmp_path / "g.safetensors", {}, without=("matcher.",))
    with pytest.raises(UserError, match="matcher is not trained"):
        Training(_options(objects, stage="joint", start=tmp_path / "g.safetensors"))
