"""What an author of a reranker writes: one class with `Options`, `score`, and what it needs to know about itself."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bench.features import FeatureBatch, FeatureCard, Features
from bench.options import NoOptions, Seed, apply_preset, check_options, given_file, named_files, read_options
from bench.trained import Training

__all__ = [
    "Card",
    "Explanation",
    "FeatureBatch",
    "FeatureCard",
    "Features",
    "Reranker",
    "Saliency",
    "Scored",
    "Seed",
    "Training",
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


@dataclass(frozen=True, eq=False)
class Explanation:
    """The pairs of local descriptors behind one score.

    Rows are those of the two images as `score` is given them. What the pairs add is the score.
    """

    query: Tensor  # (m,) long, rows of the query's descriptors
    candidate: Tensor  # (m,) long, rows of the candidate's
    adds: Tensor  # (m,) finite, what each pair adds to the score; 0: it does not count
    inliers: Tensor | None = None  # (m,) bool, which pairs geometry explains; None: no geometry is looked at
    what: str = "matches"  # what a method calls the pairs

    def __post_init__(self) -> None:
        m = len(self.adds)
        for name in ("query", "candidate"):
            rows = getattr(self, name)
            if rows.dtype != torch.long or tuple(rows.shape) != (m,):
                raise ValueError(f"{name} is {rows.dtype} {tuple(rows.shape)}, expected {m} rows of torch.long")
            if bool((rows < 0).any()):
                raise ValueError(f"{name} has the row {int(rows.min())}, expected none below 0")
        if self.adds.ndim != 1 or not bool(torch.isfinite(self.adds).all()):
            raise ValueError(f"adds has shape {tuple(self.adds.shape)}, expected ({m},) finite numbers")
        if self.inliers is not None and (self.inliers.dtype != torch.bool or tuple(self.inliers.shape) != (m,)):
            raise ValueError(
                f"inliers is {self.inliers.dtype} {tuple(self.inliers.shape)}, expected ({m},) of torch.bool"
            )

    def __len__(self) -> int:
        return len(self.adds)

    @staticmethod
    def counted(pairs: Tensor, inliers: Tensor | None = None) -> Explanation:
        """Of a score that is the number of (m, 2) rows of query and candidate, or of those that are inliers."""
        pairs = pairs.cpu()
        adds = torch.ones(len(pairs)) if inliers is None else inliers.float()
        return Explanation(pairs[:, 0].long(), pairs[:, 1].long(), adds, inliers)

    @property
    def score(self) -> float:
        return float(self.adds.double().sum())

    @property
    def rows(self) -> tuple[int, int]:
        """How many descriptors the query and the candidate must have, so that these pairs are of them."""
        first, second = (int(rows.max()) + 1 if len(rows) else 0 for rows in (self.query, self.candidate))
        return first, second


@dataclass(frozen=True, eq=False)
class Saliency:
    """What one score leans on where it is made of no pairs: a weight for each local descriptor that is read.

    The weights of an image are those of its first rows, which `score` is given as the best ones.
    """

    query: Tensor  # (n,) finite, at least 0
    candidate: Tensor  # (m,) finite, at least 0
    what: str  # what a method calls the weights
    adds_up: bool  # whether the weights of both images add up to the score
    elsewhere: Mapping[str, float] = field(default_factory=dict)  # the weight of what else is read, by its name

    def __post_init__(self) -> None:
        for name in ("query", "candidate"):
            weights = getattr(self, name)
            if weights.ndim != 1 or not weights.is_floating_point():
                raise ValueError(f"{name} is {weights.dtype} {tuple(weights.shape)}, expected a float per descriptor")
            if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
                raise ValueError(f"{name} has weights that are negative or not finite")
        for name, weight in self.elsewhere.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} has the weight {weight}, expected a finite one of at least 0")
        if self.adds_up and self.elsewhere:
            others = ", ".join(self.elsewhere)
            raise ValueError(f"the weights of descriptors add up to the score, and {others} has some of it")

    @property
    def score(self) -> float | None:
        """What the weights add up to, if that is the score."""
        return sum(self.totals) if self.adds_up else None

    @property
    def rows(self) -> tuple[int, int]:
        """How many descriptors of the query and of the candidate have a weight."""
        return len(self.query), len(self.candidate)

    @property
    def totals(self) -> tuple[float, float]:
        """The weight of all descriptors of the query, and of the candidate."""
        return float(self.query.double().sum()), float(self.candidate.double().sum())


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
        """The file of its weights, which a `Training` is of; by default what its first option of type Path names.

        The sha256 of it, and of all other files that options name, is part of what a row is.
        """
        return next(iter(named_files(self.options).values()), None)

    def trained(self) -> Training | None:
        """How that file was trained, where its card says so: `report` has one row for seeds of one training."""
        return None

    def card(self) -> Card:
        """What is printed under the tables; the registered card, unless the options make another true."""
        return self.spec.card

    def index(self, image: Features) -> Mapping[str, Tensor]:
        """What is kept of a gallery image, so that no query computes it again; a method without it keeps nothing.

        Called once an image and before `score`, which may find it in `candidates.index`, and must give the same scores
        where that is None. Its milliseconds and bytes are recorded apart; its bytes are what `KiB/image` counts.
        """
        raise NotImplementedError

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor | Scored:
        """(k,) one finite score a candidate, in the order given. The only call whose time is the row's."""
        raise NotImplementedError

    def explain(self, query: Features, candidate: Features) -> Explanation | Saliency | None:
        """The pairs of descriptors that the score of this candidate is made of, or how much each descriptor weighs.

        None: neither is there for this method, or for these images, one of which may have no descriptors.
        Never timed. The images are those that `score` is given, after `load`.
        """
        return None

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
