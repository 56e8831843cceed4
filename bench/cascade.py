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
from bench.record import Cost, MethodCard, MethodIdentity
from bench.results import Run
from bench.shortlist import Shortlist

REPLAYED = "cascade (replayed)"
TIMES = ("load_ms", "transfer_ms", "score_ms")


@dataclass(frozen=True)
class Stage:
    """One method and how many candidates it scores: the first ones of the stage before; all of them in the first."""

    method: str
    first: int | None = None
    options: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def parse(text: str) -> Stage:
        """From METHOD[:FIRST][:OPTION=VALUE]…; ValueError for anything else.

        >>> Stage.parse("lightglue:20:descriptors=200")
        Stage(method='lightglue', first=20, options=(('descriptors', '200'),))
        """
        method, *rest = text.split(":")
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
            raise ValueError(f"stage {text!r} names no method; expected METHOD[:FIRST][:OPTION=VALUE]")
        return Stage(method, first, tuple(options))


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
    having = {s.method: [run for run in runs if s.method in run.record.costs] for s in stages}
    if not all(having.values()):
        return None
    chosen = [having[stage.method][-1] for stage in stages]
    base, texts = chosen[-1], list(texts)
    record = replace(
        base.record,
        identity=replace(base.record.identity, methods={REPLAYED: MethodIdentity({"stages": ",".join(texts)})}),
        defaults={REPLAYED: {}},
        skipped={},
        failed={},
        cold={},
        costs={REPLAYED: _costs(stages, chosen)},
        cards={REPLAYED: _card(stages, chosen)},
    )
    return Replay(base.folder / Path(f"replayed {','.join(texts)}"), record, base, _replayed(stages, chosen))


def _replayed(stages: Sequence[Stage], runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    shortlist, rows, times = runs[-1].shortlist, [], []
    rankings = {run: run.rankings() for run in runs}
    ledgers = [
        run.ledger[run.ledger.method == stage.method].set_index("query")
        for stage, run in zip(stages, runs, strict=True)
    ]
    for number, query in enumerate(shortlist.queries):
        lists = {name: shortlist.candidates(name, number) for name in shortlist.lists}
        for name, candidates in lists.items():
            scores = [rankings[run].scores(stage.method, name, number) for stage, run in zip(stages, runs, strict=True)]
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


def _costs(stages: Sequence[Stage], runs: Sequence[Run]) -> Cost:
    """Most descriptors of any stage; bytes of everything that any stage reads, where the run has kept them."""
    costs = [run.record.costs[stage.method] for stage, run in zip(stages, runs, strict=True)]
    needs = {need for s, run in zip(stages, runs, strict=True) for need in run.record.cards[s.method].needs}
    mean = max(cost.descriptors_mean for cost in costs)
    stored = runs[-1].record.stored_bytes
    parts = [stored.get(need, (float("nan"),) * 2) for need in sorted(needs)]
    return Cost(
        descriptors_mean=mean,
        descriptors_max=max(cost.descriptors_max for cost in costs),
        kib_per_image=sum(whole + mean * local for whole, local in parts) / 1024,
    )


def _card(stages: Sequence[Stage], runs: Sequence[Run]) -> MethodCard:
    cards = [run.record.cards[stage.method] for stage, run in zip(stages, runs, strict=True)]
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
