"""Scoring: every method on the same sealed candidates, interleaved query by query, journaled as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from bench.datasets import Dataset
from bench.errors import UserError
from bench.executor import Executor, Local
from bench.features import FeatureBatch, Features
from bench.features.items import query_key
from bench.features.sets import FeatureSet
from bench.journal import Journal, Record
from bench.reranker import Reranker, Scored
from bench.shortlist import UNION, Shortlist
from bench.timing import kept_torch_flags, peak_memory, timed


@dataclass(frozen=True, eq=False)
class Job:
    """A method to score and the journal that keeps its records."""

    method: Reranker
    journal: Journal

    def has(self, query: str) -> bool:
        return self.journal.has(self.method.spec.name, query)


@dataclass(frozen=True)
class Scorer:
    """The data every method is given: nothing here depends on a method."""

    dataset: Dataset
    shortlist: Shortlist
    store: FeatureSet
    device: torch.device

    def score(self, method: Reranker, query: int) -> Record:
        """Score one query with one method. Raises ValueError for scores that are not k finite numbers."""
        needs = method.needs()
        lists = (
            {UNION: self.shortlist.union(query)}
            if method.pairwise
            else {name: self.shortlist.candidates(name, query) for name in self.shortlist.lists}
        )
        scores, details, load_ms, transfer_ms, score_ms = {}, {}, 0.0, 0.0, 0.0
        for name, candidates in lists.items():
            (one, images), ms = timed(partial(self._load, method, query, candidates), self.device)
            load_ms += ms
            (one, images), ms = timed(partial(self._transfer, one, images), self.device)
            transfer_ms += ms
            near = (
                self.shortlist.union_similarities(query) if name == UNION else self.shortlist.similarities[name][query]
            )
            similarities = torch.from_numpy(near.copy()).to(self.device)
            positives = self._positives(query, candidates) if "truth" in needs else None
            batch = FeatureBatch(images, similarities, positives)
            with kept_torch_flags():
                found, ms = timed(partial(method.score, one, batch), self.device)
            score_ms += ms
            if isinstance(found, Scored):
                details[name] = {what: _checked(v, len(candidates), what) for what, v in found.details.items()}
                found = found.scores
            scores[name] = _checked(found, len(candidates), method.spec.name)
        return Record(method.spec.name, self.shortlist.queries[query], scores, load_ms, transfer_ms, score_ms, details)

    def _load(self, method: Reranker, query: int, candidates: np.ndarray) -> tuple[Features, tuple[Features, ...]]:
        keys = [query_key(self.dataset, query), *(self.shortlist.gallery[c] for c in candidates)]
        one, *images = self.store.read_all(keys, method.needs(), method.descriptors_used)
        return one, tuple(images)

    def _transfer(self, one: Features, images: tuple[Features, ...]) -> tuple[Features, tuple[Features, ...]]:
        if self.device.type == "cpu":
            return one, images
        return one.to(self.device), tuple(image.to(self.device) for image in images)

    def _positives(self, query: int, candidates: np.ndarray) -> torch.Tensor:
        """Positive in any difficulty: what one difficulty ignores is dropped when it is scored."""
        grades = self.dataset.grades.get(self.shortlist.queries[query], {})
        good = [grades.get(self.shortlist.gallery[c]) in ("easy", "hard") for c in candidates]
        return torch.tensor(good, device=self.device)


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


def warm_up(scorer: Scorer, method: Reranker) -> ColdStart:
    """Load the method and run its first query, measured apart; a second, unmeasured query follows."""
    with peak_memory(scorer.device) as peak:
        _, load_ms = timed(method.load, scorer.device)
        first = scorer.score(method, 0)
    scorer.score(method, 0)
    return ColdStart(load_ms + first.load_ms + first.transfer_ms + first.score_ms, peak.mib)


def score_all(
    scorer: Scorer,
    jobs: Sequence[Job],
    progress: Callable[[str, int, int], None] | None = None,
    executor: Executor = Local(),
) -> tuple[dict[Job, ColdStart], dict[Job, str]]:
    """Score every query with every job's method, skipping what its journal holds; cold starts, and why a job stopped.

    Methods take turns query by query, each query beginning with another method, so that a machine that slows down
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

    make = partial(_Scoring, scorer, tuple(job.method if job in todo else None for job in jobs))
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
                progress(job.method.spec.name, sum(map(len, journals)), len(queries) * len(jobs))
    return (cold if not executor.hardware() else {}), failures


@dataclass(frozen=True)
class _Task:
    number: int
    query: str
    jobs: tuple[int, ...]  # in turn


class _Scoring:
    """A worker's state: the methods, loaded and warmed up. A method that raises is taken out and said why."""

    def __init__(self, scorer: Scorer, methods: Sequence[Reranker | None]):
        self.scorer, self.methods = scorer, methods
        self.told: list[tuple[int, ColdStart | str]] = []  # at the next task
        self.failed: set[int] = set()
        for place, method in enumerate(methods):
            if method is not None:
                try:
                    self.told.append((place, warm_up(scorer, method)))
                except Exception as error:
                    self._fail(place, error)

    def _fail(self, place: int, error: Exception) -> None:
        self.failed.add(place)
        self.told.append((place, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"))

    def __call__(self, task: _Task) -> Iterator[tuple[int, Record | ColdStart | str]]:
        for place in task.jobs:
            method = self.methods[place]
            if method is not None and place not in self.failed:
                try:
                    yield place, self.scorer.score(method, task.number)
                except Exception as error:
                    self._fail(place, error)
        yield from self.told
        self.told = []
