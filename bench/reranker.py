"""What an author of a reranker writes: one class with `Options`, `score`, and what it needs to know about itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bench.features import FeatureBatch, FeatureCard, Features
from bench.options import NoOptions, Seed, apply_preset, check_options, given_file, read_options

__all__ = [
    "Card",
    "FeatureBatch",
    "FeatureCard",
    "Features",
    "Reranker",
    "Scored",
    "Seed",
    "apply_preset",
    "given_file",
    "register",
]
NEEDS = frozenset({"global", "local", "keypoints", "truth"})


@dataclass(frozen=True)
class Card:
    """Where a method comes from and what may be done with it; printed under every table it appears in."""

    paper: str | None
    licence: str
    trained_on: str | None = None
    noncommercial: str | None = None  # the licence name that `--accept-licence` must repeat


@dataclass(frozen=True)
class Spec:
    """What a method declares about itself."""

    name: str
    needs: frozenset[str]
    card: Card
    control: bool = False  # a floor, a ceiling or a sentinel, not a contender


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores with the raw numbers they come from, which are kept beside them (`details.parquet`)."""

    scores: Tensor  # (k,)
    details: Mapping[str, Tensor]  # name -> (k,) finite numbers

    def __post_init__(self) -> None:
        for name, values in self.details.items():
            if values.shape != self.scores.shape:
                raise ValueError(f"{name} has shape {tuple(values.shape)}, the scores {tuple(self.scores.shape)}")


class Reranker:
    """Scores the candidates of one query; higher is better. Everything else is the harness's.

    Subclasses set `Options` (a frozen dataclass; its fields are the command line's `-o name.field=value`) and implement
    `score`. A pairwise method scores each candidate on its own; a listwise one (`pairwise = False`) sees a whole list.
    """

    Options: ClassVar[type] = NoOptions
    pairwise: ClassVar[bool] = True
    spec: ClassVar[Spec]

    def __init__(self, options: Any = None, device: torch.device | str = "cpu"):
        self.options = self.Options() if options is None else options
        self.device = torch.device(device)

    def skip(self, features: FeatureCard) -> str | None:
        """Why the method cannot run here on this feature set, or None."""
        return None

    def bind(self, features: FeatureCard) -> None:
        """Told once which features it reads, before `weights`, `card` and `load`: for weights that depend on them."""

    def load(self) -> None:
        """Load weights and move them to `self.device`; called once, before anything is timed."""

    def weights(self) -> Path | None:
        """The file whose sha256 goes into the record, if there is one."""
        return None

    def card(self) -> Card:
        """What is printed under the tables; the registered card, unless the options make another true."""
        return self.spec.card

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor | Scored:
        """(k,) one finite score a candidate, in the order given. The only timed call."""
        raise NotImplementedError

    def needs(self) -> frozenset[str]:
        """What is read; what was registered, unless the options decide."""
        return self.spec.needs

    def made_for(self) -> str | None:
        """The feature set that its weights were made for: what it reads where it cannot read the comparison's."""
        return None

    def parts(self) -> Sequence[Reranker]:
        """The methods this one is made of; their options, weights and code are part of what it is."""
        return ()

    def part_features(self) -> Sequence[str | None]:
        """The feature set that each part was given; None: the one that it would read as a row of its own."""
        return [None] * len(self.parts())

    def score_parts(self, inputs: Sequence[tuple[Features, FeatureBatch]]) -> Tensor | Scored:
        """As `score`, of a method with parts: the query and the candidates as each part reads them."""
        raise NotImplementedError

    def deterministic(self) -> bool:
        """Whether equal input gives equal scores on one machine; a regression check then expects exactly those.

        By default on a CPU, if all parts are so: a GPU may add numbers in another order. A method that draws without a
        seed says False.
        """
        return self.device.type == "cpu" and all(part.deterministic() for part in self.parts())

    def descriptors_used(self, available: int) -> int:
        """How many of an image's local descriptors are read."""
        if "local" not in self.needs():
            return 0
        return min(available, getattr(self.options, "descriptors", available))


R = TypeVar("R", bound=type[Reranker])


def register(name: str, *, needs: Iterable[str], card: Card, control: bool = False) -> Callable[[R], R]:
    """Declare a class as the reranker `name`. Refuses what the harness could not run or compare.

    `needs` is what `score` reads: `global`, `local` (descriptors, scales), `keypoints` (with orientations);
    `truth` (ground truth) only for controls. What is not named is not handed over and not counted as stored bytes.
    """
    spec = Spec(name, frozenset(needs), card, control)

    def declare(cls: R) -> R:
        where = f"{cls.__module__}.{cls.__qualname__}"
        if not (inspect.isclass(cls) and issubclass(cls, Reranker)):
            raise TypeError(f"{where}: a reranker must inherit from bench.reranker.Reranker")
        if spec.needs - NEEDS:
            raise ValueError(f"{where}: needs {sorted(spec.needs - NEEDS)}, known are {sorted(NEEDS)}")
        if "truth" in spec.needs and not control:
            raise ValueError(f"{where}: only a control may read the ground truth")
        check_options(cls.Options, where)
        cls.spec = spec
        return cls

    return declare


def parse_options(cls: type[Reranker], given: Mapping[str, str]) -> Any:
    """The method's `Options` from command-line text; unknown names and values of another type are user errors."""
    return read_options(cls.Options, given, cls.spec.name, f"-o {cls.spec.name}.")
