"""From a command to a finished run: data set, features, sealed shortlist, scores, metrics."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import provenance, registry, results
from bench.candidates import Meaning, imported_shortlist
from bench.datasets import Dataset
from bench.datasets.catalogue import load as load_dataset
from bench.device import resolve_device
from bench.errors import UserError, listed, unknown
from bench.executor import Executor, Local
from bench.features import FeatureCard
from bench.features.extract import ExtractOptions
from bench.features.fill import ExtractReport
from bench.features.importing import without_order
from bench.features.items import items, query_key
from bench.features.sets import FeatureSet, SetName, features_of
from bench.features.store import READS
from bench.files import file_hash, writing
from bench.journal import Journal
from bench.locks import alone
from bench.places import Places
from bench.record import (
    Begun,
    Cost,
    Identity,
    MethodCard,
    MethodIdentity,
    Part,
    RunRecord,
    cold_starts,
    write_record,
)
from bench.reranker import Reranker, parse_options
from bench.scores import ColdStart, Job, Scorer, score_all
from bench.shortlist import Policy, Shortlist, first_stage
from bench.whitening import Whitening, learn

DEFAULT_TOP_K = 100
LEARNED_ON = 100_000  # images at most that whitening is learned from, evenly chosen
Progress = Callable[[str, int, int], None]  # what, done, of how many


@dataclass(frozen=True)
class Setup:
    """What decides the seal and the machine: everything that is the same for the methods of a table."""

    dataset: str
    features: str = "xfeat"
    top_k: int | None = None  # None: 100, or the gallery's size where it is smaller
    policy: Policy = "blind"
    extract: ExtractOptions = ExtractOptions()
    whiten: str | None = None  # data set to learn PCA whitening on
    device: str = "cpu"
    accept_licence: frozenset[str] = frozenset()
    search: str = "blocks"  # how the first stage searches; it finds the same in any way
    executor: Executor = Local()  # where images are extracted and queries scored
    shortlist: Path | None = None  # other people's candidate lists, instead of a first stage of our own
    skip_unreadable: bool = False  # leave out queries whose images cannot be read, instead of refusing the data set
    shortlist_order: Meaning | None = None  # what orders those lists; None: their numbers and ranks, which must agree

    def __post_init__(self) -> None:
        if self.shortlist is None and self.shortlist_order is not None:
            raise UserError(f"--shortlist-order {self.shortlist_order}: no --shortlist was given")
        if self.shortlist is not None and self.whiten is not None:
            raise UserError(
                f"--whiten {self.whiten}: with --shortlist there is no first stage to whiten",
                hint="leave one of them out",
            )


@dataclass(frozen=True)
class Selection:
    """Methods, by name or `all`, and their options: what one run measures."""

    methods: tuple[str, ...]  # names, or ("all",)
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # method -> option -> text

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError("--method: no method given", hint="name one or more, or all")


@dataclass(frozen=True)
class Outcome:
    """The finished run and what happened on the way that the user should hear."""

    run: results.Run
    notes: tuple[str, ...]


def seal_shortlist(
    dataset: Dataset,
    store: FeatureSet,
    content: str,
    setup: Setup,
    whitening: Whitening | None,
    notes: list[str],
) -> tuple[Shortlist, tuple[str, ...]]:
    """The sealed candidates, of the stored global descriptors or a file of lists, and what a table must say of them.

    `content` is the store's of the images of the data set; `notes` is given what only this call's user should hear.
    """
    possible = len(dataset.gallery) - any(map(dataset.itself, dataset.queries))
    k = setup.top_k
    if k is None:
        k = min(DEFAULT_TOP_K, possible)
        if k < DEFAULT_TOP_K:
            notes.append(f"top-k is {k}: a query of {dataset.name} has no more than {possible} possible candidates")
    if setup.shortlist is not None:
        imported = imported_shortlist(setup.shortlist, dataset, setup.policy, k, setup.shortlist_order)
        theirs = f"Candidates are those of {setup.shortlist.name}; graded images it does not list are not retrieved."
        return imported.shortlist, (theirs, *imported.notes)
    gallery = store.vectors(dataset.gallery)
    queries = store.global_descriptors([query_key(dataset, i) for i in range(len(dataset.queries))])
    name = store.card.name
    if setup.extract.precision != "float16":
        name += f",{setup.extract.precision}"
    if whitening is not None:
        gallery, queries, name = gallery.through(whitening), whitening(queries), f"{name}+{whitening.name}"
    found = first_stage(
        dataset,
        gallery,
        queries,
        features=name,
        features_content=content,
        policy=setup.policy,
        k=k,
        engine=setup.search,
    )
    return found, ()


@dataclass(frozen=True)
class _Chosen:
    methods: list[Reranker]
    skipped: dict[str, str]  # method -> reason

    def __post_init__(self) -> None:
        if not self.methods:
            reasons = "\n".join(f"  {name}: {reason}" for name, reason in self.skipped.items())
            raise UserError(f"no requested method can run here:\n{reasons}")

    def without(self, reasons: Mapping[str, str]) -> _Chosen:
        """Those that are left when the methods named in `reasons` cannot run either."""
        kept = [method for method in self.methods if method.spec.name not in reasons]
        return _Chosen(kept, {**self.skipped, **reasons})


def choose(setup: Setup, selection: Selection, card: FeatureCard, device: torch.device) -> _Chosen:
    """The selected methods that can run here; with `all`, a method that cannot be loaded is a reported skip."""
    everything = selection.methods == ("all",)
    names = registry.names() if everything else list(dict.fromkeys(selection.methods))
    for name in selection.options:
        if name not in names:
            raise (
                UserError(f"-o {name}.…: method {name!r} is not part of this run", hint=f"running: {', '.join(names)}")
                if name in registry.names()
                else unknown("method", name, registry.names())
            )
    chosen, skipped = [], {}
    for name in names:
        try:
            cls = registry.get(name)
        except UserError as error:
            if not everything:
                raise
            skipped[name] = str(error)
            continue
        method = cls(parse_options(cls, selection.options.get(name, {})), device)
        reason = method.skip(card) if card.known else None  # else once the features tell
        terms = None if reason else method.card().noncommercial
        if terms is not None and terms not in setup.accept_licence:
            reason = f"its weights may not be used commercially: run with --accept-licence {terms}"
        if reason is None:
            chosen.append(method)
        else:
            skipped[name] = reason
    return _Chosen(chosen, skipped)


def _plain(options: Any) -> dict[str, object]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}


def _defaults(options: Any) -> dict[str, object]:
    """Values of the options where none is given; those that a named preset sets are its own, and need no saying."""
    plain, preset = _plain(type(options)()), getattr(options, "preset", None)
    return plain if preset is None else {**_plain(type(options)(preset=preset)), "preset": plain["preset"]}


def _method_identity(method: Reranker) -> MethodIdentity:
    weights = method.weights()
    return MethodIdentity(
        options=_plain(method.options),
        weights_sha256=None if weights is None else file_hash(weights),
        source_sha256=provenance.source_hash(type(method)),
        parts=tuple(Part(method=part.spec.name, **vars(_method_identity(part))) for part in method.parts()),
    )


def costs(method: Reranker, store: FeatureSet, counts: np.ndarray) -> Cost:
    """What a deployed system would store for the method: descriptors an image (mean, most) and KiB an image.

    `counts` (n,) are the local descriptors of the gallery's images.
    """
    values, images = np.unique(counts, return_counts=True)
    used = np.array([method.descriptors_used(int(count)) for count in values])
    whole, local = store.bytes_per_image(method.needs())
    mean = float((used * images).sum() / images.sum())
    return Cost(
        descriptors_mean=mean,
        descriptors_max=float(used.max()),
        kib_per_image=(whole + mean * local) / 1024,
    )


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
    ready = _prepare(setup, selections, places, progress)
    with ExitStack() as locks:
        return _measure(ready, setup, places, progress, locks, force)


@dataclass(frozen=True, eq=False)
class _Ready:
    """All that is needed to score: candidates, features, and the methods that can read them."""

    scorer: Scorer
    chosen: Sequence[_Chosen]
    content: str  # sha256 of every feature that can be read
    report: ExtractReport
    said: tuple[str, ...]  # for the tables
    notes: tuple[str, ...]  # for the user of this call
    terms: str | None  # restricted licences of the features


def _prepare(setup: Setup, selections: Sequence[Selection], places: Places, progress: Progress | None) -> _Ready:
    """Data set, features and sealed candidates. UserError for whatever cannot be compared."""
    notes: list[str] = []
    name = SetName.parse(setup.features)
    for terms in name.terms:
        if terms not in setup.accept_licence:
            raise UserError(
                f"--features {setup.features}: its weights may not be used commercially",
                hint=f"--accept-licence {terms}, if your use is allowed by it",
            )
    device = resolve_device(setup.device)
    chosen = [choose(setup, each, name.card, device) for each in selections]
    images = not name.imported
    dataset = load_dataset(
        setup.dataset, places, None if progress is None else lambda d, t: progress("generating images", d, t), images
    )
    other = None if setup.whiten is None else load_dataset(setup.whiten, places, images=images)
    if other is not None and other.name == dataset.name:
        raise UserError(f"--whiten {setup.whiten}: whitening must be learned on another data set than the one tested")
    require_positives(dataset)
    store, report = features_of(
        dataset,
        setup.features,
        setup.extract,
        device,
        places,
        progress,
        setup.executor,
        setup.skip_unreadable,
    )
    notes += report.notes
    if setup.skip_unreadable:
        dataset = without_queries(dataset, report.unreadable)
    if report.unreadable:
        notes.append(
            f"{len(report.unreadable)} images cannot be read and have no features: "
            + "; ".join(list(report.unreadable.values())[:5])
        )
    if not name.card.known:
        chosen = [each.without(_unfit(each, store.card)) for each in chosen]
    if not store.has_globals:
        chosen = [each.without(_reading_globals(each)) for each in chosen]
        if setup.shortlist is None:
            raise UserError(
                f"feature set {setup.features!r} of {dataset.name} has no global descriptors, and without them there "
                "is no first stage",
                hint="give candidates with --shortlist FILE, or import the features again with --globals FILE",
            )
    for place, each in enumerate(chosen):
        reads = {method.spec.name: method.descriptors_used for method in each.methods}
        if store.local is not None:
            chosen[place] = each.without(without_order(store.local, reads, (item.key for item in items(dataset))))
    content = store.content(lambda: (item.key for item in items(dataset)))
    whitening = None if other is None else _whitening(other, setup, device, places, progress)
    shortlist, of_lists = seal_shortlist(dataset, store, content, setup, whitening, notes)
    scorer = Scorer(dataset, shortlist, store, device)
    said = (*dataset.notes, *report.caveats, *of_lists, *_copies(dataset, store))
    return _Ready(scorer, chosen, content, report, said, tuple(notes), ", ".join(name.terms) or None)


def _measure(
    ready: _Ready, setup: Setup, places: Places, progress: Progress | None, locks: ExitStack, force: bool
) -> list[Outcome]:
    """Score what is not finished; `locks` holds the runs' folders until all is written."""
    scorer, notes = ready.scorer, ready.notes
    identities = {}
    for each in ready.chosen:
        identity = _identity(each, scorer, ready.content, setup.executor)
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
        _begin(folder, identity, each, scorer, ready.report, ready.said, together, ready.terms)
        for each, (folder, identity) in zip(ready.chosen, identities.items(), strict=True)
        if folder not in outcomes
    ]
    cold, failures = score_all(
        scorer,
        [job for run in opened for job in run.jobs],
        None if progress is None else lambda name, d, t: progress("scoring", d, t),
        setup.executor,
    )
    for run in opened:
        outcomes[run.folder] = Outcome(_finish(run, scorer, cold, failures), (*notes, *run.notes))
    return [outcomes[folder] for folder in identities]


def _unfit(chosen: _Chosen, card: FeatureCard) -> dict[str, str]:
    """The methods that cannot run on features of that card, and why."""
    return {method.spec.name: reason for method in chosen.methods if (reason := method.skip(card))}


def _reading_globals(chosen: _Chosen) -> dict[str, str]:
    """The methods that cannot run on features without global descriptors, and why."""
    reason = "it reads global descriptors, and the feature set has none"
    return {method.spec.name: reason for method in chosen.methods if "global" in method.needs()}


def require_positives(dataset: Dataset) -> None:
    """UserError for a data set in which no query has a positive: there would be no value to compare."""
    if all(len(dataset.without_positives(name)) == len(dataset.queries) for name in dataset.difficulties):
        raise UserError(
            f"{dataset.name}: none of its {len(dataset.queries)} queries has a positive besides itself, so no method "
            "can be scored",
            hint="ground truth names at least one easy or hard image of a query; junk images are not scored",
        )


def without_queries(dataset: Dataset, unreadable: Mapping[str, str]) -> Dataset:
    """The data set without the queries whose images cannot be read (key in the store -> reason), which a note names.

    Such an image stays in the gallery, where it cannot be found. UserError if no query is left that can be scored.
    """
    kept = [query for i, query in enumerate(dataset.queries) if query_key(dataset, i) not in unreadable]
    out = [query.id for i, query in enumerate(dataset.queries) if query_key(dataset, i) in unreadable]
    if not out:
        return dataset
    if not kept:
        raise UserError(f"{dataset.name}: no query image can be read", hint="replace the files")
    note = f"{len(out)} of {len(dataset.queries)} queries cannot be read and are left out (--skip-unreadable): "
    left = replace(dataset, queries=tuple(kept), notes=(*dataset.notes, note + listed(out) + "."))
    require_positives(left)
    return left


def _copies(dataset: Dataset, store: FeatureSet) -> tuple[str, ...]:
    """A note on queries that stand in the gallery under another id too, where they are easy to find."""
    queries = {query_key(dataset, i): query.id for i, query in enumerate(dataset.queries)}
    copies = store.copies(queries, dataset.gallery)
    found = [f"{queries[key]} = {image}" for key, image in copies.items() if image != queries[key]]
    if not found:
        return ()
    return (
        f"{len(found)} of {len(queries)} queries have the same bytes as a gallery image of another id, which stays "
        f"their candidate: {listed(found)}.",
    )


def _identity(chosen: _Chosen, scorer: Scorer, content: str, executor: Executor) -> Identity:
    return Identity(
        seal=scorer.shortlist.seal,
        shortlist=scorer.shortlist.header,
        hardware={**provenance.hardware(scorer.device), **executor.hardware()},
        methods={method.spec.name: _method_identity(method) for method in chosen.methods},
        features=content,
    )


def _finished(folder: Path) -> results.Run | None:
    """The run there, if every method got to its end and the files are sound; what was damaged is written again."""
    try:
        run = results.sound_run(folder)
    except UserError:
        return None
    return None if run.record.failed else run


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
    chosen: _Chosen,
    scorer: Scorer,
    report: ExtractReport,
    said: Sequence[str],
    together: Sequence[str],
    terms: str | None,
) -> _Open:
    """Write what is known before anything is scored; `together` are the runs whose methods take turns."""
    cold = cold_starts(folder)
    record = Begun(
        identity=identity,
        provenance=provenance.record(scorer.device, chosen.methods, scorer.store.name.packages),
        together=tuple(together),
        skipped=chosen.skipped,
        defaults={m.spec.name: _defaults(m.options) for m in chosen.methods},
        unreadable=dict(report.unreadable),
        notes=tuple(said),
        features_noncommercial=terms,
        cold=cold or {},
    )
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        scorer.shortlist.save(folder / "shortlist.npz")
        results.save_dataset(folder / "dataset.json", scorer.dataset, scorer.shortlist.gallery)
        write_record(folder, record)
        journal = Journal(folder / "journal.jsonl")
    jobs = tuple(Job(method, journal) for method in chosen.methods)
    begun = cold is not None or len(journal) > 0
    return _Open(folder, record, jobs, ("resuming an interrupted run",) if begun else ())


def _finish(run: _Open, scorer: Scorer, cold: Mapping[Job, ColdStart], failures: Mapping[Job, str]) -> results.Run:
    """Tables and costs of a run that is scored. UserError if no method got to the end."""
    failed = {job.method.spec.name: failures[job] for job in run.jobs if job in failures}
    done = [job.method for job in run.jobs if job not in failures]
    if not done:
        raise UserError("every method failed:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items()))
    with _written(run.folder):
        names = [method.spec.name for method in done]
        results.write_tables(run.folder, run.jobs[0].journal, names, scorer.shortlist, scorer.dataset)
        counts = scorer.store.counts(scorer.dataset.gallery)
        starts = {job.method.spec.name: cold[job] for job in run.jobs if job in cold}
        ended = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "failed": failed,
            "cold": {**run.record.cold, **starts},
            "stored_bytes": {need: scorer.store.bytes_per_image(frozenset({need})) for need in sorted(READS)},
            "costs": {m.spec.name: costs(m, scorer.store, counts) for m in done},
            "cards": {
                m.spec.name: MethodCard(**vars(m.card()), control=m.spec.control, needs=tuple(sorted(m.needs())))
                for m in done
            },
        }
        write_record(run.folder, RunRecord(**{**vars(run.record), **ended}))
    return results.Run.load(run.folder)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A disk that is full or read-only is the user's to mend."""
    with writing(folder, "finished queries are kept; make room and run the same command again"):
        yield


def _whitening(
    other: Dataset, setup: Setup, device: torch.device, places: Places, progress: Progress | None
) -> Whitening:
    store, _ = features_of(other, setup.features, setup.extract, device, places, progress, setup.executor)
    every = max(1, len(other.gallery) // LEARNED_ON)
    return learn(store.global_descriptors(list(islice(other.gallery, 0, None, every))), other.name)
