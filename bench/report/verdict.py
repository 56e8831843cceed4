"""What a comparison concludes: each contender against the first stage, which are tied with the best, in a sentence."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.report.limits import Limits
from bench.report.statistics import Comparison, Values, compare, holm, over_seeds, tied_with_best

SURE = 0.05  # a difference of smaller p is one
# costs whose ratio is at least this are not told apart: between two quiet runs of the demo, times of rows of tens of
# milliseconds differed by up to 6 %
ALIKE = 0.9


@dataclass(frozen=True, eq=False)
class Verdict:
    """Of the contenders of a table, on the queries that have a value."""

    gains: Mapping[str, Comparison]  # against the first stage
    corrected: Mapping[str, float]  # the p of each gain, for as many comparisons as there are contenders
    best: tuple[str, ...]  # the best by mean, and those that cannot be told apart from it, best first
    queries: int

    def gained(self, name: str) -> bool:
        """Whether a contender is better than the first stage beyond chance."""
        return self.gains[name].difference > 0 and self.corrected[name] < SURE


def verdict(
    values: Mapping[str, Values],
    first_stage: pd.Series,
    groups: Mapping[str, Hashable] | None = None,
    better: int = 1,
) -> Verdict | None:
    """From values by query, of each seed where there are several.

    None where there is no contender or no query has a value.
    """
    queries = int(first_stage.notna().sum())
    if not values or not queries:
        return None
    gains = {name: compare(of_query, first_stage, groups, better) for name, of_query in values.items()}
    corrected = dict(zip(gains, holm([gain.p for gain in gains.values()]), strict=True))
    tied = tied_with_best(values, better=better)
    return Verdict(gains, corrected, _ordered(tied, values, better), queries)


def _ordered(names: Iterable[str], values: Mapping[str, Values], better: int) -> tuple[str, ...]:
    """Best first; of equal ones by name, for the order of a set is another in every process."""
    return tuple(sorted(names, key=lambda name: (-better * over_seeds(values[name]).mean(), name)))


def answer(found: Verdict, rows: pd.DataFrame, measure: str, ceiling: float) -> str:
    """What a reader who reads one sentence should take from a table; `rows` has its columns, `measure` the main one."""
    name, on = found.best[0], f"on these {found.queries} queries"
    most = f"The best any method can do on these lists is {ceiling:.1f}."
    gain, reached = found.gains[name], f"{name} reaches {float(rows[measure][name]):.1f} {measure}"
    sure = [other for other in found.gains if found.gained(other)]
    if not sure:
        several = len(found.gains) > 1
        said = (
            f"{'No method' if several else name} can{'' if several else 'not'} be told apart from the first stage {on}"
        )
        return f"{said}; {reached}, {100 * gain.difference:+.1f}. {most}"
    if len(found.best) == 1:
        rest = " and better than the rest" if len(found.gains) > 1 else ""
        return f"{reached}, {100 * gain.difference:+.1f} over the first stage{rest} {on}. {most}"
    unsure = [other for other in found.best if other not in sure]
    but = f" Of {_and(unsure)}, no gain over the first stage is sure." if unsure else ""
    return f"{_and(found.best)} cannot be told apart {on}{_cheapest(found.best, rows)}.{but} {most}"


def within(
    found: Verdict, values: Mapping[str, Values], rows: pd.DataFrame, measure: str, limits: Limits, better: int = 1
) -> str:
    """Which contender is best of those that cost no more than `limits`; `values` as of `verdict`, the rest as `answer`.

    Its p stays that of the whole table.
    """
    contenders = rows.loc[list(found.gains)]
    kept = limits.keeps(contenders)
    if not kept:
        least = [
            f"{costs.min():.1f} {column} ({costs.idxmin()})"
            for column in limits.most
            if len(costs := contenders[column].dropna())
        ]
        return f"No row costs at most {limits}; the least is {_and(least) if least else 'not known'}."
    tied = tied_with_best({name: values[name] for name in kept}, better=better)
    name, *others = _ordered(tied, values, better)
    said = (
        f"{len(kept)} of {len(contenders)} rows cost{'s' * (len(kept) == 1)} at most {limits}: {name} reaches "
        f"{float(rows[measure][name]):.1f} {measure}, {100 * found.gains[name].difference:+.1f} against the first stage"
    )
    apart = f", and cannot be told apart from {_and(others)}" if others else ""
    sure = [row for row in kept if found.gained(row)]
    doubt = "" if name in sure else ". Its gain is not sure" if sure else ". No gain of these rows is sure"
    return f"{said}{apart}{doubt}."


def sure_of(gains: pd.Series, p: pd.Series) -> str:
    """Which gains, and which losses, are more than chance explains; from both by contender, NaN where there is none.

    >>> sure_of(pd.Series({"a": 2.0, "b": -1.0, "c": 0.5}), pd.Series({"a": 0.01, "b": 0.02, "c": 0.4}))
    'p is below 0.05 for a, and for the loss of b.'
    """
    sure = gains[p < SURE]
    gained, lost = list(sure.index[sure > 0]), list(sure.index[sure < 0])
    losses = f"the loss{'es' * (len(lost) > 1)} of {_and(lost)}" if lost else ""
    named = ", and for ".join(part for part in (_and(gained) if gained else "", losses) if part)
    return f"p is below {SURE:g} for {named or 'no row'}."


def clustered(found: Verdict) -> str | None:
    """What changes where queries that share positives are drawn together; None where no two do."""
    gains = {name: gain.clustered for name, gain in found.gains.items()}
    groups = next((gain.groups for gain in gains.values() if gain is not None), found.queries)
    if groups >= found.queries:
        return None
    lost = [
        name
        for name, gain in gains.items()
        if gain is not None and found.gains[name].interval.low > 0 and not gain.interval.low > 0
    ]
    what = f"the intervals of {_and(lost)} reach zero" if lost else "no interval comes to reach zero"
    return f"Queries that share positives make {groups} groups of the {found.queries}; drawn as wholes, {what}."


def _cheapest(names: Sequence[str], rows: pd.DataFrame) -> str:
    """Which of several methods need the least time, and which read the fewest bytes, where they differ in that."""
    some = rows.loc[list(names)]
    said = []
    for column, verb, what in (("ms/query p50", "need", "the least time"), ("KiB/image", "read", "the fewest bytes")):
        values = some[column].dropna().sort_values(kind="stable")
        share = values.iloc[0] / values.iloc[-1] if len(values) > 1 and values.iloc[0] > 0 else 1.0
        if share < ALIKE:
            least = [str(name) for name in values.index[values.iloc[0] >= ALIKE * values]]
            said.append((_and(least), f"{verb}{'s' * (len(least) == 1)} {what}, {_share(share)} of the most"))
    if not said:
        return ""
    if len(said) == 2 and said[0][0] == said[1][0]:
        return f"; {said[0][0]} {said[0][1]}, and {said[1][1]}"
    return "; " + ", ".join(f"{name} {text}" for name, text in said)


def _share(share: float) -> str:
    """
    >>> _share(0.21), _share(0.6), _share(0.004)
    ('21 %', '60 %', 'under 1 %')
    """
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _and(names: Sequence[str]) -> str:
    """
    >>> _and(["rrt", "mnn", "ransac"])
    'rrt, mnn and ransac'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
