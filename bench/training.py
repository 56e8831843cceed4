"""The training loop every recipe shares: seeded, resumable, with curves and a choice of weights by validation.

A recipe (`methods/METHOD/training/NAME.py`) has a frozen dataclass `TrainOptions(LoopOptions)` and a function
`train(options, out, progress)` that makes a `Recipe` and calls `fit`. The weights written at the end are those of the
best validation, on a split held out of the training data. The paper chose its epoch on the test set, ROxford itself
(docs/protocols.md); figures of weights chosen so are too good, which is why no recipe may validate on a test set.
"""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.device import resolve_device
from bench.errors import UserError
from bench.files import file_hash, writing
from bench.locks import alone
from bench.trained import SPARED

Progress = Callable[[str, int, int], None]  # what is being done, how far, of how many
B = TypeVar("B")  # a recipe's batch
TOLD = 20  # steps between rows of the loss curve
KEPT = "the last saved state is kept; make room and run the same command again"
AHEAD = 2  # batches drawn ahead by each worker


@dataclass(frozen=True)
class LoopOptions:
    """What every recipe can be told; a recipe's own options are fields of a subclass, which may change defaults."""

    lr: float = 1e-4  # learning rate, at its highest
    warmup: int = 0  # steps in which the learning rate rises from 0
    decay: float = 0.0  # last part of the run, in which the learning rate falls to 0
    milestones: tuple[int, ...] = ()  # epochs after which the learning rate falls to a tenth
    clip: float = 0.0  # greatest norm of the gradient; 0: no clipping
    precision: Literal["fp32", "bf16"] = "fp32"  # of the training step; validation is always fp32
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int = 2  # CPU threads of torch
    workers: int = 0  # threads that draw batches ahead of the training step; 0: none
    seed: int = 0  # equal seeds give equal weights on one CPU; on a GPU up to rounding
    save_every: int = 500  # steps between saved states
    check_every: int = 500  # steps between validations

    # what does not decide the weights, or only how long they are trained: a training may be resumed with other values
    spared: ClassVar[frozenset[str]] = SPARED

    def __post_init__(self) -> None:
        for name in ("threads", "save_every", "check_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: expected at least 1")
        for name in ("warmup", "clip", "workers"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} {getattr(self, name)}: expected at least 0")
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr {self.lr}: expected more than 0")
        if not 0 <= self.decay <= 1:
            raise UserError(f"decay {self.decay}: expected a fraction from 0 to 1")
        if any(epoch < 1 for epoch in self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"milestones {self.milestones}: expected rising epochs of at least 1")

    def identity(self) -> dict[str, Any]:
        """What decides the weights: all options but the spared (a folder must be spared), files by their content."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in self.spared}
        return {
            name: fingerprint(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


def fingerprint(file: Path) -> str:
    """The first 16 digits of the file's sha256; UserError if it cannot be read."""
    try:
        return file_hash(file)[:16]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a step, as a factor of the optimizer's own."""

    steps: int
    warmup: int = 0
    decay: float = 0.0
    drops: tuple[int, ...] = ()  # steps from which on it is a tenth of what it was

    def __call__(self, step: int) -> float:
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / max(1, self.warmup), left) * 0.1 ** sum(step >= drop for drop in self.drops)


@dataclass(frozen=True)
class Recipe(Generic[B]):
    """What `fit` trains and how.

    `draw` and `loss` must depend on their arguments and the options alone, never on what was drawn before: that makes
    a resumed run equal to an uninterrupted one. `draw` returns CPU tensors (in dataclasses, tuples, lists or
    dictionaries, moved to the device by `fit`), takes its randomness from `numpy.random.default_rng([seed, step])`
    and, with `workers`, is called from other threads. Torch's generators are seeded by (seed, step) before each `loss`.
    """

    # All that is trained and saved (of several, a ModuleDict); a frozen part may stay outside, moved by the recipe.
    # Before training and after each validation `train()` is called: a part that must stay in eval mode overrides it.
    module: nn.Module
    optimizer: Callable[[], torch.optim.Optimizer]  # made when `module` is on the device; its rates are the highest
    draw: Callable[[int], B]  # the batch of a step
    loss: Callable[[B, int], Tensor]  # of a batch at a step, on the device, under autocast if precision is bf16
    # Figures of the present weights on the held-out split, in inference and eval mode; batches go through `move`.
    validate: Callable[[], Mapping[str, float]]
    selection: str  # the figure by which the weights are chosen; higher is better
    write: Callable[[Path, Mapping[str, Any]], None]  # the present weights and the finished card, atomically
    steps: int
    identity: Mapping[str, Any]  # JSON: what else decides the weights besides the options, such as the data's digest
    card: Mapping[str, Any]  # JSON: what the card says besides `recipe` (the options), `steps` and `validation`
    epoch: int | None = None  # steps of an epoch; without it milestones are refused

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: expected at least 1")


def require_name(out: Path) -> None:
    """Refuse a name for weights that nothing would read them under."""
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: expected a name that ends in .safetensors")


def move(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on the device."""
    if isinstance(batch, Tensor):
        return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(move(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: move(getattr(batch, f.name), device) for f in dataclasses.fields(batch)})
    return batch


def fit(recipe: Recipe[B], options: LoopOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train, and write the best weights to `out` (.safetensors); returns the card stored in them.

    Killed or interrupted and called again, it goes on from the last saved state (`OUT.training`, removed at the end)
    and ends at the same weights. Loss and validation figures go to `OUT.curves/curves.csv` (step, figure, value) and
    `curves.png` as it runs. UserError for a state of another training, a loss that is not finite, a wrong file name
    or one that cannot be written. One process at a time trains to a file.
    """
    require_name(out)
    with ExitStack() as lock:
        with writing(out):
            lock.enter_context(alone(out, "training"))
        return _fit(recipe, options, out, progress)


def _fit(recipe: Recipe[B], options: LoopOptions, out: Path, progress: Progress | None) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    module = recipe.module.to(device).train()
    optimizer = recipe.optimizer()
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = _schedule(recipe, options)
    state = _State(out.with_name(out.name + ".training"), recipe, options, optimizer, schedule)
    first, best = state.load()
    curves = Curves(out.with_name(out.name + ".curves"), first)
    last = None
    total, summed = torch.zeros((), device=device), 0
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), closing(_batches(recipe, first, options.workers)) as batches:
        for step, batch in enumerate(batches, first):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step)
            torch.manual_seed(options.seed * 1_000_003 + step)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
                loss = recipe.loss(move(batch, device), step)
            optimizer.zero_grad()
            loss.backward()
            if options.clip:
                nn.utils.clip_grad_norm_(parameters, options.clip)
            optimizer.step()
            done = step + 1
            total, summed = total + loss.detach().float(), summed + 1
            saves, checks = (done % n == 0 for n in (options.save_every, options.check_every))
            if done % TOLD == 0 or saves or done == recipe.steps:
                mean = float(total) / summed
                if not math.isfinite(mean):
                    raise UserError(
                        f"the loss is {mean} after {done} steps",
                        hint="train to another file with a lower lr or a clip",
                    )
                curves.add(done, {"loss": mean})
                total, summed = torch.zeros_like(total), 0
                if progress:
                    progress("training", done, recipe.steps)
            if checks or done == recipe.steps:
                last = Checked(done, _validate(recipe), _weights(module))
                if best is None or last.figures[recipe.selection] > best.figures[recipe.selection]:
                    best = last
                curves.add(done, last.figures)
                curves.draw()
            if saves and done < recipe.steps:
                state.save(done, best)
    assert best is not None and last is not None  # the last step always validates
    module.load_state_dict(best.weights)
    card = {
        **recipe.card,
        "recipe": options.identity(),
        "steps": recipe.steps,
        "validation": {
            "chosen by": recipe.selection,
            "best": {"step": best.step, **best.figures},
            "last": {"step": last.step, **last.figures},
        },
    }
    with writing(out, KEPT):
        recipe.write(out, card)
        state.path.unlink(missing_ok=True)
    return card


@dataclass(frozen=True)
class Checked:
    """A validation, with the weights it was of."""

    step: int
    figures: Mapping[str, float]
    weights: Mapping[str, Tensor]


def _schedule(recipe: Recipe, options: LoopOptions) -> Schedule:
    if options.milestones and recipe.epoch is None:
        raise UserError("milestones: this recipe has no epochs", hint="use decay")
    drops = tuple(epoch * (recipe.epoch or 0) for epoch in options.milestones)
    return Schedule(recipe.steps, options.warmup, options.decay, drops)


def _batches(recipe: Recipe[B], first: int, workers: int) -> Generator[B]:
    steps = range(first, recipe.steps)
    if not workers:
        yield from map(recipe.draw, steps)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        waiting = deque(pool.submit(recipe.draw, step) for step in steps[: AHEAD * workers])
        for step in steps:
            batch = waiting.popleft().result()
            if step + AHEAD * workers in steps:
                waiting.append(pool.submit(recipe.draw, step + AHEAD * workers))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _validate(recipe: Recipe) -> dict[str, float]:
    recipe.module.eval()
    with torch.inference_mode():
        figures = {name: float(value) for name, value in recipe.validate().items()}
    recipe.module.train()
    if not math.isfinite(figures[recipe.selection]):
        raise UserError(f"validation gave {recipe.selection} {figures[recipe.selection]}, which chooses no weights")
    return figures


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU, contiguous: what can be saved."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in module.state_dict().items()}


@dataclass(frozen=True)
class _State:
    """The resumable state of a training: weights, the best weights so far, and the optimizer's moments."""

    path: Path
    recipe: Recipe
    options: LoopOptions
    optimizer: torch.optim.Optimizer
    schedule: Schedule

    def _identity(self) -> dict[str, Any]:
        return json.loads(json.dumps({"options": self.options.identity(), **self.recipe.identity}))

    def save(self, step: int, best: Checked | None) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in _weights(self.recipe.module).items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{name}": value.detach().cpu().contiguous()
                for name, value in entry.items()
                if isinstance(value, Tensor)
            }
        if best:
            tensors |= {f"best.{name}": tensor for name, tensor in best.weights.items()}
        metadata = {
            "step": step,
            "schedule": dataclasses.asdict(self.schedule),
            "identity": self._identity(),
            "best": best and {"step": best.step, "figures": best.figures},
        }
        part = self.path.with_name(self.path.name + ".part")
        with writing(self.path, KEPT):
            try:
                save_file(tensors, part, {name: json.dumps(value) for name, value in metadata.items()})
                part.replace(self.path)
            except SafetensorError as error:  # as it says that a disk is full
                part.unlink(missing_ok=True)
                raise OSError(errno.EIO, str(error)) from error

    def load(self) -> tuple[int, Checked | None]:
        """Restore the saved state, if there is one; the step to go on from and the best validation so far."""
        if not self.path.exists():
            return 0, None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            step, identity, best = metadata["step"], metadata["identity"], metadata["best"]
            before = Schedule(**{**metadata["schedule"], "drops": tuple(metadata["schedule"]["drops"])})
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: the saved training state cannot be read ({error})", hint="delete it to start afresh"
            ) from error
        # another length is the same run as long as the learning rates so far would have been the same
        if identity != self._identity() or step >= self.schedule.steps or before(step - 1) != self.schedule(step - 1):
            raise UserError(
                f"{self.path}: an unfinished training with {self._difference(identity) or 'another length'} is here",
                hint="repeat its options, delete it, or write to another file",
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.recipe.module.load_state_dict(part("module."))
        content = self.optimizer.state_dict()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, value in part("optimizer.").items():
            index, _, key = name.partition(".")
            like = trained[int(index)]  # a fused step goes by the order in memory, and wants the parameter's
            moment = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            content["state"].setdefault(int(index), {})[key] = moment
        self.optimizer.load_state_dict(content)
        return step, best and Checked(best["step"], best["figures"], part("best."))

    def _difference(self, found: Mapping[str, Any]) -> str:
        """Names of what the saved training had otherwise."""
        mine = self._identity()
        names = [k for k in mine.keys() | found.keys() if k != "options" and mine.get(k) != found.get(k)]
        ours, theirs = mine["options"], found.get("options", {})
        names += [k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)]
        return f"other options ({', '.join(sorted(names))})" if names else ""


class Curves:
    """A folder with `curves.csv` (columns step, figure, value), whose rows after step `upto` are forgotten."""

    def __init__(self, folder: Path, upto: int = 0):
        self.file = folder / "curves.csv"
        part = self.file.with_name("curves.csv.part")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            kept = [row for row in self._rows() if row[0] <= upto]
            with part.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([("step", "figure", "value"), *kept])
            part.replace(self.file)

    def _rows(self) -> list[tuple[int, str, float]]:
        rows = []
        for line in csv.reader(self.file.read_text().splitlines()[1:] if self.file.exists() else []):
            try:
                step, name, value = line
                rows.append((int(step), name, float(value)))
            except ValueError:  # the last line of a killed run
                continue
        return rows

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        with writing(self.file, KEPT), self.file.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows((step, name, value) for name, value in figures.items())

    def draw(self) -> Path:
        """`curves.png`: a panel for each figure against the step."""
        from matplotlib.figure import Figure

        found: dict[str, list[tuple[int, float]]] = {}
        for step, name, value in self._rows():
            found.setdefault(name, []).append((step, value))
        figure = Figure(figsize=(4.2 * len(found), 3.4), layout="constrained")
        for axes, (name, points) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
            axes.plot(*zip(*points, strict=True), marker=None if name == "loss" else ".", linewidth=1)
            axes.set(xlabel="step", title="training loss" if name == "loss" else f"{name}, held-out split")
            axes.grid(alpha=0.3)
        path = self.file.with_name("curves.png")
        part = path.with_name("curves.png.part")
        with writing(path, KEPT):
            figure.savefig(part, dpi=110, format="png")
            part.replace(path)
        return path
