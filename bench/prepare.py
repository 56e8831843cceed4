"""From what is asked for to all that scoring needs: data set, rows with their features, sealed candidates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch

from bench import approximate, registry
from bench.candidates import imported_shortlist
from bench.datasets import Dataset
from bench.datasets.catalogue import load as load_dataset
from bench.device import resolve_device
from bench.errors import UserError, listed, unknown
from bench.features.fill import ExtractReport
from bench.features.items import items, query_key
from bench.features.sets import FeatureSet, Progress, SetName, Stores
from bench.first_stages.descriptors import Descriptors
from bench.first_stages.stage import Context, Opened
from bench.places import Places
from bench.provenance import given_files
from bench.record import Approximate, FirstStageCost
from bench.reranker import parse_options
from bench.rows import Asked, Row, Wanted, opened, wanted
from bench.scores import Scorer
from bench.search import Dense
from bench.setup import Selection, Setup
from bench.shortlist import Order, Shortlist, first_stage, own_images
from bench.timing import timed
from bench.whitening import Whitening, learn

DEFAULT_TOP_K = 100
LEARNED_ON = 100_000  # images at most that whitening is learned from, evenly chosen


@dataclass(frozen=True)
class _Asked:
    """The rows that names allow, and why others cannot run."""

    rows: list[Wanted]
    skipped: dict[str, str]  # as asked for -> reason

    def __post_init__(self) -> None:
        _require(self.rows, self.skipped)


@dataclass(frozen=True)
class Chosen:
    """The rows that can run, and why others cannot."""

    rows: list[Row]
    skipped: dict[str, str]

    def __post_init__(self) -> None:
        _require(self.rows, self.skipped)


def _require(rows: Sequence[object], skipped: Mapping[str, str]) -> None:
    if not rows:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"no requested method can run here:\n{reasons}")


@dataclass(frozen=True, eq=False)
class Ready:
    """All that is needed to score: candidates, and rows with the features that they read."""

    scorer: Scorer
    chosen: Sequence[Chosen]
    contents: Mapping[str, str]  # part of features -> sha256 over the features of all images
    report: ExtractReport
    said: tuple[str, ...]  # for the tables
    notes: tuple[str, ...]  # for the user of this call
    terms: str | None  # restricted licences of the features
    first_stage: FirstStageCost
    extract_ms: Mapping[str, tuple[float, float]]
    packages: tuple[str, ...]  # modules that the extractors need


def prepare(setup: Setup, selections: Sequence[Selection], places: Places, progress: Progress | None) -> Ready:
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
    if setup.search != "blocks" and stage is not None and not isinstance(stage, Descriptors):
        raise UserError(
            f"--search {setup.search}: it searches global descriptors alone, and the first stage is {stage.name}",
            hint="--search blocks, or a first stage of global descriptors: --first-stage gem-lite0",
        )
    if setup.lists is not None and not setup.lists.exists():  # now, not after the data set was made
        raise UserError(f"{setup.lists}: cannot be read (No such file or directory)")
    require_accepted(setup, searched)
    device = resolve_device(setup.device)
    asked = [choose(setup, each, device) for each in selections]
    needed = [name for each in asked for row in each.rows for name in _choices(row)]
    data = load_data(setup, places, [*needed, *searched], device, progress)
    stores = data.stores
    first = [stores.of(name) for name in searched]  # without them there is nothing to compare
    chosen = [_with_features(each, stores, data.dataset) for each in asked]
    stores.settled()
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
    opened_stage = None if stage is None else stage.open(context)
    shortlist, of_lists, cost = seal_shortlist(dataset, opened_stage, setup, places, notes, progress)
    times = {key: stores.part(part).times(context.queries) for key, part in parts.items()}
    names = [features.name for features in sets]
    return Ready(
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


def _whitening(
    other: Dataset, setup: Setup, device: torch.device, places: Places, progress: Progress | None, name: SetName
) -> Whitening:
    store = Stores(other, setup.extract, device, places, progress, setup.executor).of(name)
    every = max(1, len(other.gallery) // LEARNED_ON)
    return learn(store.global_descriptors(list(islice(other.gallery, 0, None, every))), other.name)


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
        found = wanted(row, reranker, setup.features, setup.agreed)
        terms = None if isinstance(found, str) else reranker.card().noncommercial
        if terms is not None and terms not in setup.accept_licence:
            found = f"its weights may not be used commercially: run with --accept-licence {terms}"
        if isinstance(found, str):
            skipped[str(row)] = found
        else:
            given_files(reranker)  # now, not after images were extracted
            chosen.append(found)
    return _Asked(chosen, skipped)


def _choices(row: Wanted) -> Iterator[SetName]:
    """Every set that a row or a part of it may read."""
    for name in row.choices:
        if (read := name.reading(row.method.needs())) is not None:
            yield read
    for part in row.parts:
        yield from _choices(part)


def _with_features(asked: _Asked, stores: Stores, dataset: Dataset) -> Chosen:
    """The rows with their features; what cannot be had leaves out the rows that read it, and no other."""
    rows: dict[str, Row] = {}
    skipped = dict(asked.skipped)
    for one in asked.rows:
        row = opened(one, stores, lambda: items(dataset).keys())
        if isinstance(row, str):
            skipped[str(one.asked)] = row
        elif row.name not in rows:
            rows[row.name] = row
        elif row.method.options != rows[row.name].method.options:
            raise UserError(
                f"--method {one.asked}: it is the row {row.name}, which is asked for with other options",
                hint="compare options with sweep --vary, or by one run each",
            )
    return Chosen(list(rows.values()), skipped)


def seal_shortlist(
    dataset: Dataset,
    stage: Opened | None,
    setup: Setup,
    places: Places,
    notes: list[str],
    progress: Progress | None = None,
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
    told = None if progress is None else partial(progress, "searching")
    index, build_ms = _index(stage, setup, places, progress)
    found, ms = timed(
        lambda: first_stage(
            dataset,
            stage.similarities,
            name=stage.name if index is None else f"{stage.name}{approximate.BY}{index.kind.name}",
            content=stage.content,
            policy=setup.policy,
            k=k,
            engine=setup.search,
            find=None if index is None else index.search,
            progress=told,
        ),
        torch.device("cpu"),
    )
    unranked = [dataset.queries[number].id for number in sorted(stage.unranked)]
    said = (
        f"{len(unranked)} of {len(dataset.queries)} queries have no features of the first stage, so their candidates "
        f"are in the gallery's order: {listed(unranked)}."
    )
    cost = FirstStageCost(
        tuple(part.key for part in stage.parts), ms / len(dataset.queries), stage.bytes_per_image / 1024
    )
    notes_of_lists = (said,) if unranked else ()
    if index is None:
        return found, notes_of_lists, cost
    assert isinstance(stage.similarities, Dense)
    recall = index.recall(stage.similarities, k, own_images(dataset, Order.of(dataset.gallery)))
    missed = (
        f"Candidates are of an approximate search, which finds {100 * recall.share:.1f} % of the {recall.k} images of "
        f"the exact lists, mean of {recall.queries} queries; graded images that it does not list are not retrieved."
    )
    cost = replace(
        cost,
        kib_per_image=(stage.bytes_per_image + index.bytes_per_image) / 1024,
        approximate=Approximate(index.kind.name, recall, build_ms),
    )
    return found, (missed, *notes_of_lists), cost


def _index(
    stage: Opened, setup: Setup, places: Places, progress: Progress | None
) -> tuple[approximate.Index | None, float | None]:
    """The index that the setup searches by, and the ms that it took to build; None where the search is exact.

    UserError for a first stage that is not one of global descriptors, and as `approximate.opened`.
    """
    kind = setup.index
    if kind is None:
        return None, None
    source = stage.similarities
    if not isinstance(source, Dense):
        raise UserError(
            f"--search {setup.search}: it searches global descriptors alone, and the first stage is {stage.name}",
            hint="--search blocks, or a first stage of global descriptors: --first-stage gem-lite0",
        )
    told = None if progress is None else partial(progress, "indexing")
    identity = f"{stage.name} {stage.content}"
    index, ms = timed(
        lambda: approximate.opened(kind, source, places.cache / approximate.FOLDER, identity, told),
        torch.device("cpu"),
    )
    return index, ms if index.built else None


def require_accepted(setup: Setup, searched: Iterable[SetName]) -> None:
    """UserError for features that a first stage searches under a condition that was not agreed to."""
    for name in searched:
        for condition in name.conditions:
            if condition.option not in setup.agreed:
                raise UserError(
                    f"first stage {name.name}: its {condition.why}",
                    hint=f"{condition.option}, {condition.when}",
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
