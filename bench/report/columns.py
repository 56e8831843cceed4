"""The columns of tables: units, directions, and the measures that some of them show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bench.datasets import Dataset
from bench.metrics import MEASURES, Measure, measures


@dataclass(frozen=True)
class Column:
    """One column of the table: its unit, and which direction is better (+1, -1 or 0)."""

    name: str
    meaning: str
    digits: int
    better: int = 0
    signed: bool = False  # shown with its sign
    least: float | None = None  # what is smaller is shown as smaller than this


# what a row has over the first stage, by the main measure
GAINS = (
    Column("gain", "the main measure over the first stage, points", 1, 1, signed=True),
    Column("gain low", "lower end of its 95 % bootstrap interval over queries", 1, signed=True),
    Column("gain high", "upper end of the same", 1, signed=True),
    Column("p", "sign-flip test of the gain, corrected for the number of methods (Holm)", 3, least=0.001),
    Column("better", "queries on which it is better than the first stage", 0),
    Column("equal", "queries on which it is as good", 0),
    Column("worse", "queries on which it is worse", 0),
)

SPREAD = "sd seeds"  # the column of rows with several seeds


@dataclass(frozen=True)
class Quality:
    """A measure at a difficulty; its column has the mean over queries, in percent."""

    measure: Measure
    difficulty: str

    @property
    def name(self) -> str:
        return f"{self.measure.name} {self.difficulty}"

    @property
    def column(self) -> Column:
        meaning = f"{self.measure.meaning}, {self.difficulty}, percent"
        return Column(self.name, meaning, self.measure.digits, self.measure.better)

    def values(self, metrics: pd.DataFrame, method: str) -> pd.Series:
        """Of a method by query."""
        return per_query(metrics, method, self.difficulty, self.measure.name)

    def mean(self, metrics: pd.DataFrame, method: str) -> float:
        """Of a method, in percent."""
        return 100 * self.values(metrics, method).mean()


def qualities(dataset: Dataset, main: Quality, one_positive: bool) -> tuple[Quality, ...]:
    """The primary measure at every difficulty, and others at the main one.

    Where every query has one positive, the first few places decide: R@1, R@5 and R@10 of the measures of recall.
    """
    others = [MEASURES[name] for name in measures(dataset.protocol) if name != main.measure.name]
    early = ("R@1", "R@5", "R@10")
    if one_positive and set(early) <= set(measures(dataset.protocol)):
        chosen = [measure for measure in others if not measure.name.startswith("R@") or measure.name in early]
    else:
        chosen = [measure for measure in others if measure.shown]
    return (
        *(Quality(main.measure, difficulty) for difficulty in dataset.difficulties),
        *(Quality(measure, main.difficulty) for measure in chosen),
    )


def columns_of(shown: Sequence[Quality], main: Quality, seeds: bool) -> tuple[Column, ...]:
    """What is `shown` of quality, gains by the main one, the spread where a row is of several seeds, and costs."""
    headroom = f"headroom {main.difficulty}"
    return (
        *(quality.column for quality in shown),
        Column(headroom, "share of the gap between first stage and ceiling that is closed, percent", 0, 1),
        *GAINS,
        *((Column(SPREAD, "standard deviation of the main measure over seeds, points", 2),) if seeds else ()),
        Column("ms/query p50", "median wall ms to load, transfer and score one query's candidates", 1, -1),
        Column("extract ms", "median ms to decode a query and extract what is read of it, on one thread", 0, -1),
        Column("total ms", "extract ms, the first stage's search and ms/query p50: all that a new query costs", 0, -1),
        Column("ms/query p95", "95th percentile of the same", 1, -1),
        Column("ms/pair", "median wall ms of scoring alone, per candidate", 2, -1),
        Column("desc mean", "local descriptors used per gallery image, mean", 0, -1),
        Column("desc max", "local descriptors used per gallery image, most", 0, -1),
        Column("KiB/image", "stored bytes of what the method reads of one gallery image", 1, -1),
        Column(
            "peak MiB", "memory on top of the process's from loading the method to the end of its first query", 0, -1
        ),
    )


def per_query(metrics: pd.DataFrame, method: str, difficulty: str, measure: str) -> pd.Series:
    """Values by query; NaN for queries without positives."""
    kept = metrics[(metrics.method == method) & (metrics.difficulty == difficulty) & (metrics.measure == measure)]
    return kept.set_index("query")["value"]
