"""What a page says of one table, as plain values: head, table, charts, differences by query, rankings, cards."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.blend import Blend
from bench.datasets import GRADES, Dataset, Query
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE, Rankings, main_difficulty
from bench.images import cut
from bench.metrics import Measure, primary
from bench.names import shown
from bench.record import as_typed
from bench.report.charts import Axis, front
from bench.report.columns import per_query
from bench.report.formats import cells, to_csv, to_json
from bench.report.row_names import newest_rows
from bench.report.seeds import members, metrics_of
from bench.report.sensitivity import MEANING, change, order, places, sensitivity, signed
from bench.report.statistics import compare, holm, over_seeds, tied_with_best
from bench.report.tables import Table, searched
from bench.report.thumbnails import Thumbnail
from bench.report.verdict import SURE
from bench.results import Run

SHOWN = 10  # images of a ranking
DETAILED = 500  # queries whose rankings are in the page
PAIRED = 12  # rows of the matrix of differences
COMPARED = 100_000  # its pairs times queries: a few seconds
REPLAYED = 20_000  # contenders times queries whose protocol is varied: ten seconds
TIMES = ("extract", "load", "transfer", "score")  # what the time of a new query is made of
KINDS = (*GRADES, "negative")


@dataclass(frozen=True)
class Place:
    """An image in a ranking."""

    image: str
    kind: str  # of KINDS
    before: int  # its place in the first stage's list, from 1
    score: float  # that orders it

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.before < 1:
            raise ValueError(f"{self.image!r} is {self.kind} at place {self.before}")


@dataclass(frozen=True)
class Detail:
    """A query and the first images of every ranking of it."""

    number: int
    query: Query
    rankings: Mapping[str, tuple[Place, ...]]  # first stage and rows, as the table names them


@dataclass(frozen=True, eq=False)
class Section:
    """One table, the runs that it is of, and the blend that it was made with; everything else is derived."""

    runs: tuple[Run, ...]
    table: Table
    blend: Blend = Blend()

    def __post_init__(self) -> None:
        if lacking := set(self.names) ^ self.rows.keys():
            raise ValueError(f"the table and its runs differ in the row {min(lacking)!r}")

    # --- what it is of ---

    @cached_property
    def dataset(self) -> Dataset:
        return self.runs[-1].dataset

    @property
    def measure(self) -> Measure:
        return primary(self.dataset.protocol)

    @property
    def main(self) -> str:
        """The column of the main measure."""
        return str(self.table.about["measure"])

    @property
    def names(self) -> list[str]:
        """Rows in the table's order."""
        return [str(name) for name in self.table.rows.index]

    @property
    def contenders(self) -> list[str]:
        """Rows that are no controls, best first."""
        return [name for name in self.names[::-1] if name not in self.table.controls]

    @cached_property
    def rows(self) -> Mapping[str, tuple[Run, str]]:
        """Row as the table has it -> its run, and its name there."""
        return newest_rows(self.runs)

    @cached_property
    def ranked(self) -> Mapping[str, tuple[Run, str]]:
        """As `rows`, in the table's order, behind the first stage."""
        return {FIRST_STAGE: (self.runs[-1], FIRST_STAGE), **{name: self.rows[name] for name in self.names}}

    @cached_property
    def rankings(self) -> Mapping[Run, Rankings]:
        return {run: run.rankings(self.blend) for run, _ in self.ranked.values()}

    @cached_property
    def by_seed(self) -> Mapping[str, list[pd.Series]]:
        """The main measure by query, in the data set's order, of everything ranked, a Series a seed; NaN without
        positives."""
        metrics = metrics_of([run for run, _ in self.ranked.values()], self.blend)
        queries = [query.id for query in self.dataset.queries]
        where = main_difficulty(self.dataset), self.measure.name
        return {
            name: [per_query(metrics[one], row, *where).reindex(queries) for one in members(run)]
            for name, (run, row) in self.ranked.items()
        }

    @cached_property
    def by_query(self) -> Mapping[str, pd.Series]:
        """As `by_seed`, means over seeds."""
        return {name: over_seeds(values) for name, values in self.by_seed.items()}

    @property
    def pair(self) -> tuple[str, str]:
        """Whose queries are compared at first: the best contender, else the best control, and the first stage."""
        return (self.contenders or self.names[::-1])[0], FIRST_STAGE

    # --- rankings ---

    def details(self) -> Iterator[Detail]:
        """The first `DETAILED` queries, those that `pair` differs most on before others."""
        ours, theirs = (self.by_query[name].to_numpy(np.float64) for name in self.pair)
        changed = np.nan_to_num(np.abs(ours - theirs), nan=-1.0)
        for number in np.argsort(-changed, kind="stable")[:DETAILED].tolist():
            query = self.dataset.queries[number]
            yield Detail(number, query, {name: self._first(name, number) for name in self.ranked})

    def _first(self, name: str, number: int) -> tuple[Place, ...]:
        """The first images of a ranking at the main difficulty."""
        run, row = self.ranked[name]
        rankings, difficulty = self.rankings[run], main_difficulty(self.dataset)
        shortlist, which = run.shortlist, run.shortlist.list_for(difficulty)
        candidates = shortlist.candidates(which, number)
        scores = shortlist.similarities[which][number].astype(np.float64)
        if row != FIRST_STAGE:
            scores = self.blend(rankings.scores(row, which, number), scores)
        before = {int(image): place for place, image in enumerate(candidates)}
        grades = self.dataset.grades.get(shortlist.queries[number], {})
        found = []
        for image in rankings.ranking(row, difficulty, number)[:SHOWN].tolist():
            at, known = before[image], shortlist.gallery[image]
            found.append(Place(known, grades.get(known, KINDS[-1]), at + 1, float(scores[at])))
        return tuple(found)

    def files(self, details: list[Detail]) -> list[Path]:
        """The image files that are wanted, the most wanted first: contenders' before those that only controls rank."""
        wanted = [FIRST_STAGE, *self.contenders]
        early = [file for detail in details for file in (detail.query.image, *self._images(detail, wanted))]
        late = [file for detail in details for file in self._images(detail, self.names)]
        return list(dict.fromkeys([*early, *late]))

    def _images(self, detail: Detail, names: list[str]) -> list[Path]:
        return [self.dataset.gallery[place.image] for name in names for place in detail.rankings[name]]

    # --- for the page's script ---

    def data(
        self, details: list[Detail], small: Mapping[Path, Thumbnail | None], numbers: Mapping[Path, int]
    ) -> dict[str, Any]:
        """What the page's script shows by query; `numbers` are places of thumbnails, -1 stands for none."""
        images: dict[str, int] = {}

        def listed(place: Place) -> list[Any]:
            image = images.setdefault(place.image, len(images))
            return [image, KINDS.index(place.kind), place.before, float(f"{place.score:.6g}")]

        shown_queries = {
            str(detail.number): {
                "image": numbers.get(detail.query.image, -1),
                "box": _box(detail.query, small.get(detail.query.image)),
                "rankings": [[listed(place) for place in places] for places in detail.rankings.values()],
            }
            for detail in details
        }
        return {
            "measure": self.measure.of_query,
            "better": self.measure.better,
            "rows": [_readable(name) for name in self.ranked],
            "pair": [list(self.ranked).index(name) for name in self.pair],
            "queries": [shown(query.id) for query in self.dataset.queries],
            "values": [[_percent(value) for value in self.by_query[name]] for name in self.ranked],
            "details": shown_queries,
            "images": [[shown(image), numbers.get(self.dataset.gallery[image], -1)] for image in images],
        }

    # --- for the page's template ---

    def values(self) -> dict[str, Any]:
        """Everything that stands in the page before its script runs."""
        header = self.runs[-1].shortlist.header
        return {
            "title": header.dataset,
            "subtitle": f"first stage {searched(self.runs[-1])} · top-{header.k} · policy {header.policy} · "
            f"seal {self.runs[-1].seal[:8]}",
            "answer": self.table.answer,
            "facts": self._facts(),
            "notes": self.table.notes,
            "table": self._table(),
            "scatters": [
                self._scatter("ms/query p50", "ms per query (median, cached features)"),
                self._scatter("KiB/image", "KiB per image"),
            ],
            "legend": [{"number": number, "name": name} for number, name in enumerate(self.names, 1)],
            "headroom": self._headroom(),
            "matrix": self._matrix(),
            "sensitivity": self._sensitivity(),
            "ledger": self._ledger(),
            "cards": self._cards(),
            "columns": [{"name": column.name, "meaning": column.meaning} for column in self.table.columns],
            "commands": self._commands(),
            "downloads": self._downloads(),
            "main": self.main,
            "of_query": self.measure.of_query,
            "ranked": [_readable(name) for name in self.ranked],
            "queries": [query.id for query in self.dataset.queries],
            "shown": min(len(self.dataset.queries), DETAILED),
        }

    def _facts(self) -> list[tuple[str, str]]:
        header, machine = self.runs[-1].shortlist.header, self.runs[-1].record.identity.hardware
        return [
            ("data set", header.dataset),
            ("image set", header.image_set),
            ("queries", str(len(self.dataset.queries))),
            ("gallery", str(header.gallery_size)),
            ("first stage", searched(self.runs[-1])),
            ("policy", header.policy),
            ("k", str(header.k)),
            ("query images", "cropped to their boxes" if header.query_crop else "whole"),
            ("order", f"blend {self.blend}"),
            ("hardware", ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)),
            ("seal", self.runs[-1].seal),
        ]

    def _tied(self) -> frozenset[str]:
        """The contenders that cannot be told from the best of them; none where there is nothing to tell."""
        values = {name: self.by_query[name] for name in self.contenders}
        if len(values) < 2 or not any(of.notna().any() for of in values.values()):
            return frozenset()
        return tied_with_best(values, better=self.measure.better)

    def _table(self) -> dict[str, Any]:
        tied = self._tied()
        rows = []
        for number, (name, texts) in enumerate(zip(self.names, cells(self.table), strict=True), 1):
            run, row = self.rows[name]
            values = [self._value(name, column.name) for column in self.table.columns]
            rows.append(
                {
                    "number": number,
                    "name": name,
                    "features": texts[1],
                    "control": name in self.table.controls,
                    "tied": name in tied,
                    "noncommercial": run.record.cards[row].noncommercial or run.record.features_noncommercial,
                    "cells": [
                        {"text": text, "value": "" if math.isnan(value) else repr(value)}
                        for text, value in zip(texts[2:], values, strict=True)
                    ],
                }
            )
        columns = [{"name": c.name, "meaning": c.meaning, "better": c.better} for c in self.table.columns]
        return {"of": self.table.of, "columns": columns, "rows": rows, "main": self.main}

    def _value(self, name: str, column: str) -> float:
        return float(self.table.rows[column][name])

    def _scatter(self, cost: str, label: str) -> dict[str, Any]:
        """Points of the main measure against a cost, shares of the axes; controls are there, but on no front."""
        points = {name: (self._value(name, cost), self._value(name, self.main)) for name in self.names}
        known = {name: point for name, point in points.items() if not math.isnan(sum(point))}
        levels = {"first stage": self.table.first_stage, "ceiling": self.table.ceiling}
        x = Axis.around([x for x, _ in known.values()], log=True)
        y = Axis.around([*(y for _, y in known.values()), *levels.values()])
        ahead = front({name: known[name] for name in known if name in self.contenders}, self.measure.better)
        return {
            "label": label,
            "measure": self.main,
            "x_ticks": x.ticks,
            "y_ticks": y.ticks,
            "levels": [(name, y.share(level)) for name, level in levels.items() if not math.isnan(level)],
            "points": [
                {
                    "number": number,
                    "title": f"{name}: {known[name][1]:.1f} {self.main}, {known[name][0]:.4g} {cost}"
                    f"{_listed(self._options(name))}",
                    "x": x.share(known[name][0]),
                    "y": y.share(known[name][1]),
                    "control": name in self.table.controls,
                    "front": name in ahead,
                }
                for number, name in enumerate(self.names, 1)
                if name in known
            ],
            "line": [(x.share(known[name][0]), y.share(known[name][1])) for name in ahead],
            "front": ahead,
            "zeros": any(cost <= 0 for cost, _ in known.values()),
            "without": [name for name in self.names if name not in known],
        }

    def _options(self, name: str) -> Mapping[str, Any]:
        run, row = self.rows[name]
        return run.record.identity.methods[row].options

    def _headroom(self) -> dict[str, Any]:
        """Bars from the first stage to each row's value, between first stage and ceiling; shares of one axis."""
        values = {name: self._value(name, self.main) for name in self.names}
        floor, top = self.table.first_stage, self.table.ceiling
        if math.isnan(floor) or math.isnan(top):
            return {"bars": [], "floor": None, "top": None}
        axis = Axis.around([floor, top, *values.values()])
        start, better = axis.share(floor), self.measure.better
        share = next(column.name for column in self.table.columns if column.name.startswith("headroom "))
        bars = []
        for name, value in values.items():
            if not math.isnan(value):
                end, closed = axis.share(value), self._value(name, share)
                bars.append(
                    {
                        "name": name,
                        "control": name in self.table.controls,
                        "low": min(start, end),
                        "width": abs(end - start),
                        "loses": better * (value - floor) < 0,
                        "text": f"{value:.1f}" + ("" if math.isnan(closed) else f" ({closed:.0f} % of the gap)"),
                    }
                )
        return {"bars": bars, "floor": (start, f"{floor:.1f}"), "top": (axis.share(top), f"{top:.1f}")}

    def _matrix(self) -> dict[str, Any]:
        """Differences of every two of the best contenders and the first stage, with p corrected for all of them."""
        many, queries = 2, max(1, len(self.dataset.queries))
        while many < PAIRED and (many + 1) * many // 2 * queries <= COMPARED:
            many += 1
        names = [*self.contenders[: many - 1], FIRST_STAGE]
        pairs = list(combinations(names, 2))
        found = [compare(self.by_seed[a], self.by_seed[b], better=self.measure.better) for a, b in pairs]
        known = [(pair, one) for pair, one in zip(pairs, found, strict=True) if one.queries]
        corrected = holm([one.p for _, one in known])
        told: dict[tuple[str, str], dict[str, Any]] = {}
        for ((a, b), one), p in zip(known, corrected, strict=True):
            low, high = 100 * one.interval.low, 100 * one.interval.high
            for pair, sign, ends in (((a, b), 1, (low, high)), ((b, a), -1, (-high, -low))):
                told[pair] = {
                    "text": signed(sign * 100 * one.difference),
                    "p": f"<{0.001:g}" if p < 0.001 else f"{p:.3f}",
                    "sure": p < SURE,
                    "gains": sign * one.difference > 0,
                    "title": f"{_readable(pair[0])} minus {_readable(pair[1])}"
                    + ("" if math.isnan(low) else f", 95 % interval {ends[0]:+.1f} to {ends[1]:+.1f}"),
                }
        return {
            "names": [_readable(name) for name in names],
            "rows": [{"name": _readable(a), "cells": [told.get((a, b)) for b in names]} for a in names] if told else [],
            "left_out": max(0, len(self.contenders) - len(names) + 1),
            "tests": len(known),
        }

    def _sensitivity(self) -> dict[str, Any]:
        """The best contenders and the first stage under other choices of protocol; the choices by family."""
        many = REPLAYED // max(1, len(self.dataset.queries))
        if many < 2:
            said = "Too many queries to replay here; `report --sensitivity` replays them."
            return {"answer": said, "families": [], "choices": [], "rows": [], "order": [], "notes": []}
        found = sensitivity(self.runs, self.table, self.blend, many)
        families = list(dict.fromkeys(choice.family for choice in found.choices))
        rows = []
        for name in (*found.contenders, FIRST_STAGE) if found.contenders else ():
            cells = [
                {
                    "text": _decimal(found.value(name, choice)),
                    "change": change(found, name, choice),
                    "moved": bool(places(found, name, choice)),
                }
                for choice in found.choices
            ]
            rows.append({"name": _readable(name), "value": _decimal(found.value(name)), "cells": cells})
        return {
            "answer": found.answer,
            "families": [(family, sum(choice.family == family for choice in found.choices)) for family in families],
            "choices": [choice.name for choice in found.choices],
            "rows": rows,
            "order": [order(found, choice) for choice in found.choices],
            "notes": [MEANING.replace("`", '"'), *found.notes] if rows else found.notes,
        }

    def _ledger(self) -> list[dict[str, Any]]:
        """Median and 95th percentile of each part of a query's time, and their shares of the longest sum."""
        found: list[tuple[str, str, list[float]]] = []
        for name in self.names:
            run, row = self.rows[name]
            ledger = run.ledger[run.ledger.method == row]
            extract = self._value(name, "extract ms")
            for what, share in (("p50", 50), ("p95", 95)):
                parts = [extract, *(float(np.percentile(ledger[f"{part}_ms"], share)) for part in TIMES[1:])]
                found.append((name, what, parts))
        longest = max((float(np.nansum(parts)) for _, _, parts in found), default=0.0) or 1.0
        return [
            {
                "name": name,
                "what": what,
                "parts": [{"text": _ms(ms), "share": 0.0 if math.isnan(ms) else ms / longest} for ms in parts],
            }
            for name, what, parts in found
        ]

    def _cards(self) -> list[dict[str, Any]]:
        found = []
        for name in self.names:
            run, row = self.rows[name]
            card, identity = run.record.cards[row], run.record.identity.methods[row]
            found.append(
                {
                    "name": name,
                    "paper": card.paper or "–",
                    "licence": card.licence,
                    "noncommercial": card.noncommercial,
                    "trained_on": card.trained_on or "–",
                    "options": ", ".join(f"{key}={value}" for key, value in identity.options.items()) or "–",
                    "weights": [
                        (part, sha)
                        for part, sha in (
                            *dict.fromkeys(
                                (row, one.record.identity.methods[row].weights_sha256) for one in members(run)
                            ),
                            *((part.method, part.weights_sha256) for part in identity.parts),
                        )
                        if sha
                    ],
                    "source": identity.source_sha256,
                }
            )
        return found

    def _commands(self) -> list[dict[str, Any]]:
        """How each of the runs whose rows stand in the table was made."""
        found = []
        for run in dict.fromkeys(one for pooled, _ in self.rows.values() for one in members(pooled)):
            made, command = run.record.provenance, run.record.provenance.get("command")
            found.append(
                {
                    "command": as_typed(command) if isinstance(command, list) and command else "not known",
                    "commit": made.get("commit") or "not known",
                    "finished": run.record.finished,
                }
            )
        return found

    def _downloads(self) -> list[dict[str, str]]:
        kinds = {"csv": ("text/csv", to_csv(self.table)), "json": ("application/json", to_json(self.table))}
        return [
            {
                "name": f"{self.table.stem}.{suffix}",
                "address": f"data:{kind};base64,{base64.b64encode(shown(text).encode()).decode('ascii')}",
            }
            for suffix, (kind, text) in kinds.items()
        ]


def _readable(name: str) -> str:
    return "first stage" if name == FIRST_STAGE else name


def _listed(options: Mapping[str, Any]) -> str:
    return "".join(f"\n{key}={value}" for key, value in options.items())


def _ms(value: float) -> str:
    """
    >>> _ms(1330.2), _ms(7.554), _ms(0.002), _ms(float("nan"))
    ('1330', '7.55', '<0.01', '–')
    """
    if math.isnan(value):
        return "–"
    return "<0.01" if value < 0.01 else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _decimal(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * value, 4)


def _box(query: Query, small: Thumbnail | None) -> list[float] | None:
    """Left, top, width and height of the query's box as shares of its image; None without one that can be drawn."""
    if query.box is None or small is None:
        return None
    try:
        x1, y1, x2, y2 = cut(query.box, small.size, query.image)
    except UserError:
        return None
    width, height = small.size
    return [round(share, 4) for share in (x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height)]
