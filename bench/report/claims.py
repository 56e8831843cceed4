"""Published numbers beside ours: which finished runs reproduce them, and why others cannot be compared.

A claim is one published number with the conditions under which it was reached. Only a row measured under all of these
conditions says whether the claim holds; of any other row the differences are named instead.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from bench.blend import Blend
from bench.datasets import PROTOCOLS
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE
from bench.features.sets import IMPORTS
from bench.files import read_text
from bench.metrics import MEASURES, primary
from bench.places import PROJECT
from bench.report.statistics import Interval, interval_of_mean
from bench.results import Run

SHIPPED = PROJECT / "results" / "claims.toml"
WITHIN = 0.5  # points between ours and a claim that is reproduced
PRINTED = 0.1  # points that two numbers may differ by because papers round them to a tenth
ROUNDING = 1e-9  # points that a difference of two decimals may be off
IDENTITY = "identity"  # the method of a claim on a first stage alone
ANY = "any"  # the policy of a claim that does not depend on it
IMPORTED = "imported"  # the image set of a row whose features were all made elsewhere
Grade = Literal["repository", "secondary"]
Said = Literal["reproduced", "within interval", "not reproduced", "not comparable", "no run"]
Quality = tuple[str, str]  # measure and difficulty


@dataclass(frozen=True)
class Claim:
    """A published number and its conditions. ValueError for one that is not complete or cannot be."""

    paper: str
    table: str  # where it was read
    grade: Grade  # read in the named repository, or as others print it
    dataset: str  # an official one
    policy: str  # blind, paper, or any where the value does not depend on it
    first_stage: str  # as a run names it
    model: str  # which of several models made the first stage
    method: str
    measure: str
    difficulty: str
    percent: float  # as published
    k: int | None = None  # None: of a first stage alone, whose whole ranking is scored
    features: str = ""  # what the method reads, as a run names it
    descriptors: int | None = None  # local ones an image, at most; None: not said
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method, where others give other numbers
    blend: str = str(Blend())  # of scores and first-stage similarities
    variant: str = ""  # of the method, where a run does not tell which it is
    other_images: str = ""  # image sets whose name has this text are others than the published ones
    unsaid: Sequence[str] = ()  # conditions that its source does not say; no row is then known to be comparable
    command: str = ""  # that measures it
    files: str = ""  # that the command needs, and where they come from

    def __post_init__(self) -> None:
        for name in ("paper", "table", "dataset", "first_stage", "model", "method"):
            _require(getattr(self, name), isinstance(getattr(self, name), str) and getattr(self, name), name, "text")
        for name in ("features", "variant", "other_images", "command", "files"):
            _require(getattr(self, name), isinstance(getattr(self, name), str), name, "text")
        _require(self.dataset, ":" not in self.dataset, "dataset", "an official data set, not a folder")
        _require(self.grade, self.grade in get_args(Grade), "grade", " or ".join(get_args(Grade)))
        _require(self.policy, self.policy in ("blind", "paper", ANY), "policy", f"blind, paper or {ANY}")
        _require(self.measure, self.measure in MEASURES, "measure", f"one of {', '.join(MEASURES)}")
        grades = list(dict.fromkeys(name for protocol in PROTOCOLS.values() for name in protocol))
        _require(self.difficulty, self.difficulty in grades, "difficulty", f"one of {', '.join(grades)}")
        number = isinstance(self.percent, (int, float)) and not isinstance(self.percent, bool)
        _require(self.percent, number and 0 <= self.percent <= 100, "percent", "a number from 0 to 100")
        for name in ("k", "descriptors"):
            count = getattr(self, name)
            _require(count, count is None or (type(count) is int and count > 0), name, "a whole number above 0")
        _require(self.options, isinstance(self.options, Mapping), "options", "a table")
        texts = not isinstance(self.unsaid, str) and all(isinstance(one, str) and one for one in self.unsaid)
        _require(self.unsaid, texts, "unsaid", "a list of texts")
        _require(self.blend, isinstance(self.blend, str) and _is_blend(self.blend), "blend", "one that `--blend` takes")
        alone = self.method == IDENTITY
        no_k = alone or "k" in self.unsaid
        _require(self.k, (self.k is None) == no_k, "k", f"one for every method but {IDENTITY}, which has none")
        wanted = f"what the method reads, and nothing for {IDENTITY}"
        _require(self.features, (not self.features) == alone, "features", wanted)

    @property
    def quality(self) -> Quality:
        return self.measure, self.difficulty

    @property
    def name(self) -> str:
        """The method, what it reads, and the first stage with its model."""
        which = f" ({self.variant})" if self.variant else ""
        reads = f" on {self.features}" if self.features else ""
        limit = f" {self.descriptors}" if self.descriptors else ""
        blend = f" {self.blend}" if self.blend != str(Blend()) else ""
        return f"{self.method}{which}{reads}{limit}{blend}, {self.first_stage} of {self.model}"


def _is_blend(text: str) -> bool:
    try:
        return str(Blend.parse(text)) == text
    except UserError:
        return False


def _require(value: object, right: object, name: str, expected: str) -> None:
    if not right:
        raise ValueError(f"{name} is {value!r}, expected {expected}")


def read_claims(path: Path = SHIPPED) -> tuple[Claim, ...]:
    """The claims of a TOML file, in its order: a claim for each column of each row of each table.

    Settings of a table hold for its rows, which may say others. A column is DATASET MEASURE DIFFICULTY; in a command,
    DATASET stands for the column's.
    UserError that names the table and the row for what is not complete, not known or not a number from 0 to 100.
    """
    try:
        content = tomllib.loads(read_text(path))
    except OSError as error:
        hint = f"--claims alone reads {SHIPPED}"
        raise UserError(f"{path}: no claims there ({error.strerror or error})", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not TOML ({error})", hint=f"{SHIPPED} shows the form") from error
    tables = content.get("table")
    if set(content) - {"table"} or not isinstance(tables, list) or not tables:
        raise _bad(path, f"found {', '.join(content) or 'nothing'}, expected [[table]] and nothing else")
    found: list[Claim] = []
    for number, table in enumerate(tables, 1):
        where = f"table {number}"
        try:
            common = dict(table)
            columns, rows = (common.pop(name, None) for name in ("columns", "rows"))
        except (TypeError, ValueError) as error:
            raise _bad(path, f"{where}: expected a table") from error
        for name, value in (("columns", columns), ("rows", rows)):
            if not isinstance(value, list) or not value:
                raise _bad(path, f"{where}: {name} is {value!r:.60}, expected a list")
        for place, row in enumerate(rows, 1):
            try:
                found += _claims(common, columns, row)
            except ValueError as error:
                raise _bad(path, f"{where}, row {place}: {error}") from error
    return tuple(found)


def _bad(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}", hint=f"{SHIPPED} shows the form")


def _claims(common: Mapping[str, Any], columns: Sequence[Any], row: Any) -> list[Claim]:
    if not isinstance(row, dict):
        raise ValueError(f"found {row!r:.60}, expected an inline table")
    said = {**common, **row}
    numbers = said.pop("percent", None)
    if not isinstance(numbers, list) or len(numbers) != len(columns):
        raise ValueError(f"percent is {numbers!r:.60}, expected {len(columns)} numbers, one for each column")
    of_column = ("dataset", "measure", "difficulty")
    known = [one.name for one in fields(Claim) if one.name not in (*of_column, "percent")]
    if unknown := set(said) - set(known):
        raise ValueError(f"{min(unknown)} is not known, expected {', '.join(known)}")
    if lacking := {"paper", "table", "grade", "policy", "first_stage", "model", "method"} - set(said):
        raise ValueError(f"{min(lacking)} is missing")
    found = []
    for column, percent in zip(columns, numbers, strict=True):
        words = column.split() if isinstance(column, str) else []
        if len(words) != len(of_column):
            raise ValueError(f"column {column!r}, expected DATASET MEASURE DIFFICULTY")
        of: dict[str, Any] = dict(zip(of_column, words, strict=True))
        command = said.get("command", "")
        if isinstance(command, str):
            of["command"] = command.replace("DATASET", of["dataset"])
        found.append(Claim(**{**said, **of}, percent=percent))
    return found


@dataclass(frozen=True, eq=False)
class Ours:
    """A row of a finished run, or its first stage as the method `identity`, and under which conditions it was had."""

    method: str
    dataset: str
    image_set: str  # or IMPORTED
    first_stage: str
    policy: str
    k: int
    values: Mapping[Quality, pd.Series]  # by query, in [0, 1]
    floor: Mapping[Quality, float]  # what its first stage reaches, percent
    features: tuple[str, ...] = ()  # keys of the parts that the method reads
    descriptors: int = 0  # local ones that it used of the image that has most
    options: Mapping[str, Any] = field(default_factory=dict)
    blend: str = str(Blend())


def ours_of(run: Run, blend: Blend = Blend()) -> list[Ours]:
    """The first stage of a run and each of its rows but those of the method `identity`, which are the first stage."""
    header, first = run.shortlist.header, run.record.first_stage
    methods = run.record.identity.methods
    names = {row: row.partition("@")[0] for row in run.record.costs}
    metrics = run.metrics(blend)
    values = {
        method: {
            (str(measure), str(difficulty)): part.set_index("query")["value"]
            for (measure, difficulty), part in rows.groupby(["measure", "difficulty"])
        }
        for method, rows in metrics.groupby("method")
    }
    floor = {quality: 100 * float(of_query.mean()) for quality, of_query in values[FIRST_STAGE].items()}

    def made(method: str, row: str, features: tuple[str, ...] = (), **more: Any) -> Ours:
        keys = {*first.features, *features}
        images = IMPORTED if keys and keys <= set(IMPORTS.names()) else header.image_set
        stage = (header.dataset, images, header.first_stage, header.policy, header.k)
        return Ours(method, *stage, values[row], floor, features, **more)

    found = [made(IDENTITY, FIRST_STAGE)]
    for row, name in names.items():
        if name != IDENTITY and row in values:
            most = run.record.costs[row].descriptors_max
            used = 0 if math.isnan(most) else round(most)
            row_of: dict[str, Any] = {"descriptors": used, "options": methods[row].options, "blend": str(blend)}
            found.append(made(name, row, methods[row].features, **row_of))
    return found


@dataclass(frozen=True)
class Judged:
    """What finished runs say of a claim."""

    claim: Claim
    said: Said
    ours: float = math.nan  # percent
    interval: Interval = Interval(math.nan, math.nan)  # 95 %, bootstrap over queries, percent
    why: str = ""  # what differs, where the two are not comparable

    def __post_init__(self) -> None:
        if self.said not in get_args(Said) or (self.said == "not comparable") != bool(self.why):
            raise ValueError(f"{self.said!r} because of {self.why!r}")

    @property
    def difference(self) -> float:
        """Points that ours is above the claim."""
        return self.ours - self.claim.percent


Stage = tuple[str, str]  # data set and first stage
Floors = Mapping[Stage, Mapping[str, Mapping[Quality, float]]]  # model -> what it is said to reach, percent


def floors(claims: Iterable[Claim]) -> Floors:
    """What first stages are said to reach by the main measures; of several claims on one value, the first."""
    main = {primary(protocol).name for protocol in PROTOCOLS}
    found: dict[Stage, dict[str, dict[Quality, float]]] = {}
    for claim in claims:
        if claim.method == IDENTITY and claim.measure in main:
            models = found.setdefault((claim.dataset, claim.first_stage), {})
            models.setdefault(claim.model, {}).setdefault(claim.quality, claim.percent)
    return found


def judge(claim: Claim, ours: Ours, known: Floors) -> Judged:
    """What a row says of a claim; the row has a value of the claim's measure and difficulty.

    A claim within `WITHIN` points of ours is reproduced. A farther one may still lie within our 95 % interval.
    """
    of_query = ours.values[claim.quality]
    mean = 100 * float(of_query.mean())
    drawn = interval_of_mean(of_query)
    interval = Interval(100 * drawn.low, 100 * drawn.high)
    if differs := different(claim, ours, known):
        return Judged(claim, "not comparable", mean, interval, "; ".join(differs))
    said: Said = "not reproduced"
    if abs(mean - claim.percent) <= WITHIN + ROUNDING:
        said = "reproduced"
    elif interval.low <= claim.percent <= interval.high:
        said = "within interval"
    return Judged(claim, said, mean, interval)


def different(claim: Claim, ours: Ours, known: Floors) -> tuple[str, ...]:
    """Under which conditions a row was had other than the claim; none: the two are comparable.

    A first stage alone has its whole ranking scored, so that neither k nor the policy matters. Features do not say
    which model made them. What their first stage reaches does: a row is compared with the model that is said to reach
    the nearest, and a reranker only where that is within `WITHIN` points, since it reranks other lists elsewhere.
    """
    alone = claim.method == IDENTITY
    pairs: list[tuple[str, Any, Any, bool]] = [
        ("first stage", ours.first_stage, claim.first_stage, _is_made_by(ours.first_stage, claim.first_stage))
    ]
    if not alone:
        options = claim.options.items()
        reads = "+".join(ours.features)
        same = bool(ours.features) and all(_is_made_by(one, claim.features) for one in ours.features)
        pairs += [
            ("features", reads or "none", claim.features, same),
            ("policy", ours.policy, claim.policy, claim.policy in (ANY, ours.policy)),
            ("k", ours.k, claim.k, claim.k in (None, ours.k)),
            ("descriptors", ours.descriptors, claim.descriptors, claim.descriptors in (None, ours.descriptors)),
            ("blend", ours.blend, claim.blend, ours.blend == claim.blend),
            *((name, ours.options.get(name), value, ours.options.get(name) == value) for name, value in options),
        ]
    found = [f"{what} {here}, there {there}" for what, here, there, same in pairs if not same]
    if ours.dataset != claim.dataset:
        found.insert(0, f"data set {ours.dataset}, there {claim.dataset}")
    found += [f"{what} not said there" for what in claim.unsaid]
    if claim.other_images and claim.other_images in ours.image_set:
        found.append(f"image set {ours.image_set}, there another")
    return tuple(found) if found else _of_other_model(claim, ours, known.get((claim.dataset, claim.first_stage), {}))


def _is_made_by(key: str, name: str) -> bool:
    """Whether features or a first stage are of that name, made by whatever weights.

    >>> _is_made_by("sop-0123abcd", "sop"), _is_made_by("superpoint-320", "superpoint")
    (True, False)
    """
    return re.fullmatch(rf"{re.escape(name)}(-[0-9a-f]{{8}})*", key) is not None


def _of_other_model(claim: Claim, ours: Ours, models: Mapping[str, Mapping[Quality, float]]) -> tuple[str, ...]:
    gaps = {model: gap for model, said in models.items() if (gap := _gap(ours, said)) is not None}
    if claim.model not in gaps:
        return ()
    size, (measure, difficulty) = gaps[claim.model]
    nearest = min(gaps, key=lambda model: gaps[model][0])
    here, there = ours.floor[measure, difficulty], models[claim.model][measure, difficulty]
    reaches = f"the first stage reaches {here:.1f} {measure} {difficulty}, there {there}"
    if size > gaps[nearest][0] + PRINTED:
        return (f"features nearer to those of {nearest}: {reaches}",)
    return (f"features: {reaches}",) if claim.method != IDENTITY and size > WITHIN + ROUNDING else ()


def _gap(ours: Ours, said: Mapping[Quality, float]) -> tuple[float, Quality] | None:
    """The most points that a first stage is away from what it is said to reach, and where; None: not comparable."""
    gaps = [(abs(ours.floor[quality] - percent), quality) for quality, percent in said.items() if quality in ours.floor]
    return max(gaps, default=None)


@dataclass(frozen=True)
class Listing:
    """Claims beside ours, and how many are left out since no finished run has their data set and method."""

    judged: tuple[Judged, ...]
    left_out: int

    def __post_init__(self) -> None:
        if self.left_out < 0:
            raise ValueError(f"{self.left_out} left out")

    @property
    def note(self) -> str:
        """What a reader should know of what is not there, in a sentence or two."""
        if not self.judged:
            return "No published number is on this data set."
        if any(one.said != "no run" for one in self.judged):
            return f"Not listed: {self.left_out} claims on data sets or methods that no finished run has."
        return "No finished run has the data set and the method of any claim. Subsets of a data set are not compared."


def listing(claims: Sequence[Claim], ours: Sequence[Ours]) -> Listing:
    """Each claim beside the row that differs least from its conditions; of several, the last.

    Rows of other data sets, and so of subsets, stand beside no claim, and another first stage alone is another method.
    All claims are listed where none has a row.
    """
    known, judged = floors(claims), []
    for claim in claims:
        near = [
            row
            for row in reversed(ours)
            if (row.dataset, row.method) == (claim.dataset, claim.method)
            and (row.method != IDENTITY or _is_made_by(row.first_stage, claim.first_stage))
            and claim.quality in row.values
            and row.values[claim.quality].notna().any()
        ]
        if near:
            judged.append(judge(claim, min(near, key=lambda row: len(different(claim, row, known))), known))
    if not judged:
        return Listing(tuple(Judged(claim, "no run") for claim in claims), 0)
    return Listing(tuple(judged), len(claims) - len(judged))


def compared(claims: Sequence[Claim], runs: Sequence[Run], blend: Blend = Blend()) -> Listing:
    """`listing` of finished runs, oldest first; only those of a claim's data set are gone through."""
    named = {claim.dataset for claim in claims}
    some = [run for run in runs if run.record.identity.shortlist.dataset in named]
    return listing(claims, [row for run in some for row in ours_of(run, blend)])


COLUMNS = ("claim", "by", "on", "published", "ours", "difference", "our 95 %", "verdict")


def cells(found: Listing) -> list[tuple[str, ...]]:
    """The listing as text, a row a claim, with the columns COLUMNS."""
    return [
        (
            one.claim.name,
            one.claim.paper + ("" if one.claim.grade == "repository" else f" [{one.claim.grade}]"),
            f"{one.claim.dataset} {one.claim.measure} {one.claim.difficulty}",
            str(float(one.claim.percent)),
            _number(one.ours),
            _number(one.difference, "+"),
            "–" if math.isnan(one.interval.low) else f"{one.interval.low:.1f} to {one.interval.high:.1f}",
            f"{one.said}: {one.why}" if one.why else one.said,
        )
        for one in found.judged
    ]


def _number(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.1f}"


def commands(found: Listing) -> list[str]:
    """How claims are measured, a line each, of those that say so and are not reproduced."""
    lines = []
    for claim in (one.claim for one in found.judged if one.said != "reproduced" and one.claim.command):
        blend = f"; `--blend {claim.blend}` for the report" if claim.blend != str(Blend()) else ""
        needs = f"; needs {claim.files}" if claim.files else ""
        lines.append(f"{claim.method} of {claim.model} on {claim.dataset}: `{claim.command}`{blend}{needs}.")
    return list(dict.fromkeys(lines))


def to_markdown(found: Listing) -> str:
    lines = [COLUMNS, ("---", "---", "---", *["---:"] * 4, "---"), *cells(found)]
    table = [f"| {' | '.join(line)} |" for line in lines]
    how = [f"- {line}" for line in commands(found)]
    return "\n".join(["### Published numbers", "", *table, "", found.note, "", *how, *[""] * bool(how)])


def to_csv(found: Listing) -> str:
    """Unrounded values, one line a claim."""
    return pd.DataFrame(_records(found)).to_csv(index=False)


def to_json(found: Listing) -> str:
    """The listing on one line, as a table's."""
    return json.dumps({"claims": _records(found), "note": found.note})


def _records(found: Listing) -> list[dict[str, object]]:
    """A row a claim: what it says, and what ours says of it; None where there is nothing."""

    def plain(value: float) -> float | None:
        return None if math.isnan(value) else value

    return [
        {
            **{name: value for name, value in vars(one.claim).items() if name != "options"},
            "unsaid": "; ".join(one.claim.unsaid),
            "ours": plain(one.ours),
            "difference": plain(one.difference),
            "low": plain(one.interval.low),
            "high": plain(one.interval.high),
            "verdict": one.said,
            "why": one.why,
        }
        for one in found.judged
    ]


FORMATS = {"md": to_markdown, "csv": to_csv, "json": to_json}
