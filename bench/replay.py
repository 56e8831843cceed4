"""Replays: what rules over finished runs' methods would have ranked and cost, from stored scores alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.datasets import Dataset
from bench.evaluation import evaluate
from bench.features.store import ALL
from bench.record import Cost, IndexCost, MethodCard, MethodIdentity
from bench.results import Run
from bench.rows import same_row
from bench.shortlist import Shortlist

TIMES = ("load_ms", "transfer_ms", "score_ms")
Chosen = Sequence[tuple[Run, str]]  # runs of one shortlist, and a row of each
# of one list: the scores of every chosen row -> (k,) positions, best first, and how many candidates each row scored
Decide = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, Sequence[int]]]


def ranks_as_scores(order: np.ndarray) -> np.ndarray:
    """(k,) k for the first of the order, 1 for the last: scores that reproduce it."""
    scores = np.empty(len(order))
    scores[order] = np.arange(len(order), 0, -1)
    return scores


@dataclass(frozen=True, eq=False)
class Replay(Run):
    """What a rule over finished runs' methods would have ranked, and the time that their ledgers imply."""

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


def newest_row(runs: Sequence[Run], text: str) -> tuple[Run, str] | None:
    """The last of `runs` that has the row which METHOD[@FEATURES] names, and the row's name; None if there is none."""
    found = [
        (run, row)
        for run in runs
        for row in run.record.costs
        if same_row(text, row, run.record.identity.methods[row].features)
    ]
    return found[-1] if found else None


def replayed(name: str, options: Mapping[str, str], chosen: Chosen, decide: Decide, paper: str) -> Replay:
    """The row `name` that `decide` makes of the chosen rows' stored scores, list by list.

    A row costs its own time for as many candidates as it scores: load, transfer and score in proportion.
    """
    base = chosen[-1][0]
    parts = [run.record.identity.methods[row] for run, row in chosen]
    contents = {key: sha for part in parts for key, sha in zip(part.features, part.contents, strict=True)}
    identity = MethodIdentity(dict(options), features=tuple(contents), contents=tuple(contents.values()))
    record = replace(
        base.record,
        identity=replace(base.record.identity, methods={name: identity}),
        extract_ms={key: ms for run, _ in chosen for key, ms in run.record.extract_ms.items()},
        defaults={name: {}},
        seeds={},
        trained={},
        skipped={},
        failed={},
        cold={},
        costs={name: _costs(chosen)},
        indexed=_indexed(name, chosen),
        cards={name: _card(chosen, paper)},
    )
    return Replay(
        base.folder / Path(f"replayed {','.join(options.values())}"), record, base, _tables(name, chosen, decide)
    )


def _tables(name: str, chosen: Chosen, decide: Decide) -> tuple[pd.DataFrame, pd.DataFrame]:
    shortlist, rows, times = chosen[-1][0].shortlist, [], []
    rankings = {run: run.rankings() for run, _ in chosen}
    ledgers = [run.ledger[run.ledger.method == row].set_index("query") for run, row in chosen]
    for number, query in enumerate(shortlist.queries):
        lists = {each: shortlist.candidates(each, number) for each in shortlist.lists}
        scored = np.zeros(len(chosen))
        for each, candidates in lists.items():
            best, counts = decide([rankings[run].scores(row, each, number) for run, row in chosen])
            scored += counts
            rows.append(
                pd.DataFrame(
                    {
                        "method": name,
                        "list": each,
                        "query": query,
                        "candidate": [shortlist.gallery[c] for c in candidates],
                        "score": ranks_as_scores(best),
                    }
                )
            )
        time = dict.fromkeys(TIMES, 0.0)
        for count, ledger in zip(scored, ledgers, strict=True):
            ran = ledger.loc[query].to_dict()
            share = count / ran["pairs"]
            time = {what: ms + share * float(ran[what]) for what, ms in time.items()}
        times.append({"method": name, "query": query, "pairs": sum(map(len, lists.values())), **time})
    return pd.concat(rows, ignore_index=True), pd.DataFrame(times)


def _costs(chosen: Chosen) -> Cost:
    """Of every part of features, most descriptors that any row reads, and bytes of everything that any row reads of it.

    KiB are NaN where a run has not kept the bytes.
    """
    of_part: dict[str, tuple[Run, set[str], float, float]] = {}  # run, needs, descriptors mean and most
    for run, row in chosen:
        cost, features = run.record.costs[row], run.record.identity.methods[row].features
        alone = row in run.record.indexed and not run.record.identity.methods[row].parts  # all else is read once
        for need in set(run.record.cards[row].needs) & ALL:
            key = features[-1 if need == "global" else 0]
            _, needs, mean, most = of_part.get(key, (run, set(), 0.0, 0.0))
            if need != "global":
                mean, most = max(mean, cost.descriptors_mean), max(most, cost.descriptors_max)
            of_part[key] = (run, needs if alone else needs | {need}, mean, most)
    size = 1024 * sum(cost.kib for cost in _indexed("", chosen).values())
    for key, (run, needs, mean, _) in of_part.items():
        stored = run.record.stored_bytes.get(key, {})
        sizes = [stored.get(need, (float("nan"),) * 2) for need in sorted(needs)]
        size += sum(whole + mean * local for whole, local in sizes)
    return Cost(
        descriptors_mean=sum(mean for *_, mean, _ in of_part.values()),
        descriptors_max=sum(most for *_, most in of_part.values()),
        kib_per_image=size / 1024,
    )


def _indexed(name: str, chosen: Chosen) -> Mapping[str, IndexCost]:
    """What all chosen rows keep of an image, each row once; empty where none keeps anything."""
    found = {(run, row): run.record.indexed[row] for run, row in chosen if row in run.record.indexed}.values()
    return {name: IndexCost(sum(cost.ms for cost in found), sum(cost.kib for cost in found))} if found else {}


def _card(chosen: Chosen, paper: str) -> MethodCard:
    cards = [run.record.cards[row] for run, row in chosen]
    names = [row.partition("@")[0] for _, row in chosen]
    trained = [f"{name}: {c.trained_on}" for name, c in zip(names, cards, strict=True) if c.trained_on]
    terms = [card.noncommercial for card in cards if card.noncommercial]
    return MethodCard(
        paper=paper,
        licence=" and ".join(dict.fromkeys(card.licence for card in cards)),
        trained_on="; ".join(trained) or None,
        noncommercial=", ".join(dict.fromkeys(terms)) or None,
        control=False,
        needs=cards[0].needs,
    )
