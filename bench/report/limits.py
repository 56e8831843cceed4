"""What a row may cost at most: milliseconds of a query, bytes of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from bench.errors import UserError, unknown

# as a user names a cost -> the column that has it
COSTS: Mapping[str, str] = {
    "ms": "ms/query p50",
    "p95": "ms/query p95",
    "total": "total ms",
    "kib": "KiB/image",
    "mib": "peak MiB",
}


@dataclass(frozen=True)
class Limits:
    """The most that a row may have in columns of a table. ValueError for none, and for one that is not above 0."""

    most: Mapping[str, float]  # column -> finite, above 0

    def __post_init__(self) -> None:
        if not self.most:
            raise ValueError("no limit")
        for column, value in self.most.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{column} of at most {value}, expected a finite number above 0")

    @staticmethod
    def parse(text: str) -> Limits:
        """From `COST=NUMBER,…`. UserError for another cost, twice the same, and what is no number above 0.

        >>> Limits.parse("ms=5,kib=10").most
        {'ms/query p50': 5.0, 'KiB/image': 10.0}
        """
        most: dict[str, float] = {}
        for part in text.split(","):
            name, equals, number = part.strip().partition("=")
            if equals and name.lower() not in COSTS:
                raise unknown(f"cost of --within {text}:", name, COSTS)
            column = COSTS.get(name.lower(), "")
            try:
                if column in most:
                    raise ValueError("twice")
                most |= Limits({column: float(number)}).most
            except ValueError as error:
                raise UserError(
                    f"--within {text}: expected COST=NUMBER with a number above 0, found {part.strip()!r}",
                    hint=f"--within ms=5,kib=10; costs are {', '.join(COSTS)}, each at most once",
                ) from error
        return Limits(most)

    def __str__(self) -> str:
        """
        >>> str(Limits.parse("ms=5,kib=10.5"))
        '5 ms/query p50 and 10.5 KiB/image'
        """
        return " and ".join(f"{value:g} {column}" for column, value in self.most.items())

    def keeps(self, rows: pd.DataFrame) -> list[str]:
        """The rows that cost no more; one whose cost is not known is none of them."""
        return [str(name) for name, row in rows.iterrows() if all(row[c] <= most for c, most in self.most.items())]
