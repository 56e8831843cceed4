"""What was scored, one query and method at a time, kept as it happens so that a run goes on where it stopped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.errors import UserError
from bench.files import writing


@dataclass(frozen=True)
class Record:
    """What one method did for one query. Times are wall milliseconds over all `pairs`, device work included."""

    method: str
    query: str
    scores: Mapping[str, tuple[float, ...]]  # list -> one finite score a candidate, in the list's order
    load_ms: float  # features from the store into memory
    transfer_ms: float  # memory to device
    score_ms: float  # the method's `score`
    details: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)  # list -> name -> values
    indexed: int = 0  # candidates of which the method made what it keeps between queries
    index_bytes: int = 0  # of what it made of them
    index_ms: float = 0.0  # for making it; in none of the other times

    def __post_init__(self) -> None:
        for name, values in self.scores.items():
            for what, numbers in {"scores": values, **self.details.get(name, {})}.items():
                if len(numbers) != len(values) or not all(math.isfinite(number) for number in numbers):
                    where = f"query {self.query!r} (list {name!r})"
                    raise ValueError(f"{self.method}: {what} of {where} are not {len(values)} finite numbers")

    @property
    def pairs(self) -> int:
        return sum(len(values) for values in self.scores.values())


class Journal:
    """One JSON line a record, flushed to disk before the next query; a torn last line (a kill) is dropped on resume.

    Records are read back from the file one at a time: what is held is where each begins. Of several records of one
    method and query the last counts, and lines that are none are passed over. One process at a time may append.
    """

    def __init__(self, path: Path):
        self.path = path
        self._begins: dict[str, dict[str, int]] = {}  # method -> query -> byte
        if path.is_file():
            begin = whole = 0
            with path.open("rb") as file:
                for line in file:
                    record = _parsed(line)
                    if record is not None:
                        self._begins.setdefault(record.method, {})[record.query] = begin
                        whole = begin + len(line)
                    begin += len(line)
            if whole < begin:
                os.truncate(path, whole)

    def __len__(self) -> int:
        return sum(map(len, self._begins.values()))

    def has(self, method: str, query: str) -> bool:
        return query in self._begins.get(method, {})

    def read(self, method: str, query: str) -> Record | None:
        """The record, or None where there is none."""
        begin = self._begins.get(method, {}).get(query)
        if begin is None:
            return None
        with self.path.open("rb") as file:
            file.seek(begin)
            record = _parsed(file.readline())
        if record is None or (record.method, record.query) != (method, query):
            raise UserError(f"{self.path}: was changed while it was in use", hint="run the same command again")
        return record

    def append(self, record: Record) -> None:
        hint = "finished queries are kept; make room and run the same command again"
        with writing(self.path, hint), self.path.open("a") as file:
            begin = file.seek(0, os.SEEK_END)
            file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._begins.setdefault(record.method, {})[record.query] = begin


def _parsed(line: bytes) -> Record | None:
    try:
        content = json.loads(line) if line.endswith(b"\n") else {}
        return Record(**{**content, "scores": {k: tuple(v) for k, v in content["scores"].items()}})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
