"""How far the order of a table's methods depends on the protocol: other choices, replayed from stored scores.

Papers differ in policy, k, blend, ties and the form of AP (docs/protocols.md). No model runs: every value here is one
that the same scores have under another choice, and all choices but one are the table's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.evaluation import FIRST_STAGE, graded, main_difficulty
from bench.metrics import Measure, average_precision, mean, positive_ranks, primary, truncated_precision
from bench.report.row_names import newest_rows
from bench.report.tables import Table
from bench.results import Run
from bench.shortlist import UNION, Policy, Shortlist, reranked

Ties = Literal["first stage", "expected", "best", "worst"]  # what stands first of candidates with one score
CUTS = (10, 25, 50, 100, 200, 400)  # smaller k that are tried
FEWEST = 10  # candidates of a query that another policy is worth replaying for
# half the score as CVNet adds it, the whole score, and the sigmoid of LoCoRe (docs/protocols.md, Ties and blends)
BLENDS = tuple(map(Blend.parse, ("replace", "add:0.5", "add:1", "sigmoid:0.5,0.1")))
FIRST = 3  # methods whose order the answer is about
LEAST = 1e-9  # what two values differ by, in percent, to be in an order
RECTANGULAR = Measure(
    "mAP",
    "AP",
    "mean of the rectangular average precision",
    partial(truncated_precision, k=np.iinfo(np.int64).max),
    (),
)


@dataclass(frozen=True)
class Rules:
    """All that turns a query's stored scores into its value, at one difficulty."""

    policy: Policy
    k: int
    blend: Blend
    measure: Measure
    ties: Ties = "first stage"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, expected at least 1")
        if self.ties == "expected" and self.measure.value is not average_precision:
            raise ValueError(f"no expected value over ties of the {self.measure.meaning}")


@dataclass(frozen=True)
class Choice:
    """Rules that differ from the table's in one respect."""

    family: str  # policy, k, blend, ties or AP
    name: str  # what was chosen there
    rules: Rules

    @property
    def said(self) -> str:
        return f"{self.name} {self.family}" if self.family == "AP" else f"{self.family} {self.name}"


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The main measure of each contender under the table's rules and under others.

    `values` has a row for each contender, best first, and one for the first stage. Its columns are TABLE and what the
    choices say; percent, NaN where stored scores cannot tell.
    """

    title: str
    main: str  # what is measured, as the table's column
    better: int  # +1: more is better, -1: less
    choices: tuple[Choice, ...]
    values: pd.DataFrame
    notes: tuple[str, ...]  # what could not be replayed, and why

    def __post_init__(self) -> None:
        expected = [TABLE, *(choice.said for choice in self.choices)]
        if list(self.values.columns) != expected or list(self.values.index[-1:]) != [FIRST_STAGE]:
            raise ValueError(f"values of {list(self.values.index)} under {list(self.values.columns)}")

    @property
    def contenders(self) -> list[str]:
        return [str(name) for name in self.values.index[:-1]]

    def value(self, name: str, choice: Choice | None = None) -> float:
        """Of a row under a choice, or in the table; percent."""
        return float(self.values.at[name, TABLE if choice is None else choice.said])  # type: ignore[arg-type]

    def overtaken(self, choice: Choice) -> Mapping[str, frozenset[str]]:
        """Contender -> those that it is worse than in the table and better than here, or the reverse.

        Equal values are in no order, and what has no value is in none either.
        """
        names = self.contenders
        before, now = (self.better * self.values.loc[names, of].to_numpy(np.float64) for of in (TABLE, choice.said))
        ahead = before[:, None] - before[None, :] > LEAST
        behind = now[:, None] - now[None, :] < -LEAST
        turned = (ahead & behind) | (ahead & behind).T
        return {name: frozenset(np.array(names)[row].tolist()) for name, row in zip(names, turned, strict=True)}

    def moved(self, choice: Choice) -> Mapping[str, int]:
        """Contender -> how many others it passes, less how many pass it."""
        values = {name: self.better * self.value(name, choice) for name in self.contenders}
        return {
            name: sum(1 if values[name] > values[other] else -1 for other in others)
            for name, others in self.overtaken(choice).items()
        }

    def changes(self, choice: Choice) -> bool:
        """Whether any two methods stand in another order."""
        return any(self.overtaken(choice).values())

    @cached_property
    def decisive(self) -> tuple[Choice, ...]:
        """The choices under which others are the first methods, or they stand in another order."""
        first = self.contenders[:FIRST]
        return tuple(choice for choice in self.choices if any(self.overtaken(choice)[name] for name in first))

    @property
    def answer(self) -> str:
        """Whether the ranking of the first methods depends on any of the choices."""
        first = self.contenders[:FIRST]
        if len(first) < 2:
            return "There are no two methods whose order could depend on the protocol."
        if not self.choices:
            return "No other choice of protocol can be replayed here."
        who = f"the first {'three' if len(first) == FIRST else 'two'} methods ({', '.join(first)})"
        if not self.decisive:
            return f"The ranking of {who} depends on none of the {len(self.choices)} other choices of protocol here."
        under = "; ".join(choice.said for choice in self.decisive)
        return (
            f"The ranking of {who} depends on the protocol: "
            f"it changes under {len(self.decisive)} of {len(self.choices)} other choices ({under})."
        )


TABLE = "table"  # the column of the values that the table has


def sensitivity(
    runs: Sequence[Run], table: Table, blend: Blend = Blend(), most: int | None = None, cuts: Sequence[int] = CUTS
) -> Sensitivity:
    """Of the contenders of a table of these runs, made with this blend; the `most` best of them where it is given.

    `cuts` are the k to try; only those below the run's count.

    UserError where a run lacks scores.
    """
    rows = newest_rows(runs)
    names = [str(name) for name in table.rows.index[::-1] if name not in table.controls][:most]
    run, difficulty = runs[-1], main_difficulty(runs[-1].dataset)
    lists = [_List(run, difficulty, number) for number in range(len(run.shortlist.queries))]
    rules = Rules(run.shortlist.header.policy, run.shortlist.header.k, blend, primary(run.dataset.protocol))
    choices, notes = _choices(rules, lists, difficulty, cuts)
    said = [(TABLE, rules), *((choice.said, choice.rules) for choice in choices)]
    values: dict[str, list[float]] = {}
    whole: list[str] = []
    for name in names:
        of, row = rows[name]
        rankings, pairwise = of.rankings(), _is_pairwise(of, row)
        scores = [rankings.scores(row, one.name, number) for number, one in enumerate(lists)]
        whole += [] if pairwise else [name]
        values[name] = [
            100 * mean([value(one, given, way) for one, given in zip(lists, scores, strict=True)])
            if pairwise or (way.policy, way.k) == (rules.policy, rules.k)
            else float("nan")
            for _, way in said
        ]
    values[FIRST_STAGE] = [
        100 * mean([value(one, one.as_found, replace(way, blend=Blend())) for one in lists]) for _, way in said
    ]
    if whole and any((choice.rules.policy, choice.rules.k) != (rules.policy, rules.k) for choice in choices):
        notes.append(f"Scores of whole lists cannot be replayed on other lists: {', '.join(whole)}.")
    if left := len(table.rows) - len(table.controls) - len(names):
        notes.append(f"{left} contenders of lower rank are left out.")
    frame = pd.DataFrame.from_dict(values, orient="index", columns=[name for name, _ in said])
    return Sensitivity(
        table.title, str(table.about["measure"]), rules.measure.better, tuple(choices), frame, tuple(notes)
    )


class _List:
    """What is the same for all methods: a query's list at one difficulty, and which of its images count."""

    def __init__(self, run: Run, difficulty: str, number: int):
        self.shortlist: Shortlist = run.shortlist
        self.number = number
        self.policy = run.shortlist.header.policy
        self.name = run.shortlist.list_for(difficulty)
        self.candidates = run.shortlist.candidates(self.name, number)
        self.similarities = run.shortlist.similarities[self.name][number].astype(np.float64)
        self.as_found = -np.arange(len(self.candidates), dtype=np.float64)  # scores that keep the list's order
        self.positives, self.ignored = graded(run.shortlist, run.dataset, number, difficulty)
        self.is_ignored = np.isin(self.candidates, self.ignored) & ~np.isin(self.candidates, self.positives)

    def kept(self, policy: Policy, k: int) -> np.ndarray:
        """Places in the list of the candidates that another policy and k leave, but for ignored images.

        Ignored images are under the list of `blind` and count for its k; whether they are scored changes no value.
        """
        if policy == self.policy:
            return np.arange(k)
        counted = np.flatnonzero(~self.is_ignored)
        if policy == "paper":
            return counted[:k]
        images, ranks = self.shortlist.graded.of(self.number)
        early = np.isin(images, self.ignored) & (ranks >= 0) & (ranks < k)
        return counted[: k - int(early.sum())]


def value(one: _List, scores: np.ndarray, rules: Rules) -> float:
    """A query's value, from (k,) scores of its list; NaN without positives."""
    kept = one.kept(rules.policy, rules.k)
    candidates, positives = one.candidates[kept], one.positives
    given = rules.blend(scores[kept], one.similarities[kept])
    tail = one.shortlist.behind(candidates, one.number, positives, one.ignored)
    if rules.ties == "expected":
        counted = ~one.is_ignored[kept]
        return expected_precision(given[counted], np.isin(candidates[counted], positives), tail, len(positives))
    if rules.ties != "first stage":
        early = np.isin(candidates, positives) == (rules.ties == "best")
        first = np.argsort(~early, kind="stable")
        candidates, given = candidates[first], given[first]
    ranks = np.concatenate([positive_ranks(reranked(candidates, given), positives, one.ignored), tail])
    return rules.measure.value(ranks, n_positives=len(positives))


def expected_precision(scores: np.ndarray, positive: np.ndarray, tail: np.ndarray, n_positives: int) -> float:
    """The mean of `average_precision` over all orders of candidates with equal scores. NaN without positives.

    `scores` and `positive` (n,) are of the candidates, none of them ignored; `tail` has the 0-based ranks of the
    positives behind them. Precision is linear in the number of positives before a rank, whose mean is known: among
    i of n - 1 others with p - 1 positives it is i (p - 1) / (n - 1).

    >>> expected_precision(np.array([1.0, 1.0]), np.array([True, False]), np.array([], int), 1)
    0.625
    """
    if n_positives == 0:
        return float("nan")
    hits = positive[np.argsort(-scores, kind="stable")]
    _, sizes = np.unique(-scores, return_counts=True)
    total, before = 0.0, 0
    for stop, size in zip(np.cumsum(sizes).tolist(), sizes.tolist(), strict=True):
        start = stop - size
        of = int(hits[start:stop].sum())
        if of:
            inside = np.arange(size)
            found = before + inside * ((of - 1) / max(size - 1, 1))
            total += float((of / size) * _steps(found, start + inside).sum())
            before += of
    total += float(_steps(before + np.arange(len(tail)), tail).sum())
    return total / n_positives


def _steps(found: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """What a positive at each 0-based rank adds to a trapezoidal AP times its positives, `found` standing before it."""
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    return (before + (found + 1) / (ranks + 1)) / 2


def _is_pairwise(run: Run, row: str) -> bool:
    """Whether a row's scores do not depend on the list that a candidate is in."""
    lists = run.scores.loc[run.scores["method"] == row, "list"]
    return bool((lists == UNION).all())


def _choices(
    rules: Rules, lists: Sequence[_List], difficulty: str, tried: Sequence[int]
) -> tuple[list[Choice], list[str]]:
    """All that can be replayed, and what cannot."""
    policies, shared, notes = _policies(rules, lists, difficulty)
    cuts = sorted({k for k in (*tried, *shared) if k < rules.k})
    blends = [blend for blend in BLENDS if blend != rules.blend]
    whole = rules.measure.value is average_precision
    ties: tuple[Ties, ...] = ("worst", "expected", "best") if whole else ("worst", "best")
    return [
        *policies,
        *(Choice("k", str(k), replace(rules, k=k)) for k in cuts),
        *(Choice("blend", str(blend), replace(rules, blend=blend)) for blend in blends),
        *(Choice("ties", tie, replace(rules, ties=tie)) for tie in ties),
        *([Choice("AP", "rectangular", replace(rules, measure=RECTANGULAR))] if whole else []),
    ], notes


def _policies(rules: Rules, lists: Sequence[_List], difficulty: str) -> tuple[list[Choice], list[int], list[str]]:
    """The other policy, the k at which both can be replayed where it is not the run's, and why where there is none."""
    if not any(len(one.ignored) for one in lists):
        return [], [], [f"No image is ignored at {difficulty}, so both policies make the same lists."]
    if rules.policy == "paper":
        return [Choice("policy", "blind", replace(rules, policy="blind"))], [], []
    k = min(int((~one.is_ignored).sum()) for one in lists)
    if k == rules.k:
        return [Choice("policy", "paper", replace(rules, policy="paper"))], [], []
    lacking = f"Policy paper at k = {rules.k} needs candidates that were not scored"
    if k < FEWEST:
        return [], [], [f"{lacking}; only a run with --policy paper can tell."]
    both = Choice("policy", f"paper, k = {k}", replace(rules, policy="paper", k=k))
    return [both], [k], [f"{lacking}; compare it at k = {k} with k {k} of policy blind."]


# --- as text --------------------------------------------------------------------------------------------------------


def columns(found: Sensitivity) -> list[str]:
    return ["method", found.main, *(choice.said for choice in found.choices)]


def change(found: Sensitivity, name: str, choice: Choice) -> str:
    """The difference from the table, in points, with the places that the method gains or loses: `-1.2 ▼1`."""
    difference = found.value(name, choice) - found.value(name)
    if np.isnan(difference):
        return "–"
    return signed(difference) + places(found, name, choice)


def signed(points: float) -> str:
    """
    >>> signed(1.24), signed(-0.04)
    ('+1.2', '0.0')
    """
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def places(found: Sensitivity, name: str, choice: Choice) -> str:
    """The places that a method gains or loses, as ` ▲1`; nothing where it keeps its place."""
    moved = 0 if name == FIRST_STAGE else found.moved(choice)[name]
    return f" {'▲' if moved > 0 else '▼'}{abs(moved)}" if moved else ""


def order(found: Sensitivity, choice: Choice) -> str:
    """What becomes of the order of methods: `same`, `below`, or `first 3` where it is that of the first ones."""
    return f"first {FIRST}" if choice in found.decisive else "below" if found.changes(choice) else "same"


def cells(found: Sensitivity) -> list[list[str]]:
    """A row for each contender and for the first stage, and at last what becomes of the order."""
    rows = [
        [
            "first stage" if name == FIRST_STAGE else name,
            "–" if np.isnan(found.value(name)) else f"{found.value(name):.1f}",
            *(change(found, name, choice) for choice in found.choices),
        ]
        for name in (*found.contenders, FIRST_STAGE)
    ]
    return [*rows, ["order", "", *(order(found, choice) for choice in found.choices)]]


def moves(found: Sensitivity) -> list[list[str]]:
    """A row for each choice, for where `cells` are too wide: what becomes of the order, and who changes places."""
    return [
        [
            choice.said,
            order(found, choice),
            ", ".join(f"{name}{text}" for name in found.contenders if (text := places(found, name, choice))),
        ]
        for choice in found.choices
    ]


MEANING = (
    "Values of the table, and by how many points other choices change them. ▲ and ▼: places gained and lost. "
    f"`first {FIRST}`: the first are others, or in another order; `below`: only others change places. "
    "Methods that the table cannot tell apart may change places by chance."
)


def to_markdown(found: Sensitivity) -> str:
    head = columns(found)
    lines = [
        f"### Protocol sensitivity: {found.title}",
        "",
        found.answer,
        "",
        "| " + " | ".join(head) + " |",
        "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|",
        *("| " + " | ".join(row) + " |" for row in cells(found)),
        "",
        *(f"- {note}" for note in (MEANING, *found.notes)),
        "",
    ]
    return "\n".join(lines)
