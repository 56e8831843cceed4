"""From a command to a finished run: data set, features, sealed shortlist, scores, metrics."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
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
from bench.features.extract import ExtractOptions
from bench.features.fill import ExtractReport
from bench.features.items import items, query_key
from bench.features.sets import FeatureSet, SetName, Stores
from bench.files import file_hash, writing
from bench.first_stages import names as stages
from bench.first_stages.stage import Context, FirstStage, Opened
from bench.journal import Journal
from bench.locks import alone
from bench.places import Places
from bench.record import (
    Begun,
    Cost,
    FirstStageCost,
    Identity,
    MethodCard,
    MethodIdentity,
    Part,
    RunRecord,
    cold_starts,
    write_record,
)
from bench.reranker import Reranker, parse_options
from bench.rows import DEFAULT_FEATURES, Asked, Reading, Row, Wanted, counts_of, opened, parts_of, wanted
from bench.scores import ColdStart, Job, Scorer, score_all
from bench.shortlist import Policy, Shortlist, first_stage
from bench.timing import CpuSeconds, timed
from bench.whitening import Whitening, learn

DEFAULT_TOP_K = 100
LISTS = "list"  # the kind of first stage that is a file of candidate lists: list:FILE
LEARNED_ON = 100_000  # images at most that whitening is learned from, evenly chosen
Progress = Callable[[str, int, int], None]  # what, done, of how many


@dataclass(frozen=True)
class Setup:
    """What decides the seal and the machine: everything that is the same for the methods of a table."""

    dataset: str
    features: str = DEFAULT_FEATURES  # what rows without features of their own read
    first_stage: str | None = None  # None: global descriptors that `features` names itself, else the default
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
        if self.shortlist is not None and self.first_stage is not None:
            raise UserError(
                f"--first-stage {self.first_stage}: with --shortlist the candidates are there already",
                hint="leave one of them out",
            )
        if self.lists is None and self.shortlist_order is not None:
            raise UserError(f"--shortlist-order {self.shortlist_order}: no --shortlist was given")
        if self.lists is not None and self.whiten is not None:
            raise UserError(
                f"--whiten {self.whiten}: with --shortlist there is no first stage to whiten",
                hint="leave one of them out",
            )

    @property
    def lists(self) -> Path | None:
        """The file of other people's candidate lists, if it is the first stage."""
        kind, colon, path = (self.first_stage or "").partition(":")
        return Path(path) if kind == LISTS and colon else self.shortlist

    @property
    def stage(self) -> FirstStage | None:
        """The first stage; None where lists are given instead. UserError for a name that is not known."""
        if self.lists is not None:
            return None
        return stages.parse(stages.default_for(self.features) if self.first_stage is None else self.first_stage)


@dataclass(frozen=True)
class Selection:
    """Rows and their options: what one run measures."""

    methods: tuple[str, ...]  # METHOD or METHOD@FEATURES; the method `all` is every one
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # method or row -> option -> text

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError("--method: no method given", hint="name one or more, or all")


@dataclass(frozen=True)
class Outcome:
    """The finished run and what happened on the way that the user should hear."""

    run: results.Run
    notes: tuple[str, ...]


def seal_shortlist(
    dataset: Dataset, stage: Opened | None, setup: Setup, notes: list[str]
) -> tuple[Shortlist, tuple[str, ...], FirstStageCost]:
    """The sealed candidates, what a table must say of them, and what they cost.

    They are the best of the first stage, or those of a file; `notes` is given what only this call's user should hear.
    """
    possible = len(dataset.gallery) - any(map(dataset.itself, dataset.queries))
    k = setup.top_k
    if k is None:
        k = min(DEFAULT_TOP_K, possible)
        if k < DEFAULT_TOP_K:
            notes.append(f"top-k is {k}: a query of {dataset.name} has no more than {possible} possible candidates")
    if stage is None:
        assert setup.lists is not None
        imported = imported_shortlist(setup.lists, dataset, setup.policy, k, setup.shortlist_order)
        theirs = f"Candidates are those of {setup.lists.name}; graded images it does not list are not retrieved."
        return imported.shortlist, (theirs, *imported.notes), FirstStageCost()
    named = {"name": stage.name, "content": stage.content, "policy": setup.policy, "k": k, "engine": setup.search}
    found, ms = timed(lambda: first_stage(dataset, stage.similarities, **named), torch.device("cpu"))  # type: ignore[arg-type]
    unranked = [dataset.queries[number].id for number in sorted(stage.unranked)]
    said = (
        f"{len(unranked)} of {len(dataset.queries)} queries have no features of the first stage, so their candidates "
        f"are in the gallery's order: {listed(unranked)}."
    )
    cost = FirstStageCost(
        tuple(part.key for part in stage.parts), ms / len(dataset.queries), stage.bytes_per_image / 1024
    )
    return found, (said,) if unranked else (), cost


@dataclass(frozen=True)
class _Asked:
    """The rows that names allow, and why others cannot run."""

    rows: list[Wanted]
    skipped: dict[str, str]  # as asked for -> reason

    def __post_init__(self) -> None:
        _require(self.rows, self.skipped)


@dataclass(frozen=True)
class _Chosen:
    """The rows that can run, and why others cannot."""

    rows: list[Row]
    skipped: dict[str, str]

    def __post_init__(self) -> None:
        _require(self.rows, self.skipped)


def _require(rows: Sequence[object], skipped: Mapping[str, str]) -> None:
    if not rows:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"no requested method can run here:\n{reasons}")


def asked_rows(methods: Sequence[str]) -> list[Asked]:
    """METHOD or METHOD@FEATURES, each once; `all` is every method."""
    rows = map(Asked.parse, dict.fromkeys(methods))
    every = (
        (row,) if row.method != "all" else (Asked(name, row.features) for name in registry.names()) for row in rows
    )
    return list(dict.fromkeys(one for some in every for one in some))


def choose(setup: Setup, selection: Selection, device: torch.device) -> _Asked:
    """The selected rows that can run here, as far as names tell; with `all`, a method that cannot be loaded is a
    reported skip."""
    rows = asked_rows(selection.methods)
    everything = any(Asked.parse(text).method == "all" for text in selection.methods)
    names = dict.fromkeys(row.method for row in rows)
    for name in selection.options:
        if name not in names and name not in map(str, rows):
            method = Asked.parse(name).method
            raise (
                UserError(
                    f"-o {name}.…: {name!r} is not part of this run", hint=f"running: {', '.join(map(str, rows))}"
                )
                if method in registry.names()
                else unknown("method", method, registry.names())
            )
    chosen, skipped = [], {}
    for row in rows:
        try:
            cls = registry.get(row.method)
        except UserError as error:
            if not everything:
                raise
            skipped[str(row)] = str(error)
            continue
        given = {**selection.options.get(row.method, {}), **selection.options.get(str(row), {})}
        reranker = cls(parse_options(cls, given), device)
        found = wanted(row, reranker, setup.features, setup.accept_licence)
        terms = None if isinstance(found, str) else reranker.card().noncommercial
        if terms is not None and terms not in setup.accept_licence:
            found = f"its weights may not be used commercially: run with --accept-licence {terms}"
        if isinstance(found, str):
            skipped[str(row)] = found
        else:
            chosen.append(found)
    return _Asked(chosen, skipped)


def _with_features(asked: _Asked, stores: Stores, dataset: Dataset) -> _Chosen:
    """The rows with their features; what cannot be had leaves out the rows that read it, and no other."""
    rows: dict[str, Row] = {}
    skipped = dict(asked.skipped)
    for one in asked.rows:
        row = opened(one, stores, lambda: (item.key for item in items(dataset)))
        if isinstance(row, str):
            skipped[str(one.asked)] = row
        elif row.name not in rows:
            rows[row.name] = row
        elif row.method.options != rows[row.name].method.options:
            raise UserError(
                f"--method {one.asked}: it is the row {row.name}, which is asked for with other options",
                hint="compare options with sweep --vary, or by one run each",
            )
    return _Chosen(list(rows.values()), skipped)


def _plain(options: Any) -> dict[str, object]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}


def _defaults(options: Any) -> dict[str, object]:
    """Values of the options where none is given; those that a named preset sets are its own, and need no saying."""
    plain, preset = _plain(type(options)()), getattr(options, "preset", None)
    return plain if preset is None else {**_plain(type(options)(preset=preset)), "preset": plain["preset"]}


def _method_identity(row: Row, contents: Mapping[str, str]) -> MethodIdentity:
    """What a row is; `contents` has the sha256 of the features of each part that is read."""
    method, weights = row.method, row.method.weights()
    keys = tuple(parts_of([row]))
    return MethodIdentity(
        options=_plain(method.options),
        weights_sha256=None if weights is None else file_hash(weights),
        source_sha256=provenance.source_hash(type(method)),
        parts=tuple(Part(method=part.method.spec.name, **vars(_method_identity(part, contents))) for part in row.parts),
        features=keys,
        contents=tuple(contents[key] for key in keys),
    )


def costs(row: Row, counts: Mapping[str, np.ndarray]) -> Cost:
    """What a deployed system would store for a row: descriptors an image (mean, most) and KiB an image.

    `counts` has, for each local part, the local descriptors of the gallery's images (n,).
    """
    wholes: dict[str, int] = {}  # a part that several readings share is stored once
    locals_: dict[str, list[Reading]] = {}
    for reading in row.reads:
        name = reading.features.name
        if name.global_ is not None:
            wholes[name.global_.key] = reading.features.bytes_per_image(reading.needs)[0]
        if name.local is not None:
            locals_.setdefault(name.local.key, []).append(reading)
    mean, most, size = 0.0, 0.0, float(sum(wholes.values()))
    for key, readings in locals_.items():
        values, images = np.unique(counts[key], return_counts=True)
        used = np.array([max(reading.used(int(count)) for reading in readings) for count in values])
        descriptors = float((used * images).sum() / images.sum())
        mean, most = mean + descriptors, most + float(used.max())
        needs = frozenset[str]().union(*(reading.needs for reading in readings))
        size += descriptors * readings[0].features.bytes_per_image(needs)[1]
    return Cost(descriptors_mean=mean, descriptors_max=most, kib_per_image=size / 1024)


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
    """All that is needed to score: candidates, and rows with the features that they read."""

    scorer: Scorer
    chosen: Sequence[_Chosen]
    contents: Mapping[str, str]  # part of features -> sha256 over the features of all images
    report: ExtractReport
    said: tuple[str, ...]  # for the tables
    notes: tuple[str, ...]  # for the user of this call
    terms: str | None  # restricted licences of the features
    first_stage: FirstStageCost
    extract_ms: Mapping[str, tuple[float, float]]
    packages: tuple[str, ...]  # modules that the extractors need


def _prepare(setup: Setup, selections: Sequence[Selection], places: Places, progress: Progress | None) -> _Ready:
    """Data set, features and sealed candidates. UserError for whatever cannot be compared."""
    notes: list[str] = []
    SetName.parse(setup.features)  # an unknown one is refused, whatever the rows read
    stage = setup.stage
    searched = () if stage is None else stage.sets
    if setup.whiten is not None and stage is not None and all(name.global_ is None for name in searched):
        raise UserError(
            f"--whiten {setup.whiten}: the first stage {stage.name} has no global descriptors to whiten",
            hint="leave one of them out",
        )
    require_accepted(setup, searched)
    device = resolve_device(setup.device)
    asked = [choose(setup, each, device) for each in selections]
    needed = [name for each in asked for row in each.rows for name in _choices(row)]
    data = load_data(setup, places, [*needed, *searched], device, progress)
    stores = data.stores
    first = [stores.of(name) for name in searched]  # without them there is nothing to compare
    chosen = [_with_features(each, stores, data.dataset) for each in asked]
    report = stores.report()
    notes += report.notes
    dataset, context = data.dataset, data.context
    if setup.skip_unreadable:
        dataset = without_queries(dataset, report.unreadable)
        context = replace(context, dataset=dataset)
    notes += unreadable_images(report)
    rows = [row for each in chosen for row in each.rows]
    sets = [*first, *(features for row in rows for features in row.sets)]
    parts = {part.key: part for features in sets for part in features.name.parts}
    shortlist, of_lists, cost = seal_shortlist(dataset, None if stage is None else stage.open(context), setup, notes)
    times = {key: stores.part(part).times(context.queries) for key, part in parts.items()}
    names = [features.name for features in sets]
    return _Ready(
        scorer=Scorer(dataset, shortlist, device),
        chosen=chosen,
        contents={key: context.content(part) for key, part in parts.items()},
        report=report,
        said=(*dataset.notes, *report.caveats, *of_lists, *(_copies(dataset, sets[0]) if sets else ())),
        notes=tuple(notes),
        terms=", ".join(dict.fromkeys(terms for name in names for terms in name.terms)) or None,
        first_stage=cost,
        extract_ms={key: ms for key, ms in times.items() if ms is not None},
        packages=tuple(dict.fromkeys(package for name in names for package in name.packages)),
    )


@dataclass(frozen=True, eq=False)
class Data:
    """A data set and how to get at its features."""

    dataset: Dataset
    stores: Stores
    context: Context


def load_data(
    setup: Setup, places: Places, sets: Sequence[SetName], device: torch.device, progress: Progress | None
) -> Data:
    """The data set, of which some of `sets` will be read. UserError where no query could be scored."""
    dataset, unreachable = _load(setup, places, progress, [name.imported for name in sets])
    whitening = None
    if setup.whiten is not None:
        other = load_dataset(setup.whiten, places, images=not all(name.imported for name in sets))
        if other.name == dataset.name:
            raise UserError(
                f"--whiten {setup.whiten}: whitening must be learned on another data set than the one tested"
            )
        whitening = partial(_whitening, other, setup, device, places, progress)
    require_positives(dataset)
    stores = Stores(
        dataset, setup.extract, device, places, progress, setup.executor, setup.skip_unreadable, unreachable
    )
    return Data(dataset, stores, Context(dataset, stores, places, whitening, progress))


def _choices(row: Wanted) -> Iterator[SetName]:
    """Every set that a row or a part of it may read."""
    for name in row.choices:
        if (read := name.reading(row.method.needs())) is not None:
            yield read
    for part in row.parts:
        yield from _choices(part)


def _load(
    setup: Setup, places: Places, progress: Progress | None, imported: Sequence[bool]
) -> tuple[Dataset, UserError | None]:
    """The data set, and why its photographs are not here where some of the features do not need them."""
    made = None if progress is None else lambda d, t: progress("generating images", d, t)
    try:
        return load_dataset(setup.dataset, places, made, images=not all(imported)), None
    except UserError as error:
        if all(imported) or not any(imported):
            raise
        try:
            return load_dataset(setup.dataset, places, images=False), error
        except UserError:
            raise error from None


def _measure(
    ready: _Ready, setup: Setup, places: Places, progress: Progress | None, locks: ExitStack, force: bool
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
        _begin(folder, identity, each, ready, together)
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
    return [outcomes[folder] for folder in identities]


def require_accepted(setup: Setup, searched: Iterable[SetName]) -> None:
    """UserError for features that a first stage searches under a restricted licence that was not accepted."""
    for name in searched:
        for terms in name.terms:
            if terms not in setup.accept_licence:
                raise UserError(
                    f"first stage {name.name}: its weights may not be used commercially",
                    hint=f"--accept-licence {terms}, if your use is allowed by it",
                )


def unreadable_images(report: ExtractReport) -> list[str]:
    """A note on images without features, for the user of this call."""
    if not report.unreadable:
        return []
    some = "; ".join(list(report.unreadable.values())[:5])
    return [f"{len(report.unreadable)} images cannot be read and have no features: {some}"]


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


def _identity(chosen: _Chosen, scorer: Scorer, contents: Mapping[str, str], executor: Executor) -> Identity:
    return Identity(
        seal=scorer.shortlist.seal,
        shortlist=scorer.shortlist.header,
        hardware={**provenance.hardware(scorer.device), **executor.hardware()},
        methods={row.name: _method_identity(row, contents) for row in chosen.rows},
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
    ready: _Ready,
    together: Sequence[str],
) -> _Open:
    """Write what is known before anything is scored; `together` are the runs whose methods take turns."""
    cold, scorer = cold_starts(folder), ready.scorer
    record = Begun(
        identity=identity,
        provenance=provenance.record(scorer.device, [row.method for row in chosen.rows], ready.packages),
        together=tuple(together),
        skipped=chosen.skipped,
        defaults={row.name: _defaults(row.method.options) for row in chosen.rows},
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
        journal = Journal(folder / "journal.jsonl")
    jobs = tuple(Job(row, journal) for row in chosen.rows)
    begun = cold is not None or len(journal) > 0
    return _Open(folder, record, jobs, ("resuming an interrupted run",) if begun else ())


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
        starts = {job.row.name: cold[job] for job in run.jobs if job in cold}
        ended = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "failed": failed,
            "others_busy": others,
            "cold": {**run.record.cold, **starts},
            "stored_bytes": _stored_bytes(sets),
            "costs": {row.name: costs(row, counts) for row in done},
            "cards": {row.name: _card(row.method) for row in done},
        }
        write_record(run.folder, RunRecord(**{**vars(run.record), **ended}))
    return results.Run.load(run.folder)


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
    return MethodCard(**vars(method.card()), control=method.spec.control, needs=tuple(sorted(method.needs())))


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A disk that is full or read-only is the user's to mend."""
    with writing(folder, "finished queries are kept; make room and run the same command again"):
        yield


def _whitening(
    other: Dataset, setup: Setup, device: torch.device, places: Places, progress: Progress | None, name: SetName
) -> Whitening:
    store = Stores(other, setup.extract, device, places, progress, setup.executor).of(name)
    every = max(1, len(other.gallery) // LEARNED_ON)
    return learn(store.global_descriptors(list(islice(other.gallery, 0, None, every))), other.name)
