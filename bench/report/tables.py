"""Comparison tables: one per seal and machine, a row per method."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.datasets import Dataset
from bench.errors import UserError, listed
from bench.evaluation import CEILING, FIRST_STAGE, graded, main_difficulty
from bench.metrics import MEASURES, Measure, measures, primary
from bench.record import MethodCard
from bench.report.latex import comment, escaped
from bench.report.seeds import Seeds, members, metrics_of, pooled, spread
from bench.report.statistics import Comparison, groups_of
from bench.report.verdict import SURE, answer, clustered, verdict
from bench.results import Run

DISTURBED = 0.15  # share of the cores that other programs may keep busy before a table says so


@dataclass(frozen=True)
class Column:
    """One column of the table: its unit, and which direction is better (+1, -1 or 0)."""

    name: str
    meaning: str
    digits: int
    better: int = 0
    signed: bool = False  # shown with its sign
    least: float | None = None  # what is smaller is shown as smaller than this


# what a row has over the first stage, by the main measure
GAINS = (
    Column("gain", "the main measure over the first stage, points", 1, 1, signed=True),
    Column("gain low", "lower end of its 95 % bootstrap interval over queries", 1, signed=True),
    Column("gain high", "upper end of the same", 1, signed=True),
    Column("p", "sign-flip test of the gain, corrected for the number of methods (Holm)", 3, least=0.001),
    Column("better", "queries on which it is better than the first stage", 0),
    Column("equal", "queries on which it is as good", 0),
    Column("worse", "queries on which it is worse", 0),
)


SPREAD = "sd seeds"  # the column of rows with several seeds


@dataclass(frozen=True, eq=False)
class Table:
    """The comparison of the methods of one seal, measured on one machine."""

    title: str
    columns: tuple[Column, ...]
    rows: pd.DataFrame  # index: row; one float column per Column, NaN where there is nothing to say
    features: Mapping[str, str]  # row -> what it reads; empty where it reads nothing
    controls: frozenset[str]
    notes: tuple[str, ...]
    about: Mapping[str, object]  # seal, policy, k, … for machine readers
    measure: str  # the primary one
    first_stage: float  # the primary measure of the main difficulty, percent
    ceiling: float  # the most that reordering these lists can reach
    of: str = "method"  # what a row is
    answer: str = ""  # what it concludes, in a sentence or two
    cards: tuple[str, ...] = ()  # where the contenders come from: paper, licence, training data


def table_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that may share a table: same seal, machine and number of threads. Newest group last."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = run.seal + json.dumps(run.record.identity.hardware, sort_keys=True)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def compare(runs: Sequence[Run], blend: Blend = Blend(), show: Collection[str] = ()) -> Table:
    """The table of one group of runs; of runs of one row with the same options and features, the newest stands.

    Runs that differ in a seed alone are one row. `show` names options that the rows say even at their defaults, and
    seeds that stay rows of their own. Raises UserError if the runs do not share one seal.
    """
    if len({run.seal for run in runs}) != 1:
        raise UserError("runs of different shortlists cannot stand in one table", hint="one table per seal")
    latest = newest_rows(runs, show)
    dataset, header = runs[-1].dataset, runs[-1].shortlist.header
    main = _Quality(primary(dataset.protocol), main_difficulty(dataset))
    shown = _shown(dataset, main, _one_positive(runs[-1], main.difficulty))
    columns = _columns(shown, main, any(isinstance(run, Seeds) for run, _ in latest.values()))
    metrics = metrics_of([runs[-1], *(run for run, _ in latest.values())], blend)
    anyone = metrics[runs[-1]]  # first stage and ceiling are the same in every run of one seal
    floor, top = (main.mean(anyone, name) for name in (FIRST_STAGE, CEILING))
    values = {name: _row(run, method, metrics, shown, main, (floor, top)) for name, (run, method) in latest.items()}
    rows = pd.DataFrame.from_dict(values, orient="index", columns=[c.name for c in columns])
    cards = {name: run.record.cards[method] for name, (run, method) in latest.items()}
    controls = frozenset(name for name in latest if cards[name].control)
    better = main.measure.better
    found = verdict(
        {
            name: [main.values(metrics[one], row) for one in members(run)]
            for name, (run, row) in latest.items()
            if name not in controls
        },
        main.values(anyone, FIRST_STAGE),
        groups_of(dataset.grades, [query.id for query in dataset.queries]),
        better,
    )
    if found is not None:
        gains = {name: _gain(gain, found.corrected[name]) for name, gain in found.gains.items()}
        rows.update(pd.DataFrame.from_dict(gains, orient="index", columns=[column.name for column in GAINS]))
    order = sorted(rows.index, key=lambda name: (name not in controls, better * rows.loc[name, main.name]))
    title = (
        f"{header.dataset} ({header.image_set}) · {len(dataset.queries)} queries · gallery {header.gallery_size} · "
        f"first stage {searched(runs[-1])} · "
        f"top-{header.k} · policy {header.policy} · seal {runs[-1].seal[:8]}"
    )
    return Table(
        title,
        columns,
        rows.loc[order],
        {name: _reads(*latest[name]) for name in order},
        controls,
        (
            *([] if found is None or (note := clustered(found)) is None else [note]),
            *_notes(latest, cards, controls, metrics, main, blend, (floor, top)),
        ),
        {
            "seal": runs[-1].seal,
            "dataset": header.dataset,
            "image_set": header.image_set,
            "first_stage": header.first_stage,
            "policy": header.policy,
            "k": header.k,
            "query_crop": header.query_crop,
            "blend": str(blend),
            "measure": main.name,
            "hardware": runs[-1].record.identity.hardware,
        },
        main.measure.name,
        floor,
        top,
        answer="" if found is None else answer(found, rows, main.name, top),
        cards=_cards(latest, cards, controls),
    )


def searched(run: Run) -> str:
    """The first stage of a run, and how much of the exact lists it finds where its search is approximate."""
    found = run.record.first_stage.approximate
    recall = "" if found is None else f" (recall {100 * found.recall.share:.1f} %)"
    return run.shortlist.header.first_stage + recall


def label(run: Run, method: str, show: Collection[str] = ()) -> str:
    """The row's name: the method, with the options that are not the defaults, those in `show`, and how many seeds.

    Files of weights that were trained with several seeds are named by what their names share.
    """
    options = dict(run.record.identity.methods[method].options)
    defaults = run.record.defaults.get(method, {})
    seeds = [f"{len(run.runs)} seeds"] if isinstance(run, Seeds) else []
    drawn = run.record.seeds.get(method, ()) if seeds else ()
    options |= {name: alike(files) for name, files in run.files.items()} if isinstance(run, Seeds) else {}
    changed = [
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in options.items()
        if (key in show or value != defaults.get(key)) and key not in drawn
    ]
    return " ".join([method, *changed, *seeds])


def alike(names: Sequence[str]) -> str:
    """What texts begin and end with, and * for what differs.

    >>> alike(["out/a0.safetensors", "out/a1.safetensors"])
    'out/a*.safetensors'
    """

    def begin(texts: Sequence[str]) -> str:
        columns = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
        return "".join(letters[0] for letters in columns)

    first = begin(names)
    last = begin([name[len(first) :][::-1] for name in names])[::-1]
    return first if all(name == first for name in names) else f"{first}*{last}"


def newest_rows(runs: Sequence[Run], show: Collection[str] = ()) -> dict[str, tuple[Run, str]]:
    """Row as a table has it -> the newest run of it, or its runs with several seeds, and its name there.

    Rows whose names and options are equal while their features are not say what tells them apart. So do rows of as many
    seeds, where the code or the training of some was another: their seeds, else their files of weights.
    """
    found: dict[tuple[str, tuple[str, ...]], tuple[Run, str]] = {}
    for run in runs:
        for row in run.record.costs:
            found[label(run, row, show), run.record.identity.methods[row].contents] = (run, row)
    rows = [
        (label(run, row, show), run.record.identity.methods[row].contents, (run, row))
        for run, row in pooled(found.values(), show)
    ]
    contents_of: dict[str, set[tuple[str, ...]]] = {}
    for name, contents, _ in rows:
        contents_of.setdefault(name, set()).add(contents)
    marked = [
        name if len(contents_of[name]) == 1 else f"{name} [features {'+'.join(sha[:8] for sha in contents)}]"
        for name, contents, _ in rows
    ]
    places = [place for *_, place in rows]
    return dict(zip(_told_apart(marked, [run for run, _ in places]), places, strict=True))


def _told_apart(names: Sequence[str], runs: Sequence[Run]) -> Sequence[str]:
    """The names of rows, where those of several seeds say more as long as others have the same."""
    for said in (lambda seeds: seeds.said, lambda seeds: ", ".join(map(str, chain(*seeds.files.values())))):
        often = Counter(names)
        names = [
            f"{name} [{said(run)}]" if isinstance(run, Seeds) and often[name] > 1 else name
            for name, run in zip(names, runs, strict=True)
        ]
    return names


def _reads(run: Run, row: str) -> str:
    return "+".join(run.record.identity.methods[row].features)


def _gain(gain: Comparison, p: float) -> list[float]:
    """The values of GAINS."""
    points = (gain.difference, gain.interval.low, gain.interval.high)
    return [*(100 * value for value in points), p, gain.wins, gain.ties, gain.losses]


@dataclass(frozen=True)
class _Quality:
    """A measure at a difficulty; its column has the mean over queries, in percent."""

    measure: Measure
    difficulty: str

    @property
    def name(self) -> str:
        return f"{self.measure.name} {self.difficulty}"

    @property
    def column(self) -> Column:
        meaning = f"{self.measure.meaning}, {self.difficulty}, percent"
        return Column(self.name, meaning, self.measure.digits, self.measure.better)

    def values(self, metrics: pd.DataFrame, method: str) -> pd.Series:
        """Of a method by query."""
        return per_query(metrics, method, self.difficulty, self.measure.name)

    def mean(self, metrics: pd.DataFrame, method: str) -> float:
        """Of a method, in percent."""
        return 100 * self.values(metrics, method).mean()


def _shown(dataset: Dataset, main: _Quality, one_positive: bool) -> tuple[_Quality, ...]:
    """The primary measure at every difficulty, and others at the main one.

    Where every query has one positive, the first few places decide: R@1, R@5 and R@10 of the measures of recall.
    """
    others = [MEASURES[name] for name in measures(dataset.protocol) if name != main.measure.name]
    early = ("R@1", "R@5", "R@10")
    if one_positive and set(early) <= set(measures(dataset.protocol)):
        chosen = [measure for measure in others if not measure.name.startswith("R@") or measure.name in early]
    else:
        chosen = [measure for measure in others if measure.shown]
    return (
        *(_Quality(main.measure, difficulty) for difficulty in dataset.difficulties),
        *(_Quality(measure, main.difficulty) for measure in chosen),
    )


def _one_positive(run: Run, difficulty: str) -> bool:
    """Whether no query has more than one positive, and some have one."""
    counts = [len(graded(run.shortlist, run.dataset, n, difficulty)[0]) for n in range(len(run.shortlist.queries))]
    return max(counts, default=0) == 1


def worth_saying(table: Table) -> tuple[Column, ...]:
    """The columns that say something: not without any value, and none of quality that repeats one before it."""
    kept: list[Column] = []
    quality = {column.name for column in table.columns if column.meaning.endswith("percent")}
    for column in table.columns:
        values = table.rows[column.name]
        repeated = (
            column.name in quality
            and len(values) > 1
            and any(values.equals(table.rows[other.name]) for other in kept if other.name in quality)
        )
        if values.notna().any() and not repeated:
            kept.append(column)
    return tuple(kept)


def _columns(shown: Sequence[_Quality], main: _Quality, seeds: bool) -> tuple[Column, ...]:
    headroom = f"headroom {main.difficulty}"
    return (
        *(quality.column for quality in shown),
        Column(headroom, "share of the gap between first stage and ceiling that is closed, percent", 0, 1),
        *GAINS,
        *((Column(SPREAD, "standard deviation of the main measure over seeds, points", 2),) if seeds else ()),
        Column("ms/query p50", "median wall ms to load, transfer and score one query's candidates", 1, -1),
        Column("extract ms", "median ms to decode a query and extract what is read of it, on one thread", 0, -1),
        Column("total ms", "extract ms, the first stage's search and ms/query p50: all that a new query costs", 0, -1),
        Column("ms/query p95", "95th percentile of the same", 1, -1),
        Column("ms/pair", "median wall ms of scoring alone, per candidate", 2, -1),
        Column("desc mean", "local descriptors used per gallery image, mean", 0, -1),
        Column("desc max", "local descriptors used per gallery image, most", 0, -1),
        Column("KiB/image", "stored bytes of what the method reads of one gallery image", 1, -1),
        Column(
            "peak MiB", "memory on top of the process's from loading the method to the end of its first query", 0, -1
        ),
    )


def per_query(metrics: pd.DataFrame, method: str, difficulty: str, measure: str) -> pd.Series:
    """Values by query; NaN for queries without positives."""
    kept = metrics[(metrics.method == method) & (metrics.difficulty == difficulty) & (metrics.measure == measure)]
    return kept.set_index("query")["value"]


def _row(
    run: Run,
    method: str,
    metrics: Mapping[Run, pd.DataFrame],
    shown: Sequence[_Quality],
    main: _Quality,
    bounds: tuple[float, float],
) -> dict[str, float]:
    """One method's values by column name; `bounds` are first stage and ceiling of `main` in percent."""
    row = {quality.name: quality.mean(metrics[run], method) for quality in shown}
    floor, top = bounds
    gap = main.measure.better * (top - floor)
    row[f"headroom {main.difficulty}"] = 100 * (row[main.name] - floor) / (top - floor) if gap > 0 else float("nan")
    ledger = run.ledger[run.ledger.method == method]
    total = ledger.load_ms + ledger.transfer_ms + ledger.score_ms
    cost, cold = run.record.costs[method], run.record.cold.get(method)
    return row | {
        **dict.fromkeys((column.name for column in GAINS), float("nan")),
        SPREAD: spread(main.mean(metrics[one], method) for one in members(run)),
        "ms/query p50": total.median(),
        "ms/query p95": float(np.percentile(total, 95)),
        **_new_query(run, method, float(total.median())),
        "ms/pair": (ledger.score_ms / ledger.pairs).median(),
        "desc mean": cost.descriptors_mean,
        "desc max": cost.descriptors_max,
        "KiB/image": cost.kib_per_image,
        "peak MiB": float("nan") if cold is None or cold.peak_mib is None else cold.peak_mib,
    }


def _new_query(run: Run, row: str, reranking: float) -> dict[str, float]:
    """Ms of extracting all that is read of a query, each part once, and of all that a new query costs.

    NaN where a part was not extracted here, or the first stage is a list.
    """
    first, nan = run.record.first_stage, float("nan")
    keys = dict.fromkeys([*first.features, *run.record.identity.methods[row].features])
    times = [run.record.extract_ms.get(key, (nan, nan)) for key in keys]
    if first.search_ms is None:
        return {"extract ms": nan, "total ms": nan}
    extract = float(np.max([decode for decode, _ in times], initial=0)) + sum(ms for _, ms in times)
    return {"extract ms": extract, "total ms": extract + first.search_ms + reranking}


def _notes(
    latest: Mapping[str, tuple[Run, str]],
    cards: Mapping[str, MethodCard],
    controls: frozenset[str],
    metrics: Mapping[Run, pd.DataFrame],
    main: _Quality,
    blend: Blend,
    bounds: tuple[float, float],
) -> tuple[str, ...]:
    runs = list(dict.fromkeys(one for run, _ in latest.values() for one in members(run)))
    floor, top = bounds
    machine = runs[-1].record.identity.hardware
    anyone = metrics[runs[-1]]
    scorable = main.values(anyone, FIRST_STAGE).notna().any()  # an older run may have no positives
    notes = [
        f"First stage {floor:.1f}, ceiling of these lists {top:.1f} ({main.name}, percent). "
        "Controls are marked *: they are floors and ceilings, not contenders."
        if scorable
        else f"No query has a positive at {main.difficulty}, so no method can be scored and nothing compared."
    ]
    contenders = [name for name in latest if name not in controls and scorable]
    notes += _nothing_to_gain(runs[-1], bounds)
    notes += _without_value(runs[-1].dataset, anyone, main.measure.name)
    notes += _all_tied(latest, contenders)
    notes += _over_seeds(latest, metrics, main) if scorable else []
    notes.append(
        f"Measured on {_machine(machine)}; "
        "ms/query is of cached features; extract ms is of one thread, measured when the features were made."
        + ("" if _interleaved(runs) else " Rows come from several runs: their times were not interleaved.")
    )
    notes += _indexed(latest)
    notes += _disturbed(runs)
    if blend != Blend():
        notes.append(f"Order by blend {blend}, replayed from stored scores.")
    for run in runs:
        notes += [
            f"{method} did not run: {reason}"
            for method, reason in run.record.skipped.items()
            if method not in {m for _, m in latest.values()}
        ]
        if terms := run.record.features_noncommercial:
            notes.append(f"Features: NOT FOR COMMERCIAL USE ({terms}).")
        notes += [f"{method} failed: {reason}" for method, reason in run.record.failed.items()]
        notes += run.record.notes
        if run.record.unreadable:
            notes.append(f"{len(run.record.unreadable)} images could not be read and have no features.")
    sources = {name: run.record.identity.methods[method].source_sha256 for name, (run, method) in latest.items()}
    newest = {
        method: sources[name] for name, (_, method) in sorted(latest.items(), key=lambda row: row[1][0].record.finished)
    }
    if older := [name for name, (_, method) in latest.items() if sources[name] != newest[method]]:
        notes.append(f"Measured with earlier code than other rows of the same method: {', '.join(older)}.")
    restricted = {latest[name][1]: card.noncommercial for name, card in cards.items() if card.noncommercial}
    notes += [f"{method}: NOT FOR COMMERCIAL USE ({licence})." for method, licence in restricted.items()]
    return tuple(dict.fromkeys(notes))


def _machine(hardware: Mapping[str, Any]) -> str:
    threads = hardware["threads"]
    return f"{hardware['cpu']}, {threads} thread{'s' * (threads != 1)}, {hardware['gpu'] or 'no GPU'}"


def _indexed(latest: Mapping[str, tuple[Run, str]]) -> list[str]:
    """A note for each row that reads what it keeps of gallery images, which is in none of its times."""
    costs = {name: run.record.indexed[row] for name, (run, row) in latest.items() if row in run.record.indexed}
    return [
        f"{name}: its times are of indexed images; to index one took {cost.ms:.1f} ms, and {cost.kib:.1f} KiB are kept."
        for name, cost in costs.items()
    ]


def _disturbed(runs: Sequence[Run]) -> list[str]:
    """A note where other programs took enough of the machine to make times longer."""
    found = [(run.record.others_busy or 0.0, run.record.identity.hardware.get("cores")) for run in runs]
    busy, cores = max(found, key=lambda pair: pair[0])
    if not isinstance(cores, int) or busy < DISTURBED * cores:
        return []
    return [
        f"Other programs kept {busy:.1f} of {cores} cores busy while this was measured, so times are longer than on a "
        "quiet machine."
    ]


def _cards(
    latest: Mapping[str, tuple[Run, str]], cards: Mapping[str, MethodCard], controls: frozenset[str]
) -> tuple[str, ...]:
    """What the contenders' cards say, once for all rows of a sweep."""
    said: dict[tuple[str, str], list[str]] = {}  # method, what its card says -> rows
    for name, card in cards.items():
        if name not in controls:
            trained = f"; trained on {card.trained_on}" if card.trained_on else ""
            said.setdefault((latest[name][1], f"{card.paper}; {card.licence}{trained}"), []).append(name)
    return tuple(f"{rows[0] if len(rows) == 1 else method}: {text}" for (method, text), rows in said.items())


def _nothing_to_gain(run: Run, bounds: tuple[float, float]) -> list[str]:
    """Why no reordering of the candidates could change a row, where that is so."""
    floor, top = bounds
    values = np.concatenate([run.shortlist.similarities[name] for name in run.shortlist.lists])
    tied = int((values == values[:, :1]).all(axis=1).sum()) if values.shape[1] > 1 else 0
    notes = []
    if run.shortlist.header.k == 1:
        notes.append("Every list has one candidate, so no method can change its order.")
    elif floor == top:
        notes.append("The first stage already is at the ceiling of these lists, so no method can gain.")
    if tied:
        notes.append(
            f"The first stage gave all candidates of {tied} of {len(values)} lists the same similarity; "
            "their order is the gallery's."
        )
    return notes


def _without_value(dataset: Dataset, metrics: pd.DataFrame, measure: str) -> list[str]:
    """Which queries have no positive at a difficulty; they are in no mean of it."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for difficulty in dataset.difficulties:
        values = per_query(metrics, FIRST_STAGE, difficulty, measure)
        lacking.setdefault(tuple(map(str, values.index[values.isna()])), []).append(difficulty)
    total = len(dataset.queries)
    return [
        f"No query has a positive at {' and '.join(difficulties)}: there are no values."
        if len(out) == total
        else f"Without a positive at {' and '.join(difficulties)}, and left out of the means there: "
        f"{len(out)} of {total} queries ({listed(out)})."
        for out, difficulties in lacking.items()
        if out
    ]


def _all_tied(latest: Mapping[str, tuple[Run, str]], contenders: Sequence[str]) -> list[str]:
    """Which methods told no candidate from another."""
    notes = []
    for name in contenders:
        run, method = latest[name]
        if run.shortlist.header.k > 1 and all(_without_order(one, method) for one in members(run)):
            notes.append(f"{name} gave all candidates of every query the same score: its row is the first stage's.")
    return notes


def _without_order(run: Run, method: str) -> bool:
    """Whether it gave all candidates of every query one score."""
    scores = run.scores[run.scores["method"] == method].groupby(["list", "query"])["score"]
    return bool((scores.max() == scores.min()).all())


def _over_seeds(
    latest: Mapping[str, tuple[Run, str]], metrics: Mapping[Run, pd.DataFrame], main: _Quality
) -> list[str]:
    """What stands in the rows of several seeds."""
    notes = []
    for name, (run, method) in latest.items():
        if isinstance(run, Seeds):
            values = [main.mean(metrics[one], method) for one in run.runs]
            notes.append(
                f"{name} (seeds {run.said}): {main.name} of each {', '.join(f'{value:.2f}' for value in values)}; "
                f"standard deviation {spread(values):.2f}."
            )
    if notes:
        notes.append(
            "A row of several seeds has the mean over them. Its interval is over queries and seeds, its p of each "
            "query's mean, and its ms of all samples."
        )
    return notes


def _interleaved(runs: Sequence[Run]) -> bool:
    """Whether the methods of all runs took turns."""
    return len(runs) == 1 or len({run.record.together or (run.folder.name,) for run in runs}) == 1


def _text(value: float, column: Column) -> str:
    if column.least is not None and value < column.least:
        return f"<{column.least:g}"
    return "–" if np.isnan(value) else f"{value:{'+' if column.signed else ''}.{column.digits}f}"


def cells(table: Table) -> list[list[str]]:
    """The table as text, a list a row, without its header: row, what it reads, and the columns."""
    return [
        [
            name + ("*" if name in table.controls else ""),
            table.features[name] or "–",
            *(_text(float(table.rows.loc[name, c.name]), c) for c in table.columns),
        ]
        for name in table.rows.index
    ]


def best(table: Table) -> dict[str, set[str]]:
    """Column of which more is better -> the contenders with the most, where there are several to compare."""
    rows = table.rows.loc[[name for name in table.rows.index if name not in table.controls]]
    if len(rows) < 2:
        return {}
    columns = [column.name for column in table.columns if column.better > 0]
    return {name: set(rows.index[rows[name] == rows[name].max()]) for name in columns}


def caption(table: Table) -> str:
    """What a table is of, and on what it was measured, for a reader who sees nothing else."""
    about = table.about
    said = [f"image set {about['image_set']}", f"policy {about['policy']}", f"k = {about['k']}"]
    if "first_stage" in about:
        said.append(f"first stage {about['first_stage']}")
    if "seal" in about:
        said.append(f"seal {str(about['seal'])[:8]}")
    if isinstance(hardware := about.get("hardware"), Mapping):
        said.append(f"measured on {_machine(hardware)}")
    bold = " Bold: the best contender, where more is better." if best(table) else ""
    return f"{about['dataset']}: {'; '.join(said)}.{bold}"


def to_markdown(table: Table) -> str:
    header, leading = [table.of, "features", *(c.name for c in table.columns)], best(table)
    lines = [
        f"### {table.title}",
        "",
        *([table.answer, ""] if table.answer else []),
        caption(table),
        "",
        "| " + " | ".join(header) + " |",
        "|" + "|".join(["---", "---", *["---:"] * len(table.columns)]) + "|",
    ]
    for name, row in zip(table.rows.index, cells(table), strict=True):
        marked = [
            f"**{text}**" if name in leading.get(column.name, ()) else text
            for column, text in zip(table.columns, row[2:], strict=True)
        ]
        lines.append("| " + " | ".join([*row[:2], *marked]) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in (*table.notes, *table.cards)), ""])


def to_csv(table: Table) -> str:
    """Unrounded values, one line a method."""
    kept = ("dataset", "first_stage", "policy", "k", "seal", "blend")
    about = {key: str(table.about[key]) for key in kept if key in table.about}
    return (
        table.rows.rename_axis(table.of)
        .reset_index()
        .assign(features=[table.features[name] for name in table.rows.index])
        .assign(control=[name in table.controls for name in table.rows.index], **about)
        .to_csv(index=False)
    )


def to_json(table: Table) -> str:
    """The table on one line, so that several tables are JSON lines."""
    rows = [
        {
            table.of: name,
            "features": table.features[name],
            "control": name in table.controls,
            **{c.name: None if np.isnan(v := float(table.rows.loc[name, c.name])) else v for c in table.columns},
        }
        for name in table.rows.index
    ]
    return json.dumps({**table.about, "answer": table.answer, "rows": rows, "notes": table.notes, "cards": table.cards})


def to_latex(table: Table) -> str:
    """A floating table that needs the package booktabs; title, answer and notes are comments."""
    columns = [table.of, "features", *(column.name for column in table.columns)]
    marks = [rf" $^{{*}}$ after a gain: corrected $p < {SURE:g}$."] if _starred(table) else []
    marks += [r" $^{\dagger}$: a control, not a contender."] if table.controls else []
    return "\n".join(
        [
            comment(table.title),
            *([comment(table.answer)] if table.answer else []),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption(table))}{''.join(marks)}}}",
            r"\begin{tabular}{ll" + "r" * len(table.columns) + "}",
            r"\toprule",
            " & ".join(map(escaped, columns)) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in _latex_cells(table)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            *map(comment, (*table.notes, *table.cards)),
            "",
        ]
    )


def _starred(table: Table) -> set[str]:
    """The rows whose gain is more than chance explains."""
    if "p" not in table.rows:
        return set()
    return set(table.rows.index[table.rows["p"] < SURE])


def _latex_cells(table: Table) -> list[list[str]]:
    leading, starred, rows = best(table), _starred(table), []
    for name, texts in zip(table.rows.index, cells(table), strict=True):
        row = [escaped(name) + (r"$^{\dagger}$" if name in table.controls else ""), escaped(texts[1])]
        for column, text in zip(table.columns, texts[2:], strict=True):
            shown = re.sub(r"^-(?=\d)", "$-$", escaped(text))
            if name in leading.get(column.name, ()):
                shown = rf"\textbf{{{shown}}}"
            row.append(shown + "$^{*}$" * (column.name == "gain" and name in starred))
        rows.append(row)
    return rows


FORMATS = {"md": to_markdown, "csv": to_csv, "latex": to_latex, "json": to_json}
