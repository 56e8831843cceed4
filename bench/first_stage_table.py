"""First stages beside each other: what their lists hold, and what they cost; no reranker runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bench.datasets import Dataset
from bench.device import resolve_device
from bench.errors import NoRoom, UserError
from bench.evaluation import CEILING, FIRST_STAGE, Rankings, evaluate, graded, main_difficulty
from bench.features.sets import Progress
from bench.first_stages import names
from bench.metrics import MEASURES, primary
from bench.places import Places
from bench.prepare import Data, load_data, require_accepted, seal_shortlist, unreadable_images, without_queries
from bench.record import FirstStageCost
from bench.report.columns import Column, per_query
from bench.report.tables import Table
from bench.results import TABLES
from bench.setup import Setup
from bench.shortlist import Shortlist


@dataclass(frozen=True, eq=False)
class Measured:
    """The sealed lists of a first stage, what a table must say of them, and what they cost."""

    shortlist: Shortlist
    said: tuple[str, ...]
    cost: FirstStageCost
    extract_ms: float | None  # median, to decode a query and extract all that is read of it; None: not known


@dataclass(frozen=True, eq=False)
class Compared:
    """The table, and what the user of this call should hear besides."""

    table: Table
    notes: tuple[str, ...]


def first_stages(setup: Setup, texts: Sequence[str], places: Places, progress: Progress | None = None) -> Compared:
    """A row for each first stage, best first; a note where one has no features. UserError where none is left."""
    wanted = [replace(setup, first_stage=text) for text in dict.fromkeys(texts or names.COMPARED)]
    searched = [one.stage for one in wanted]  # an unknown name is refused before any work
    sets = [features for stage in searched if stage is not None for features in stage.sets]
    data = load_data(setup, places, sets, resolve_device(setup.device), progress)
    rows: dict[str, dict[str, float]] = {}
    reads: dict[str, str] = {}
    said: dict[str, None] = {}
    missing: list[tuple[str | None, UserError]] = []
    notes: list[str] = []
    last = None
    ready = []
    for one, stage in zip(wanted, searched, strict=True):
        try:
            require_accepted(setup, () if stage is None else stage.sets)
            for features in () if stage is None else stage.sets:
                data.stores.of(features)
        except NoRoom:
            raise
        except UserError as error:
            missing.append((one.first_stage, error))
        else:
            ready.append((one, stage))
    report = data.stores.report()
    if setup.skip_unreadable:
        data = _without_queries(data, report.unreadable)
    for one, stage in ready:
        try:
            opened = None if stage is None else stage.open(data.context)
            shortlist, of_lists, cost = seal_shortlist(data.dataset, opened, one, places, notes, progress)
        except NoRoom:
            raise
        except UserError as error:
            missing.append((one.first_stage, error))
            continue
        times = [] if opened is None else [data.stores.part(part).times(data.context.queries) for part in opened.parts]
        known = [ms for ms in times if ms is not None]
        extract = None
        if times and len(known) == len(times):
            extract = max(decode for decode, _ in known) + sum(ms for _, ms in known)
        last = Measured(shortlist, of_lists, cost, extract)
        name = shortlist.header.first_stage
        rows[name], reads[name] = _row(data.dataset, last), "+".join(cost.features)
        said |= dict.fromkeys(of_lists)
    if last is None:
        raise missing[0][1]
    said |= dict.fromkeys(f"{text} cannot be compared: {error.line}" for text, error in missing)
    said |= dict.fromkeys(report.caveats)
    terms = dict.fromkeys(term for _, stage in ready if stage is not None for name in stage.sets for term in name.terms)
    said |= dict.fromkeys(f"Features: NOT FOR COMMERCIAL USE ({term})." for term in terms)
    columns = _columns(data.dataset, last.shortlist.header.k)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[column.name for column in columns])
    main = f"{primary(data.dataset.protocol).name} {main_difficulty(data.dataset)}"
    order = table.index[np.argsort(-MEASURES[main.split(" ")[0]].better * table[main].to_numpy(), kind="stable")]
    header = last.shortlist.header
    found = Table(
        title=f"{header.dataset} ({header.image_set}) · {len(data.dataset.queries)} queries · gallery "
        f"{header.gallery_size} · top-{header.k} · policy {header.policy}",
        columns=columns,
        rows=table.loc[order],
        features={name: reads[name] for name in order},
        controls=frozenset(),
        notes=(_of_default(rows), *data.dataset.notes, *said),
        about={
            "dataset": header.dataset,
            "image_set": header.image_set,
            "policy": header.policy,
            "k": header.k,
        },
        measure=main.split(" ")[0],
        first_stage=float("nan"),
        ceiling=float("nan"),
        of="first stage",
    )
    return Compared(found, tuple(dict.fromkeys((*notes, *report.notes, *unreadable_images(report)))))


def _without_queries(data: Data, unreadable: Mapping[str, str]) -> Data:
    dataset = without_queries(data.dataset, unreadable)
    return replace(data, dataset=dataset, context=replace(data.context, dataset=dataset))


def _of_default(rows: dict[str, dict[str, float]]) -> str:
    default = names.parse(names.DEFAULT).name
    here = "" if default in rows else ", which is not among these"
    return f"`run` takes {default} where nothing else is asked for{here}."


def _columns(dataset: Dataset, k: int) -> tuple[Column, ...]:
    measure, main = primary(dataset.protocol), main_difficulty(dataset)
    return (
        *(
            Column(f"{measure.name} {name}", f"{measure.meaning}, {name}, percent", measure.digits, measure.better)
            for name in dataset.difficulties
        ),
        Column(f"recall@{k} {main}", f"share of a query's positives that are in its list, {main}, percent", 1, 1),
        *(
            Column(
                f"ceiling {name}",
                f"{measure.name} of the best order of these lists, {name}, percent",
                measure.digits,
                measure.better,
            )
            for name in dataset.difficulties
        ),
        Column("KiB/image", "what the first stage keeps of a gallery image", 1, -1),
        Column("search ms", "wall ms of the search, of all queries at once, over their number", 1, -1),
        Column("extract ms", "median ms to decode a query and extract what the first stage reads; one thread", 0, -1),
    )


def _row(dataset: Dataset, measured: Measured) -> dict[str, float]:
    measure, shortlist = primary(dataset.protocol), measured.shortlist
    empty = pd.DataFrame(columns=TABLES["scores"].names)
    metrics = evaluate(Rankings(empty, shortlist, dataset), [])

    def mean(of: str, difficulty: str) -> float:
        return 100 * float(per_query(metrics, of, difficulty, measure.name).mean())

    main = main_difficulty(dataset)
    cost, nan = measured.cost, float("nan")
    return {
        **{f"{measure.name} {name}": mean(FIRST_STAGE, name) for name in dataset.difficulties},
        f"recall@{shortlist.header.k} {main}": 100 * recall(shortlist, dataset, main),
        **{f"ceiling {name}": mean(CEILING, name) for name in dataset.difficulties},
        "KiB/image": nan if cost.kib_per_image is None else cost.kib_per_image,
        "search ms": nan if cost.search_ms is None else cost.search_ms,
        "extract ms": nan if measured.extract_ms is None else measured.extract_ms,
    }


def recall(shortlist: Shortlist, dataset: Dataset, difficulty: str) -> float:
    """Mean over queries of the share of their positives that are candidates; queries without any are left out."""
    name, shares = shortlist.list_for(difficulty), []
    for query in range(len(shortlist.queries)):
        positives, _ = graded(shortlist, dataset, query, difficulty)
        if len(positives):
            shares.append(np.isin(positives, shortlist.candidates(name, query)).mean())
    return float(np.mean(shares)) if shares else float("nan")
