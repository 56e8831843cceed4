"""The shared loop on a toy recipe: a linear map taught to tell the sign of a sum."""

from __future__ import annotations

import csv
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.training import Curves, LoopOptions, Recipe, Schedule, fit, move

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = LoopOptions(lr=0.02, threads=1, save_every=7, check_every=10, device="cpu")


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take half a second each: a test that wants them asks for `pictures`."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Curves, "draw", lambda self: self.file)


@pytest.fixture
def pictures() -> None:
    """Ask for pictures."""


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    y: torch.Tensor


def toy(options: LoopOptions, steps: int = 40, figures: dict[int, float] | None = None, **more) -> Recipe[Batch]:
    """`figures`: validation figure by its step, instead of the true one."""
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
    validations = iter((figures or {}).values())

    def draw(step: int) -> Batch:
        x = torch.from_numpy(np.random.default_rng([options.seed, step]).normal(size=(16, 6)).astype(np.float32))
        return Batch(x, (x.sum(1) > 0).float())

    def loss(batch: Batch, step: int) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(module(batch.x).squeeze(1).float(), batch.y)

    def validate() -> dict[str, float]:
        assert not module.training
        if figures:
            return {"accuracy": next(validations)}
        batch = draw(10**6)
        return {"accuracy": float(((module(batch.x).squeeze(1) > 0) == (batch.y > 0)).float().mean())}

    given = {
        "module": module,
        "optimizer": lambda: torch.optim.AdamW(module.parameters(), lr=options.lr),
        "draw": draw,
        "loss": loss,
        "validate": validate,
        "selection": "accuracy",
        "write": lambda path, card: save_file(module.state_dict(), path),
        "steps": steps,
        "identity": {},
        "card": {},
    }
    return Recipe(**{**given, **more})


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(out: Path) -> list[tuple[int, str, float]]:
    with (out.with_name(out.name + ".curves") / "curves.csv").open() as file:
        return [(int(r["step"]), r["figure"], float(r["value"])) for r in csv.DictReader(file)]


def stop_at(step: int):
    """A `loss` wrapper that interrupts at a step."""

    def wrap(recipe: Recipe) -> Recipe:
        def loss(batch, at):
            if at == step:
                raise KeyboardInterrupt
            return recipe.loss(batch, at)

        return replace(recipe, loss=loss)

    return wrap


KILLED = f"""
import os, signal, sys
sys.dont_write_bytecode = True
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [{str(REPOSITORY)!r}, {str(Path(__file__).parent)!r}]
import torch
torch.set_num_threads(1)
from test_training import OPTIONS, toy
from bench.training import fit
recipe = toy(OPTIONS)
def loss(batch, step):
    if step == 24:
        os.kill(os.getpid(), signal.SIGKILL)
    return recipe.loss(batch, step)
fit(replace(recipe, loss=loss), OPTIONS, Path(sys.argv[1]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_training_ends_at_the_weights_of_an_unkilled_one(program, tmp_path):
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    fit(toy(OPTIONS), OPTIONS, whole)
    died = program("-c", KILLED, str(killed)).finish()
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not killed.exists() and (tmp_path / "killed.safetensors.training").exists()
    fit(toy(OPTIONS), OPTIONS, killed)
    assert same(whole, killed) and rows(whole) == rows(killed)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f"{name}.safetensors{more}" for name in ("killed", "whole") for more in ("", ".curves")
    )


@pytest.mark.parametrize("step", [1, 7, 20, 33, 39])
def test_where_a_training_is_interrupted_does_not_matter(step, tmp_path):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    card = fit(toy(OPTIONS), OPTIONS, whole)
    with pytest.raises(KeyboardInterrupt):
        fit(stop_at(step)(toy(OPTIONS)), OPTIONS, cut)
    resumed: list[int] = []
    assert fit(toy(OPTIONS), OPTIONS, cut, lambda what, done, total: resumed.append(done)) == card
    assert same(whole, cut) and rows(whole) == rows(cut)
    assert min(resumed) > step // 7 * 7  # what was saved is not done again


def test_momentum_survives_an_interruption(tmp_path):
    def recipe() -> Recipe:
        made = toy(OPTIONS)
        sgd = lambda: torch.optim.SGD(made.module.parameters(), lr=0.05, momentum=0.9, nesterov=True)  # noqa: E731
        return replace(made, optimizer=sgd)

    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    fit(recipe(), OPTIONS, whole)
    with pytest.raises(KeyboardInterrupt):
        fit(stop_at(30)(recipe()), OPTIONS, cut)
    fit(recipe(), OPTIONS, cut)
    assert same(whole, cut)


def test_seed_decides_and_workers_and_callers_randomness_do_not(tmp_path):
    names = [tmp_path / f"{name}.safetensors" for name in "abcd"]
    fit(toy(OPTIONS), OPTIONS, names[0])
    torch.manual_seed(99)
    before = torch.get_rng_state()
    fit(toy(OPTIONS), OPTIONS, names[1])
    assert torch.equal(torch.get_rng_state(), before)
    fit(toy(OPTIONS), replace(OPTIONS, workers=2, save_every=3), names[2])
    other = replace(OPTIONS, seed=1)
    fit(toy(other), other, names[3])
    assert same(names[0], names[1]) and same(names[0], names[2]) and not same(names[0], names[3])


def test_the_weights_of_the_best_validation_are_written(tmp_path):
    figures = {10: 0.5, 20: 0.9, 30: 0.9, 40: 0.7}
    out, short = tmp_path / "out.safetensors", tmp_path / "short.safetensors"
    card = fit(toy(OPTIONS, figures=figures), OPTIONS, out)
    fit(toy(OPTIONS, 20, {10: 0.1, 20: 0.2}), OPTIONS, short)
    assert same(out, short)
    assert card["validation"] == {
        "chosen by": "accuracy",
        "best": {"step": 20, "accuracy": 0.9},
        "last": {"step": 40, "accuracy": 0.7},
    }
    assert [(s, v) for s, name, v in rows(out) if name == "accuracy"] == list(figures.items())
    assert [s for s, name, _ in rows(out) if name == "loss"] == [7, 14, 20, 21, 28, 35, 40]


def test_the_best_weights_survive_an_interruption(tmp_path):
    out, short = tmp_path / "out.safetensors", tmp_path / "short.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(stop_at(25)(toy(OPTIONS, figures={10: 0.5, 20: 0.9})), OPTIONS, out)
    fit(toy(OPTIONS, figures={30: 0.6, 40: 0.7}), OPTIONS, out)
    fit(toy(OPTIONS, 20, {10: 0.1, 20: 0.2}), OPTIONS, short)
    assert same(out, short)


def test_the_toy_is_learned_and_drawn(tmp_path, pictures):
    card = fit(toy(OPTIONS, steps=120), OPTIONS, tmp_path / "w.safetensors")
    losses = [value for _, name, value in rows(tmp_path / "w.safetensors") if name == "loss"]
    assert card["validation"]["best"]["accuracy"] > 0.8 and np.median(losses[-5:]) < losses[0] / 2
    picture = (tmp_path / "w.safetensors.curves" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000


def test_bf16_is_another_training_that_learns_too(tmp_path):
    half = replace(OPTIONS, precision="bf16")
    card = fit(toy(half, steps=120), half, tmp_path / "half.safetensors")
    fit(toy(OPTIONS, steps=120), OPTIONS, tmp_path / "full.safetensors")
    assert card["validation"]["best"]["accuracy"] > 0.8
    assert not same(tmp_path / "half.safetensors", tmp_path / "full.safetensors")
    assert {t.dtype for t in weights(tmp_path / "half.safetensors").values()} == {torch.float32, torch.int64}


def test_clipping_bounds_a_step(tmp_path):
    clipped = replace(OPTIONS, clip=1e-3)

    def made(options: LoopOptions) -> Recipe:
        recipe = toy(options, steps=1)
        return replace(recipe, optimizer=lambda: torch.optim.SGD(recipe.module.parameters(), lr=1.0))

    start = toy(OPTIONS).module.state_dict()
    moved = {}
    for options in (OPTIONS, clipped):
        fit(made(options), options, tmp_path / "w.safetensors")
        after = weights(tmp_path / "w.safetensors")
        names = [k for k, _ in toy(OPTIONS).module.named_parameters()]
        moved[options.clip] = sum(float((after[k] - start[k]).norm() ** 2) for k in names) ** 0.5
    assert moved[1e-3] == pytest.approx(1e-3, rel=0.01) and moved[0.0] > 0.01


def _unfinished(out: Path, options: LoopOptions = OPTIONS, steps: int = 40) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(stop_at(25)(toy(options, steps)), options, out)


@pytest.mark.parametrize(
    "change", [{"lr": 0.01}, {"clip": 1.0}, {"precision": "bf16"}, {"check_every": 5}, {"seed": 1}]
)
def test_a_state_of_other_options_is_refused_and_kept(change, tmp_path):
    out = tmp_path / "w.safetensors"
    _unfinished(out)
    other = replace(OPTIONS, **change)
    with pytest.raises(UserError, match=rf"other options \({next(iter(change))}\)"):
        fit(toy(other), other, out)
    fit(toy(OPTIONS), OPTIONS, out)


def test_a_state_of_other_data_is_refused(tmp_path):
    out = tmp_path / "w.safetensors"
    _unfinished(out)
    with pytest.raises(UserError, match=r"other options \(data\)"):
        fit(toy(OPTIONS, identity={"data": "another"}), OPTIONS, out)


def test_a_constant_rate_can_be_trained_longer_but_not_a_fallen_one(tmp_path):
    long, extended = tmp_path / "long.safetensors", tmp_path / "extended.safetensors"
    fit(toy(OPTIONS, steps=60), OPTIONS, long)
    _unfinished(extended)
    fit(toy(OPTIONS, steps=60), OPTIONS, extended)
    assert same(long, extended)
    falling = replace(OPTIONS, decay=1.0)
    _unfinished(tmp_path / "w.safetensors", falling)
    with pytest.raises(UserError, match="another length"):
        fit(toy(falling, steps=60), falling, tmp_path / "w.safetensors")
    _unfinished(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="another length"):
        fit(toy(OPTIONS, steps=21), OPTIONS, tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [b"\x08", None])
def test_a_damaged_state_is_reported(content, tmp_path):
    state = tmp_path / "w.safetensors.training"
    if content is None:
        save_file({"a": torch.zeros(1)}, state)
    else:
        state.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as caught:
        fit(toy(OPTIONS), OPTIONS, tmp_path / "w.safetensors")
    assert caught.value.hint and "delete" in caught.value.hint


def test_a_loss_that_is_not_finite_ends_the_training_and_spoils_no_state(tmp_path):
    recipe = toy(OPTIONS)

    def loss(batch, step):
        return recipe.loss(batch, step) * (float("nan") if step == 25 else 1)

    with pytest.raises(UserError, match="loss is nan after 28 steps"):
        fit(replace(recipe, loss=loss), OPTIONS, tmp_path / "w.safetensors")
    state = load_file(tmp_path / "w.safetensors.training")
    assert all(torch.isfinite(t).all() for t in state.values())


def test_other_file_names_milestones_without_epochs_and_missing_devices_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        fit(toy(OPTIONS), OPTIONS, tmp_path / "w.pt")
    stepped = replace(OPTIONS, milestones=(3,))
    with pytest.raises(UserError, match="no epochs"):
        fit(toy(stepped), stepped, tmp_path / "w.safetensors")
    if not torch.cuda.is_available():
        absent = replace(OPTIONS, device="cuda")
        with pytest.raises(UserError, match="cuda"):
            fit(toy(absent), absent, tmp_path / "w.safetensors")


def test_schedule():
    plain = Schedule(10)
    assert [plain(s) for s in range(10)] == [1.0] * 10
    warm = Schedule(20, warmup=4, decay=0.5)
    assert [warm(s) for s in (0, 1, 3, 10, 15, 19)] == [0.25, 0.5, 1.0, 1.0, 0.5, 0.1]
    assert [Schedule(9, drops=(3, 6))(s) for s in (2, 3, 5, 6)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_milestones_are_epochs(tmp_path):
    options = replace(OPTIONS, milestones=(2, 3))
    seen: list[float] = []
    made = toy(options, epoch=10)
    optimizer = torch.optim.SGD(made.module.parameters(), lr=0.5)

    def loss(batch, step):
        seen.append(optimizer.param_groups[0]["lr"])
        return made.loss(batch, step)

    fit(replace(made, optimizer=lambda: optimizer, loss=loss), options, tmp_path / "w.safetensors")
    assert seen == pytest.approx([0.5] * 20 + [0.05] * 10 + [0.005] * 10)


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0.0},
        {"lr": float("inf")},
        {"threads": 0},
        {"save_every": 0},
        {"check_every": 0},
        {"decay": -0.1},
        {"clip": -1.0},
        {"warmup": -1},
        {"workers": -1},
        {"milestones": (2, 1)},
        {"milestones": (0,)},
    ],
)
def test_wrong_options_are_refused(bad):
    with pytest.raises(UserError):
        LoopOptions(**bad)


def test_move_reaches_every_tensor():
    batch = (Batch(torch.zeros(1), torch.zeros(1)), {"a": [torch.zeros(2), None, "text"]})
    moved = move(batch, torch.device("meta"))
    assert moved[0].x.is_meta and moved[0].y.is_meta and moved[1]["a"][0].is_meta
    assert moved[1]["a"][1:] == [None, "text"]


def test_curves_forget_what_comes_after_the_state(tmp_path):
    curves = Curves(tmp_path / "c")
    for step in (20, 40, 60):
        curves.add(step, {"loss": 1 / step})
    with curves.file.open("a") as file:
        file.write("80,lo")
    Curves(tmp_path / "c", 40)
    assert curves.file.read_text().splitlines() == ["step,figure,value", "20,loss,0.05", "40,loss,0.025"]


def test_figures_may_have_commas_in_their_names(tmp_path: Path) -> None:
    Curves(tmp_path).add(20, {"mAP": 0.5, "mAP photographs, no globals": 0.25})
    again = Curves(tmp_path, upto=20)
    assert again._rows() == [(20, "mAP", 0.5), (20, "mAP photographs, no globals", 0.25)]
