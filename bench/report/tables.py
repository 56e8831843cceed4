"""Comparison tables: one per seal and machine, a row per method."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.errors import UserError
from bench.evaluation import CEILING, FIRST_STAGE, graded, main_difficulty
from bench.metrics import primary
from bench.places import slug
from bench.report.columns import GAINS, SPREAD, Column, Quality, columns_of, qualities
from bench.report.limits import Limits
from bench.report.notes import notes_of, origins
from bench.report.row_names import newest_rows
from bench.report.seeds import Seeds, members, metrics_of, spread
from bench.report.statistics import Comparison, groups_of
from bench.report.verdict import answer, clustered, verdict, within
from bench.results import Run


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

    @property
    def stem(self) -> str:
        """What files are called that show it: its data set, and the beginning of its seal."""
        return f"{slug(str(self.about['dataset']))}-{str(self.about['seal'])[:8]}"


def table_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that may share a table: same seal, machine and number of threads. Newest group last."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = run.seal + json.dumps(run.record.identity.hardware, sort_keys=True)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def compare(
    runs: Sequence[Run], blend: Blend = Blend(), show: Collection[str] = (), limits: Limits | None = None
) -> Table:
    """The table of one group of runs; of runs of one row with the same options and features, the newest stands.

    Runs that differ in a seed alone are one row. `show` names options that the rows say even at their defaults, and
    seeds that stay rows of their own. `limits` asks for the best row that costs no more. Raises UserError if the runs
    do not share one seal.
    """
    if len({run.seal for run in runs}) != 1:
        raise UserError("runs of different shortlists cannot stand in one table", hint="one table per seal")
    latest = newest_rows(runs, show)
    dataset, header = runs[-1].dataset, runs[-1].shortlist.header
    main = Quality(primary(dataset.protocol), main_difficulty(dataset))
    shown = qualities(dataset, main, _one_positive(runs[-1], main.difficulty))
    columns = columns_of(shown, main, any(isinstance(run, Seeds) for run, _ in latest.values()))
    metrics = metrics_of([runs[-1], *(run for run, _ in latest.values())], blend)
    anyone = metrics[runs[-1]]  # first stage and ceiling are the same in every run of one seal
    floor, top = (main.mean(anyone, name) for name in (FIRST_STAGE, CEILING))
    values = {name: _row(run, method, metrics, shown, main, (floor, top)) for name, (run, method) in latest.items()}
    rows = pd.DataFrame.from_dict(values, orient="index", columns=[c.name for c in columns])
    cards = {name: run.record.cards[method] for name, (run, method) in latest.items()}
    controls = frozenset(name for name in latest if cards[name].control)
    better = main.measure.better
    by_query = {
        name: [main.values(metrics[one], row) for one in members(run)]
        for name, (run, row) in latest.items()
        if name not in controls
    }
    found = verdict(
        by_query,
        main.values(anyone, FIRST_STAGE),
        groups_of(dataset.grades, [query.id for query in dataset.queries]),
        better,
    )
    if found is not None:
        gains = {name: _gain(gain, found.corrected[name]) for name, gain in found.gains.items()}
        rows.update(pd.DataFrame.from_dict(gains, orient="index", columns=[column.name for column in GAINS]))
    said = [] if found is None else [answer(found, rows, main.name, top)]
    if found is not None and limits is not None:
        said.append(within(found, by_query, rows, main.name, limits, better))
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
            *notes_of(latest, cards, controls, metrics, main, blend, (floor, top)),
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
        answer="\n".join(said),
        cards=origins(latest, cards, controls),
    )


def searched(run: Run) -> str:
    """The first stage of a run, and how much of the exact lists it finds where its search is approximate."""
    found = run.record.first_stage.approximate
    recall = "" if found is None else f" (recall {100 * found.recall.share:.1f} %)"
    return run.shortlist.header.first_stage + recall


def _reads(run: Run, row: str) -> str:
    return "+".join(run.record.identity.methods[row].features)


def _gain(gain: Comparison, p: float) -> list[float]:
    """The values of GAINS."""
    points = (gain.difference, gain.interval.low, gain.interval.high)
    return [*(100 * value for value in points), p, gain.wins, gain.ties, gain.losses]


def _one_positive(run: Run, difficulty: str) -> bool:
    """Whether no query has more than one positive, and some have one."""
    counts = [len(graded(run.shortlist, run.dataset, n, difficulty)[0]) for n in range(len(run.shortlist.queries))]
    return max(counts, default=0) == 1


def _row(
    run: Run,
    method: str,
    metrics: Mapping[Run, pd.DataFrame],
    shown: Sequence[Quality],
    main: Quality,
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
