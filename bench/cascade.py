"""Cascades: each method reorders the first candidates of what the method before it ranked; run, or replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.errors import UserError
from bench.replay import Replay, newest_row, replayed
from bench.results import Run

REPLAYED = "cascade (replayed)"
PAPER = (
    "replayed from stored scores; its times are implied by those of its stages, in proportion to the candidates each "
    "one scores, not measured"
)


@dataclass(frozen=True)
class Stage:
    """One method and how many candidates it scores: the first ones of the stage before; all of them in the first."""

    method: str
    first: int | None = None
    options: tuple[tuple[str, str], ...] = ()
    features: str | None = None

    @staticmethod
    def parse(text: str) -> Stage:
        """From METHOD[@FEATURES][:FIRST][:OPTION=VALUE]…; ValueError for anything else.

        What stands between @ and FIRST is of the features.

        >>> Stage.parse("lightglue:20:descriptors=200")
        Stage(method='lightglue', first=20, options=(('descriptors', '200'),), features=None)
        >>> Stage.parse("lightglue@superpoint:sp.pth:20").features
        'superpoint:sp.pth'
        """
        method, *rest = text.split(":")
        method, at, features = method.partition("@")
        if at:
            own = next((i for i, part in enumerate(rest) if part.isascii() and part.isdigit()), len(rest))
            features, rest = ":".join([features, *rest[:own]]), rest[own:]
            if not features:
                raise ValueError(f"stage {text!r} names no features; expected METHOD@FEATURES")
        first, options = None, []
        for part in rest:
            key, equals, value = part.partition("=")
            if equals and key:
                options.append((key, value))
            elif part.isascii() and part.isdigit() and int(part) > 0 and first is None:
                first = int(part)
            else:
                raise ValueError(f"stage {text!r}: {part!r} is neither a number of candidates nor OPTION=VALUE")
        if not method:
            raise ValueError(f"stage {text!r} names no method; expected METHOD[@FEATURES][:FIRST][:OPTION=VALUE]")
        return Stage(method, first, tuple(options), features or None)

    @property
    def row(self) -> str:
        """The method and its features, as a row is asked for."""
        return self.method if self.features is None else f"{self.method}@{self.features}"


def parse_stages(texts: Sequence[str]) -> tuple[Stage, ...]:
    """At least two stages; every one but the first says how many candidates it scores, no more than the one before."""
    stages = tuple(map(Stage.parse, texts))
    if len(stages) < 2:
        raise ValueError(f"a cascade has at least two stages, found {len(stages)}")
    for before, stage in pairwise(stages):
        if stage.first is None:
            raise ValueError(f"stage {stage.method!r} must say how many candidates it scores: {stage.method}:20")
        if before.first is not None and stage.first > before.first:
            raise ValueError(f"{stage.method}:{stage.first} scores more candidates than {before.method}:{before.first}")
    return stages


def order(k: int, stages: Sequence[tuple[int | None, Callable[[np.ndarray], np.ndarray]]]) -> np.ndarray:
    """(k,) positions in the shortlist, best first.

    A stage is how many candidates it scores and a function from their positions, best of the stage before first, to
    their scores. Ties keep the order of the stage before.

    >>> order(4, [(None, lambda at: np.array([1, 2, 3, 4])), (2, lambda at: np.array([0, 5]))])
    array([2, 3, 1, 0])
    """
    found = np.arange(k)
    for first, score in stages:
        n = k if first is None else min(first, k)
        head = found[:n]
        found = np.concatenate([head[np.argsort(-score(head), kind="stable")], found[n:]])
    return found


def replay(runs: Sequence[Run], texts: Sequence[str]) -> Replay | None:
    """The cascade from stored scores of runs of one shortlist; None if no run has one of its methods.

    A later stage costs its own time for as many candidates as it scores: load, transfer and score in proportion.
    UserError for stages that cannot be read or that name options: what was run is replayed, with its options.
    """
    try:
        stages = parse_stages(texts)
    except ValueError as error:
        raise UserError(f"--cascade {','.join(texts)}: {error}", hint="--cascade rrt,lightglue:20") from error
    if named := [stage for stage in stages if stage.options]:
        raise UserError(
            f"--cascade: options of {named[0].method}: a replay takes the runs as they are",
            hint="run it: run --method cascade -o cascade.stages=…",
        )
    chosen = [newest_row(runs, stage.row) for stage in stages]
    if any(found is None for found in chosen):
        return None

    def decide(scores: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
        k = len(scores[0])
        best = order(k, [(stage.first, of.__getitem__) for stage, of in zip(stages, scores, strict=True)])
        return best, [k if stage.first is None else min(stage.first, k) for stage in stages]

    return replayed(REPLAYED, {"stages": ",".join(texts)}, [found for found in chosen if found], decide, PAPER)
