"""Cascades: each method reorders the first candidates of what the method before it ranked; run, or replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.datasets import Dataset
from bench.errors import UserError
from bench.evaluation import evaluate
from bench.features.store import ALL
from bench.record import Cost, MethodCard, MethodIdentity
from bench.results import Run
from bench.rows import same_row
from bench.shortlist import Shortlist

REPLAYED = "cascade (replayed)"
TIMES = ("load_ms", "transfer_ms", "score_ms")


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


def ranks_as_scores(order: np.ndarray) -> np.ndarray:
    """(k,) k for the first of the order, 1 for the last: scores that reproduce it."""
    scores = np.empty(len(order))
    scores[order] = np.arange(len(order), 0, -1)
    return scores


@dataclass(frozen=True, eq=False)
class Replay(Run):
    """What a cascade of finished runs' methods would have ranked, and the time that their ledgers imply."""

    base: Run
    replayed: tuple[pd.DataFrame, pd.DataFrame]  # scores, ledger

    @property
    def shortlist(self) -> Shortlist:  # type: ignore[override]
        return self.base.shortlist

    @property
    def dataset(self) -> Dataset:  # type: ignore[override]
        return self.base.dataset

    @property
    def scores(self) -> pd.DataFrame:  # type: ignore[override]
        return self.replayed[0]

    @property
    def ledger(self) -> pd.DataFrame:  # type: ignore[override]
        return self.replayed[1]

    def metrics(self, blend: Blend = Blend()) -> pd.DataFrame:
        return evaluate(self.rankings(blend))


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
    having = [[(run, row) for run in runs if (row := _row(stage, run)) is not None] for stage in stages]
    if not all(having):
        return None
    chosen = [found[-1] for found in having]
    base, texts = chosen[-1][0], list(texts)
    parts = [run.record.identity.methods[row] for run, row in chosen]
    contents = {key: sha for part in parts for key, sha in zip(part.features, part.contents, strict=True)}
    identity = MethodIdentity({"stages": ",".join(texts)}, features=tuple(contents), contents=tuple(contents.values()))
    record = replace(
        base.record,
        identity=replace(base.record.identity, methods={REPLAYED: identity}),
        extract_ms={key: ms for run, _ in chosen for key, ms in run.record.extract_ms.items()},
        defaults={REPLAYED: {}},
        skipped={},
        failed={},
        cold={},
        costs={REPLAYED: _costs(chosen)},
        cards={REPLAYED: _card(stages, chosen)},
    )
    return Replay(base.folder / Path(f"replayed {','.join(texts)}"), record, base, _replayed(stages, chosen))


def _row(stage: Stage, run: Run) -> str | None:
    """The row of a run that a stage names, or None."""
    rows = run.record.identity.methods
    return next((row for row in run.record.costs if same_row(stage.row, row, rows[row].features)), None)


def _replayed(stages: Sequence[Stage], chosen: Sequence[tuple[Run, str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    shortlist, rows, times = chosen[-1][0].shortlist, [], []
    rankings = {run: run.rankings() for run, _ in chosen}
    ledgers = [run.ledger[run.ledger.method == row].set_index("query") for run, row in chosen]
    for number, query in enumerate(shortlist.queries):
        lists = {name: shortlist.candidates(name, number) for name in shortlist.lists}
        for name, candidates in lists.items():
            scores = [rankings[run].scores(row, name, number) for run, row in chosen]
            best = order(len(candidates), [(s.first, of.__getitem__) for s, of in zip(stages, scores, strict=True)])
            rows.append(
                pd.DataFrame(
                    {
                        "method": REPLAYED,
                        "list": name,
                        "query": query,
                        "candidate": [shortlist.gallery[c] for c in candidates],
                        "score": ranks_as_scores(best),
                    }
                )
            )
        time = dict.fromkeys(TIMES, 0.0)
        for stage, ledger in zip(stages, ledgers, strict=True):
            each = ledger.loc[query].to_dict()
            scored = sum(len(near) if stage.first is None else min(stage.first, len(near)) for near in lists.values())
            share = scored / each["pairs"]
            time = {what: ms + share * float(each[what]) for what, ms in time.items()}
        times.append({"method": REPLAYED, "query": query, "pairs": sum(map(len, lists.values())), **time})
    return pd.concat(rows, ignore_index=True), pd.DataFrame(times)


def _costs(chosen: Sequence[tuple[Run, str]]) -> Cost:
    """Of every part of features, most descriptors of any stage, and bytes of everything that any stage reads of it.

    KiB are NaN where a run has not kept the bytes.
    """
    of_part: dict[str, tuple[Run, set[str], float, float]] = {}  # run, needs, descriptors mean and most
    for run, row in chosen:
        cost, features = run.record.costs[row], run.record.identity.methods[row].features
        for need in set(run.record.cards[row].needs) & ALL:
            key = features[-1 if need == "global" else 0]
            _, needs, mean, most = of_part.get(key, (run, set(), 0.0, 0.0))
            if need != "global":
                mean, most = max(mean, cost.descriptors_mean), max(most, cost.descriptors_max)
            of_part[key] = (run, needs | {need}, mean, most)
    size = 0.0
    for key, (run, needs, mean, _) in of_part.items():
        stored = run.record.stored_bytes.get(key, {})
        sizes = [stored.get(need, (float("nan"),) * 2) for need in sorted(needs)]
        size += sum(whole + mean * local for whole, local in sizes)
    return Cost(
        descriptors_mean=sum(mean for *_, mean, _ in of_part.values()),
        descriptors_max=sum(most for *_, most in of_part.values()),
        kib_per_image=size / 1024,
    )


def _card(stages: Sequence[Stage], chosen: Sequence[tuple[Run, str]]) -> MethodCard:
    cards = [run.record.cards[row] for run, row in chosen]
    trained = [f"{s.method}: {c.trained_on}" for s, c in zip(stages, cards, strict=True) if c.trained_on]
    terms = [card.noncommercial for card in cards if card.noncommercial]
    return MethodCard(
        paper="replayed from stored scores; its times are implied by those of its stages, in proportion to the "
        "candidates each one scores, not measured",
        licence=" and ".join(dict.fromkeys(card.licence for card in cards)),
        trained_on="; ".join(trained) or None,
        noncommercial=", ".join(dict.fromkeys(terms)) or None,
        control=False,
        needs=cards[0].needs,
    )
