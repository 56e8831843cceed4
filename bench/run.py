"""From a command to a finished run: what is prepared is scored, recorded and put into tables."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench import provenance, results
from bench.errors import UserError
from bench.executor import Executor
from bench.features.sets import FeatureSet, Progress
from bench.files import writing
from bench.journal import Journal, Record
from bench.locks import alone
from bench.options import seeds_of
from bench.places import Places
from bench.prepare import Chosen, Ready, prepare
from bench.record import (
    Begun,
    Cost,
    Identity,
    IndexCost,
    MethodCard,
    MethodIdentity,
    Part,
    RunRecord,
    cold_starts,
    took_turns,
    write_record,
)
from bench.reranker import Reranker
from bench.rows import Reading, Row, counts_of, parts_of
from bench.scores import ColdStart, Job, Scorer, score_all
from bench.setup import Selection, Setup
from bench.timing import CpuSeconds


@dataclass(frozen=True)
class Outcome:
    """The finished run and what happened on the way that the user should hear."""

    run: results.Run
    notes: tuple[str, ...]


def _plain(options: Any) -> dict[str, object]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}


def _defaults(options: Any) -> dict[str, object]:
    """Values of the options where none is given; those that a named preset sets are its own, and need no saying."""
    plain, preset = _plain(type(options)()), getattr(options, "preset", None)
    return plain if preset is None else {**_plain(type(options)(preset=preset)), "preset": plain["preset"]}


def _method_identity(row: Row, contents: Mapping[str, str]) -> MethodIdentity:
    """What a row is; `contents` has the sha256 of the features of each part that is read."""
    method = row.method
    keys = tuple(parts_of([row]))
    return MethodIdentity(
        options=_plain(method.options),
        weights_sha256=provenance.weights_hash(method),
        source_sha256=provenance.source_hash(type(method)),
        parts=tuple(Part(method=part.method.spec.name, **vars(_method_identity(part, contents))) for part in row.parts),
        features=keys,
        contents=tuple(contents[key] for key in keys),
    )


def costs(row: Row, counts: Mapping[str, np.ndarray], indexed: IndexCost | None = None) -> Cost:
    """What a deployed system would store for a row: descriptors an image (mean, most) and KiB an image.

    `counts` has, for each local part, the local descriptors of the gallery's images (n,). `indexed` is what the row
    keeps of an image instead of some of its features.
    """
    used = [_used(readings, counts[key]) for key, readings in _by_local(row.reads).items()]
    wholes: dict[str, int] = {}  # a part that several readings share is stored once
    for reading in row.stored:
        if (part := reading.features.name.global_) is not None:
            wholes[part.key] = reading.features.bytes_per_image(reading.needs)[0]
    size = float(sum(wholes.values()))
    for key, readings in _by_local(row.stored).items():
        needs = frozenset[str]().union(*(reading.needs for reading in readings))
        size += _used(readings, counts[key])[0] * readings[0].features.bytes_per_image(needs)[1]
    return Cost(
        descriptors_mean=float(sum(mean for mean, _ in used)),
        descriptors_max=float(sum(most for _, most in used)),
        kib_per_image=size / 1024 + (0.0 if indexed is None else indexed.kib),
    )


def _by_local(readings: Iterable[Reading]) -> Mapping[str, list[Reading]]:
    """By the local part that they read."""
    found: dict[str, list[Reading]] = {}
    for reading in readings:
        if (part := reading.features.name.local) is not None:
            found.setdefault(part.key, []).append(reading)
    return found


def _used(readings: Sequence[Reading], counts: np.ndarray) -> tuple[float, float]:
    """Local descriptors of a part that any of the readings takes of an image: mean and most."""
    values, images = np.unique(counts, return_counts=True)
    used = np.array([max(reading.used(int(count)) for reading in readings) for count in values])
    return float((used * images).sum() / images.sum()), float(used.max())


def index_cost(row: Row, records: Iterable[Record]) -> IndexCost:
    """Of all methods of a row together, from its records; every one of them is asked for the same images."""
    made = [(record.indexed, record.index_ms, record.index_bytes) for record in records]
    images = sum(count for count, _, _ in made) / len(row.indexing)
    if not images:
        return IndexCost(float("nan"), float("nan"))
    return IndexCost(sum(ms for _, ms, _ in made) / images, sum(size for *_, size in made) / images / 1024)


@dataclass(frozen=True, eq=False)
class _Open:
    """A run that is being measured."""

    folder: Path
    record: Begun
    jobs: tuple[Job, ...]
    notes: tuple[str, ...]


def execute(
    setup: Setup,
    selections: Sequence[Selection],
    places: Places,
    progress: Progress | None = None,
    *,
    force: bool = False,
) -> list[Outcome]:
    """A run for each selection, all on one shortlist: measured, finished where it was interrupted, or given back.

    All methods of the unfinished runs take turns query by query. `force` measures finished runs again. One process at a
    time measures a run; another that is asked for it waits, and gives back what was measured.
    """
    ready = prepare(setup, selections, places, progress)
    with ExitStack() as locks:
        return _measure(ready, setup, places, progress, locks, force)


def _measure(
    ready: Ready, setup: Setup, places: Places, progress: Progress | None, locks: ExitStack, force: bool
) -> list[Outcome]:
    """Score what is not finished; `locks` holds the runs' folders until all is written."""
    scorer, notes = ready.scorer, ready.notes
    identities = {}
    for each in ready.chosen:
        identity = _identity(each, scorer, ready.contents, setup.executor)
        identities[places.runs / results.run_name(identity)] = identity
    stamps = {folder: _stamp(folder) for folder in identities}
    for folder in sorted(identities):  # in one order everywhere, so that no two wait for each other
        if force or _finished(folder) is None:
            with _written(folder):
                locks.enter_context(alone(folder, "measuring"))
    outcomes = {}
    for folder in identities:
        if force and _stamp(folder) == stamps[folder]:  # else another process measured it during the wait
            with _written(folder), suppress(FileNotFoundError):
                shutil.rmtree(folder)
        if (before := _finished(folder)) is not None:
            waited, when = _stamp(folder) != stamps[folder], before.record.finished
            already = f"already finished on {when}; --force measures again"
            already = f"another process finished it on {when}, while this one waited" if waited else already
            outcomes[folder] = Outcome(before, (*notes, already))
    together = sorted(folder.name for folder in identities if folder not in outcomes)
    opened = [
        _begin(folder, identity, each, ready, setup, together)
        for each, (folder, identity) in zip(ready.chosen, identities.items(), strict=True)
        if folder not in outcomes
    ]
    begun = CpuSeconds.now()
    cold, failures = score_all(
        scorer,
        [job for run in opened for job in run.jobs],
        None if progress is None else lambda name, d, t: progress("scoring", d, t),
        setup.executor,
    )
    ended = CpuSeconds.now()
    # the processes of several workers cannot be told from other programs
    told = begun is not None and ended is not None and not setup.executor.hardware()
    others = begun.others(ended) if told and begun is not None and ended is not None else None
    for run in opened:
        outcomes[run.folder] = Outcome(_finish(run, scorer, cold, failures, others), (*notes, *run.notes))
    return [replace(outcomes[folder], run=outcomes[folder].run.whole()) for folder in identities]


def _identity(chosen: Chosen, scorer: Scorer, contents: Mapping[str, str], executor: Executor) -> Identity:
    return Identity(
        seal=scorer.shortlist.seal,
        shortlist=scorer.shortlist.header,
        hardware={**provenance.hardware(scorer.device), **executor.hardware()},
        methods={row.name: _method_identity(row, contents) for row in chosen.rows},
    )


def _finished(folder: Path) -> results.Run | None:
    """The run there, if every method got to its end and the files are sound; what was damaged is written again."""
    run = _sound(folder)
    return None if run is None or run.record.failed else run


def _sound(folder: Path) -> results.Run | None:
    try:
        return results.sound_run(folder)
    except UserError:
        return None


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Changes when the record of a run is written; None where there is none."""
    try:
        status = (folder / "run.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _begin(
    folder: Path,
    identity: Identity,
    chosen: Chosen,
    ready: Ready,
    setup: Setup,
    together: Sequence[str],
) -> _Open:
    """Write what is known before anything is scored; `together` are the runs whose methods take turns.

    A run that was killed when all was scored keeps those that its methods took turns with.
    """
    cold, scorer, before = cold_starts(folder), ready.scorer, _sound(folder)
    with _written(folder):
        journal = Journal(folder / "journal.jsonl")
    if all(journal.has(row.name, query) for row in chosen.rows for query in scorer.shortlist.queries):
        together = took_turns(folder) or together
    record = Begun(
        identity=identity,
        provenance=provenance.record(scorer.device, [row.method for row in chosen.rows], ready.packages),
        together=tuple(together),
        skipped=chosen.skipped,
        defaults={row.name: _defaults(row.method.options) for row in chosen.rows},
        extract=setup.extract,
        seeds={row.name: found for row in chosen.rows if (found := seeds_of(type(row.method.options)))},
        trained={row.name: how for row in chosen.rows if (how := row.method.trained()) is not None},
        unreadable=dict(ready.report.unreadable),
        notes=ready.said,
        features_noncommercial=ready.terms,
        first_stage=ready.first_stage,
        extract_ms=dict(ready.extract_ms),
        cold=cold or {},
    )
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        scorer.shortlist.save(folder / "shortlist.npz")
        results.save_dataset(folder / "dataset.json", scorer.dataset, scorer.shortlist.gallery)
        write_record(folder, record)
    jobs = tuple(Job(row, journal) for row in chosen.rows)
    notes: tuple[str, ...] = ()
    if before is not None:  # it ended, but with rows that failed
        notes = (f"trying again what failed before: {', '.join(before.record.failed)}",)
    elif cold is not None or len(journal) > 0:
        notes = ("resuming an interrupted run",)
    return _Open(folder, record, jobs, notes)


def _finish(
    run: _Open,
    scorer: Scorer,
    cold: Mapping[Job, ColdStart],
    failures: Mapping[Job, str],
    others: float | None,
) -> results.Run:
    """Tables and costs of a run that is scored. UserError if no method got to the end."""
    failed = {job.row.name: failures[job] for job in run.jobs if job in failures}
    done = [job.row for job in run.jobs if job not in failures]
    if not done:
        raise UserError("every method failed:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items()))
    with _written(run.folder):
        names = [row.name for row in done]
        results.write_tables(run.folder, run.jobs[0].journal, names, scorer.shortlist, scorer.dataset)
        sets = [features for row in done for features in row.sets]
        counts = counts_of(sets, scorer.dataset.gallery)
        indexed = {row.name: index_cost(row, _records(run, row, scorer)) for row in done if row.indexing}
        starts = {job.row.name: cold[job] for job in run.jobs if job in cold}
        ended = {
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "failed": failed,
            "others_busy": others,
            "cold": {**run.record.cold, **starts},
            "stored_bytes": _stored_bytes(sets),
            "costs": {row.name: costs(row, counts, indexed.get(row.name)) for row in done},
            "indexed": indexed,
            "cards": {row.name: _card(row.method) for row in done},
        }
        write_record(run.folder, RunRecord(**{**vars(run.record), **ended}))
    return results.Run.load(run.folder)


def _records(run: _Open, row: Row, scorer: Scorer) -> Iterator[Record]:
    """Of every query, as the journal has them."""
    found = (run.jobs[0].journal.read(row.name, query) for query in scorer.shortlist.queries)
    return (record for record in found if record is not None)


def _stored_bytes(sets: Iterable[FeatureSet]) -> dict[str, dict[str, tuple[float, float]]]:
    """Of every part that is read, by need."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for features in sets:
        for part, needs in ((features.name.local, ("local", "keypoints")), (features.name.global_, ("global",))):
            if part is not None:
                sizes = {need: features.bytes_per_image(frozenset({need})) for need in needs}
                found[part.key] = {**found.get(part.key, {}), **sizes}
    return found


def _card(method: Reranker) -> MethodCard:
    return MethodCard(
        **vars(method.card()),
        control=method.spec.control,
        needs=tuple(sorted(method.needs())),
        deterministic=method.deterministic(),
    )


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A disk that is full or read-only is the user's to mend."""
    with writing(folder, "finished queries are kept; make room and run the same command again"):
        yield
