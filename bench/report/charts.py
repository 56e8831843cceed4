"""Where things stand in a chart: axes from values to shares of their length, and the front of a scatter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

STEPS = (1, 2, 2.5, 5, 10)  # times a power of ten: distances of ticks that a reader counts by


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    share: float  # of the axis, 0 at its lower end
    text: str


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, in equal steps or, where it is `log`, in equal ratios."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"an axis from {self.low} to {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic axis from {self.low}")

    @staticmethod
    def around(values: Iterable[float], log: bool = False) -> Axis:
        """With a margin around the finite values; on a logarithmic axis, around those above zero.

        >>> Axis.around([0.0, 10.0])
        Axis(low=-0.8, high=10.8, log=False)
        """
        kept = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        low, high = (min(kept), max(kept)) if kept else (1.0, 1.0)
        if log:
            margin = max((high / low) ** 0.08, 1.5)
            return Axis(low / margin, high * margin, True)
        margin = 0.08 * (high - low) or 1.0
        return Axis(low - margin, high + margin)

    def share(self, value: float) -> float:
        """Where a value stands, from 0 to 1; what is beyond an end, also zero on a logarithmic axis, is at that end.

        >>> Axis(1, 100, log=True).share(10), Axis(0, 4).share(1), Axis(1, 100, log=True).share(0)
        (0.5, 0.25, 0.0)
        """
        if value <= self.low:
            return 0.0
        if value >= self.high:
            return 1.0
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """Round values inside, some three to eight.

        >>> [tick.text for tick in Axis(0.5, 200, log=True).ticks], [tick.text for tick in Axis(0, 10).ticks]
        (['1', '10', '100'], ['0', '2', '4', '6', '8', '10'])
        """
        return tuple(Tick(self.share(value), f"{value:g}") for value in self._round())

    def _round(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            close = self.high / self.low < 100  # few powers of ten lie inside
            values = [float(f"{times}e{power}") for power in powers for times in ((1, 2, 5) if close else (1,))]
            return [value for value in values if self.low <= value <= self.high]
        unit = 10.0 ** math.floor(math.log10((self.high - self.low) / 5))
        step = next(unit * times for times in STEPS if (self.high - self.low) / (unit * times) <= 6)
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [round(number * step, 10) for number in numbers]


def front(points: Mapping[str, tuple[float, float]], better: int = 1) -> tuple[str, ...]:
    """The points (cost, worth) that no other beats in one and reaches in the other, by cost.

    Less cost is better, and more worth, or less of it where `better` is -1. Points with NaN are not among them.

    >>> front({"a": (1, 5), "b": (2, 9), "c": (3, 8), "d": (1, 4)})
    ('a', 'b')
    """
    known = {name: (x, better * y) for name, (x, y) in points.items() if not math.isnan(x + y)}
    return tuple(
        name
        for name, (x, y) in sorted(known.items(), key=lambda item: item[1])
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in known.values())
    )
