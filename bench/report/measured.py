"""What a regression check compares: the numbers of a run, or of a baseline that was kept of one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.datasets import Dataset, Instances
from bench.evaluation import evaluate
from bench.metrics import Measure, primary
from bench.record import MethodIdentity
from bench.report.columns import per_query
from bench.report.notes import DISTURBED
from bench.results import Run
from bench.shortlist import Shortlist

DECIMALS = 6  # of values by query: what is equal to so many is equal
DIGITS = 4  # of times: none is measured better
SHORT = 16  # letters of a sha256 that are kept


@dataclass(frozen=True)
class MeasuredRow:
    """One row: what it is, and its values by query in the order of the queries, None without positives."""

    control: bool
    deterministic: bool  # whether equal input gives equal scores on one machine
    options: Mapping[str, Any]  # option -> value, without the places of files
    features: str  # the parts of features that it reads, joined by +; empty: none
    contents: str  # of these features and its parts', short sha256; empty: none
    weights: str  # of its weights and its parts', short sha256; empty: none
    code: str  # its and its parts', short sha256
    time: float | None  # median time a pair, in a unit that all rows of the run share; None: of a control
    accuracy: Mapping[str, tuple[float | None, ...]]  # difficulty -> (queries,) the primary measure, in [0, 1]

    def __post_init__(self) -> None:
        if self.time is not None and not 0 < self.time < float("inf"):
            raise ValueError(f"time {self.time}, expected a positive number")
        for difficulty, values in self.accuracy.items():
            if wrong := next((v for v in values if v is not None and not 0 <= v <= 1), None):
                raise ValueError(f"accuracy {difficulty}: {wrong}, expected a number from 0 to 1")


@dataclass(frozen=True)
class Measured:
    """A finished run, as far as it is compared."""

    seal: str  # sha256 of the candidates and all that they are of
    header: Mapping[str, Any]  # of the sealed candidates; of a data set in a folder, the folder's name alone
    lists: str  # ids of queries and candidates in order, sha256
    similarities: str  # the candidates', sha256
    truth: str  # ground truth of the queries, sha256
    hardware: Mapping[str, Any]
    versions: Mapping[str, str | None]  # package -> version
    disturbed: str  # what made times longer; empty: nothing
    queries: tuple[str, ...]
    rows: Mapping[str, MeasuredRow]
    skipped: Mapping[str, str] = field(default_factory=dict)  # row -> why it could not run
    failed: Mapping[str, str] = field(default_factory=dict)  # row -> why it stopped
    commit: str | None = None  # of the project, where it is known

    def __post_init__(self) -> None:
        if not self.rows or not self.queries:
            raise ValueError(f"{len(self.rows)} rows and {len(self.queries)} queries, at least one of each is needed")
        if len(set(self.queries)) < len(self.queries):
            raise ValueError("a query is there twice")
        for name, row in self.rows.items():
            for difficulty, values in row.accuracy.items():
                if len(values) != len(self.queries):
                    raise ValueError(
                        f"{name}, accuracy {difficulty}: {len(values)} values of {len(self.queries)} queries"
                    )
        if self.header.get("protocol") is None:
            raise ValueError("header.protocol is missing")

    @property
    def measure(self) -> Measure:
        """What accuracy is."""
        return primary(str(self.header["protocol"]))

    def values(self, row: str, difficulty: str) -> pd.Series:
        """By query, NaN without positives; all of them where the row has no such difficulty."""
        values = self.rows[row].accuracy.get(difficulty, (None,) * len(self.queries))
        return pd.Series([np.nan if v is None else v for v in values], list(self.queries), dtype=np.float64)


def of_run(run: Run) -> Measured:
    """Values by query are from the sealed lists and the stored scores, as they are now."""
    record, shortlist = run.record, run.shortlist
    metrics, name = evaluate(run.rankings()), primary(run.dataset.protocol).name
    times = run.ledger.assign(pair=run.ledger.score_ms / run.ledger.pairs).groupby("method")["pair"].median()
    rows = {}
    for row in record.costs:
        identity, card = record.identity.methods[row], record.cards[row]
        time = float(f"{times[row]:.{DIGITS}g}") if row in times and not card.control else 0.0
        rows[row] = MeasuredRow(
            control=card.control,
            deterministic=card.deterministic,
            options=_without_places(identity.options),
            features="+".join(identity.features),
            contents=_joined(content for part in _parts(identity) for content in part.contents),
            weights=_joined(part.weights_sha256 for part in _parts(identity)),
            code=_joined(part.source_sha256 for part in _parts(identity)),
            time=time if time > 0 else None,
            accuracy={
                difficulty: _values(per_query(metrics, row, difficulty, name), shortlist.queries)
                for difficulty in run.dataset.difficulties
            },
        )
    return Measured(
        seal=run.seal,
        header={**asdict(shortlist.header), "dataset": without_place(shortlist.header.dataset)},
        lists=_digest_of_lists(shortlist),
        similarities=_digest(shortlist.similarities[name].astype("<f4").tobytes() for name in sorted(shortlist.lists)),
        truth=_digest_of_truth(run.dataset),
        hardware=dict(record.identity.hardware),
        versions=dict(record.provenance.get("versions") or {}),
        disturbed=_disturbed(run),
        queries=shortlist.queries,
        rows=rows,
        skipped=record.skipped,
        failed=record.failed,
        commit=record.provenance.get("commit"),
    )


def without_place(dataset: str) -> str:
    """The name of a data set; of one in a folder, with the folder's name alone, which other machines share.

    >>> without_place("folder:/home/me/mugs"), without_place("demo")
    ('folder:mugs', 'demo')
    """
    kind, colon, path = dataset.partition(":")
    return f"{kind}{colon}{Path(path).name}" if colon else dataset


def _parts(identity: MethodIdentity) -> Iterator[MethodIdentity]:
    """The method, and all it is made of."""
    yield identity
    for part in identity.parts:
        yield from _parts(part)


def _without_places(options: Mapping[str, Any]) -> dict[str, Any]:
    """Places of files differ between checkouts; what is in them is told by `weights` and `code`."""
    kept = {key: value for key, value in options.items() if not (isinstance(value, str) and Path(value).is_absolute())}
    return dict(json.loads(json.dumps(kept)))  # as a file gives them back: tuples are lists


def _joined(digests: Iterable[str | None]) -> str:
    known = [digest for digest in digests if digest]
    return _digest(digest.encode() for digest in known)[:SHORT] if known else ""


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _digest_of_lists(shortlist: Shortlist) -> str:
    gallery = np.array([hashlib.sha256(image.encode()).digest()[:16] for image in shortlist.gallery], dtype="V16")
    return _digest(
        [
            json.dumps(shortlist.queries).encode(),
            *(
                part
                for name in sorted(shortlist.lists)
                for part in (name.encode(), gallery[shortlist.lists[name]].tobytes())
            ),
        ]
    )


def _digest_of_truth(dataset: Dataset) -> str:
    """Of what its queries are graded; instances by their members, since their grades grow with the square of them."""
    if isinstance(dataset.grades, Instances):
        return _digest(json.dumps(sorted(group)).encode() for group in sorted(map(sorted, dataset.grades.members)))
    graded = ((query.id, dataset.grades.get(query.id, {})) for query in dataset.queries)
    return _digest(json.dumps([query, sorted(grades.items())]).encode() for query, grades in graded)


def _values(values: pd.Series, queries: Sequence[str]) -> tuple[float | None, ...]:
    found = {str(query): float(value) for query, value in values.items()}
    kept = (found.get(query, float("nan")) for query in queries)
    return tuple(None if np.isnan(value) else round(value, DECIMALS) for value in kept)


def _disturbed(run: Run) -> str:
    busy, cores = run.record.others_busy, run.record.identity.hardware.get("cores")
    if busy is None or not isinstance(cores, int) or busy < DISTURBED * cores:
        return ""
    return f"other programs kept {busy:.1f} of {cores} cores busy"
