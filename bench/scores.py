"""Scoring: every method on the same sealed candidates, interleaved query by query, journaled as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from traceback import extract_tb

import numpy as np
import torch
from torch import Tensor

from bench.datasets import Dataset
from bench.errors import UserError
from bench.executor import Executor, Local
from bench.features import FeatureBatch, Features
from bench.features.items import query_key
from bench.indexes import Indexes, Made, keeps_index
from bench.journal import Journal, Record
from bench.provenance import closure_of
from bench.reranker import Reranker, Scored
from bench.rows import Row
from bench.shortlist import UNION, Shortlist
from bench.timing import kept_torch_flags, peak_memory, timed

_NONE = torch.zeros(0)
Input = tuple[Features, FeatureBatch]  # a query and its candidates
# what a row that reads no features is given of an image
NOTHING = Features(_NONE, torch.zeros((0, 0)), torch.zeros((0, 2)), _NONE, _NONE, _NONE, torch.zeros(2))


@dataclass(frozen=True, eq=False)
class Job:
    """A row to score and the journal that keeps its records."""

    row: Row
    journal: Journal

    def has(self, query: str) -> bool:
        return self.journal.has(self.row.name, query)


@dataclass(frozen=True)
class Scorer:
    """The data every row is given: nothing here depends on a row."""

    dataset: Dataset
    shortlist: Shortlist
    device: torch.device
    indexes: Indexes = field(default_factory=Indexes, compare=False)

    def score(self, row: Row, query: int) -> Record:
        """Score one query with one row. Raises ValueError for scores that are not k finite numbers."""
        method = row.method
        lists = (
            {UNION: self.shortlist.union(query)}
            if method.pairwise
            else {name: self.shortlist.candidates(name, query) for name in self.shortlist.lists}
        )
        scores, details, load_ms, transfer_ms, score_ms = {}, {}, 0.0, 0.0, 0.0
        made, index_ms = Made(), 0.0
        for name, candidates in lists.items():
            read, ms = timed(partial(self._load, row, query, candidates), self.device)
            load_ms += ms
            read, ms = timed(partial(self._transfer, read), self.device)
            transfer_ms += ms
            near = (
                self.shortlist.union_similarities(query) if name == UNION else self.shortlist.similarities[name][query]
            )
            similarities = torch.from_numpy(near.copy()).to(self.device)
            positives = self._positives(query, candidates) if "truth" in method.needs() else None
            inputs = [(one, FeatureBatch(tuple(images), similarities, positives)) for one, *images in read]
            of_methods, keys = _arranged(row, inputs), [self.shortlist.gallery[c] for c in candidates]
            with kept_torch_flags():
                if any(keeps_index(method) for method, _ in of_methods):
                    (of_methods, new), ms = timed(partial(self._indexed, of_methods, keys), self.device)
                    made, index_ms = made + new, index_ms + ms
                found, ms = timed(_scoring(row, [one for _, one in of_methods]), self.device)
            score_ms += ms
            if isinstance(found, Scored):
                details[name] = {what: _checked(v, len(candidates), what) for what, v in found.details.items()}
                found = found.scores
            scores[name] = _checked(found, len(candidates), row.name)
        times = {"load_ms": load_ms, "transfer_ms": transfer_ms, "score_ms": score_ms, "index_ms": index_ms}
        return Record(
            row.name,
            self.shortlist.queries[query],
            scores,
            details=details,
            indexed=made.images,
            index_bytes=made.bytes,
            **times,
        )

    def _indexed(
        self, of_methods: list[tuple[Reranker, Input]], keys: list[str]
    ) -> tuple[list[tuple[Reranker, Input]], Made]:
        """The same, the candidates of those that keep something of an image with that."""
        found, made = [], Made()
        for method, (query, candidates) in of_methods:
            if keeps_index(method):
                candidates, new = self.indexes.batch(method, keys, candidates)
                made += new
            found.append((method, (query, candidates)))
        return found, made

    def _load(self, row: Row, query: int, candidates: np.ndarray) -> list[tuple[Features, ...]]:
        """For each of the row's readings the query and the candidates; of a row that reads nothing, empty ones."""
        keys = [query_key(self.dataset, query), *(self.shortlist.gallery[c] for c in candidates)]
        found = [read.features.read_all(keys, read.needs, read.used) for read in row.reads]
        return found if row.reads else [(NOTHING,) * len(keys)]

    def _transfer(self, read: list[tuple[Features, ...]]) -> list[tuple[Features, ...]]:
        if self.device.type == "cpu":
            return read
        return [tuple(image.to(self.device) for image in images) for images in read]

    def _positives(self, query: int, candidates: np.ndarray) -> torch.Tensor:
        """Positive in any difficulty: what one difficulty ignores is dropped when it is scored."""
        grades = self.dataset.grades.get(self.shortlist.queries[query], {})
        good = [grades.get(self.shortlist.gallery[c]) in ("easy", "hard") for c in candidates]
        return torch.tensor(good, device=self.device)


def _arranged(row: Row, inputs: list[Input]) -> list[tuple[Reranker, Input]]:
    """The method, or each of its parts, with what it reads."""
    if not row.parts:
        return [(row.method, inputs[0])]
    nothing = NOTHING, replace(inputs[0][1], images=(NOTHING,) * len(inputs[0][1]))
    places = zip(row.parts, row.reading_of, strict=True)
    return [(part.method, nothing if place is None else inputs[place]) for part, place in places]


def _scoring(row: Row, inputs: list[Input]) -> Callable[[], Tensor | Scored]:
    """The timed call."""
    return partial(row.method.score_parts, inputs) if row.parts else partial(row.method.score, *inputs[0])


def _checked(found: torch.Tensor, k: int, name: str) -> tuple[float, ...]:
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != (k,):
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"{name}.score returned {shape}, expected a tensor of shape ({k},)")
    return tuple(found.detach().double().cpu().tolist())


@dataclass(frozen=True)
class ColdStart:
    """A method's first query, with nothing loaded: wall milliseconds, and MiB from loading to the end of it."""

    ms: float
    peak_mib: float | None


def warm_up(scorer: Scorer, row: Row) -> ColdStart:
    """Load the method and run its first query, measured apart; a second, unmeasured query follows.

    What the method keeps of images is made anew afterwards, where it is counted.
    """
    scorer = replace(scorer, indexes=Indexes())
    with peak_memory(scorer.device) as peak:
        _, load_ms = timed(row.method.load, scorer.device)
        first = scorer.score(row, 0)
    scorer.score(row, 0)
    return ColdStart(load_ms + first.load_ms + first.transfer_ms + first.score_ms, peak.mib)


def score_all(
    scorer: Scorer,
    jobs: Sequence[Job],
    progress: Callable[[str, int, int], None] | None = None,
    executor: Executor = Local(),
) -> tuple[dict[Job, ColdStart], dict[Job, str]]:
    """Score every query with every job's row, skipping what its journal holds; cold starts, and why a job stopped.

    Rows take turns query by query, each query beginning with another row, so that a machine that slows down
    slows all of them alike. Several workers take a query each; cold starts are those of the workers' own, where one
    process alone measures them.
    """
    cold: dict[Job, ColdStart] = {}
    failures: dict[Job, str] = {}
    queries, journals = scorer.shortlist.queries, {job.journal for job in jobs}
    todo = [job for job in jobs if not all(job.has(query) for query in queries)]

    def tasks() -> Iterator[_Task]:
        for number, query in enumerate(queries):
            alive = [place for place, job in enumerate(jobs) if job not in failures]
            turn = number % max(1, len(alive))
            places = [place for place in [*alive[turn:], *alive[:turn]] if not jobs[place].has(query)]
            if places:
                yield _Task(number, query, tuple(places))

    make = partial(_Scoring, scorer, tuple(job.row if job in todo else None for job in jobs))
    for _, outcomes in executor.map(make, tasks(), lambda task: f"query {task.query}") if todo else ():
        for place, found in outcomes:
            job = jobs[place]
            if isinstance(found, ColdStart):
                cold.setdefault(job, found)
            elif isinstance(found, str):
                failures.setdefault(job, found)
            elif job not in failures:
                job.journal.append(found)
            if progress:
                progress(job.row.name, sum(map(len, journals)), len(queries) * len(jobs))
    return (cold if not executor.hardware() else {}), failures


@dataclass(frozen=True)
class _Task:
    number: int
    query: str
    jobs: tuple[int, ...]  # in turn


def failure(row: Row, error: Exception, query: str | None = None) -> str:
    """Why a row stopped, with the line of its own code that an author looks for, and the query that was scored."""
    if isinstance(error, UserError):
        return str(error)
    methods = [row.method, *(part.method for part in row.parts)]
    own = {str(file) for method in methods for file in closure_of(type(method)).files.values()}
    mine = [at for at in extract_tb(error.__traceback__) if at.filename in own]
    lines = [f"{Path(at.filename).name}, line {at.lineno}" for at in mine]
    said = f"{type(error).__name__}: {error}"
    where = [*lines[-1:], *([f"query {query}"] if query is not None and query not in said else [])]
    return f"{said} ({', '.join(where)})" if where else said


class _Scoring:
    """A worker's state: the rows, their methods loaded and warmed up. One that raises is taken out and said why."""

    def __init__(self, scorer: Scorer, rows: Sequence[Row | None]):
        self.scorer, self.rows = scorer, rows
        self.told: list[tuple[int, ColdStart | str]] = []  # at the next task
        self.failed: set[int] = set()
        for place, row in enumerate(rows):
            if row is not None:
                try:
                    self.told.append((place, warm_up(scorer, row)))
                except Exception as error:
                    self._fail(place, row, error)

    def _fail(self, place: int, row: Row, error: Exception, query: str | None = None) -> None:
        self.failed.add(place)
        self.told.append((place, failure(row, error, query)))

    def __call__(self, task: _Task) -> Iterator[tuple[int, Record | ColdStart | str]]:
        for place in task.jobs:
            row = self.rows[place]
            if row is not None and place not in self.failed:
                try:
                    yield place, self.scorer.score(row, task.number)
                except Exception as error:
                    self._fail(place, row, error, task.query)
        yield from self.told
        self.told = []
