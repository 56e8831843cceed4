"""Regression check: a finished run against a baseline, or against a run of another version of the code.

A finding is ok, a failure, or "cannot tell" with its reason. What is equal in both sides decides how accuracy is
compared: values by query must be equal where nothing differs that could change them, and are tested elsewhere.
Times are never compared as such, only each row's ratio to a reference row of the same run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from bench import approximate
from bench.errors import UserError, listed
from bench.files import write_whole, writing
from bench.first_stages.names import parse
from bench.metrics import Measure
from bench.record import FILE
from bench.report.baseline import TOLERANCE, Baseline, read_baseline, write_baseline
from bench.report.findings import Checked, Finding, Moved, Outcome, to_junit, to_markdown
from bench.report.measured import DECIMALS, Measured, of_run, without_place
from bench.report.statistics import LEVEL, Comparison, holm
from bench.report.statistics import compare as paired
from bench.results import Run, read_runs, sound_run

__all__ = ["against_baseline", "between", "keep", "matching_run", "named_run", "read_baseline", "write_files"]
PAIR_BOUND = 1.5  # factor that a ratio of two rows' times may grow by, in runs that took turns on one machine
SEALED = ("dataset", "image_set", "protocol", "first_stage", "policy", "k", "query_crop", "gallery_size")
ASKED = ("dataset", "first_stage", "policy", "k")  # of these, what a command decides


@dataclass(frozen=True)
class Limits:
    """How far a run may be from what it is compared with."""

    tolerance: float  # points of the primary measure: the loss that is tolerated where values need not be equal
    ratio: float  # factor that a row's time, relative to the reference's, may grow by
    kept: bool  # whether the other side is a baseline: settings must be its own, and times must not shrink either

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 100:
            raise UserError(f"--tolerance {self.tolerance:g}: expected points from 0 to 100")
        if not 1 < self.ratio < float("inf"):
            raise UserError(f"--ratio-bound {self.ratio:g}: expected a factor above 1, for example 1.5")


@dataclass(frozen=True)
class _Sides:
    """Runs that took turns, the first of `before` with the first of `now`, and so on."""

    before: tuple[Measured, ...]
    now: tuple[Measured, ...]
    limits: Limits

    @property
    def all(self) -> tuple[Measured, ...]:
        return (*self.before, *self.now)

    @property
    def word(self) -> str:
        """What the other side is called."""
        return "baseline" if self.limits.kept else "base"

    def __post_init__(self) -> None:
        if len(self.before) != len(self.now) or not self.now:
            raise ValueError(f"{len(self.now)} runs now and {len(self.before)} before")

    def has(self, row: str) -> bool:
        return all(row in measured.rows for measured in self.all)


def against_baseline(
    run: Run,
    baseline: Baseline,
    name: str,
    reference: str | None = None,
    tolerance: float | None = None,
    ratio: float | None = None,
) -> Checked:
    """A run against a baseline, called `name`; what is given replaces the baseline's own.

    UserError for a reference that is not timed in both, and for limits out of range.
    """
    limits = Limits(
        baseline.tolerance if tolerance is None else tolerance, baseline.ratio_bound if ratio is None else ratio, True
    )
    names = str(run.folder), name
    return compare([of_run(run)], [baseline.measured], limits, names, reference, baseline.reference or None)


def between(
    base: Sequence[Run],
    head: Sequence[Run],
    reference: str | None = None,
    tolerance: float | None = None,
    ratio: float | None = None,
) -> Checked:
    """Runs of two versions of the code, measured in turn on one machine: base, head, base, head.

    UserError where there are not as many of one as of the other, for a run that is named twice, for a reference that is
    not timed in all of them, and for limits out of range.
    """
    if len(base) != len(head) or not base:
        raise UserError(
            f"check: {len(base)} --base and {len(head)} --head, expected as many of one as of the other",
            hint="measure them in turn, and name them in that order: --base B1 --head H1 --base B2 --head H2",
        )
    folders = [run.folder.resolve() for run in (*base, *head)]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(
            f"check: the run {twice} is named twice",
            hint="base and head need --runs of their own, since runs of one command share a folder's name",
        )
    limits = Limits(TOLERANCE if tolerance is None else tolerance, PAIR_BOUND if ratio is None else ratio, kept=False)
    names = str(head[0].folder), str(base[0].folder)
    return compare([of_run(run) for run in head], [of_run(run) for run in base], limits, names, reference)


def keep(run: Run, path: Path, reference: str | None = None) -> list[str]:
    """Write a baseline of a run; notes that its user should hear. UserError as of `write_baseline`."""
    measured = of_run(run)
    _require_timed([measured], reference)
    write_baseline(measured, reference_of([measured], reference) or "", path)
    notes = [f"{row} is not in it: {why}" for row, why in {**measured.skipped, **measured.failed}.items()]
    if measured.disturbed:
        notes.append(f"{measured.disturbed}, so no check can tell times; measure again on a quiet machine with --force")
    return notes


def write_files(checked: Checked, summary: Path | None, junit: Path | None) -> None:
    """The summary for a pull request, and the results for a CI, where they are wanted. UserError."""
    for path, text in ((summary, to_markdown), (junit, to_junit)):
        if path is not None:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, text(checked))


def _require_timed(sides: Sequence[Measured], reference: str | None) -> None:
    timed = _timed(sides)
    if reference is not None and reference not in timed:
        raise UserError(
            f"--reference {reference}: not a method that is timed in every run",
            hint=f"such are {listed(timed) or 'none'}; controls are not",
        )


def named_run(folder: Path) -> Run:
    """The run in a folder, or the only one below it. UserError where there is none, or where there are several."""
    if (folder / FILE).exists():
        return sound_run(folder)
    runs = read_runs(folder).finished
    if len(runs) != 1:
        found = f"{len(runs)} finished runs" if runs else "no finished run"
        raise UserError(
            f"{folder}: {found} there, expected one",
            hint="name the run's own folder" + "".join(f"\n    {run.folder}" for run in runs[:5])
            if runs
            else f"measure one there: python cli.py run --runs {shlex.quote(str(folder))} …",
        )
    return runs[0]


def matching_run(runs: Sequence[Run], baseline: Baseline) -> Run:
    """The newest finished run of the baseline's data set, first stage, policy and k that was asked for all its rows."""
    header, rows = baseline.measured.header, baseline.measured.rows
    wanted = {key: header[key] for key in ASKED if key in header}
    for run in reversed(runs):
        of = vars(run.record.identity.shortlist)
        same = {**{key: of[key] for key in wanted}, "dataset": without_place(of["dataset"])} == wanted
        if same and rows.keys() <= {*run.record.costs, *run.record.skipped, *run.record.failed}:
            return run
    command = {"dataset": "--dataset", "k": "--top-k", "policy": "--policy"}
    raise UserError(
        "no finished run to check: "
        + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in wanted.items())
        + f", methods {', '.join(rows)}",
        hint=f"python cli.py run --method {','.join(rows)} "
        + " ".join(f"{option} {shlex.quote(str(wanted[key]))}" for key, option in command.items() if key in wanted)
        + _asking_for(str(wanted.get("first_stage", ""))),
    )


def _asking_for(first_stage: str) -> str:
    """The option that asks for it; nothing for lists and whitened ones, whose names do not say where they are from."""
    name, by, index = first_stage.partition(approximate.BY)
    try:
        parse(name)
        approximate.parse(index or "blocks")
    except UserError:
        return ""
    return f" --first-stage {shlex.quote(name)}" + (f" --search {index}" if by else "")


def reference_of(sides: Sequence[Measured], wanted: str | None = None) -> str | None:
    """The row of all runs that the others' times are relative to: the one that is wanted, if it is timed in all.

    Else, of the contenders whose code is the same in all runs, the one of the middle time; of all contenders where no
    code is the same. None where fewer than two contenders are timed in all.
    """
    timed = _timed(sides)
    if len(timed) < 2:
        return None
    if wanted in timed:
        return wanted
    same = [row for row in timed if len({(each.rows[row].code, each.rows[row].weights) for each in sides}) == 1]
    ordered = sorted(same or timed, key=lambda row: (sides[0].rows[row].time or 0.0, row))
    return ordered[(len(ordered) - 1) // 2]


def _timed(sides: Sequence[Measured]) -> list[str]:
    """The rows that have a time in all runs."""
    rows = sides[0].rows
    return [row for row in rows if all(row in each.rows and each.rows[row].time is not None for each in sides)]


def compare(
    now: Sequence[Measured],
    before: Sequence[Measured],
    limits: Limits,
    names: tuple[str, str],
    reference: str | None = None,
    usual: str | None = None,
) -> Checked:
    """What was measured now against what was before, as many runs of one as of the other; `names` are those of both.

    Times are relative to the row `reference`; where none is given to the `usual` one, if all runs have it. UserError
    for a `reference` that is not timed in all runs.
    """
    sides = _Sides(tuple(before), tuple(now), limits)
    _require_timed(sides.all, reference)
    candidates, why_not, loosened = _candidates(sides)
    findings, notes = [candidates, *_ties(sides.now), *_lacking(sides)], []
    if why_not:
        notes.append(f"Neither accuracy nor times were compared: {why_not}.")
    else:
        rows = [row for row in sides.before[0].rows if sides.has(row)]
        findings += _settings(sides, rows) if sides.limits.kept else []
        findings += _accuracy(sides, rows, loosened)
        chosen = reference_of(sides.all, reference or usual)
        if chosen is None:
            notes.append("Times were not compared: a ratio needs two methods that are not controls in all runs.")
        else:
            findings += _latency(sides, rows, chosen)
            if len({each.rows[chosen].code for each in sides.all}) > 1:
                notes.append(f"The code of {chosen}, which times are relative to, is not the same in all runs.")
    if new := [row for row in sides.now[0].rows if not all(row in each.rows for each in sides.before)]:
        notes.append(f"Not in the {sides.word}, and not compared: {listed(new)}.")
    return Checked(tuple(findings), *names, sides.now[0].measure.of_query, tuple(notes))


def _candidates(sides: _Sides) -> tuple[Finding, str, str]:
    """Whether all rows saw the same candidates; why rows cannot be compared, or why they can only be tested."""
    first, others = sides.before[0], sides.all[1:]
    seal = f"seal {sides.now[0].seal[:8]}, {sides.word} {first.seal[:8]}"

    def finding(outcome: Outcome, why: str = "") -> Finding:
        return Finding(outcome, "candidates", "candidates", seal, why)

    differing = [
        f"{key.replace('_', ' ')} {each.header.get(key)}, {sides.word} {first.header.get(key)}"
        for each in others
        for key in SEALED
        if each.header.get(key) != first.header.get(key)
    ]
    if any(each.header.get("gallery_content") != first.header.get("gallery_content") for each in others):
        differing.append("other images in the gallery")
    if any(each.truth != first.truth for each in others):
        differing.append("another ground truth")
    if differing:
        why = ", ".join(dict.fromkeys(differing))
        return finding("cannot tell", f"another seal: {why}"), why, ""
    if any(each.lists != first.lists for each in others):
        # of the same images, truth and k: a first stage that rounds otherwise has other ties, so what it is worth is
        # tested; the first stage is a row of its own, in which a loss by the first stage itself shows
        content = any(_content(each) != _content(first) for each in others)
        reason = "other candidates" + (" of other first-stage features" if content else "")
        return finding("cannot tell", f"another seal: {reason}, so that accuracy is tested"), "", reason
    if any(_content(each) != _content(first) or each.similarities != first.similarities for each in others):
        reason = "other similarities of the first stage"
        return (
            finding("cannot tell", f"another seal: {reason}, but the same candidates in the same order"),
            "",
            reason,
        )
    return finding("ok", "" if first.seal == sides.now[0].seal else "the place of the data set alone differs"), "", ""


def _content(measured: Measured) -> object:
    return measured.header.get("first_stage_content")


def _ties(now: Iterable[Measured]) -> list[Finding]:
    """That equal scores keep the first stage's order, where the two controls that show it were run."""
    both = [each for each in now if {"constant", "identity"} <= each.rows.keys()]
    if not both:
        return []
    if all(each.rows["constant"].accuracy == each.rows["identity"].accuracy for each in both):
        return [Finding("ok", "ties", "ties", "constant equals identity")]
    return [
        Finding("FAIL", "ties", "ties", "constant differs from identity", "ties do not keep the first stage's order")
    ]


def _lacking(sides: _Sides) -> list[Finding]:
    """Rows of the other side that a run has no scores of."""
    findings = []
    for row in sides.before[0].rows:
        if all(row in each.rows for each in sides.all):
            continue
        failed = next((each.failed[row] for each in sides.now if row in each.failed), None)
        if failed is not None:
            findings.append(Finding("FAIL", "row", row, "failed", failed))
            continue
        skipped = next((each.skipped[row] for each in sides.now if row in each.skipped), None)
        why = "the run has no such row" if skipped is None else f"it cannot run here: {skipped}"
        findings.append(Finding("cannot tell", "row", row, "no scores", why))
    return findings


def _settings(sides: _Sides, rows: Iterable[str]) -> list[Finding]:
    """Rows that were run with other options, or on other features, than the baseline's."""
    findings = []
    for name in rows:
        before, now = sides.before[0].rows[name], sides.now[0].rows[name]
        if now.options != before.options:
            keys = sorted(k for k in {**before.options, **now.options} if before.options.get(k) != now.options.get(k))
            ours, theirs = ({key: each.options.get(key) for key in keys} for each in (now, before))
            findings.append(Finding("FAIL", "settings", name, f"options {ours}, baseline {theirs}"))
        if now.features != before.features:
            change = f"reads {now.features or 'nothing'}, in the baseline {before.features or 'nothing'}"
            findings.append(Finding("FAIL", "settings", name, change))
    return findings


def _accuracy(sides: _Sides, rows: Iterable[str], loosened: str) -> list[Finding]:
    """Of every row and difficulty; tests are corrected for their number, of those where anything changed."""
    findings: list[Finding] = []
    tested: list[tuple[int, Comparison]] = []
    for row in rows:
        why_not = _other_weights(sides, row)
        reasons = [*([loosened] if loosened else []), *_differing(sides, row)]
        for difficulty in sides.before[0].rows[row].accuracy:
            if all(each.values(row, difficulty).isna().all() for each in sides.all):
                continue  # no query has a positive
            finding = _equal(sides, row, difficulty)
            if why_not:
                finding = replace(finding, outcome="cannot tell", why=why_not)
            elif reasons and finding.outcome == "FAIL" and not _unpaired(sides, row, difficulty):
                tested.append(
                    (len(findings), paired(*_values(sides, row, difficulty), better=sides.now[0].measure.better))
                )
                finding = replace(finding, why=", ".join(reasons))
            findings.append(finding)
    for (place, comparison), p in zip(tested, holm([comparison.p for _, comparison in tested]), strict=True):
        outcome, why = _tested(comparison, p, sides.limits.tolerance)
        finding = findings[place]
        findings[place] = replace(finding, outcome=outcome, why=f"{why}; tested for {finding.why}")
    return findings


def _values(sides: _Sides, row: str, difficulty: str) -> tuple[list[pd.Series], list[pd.Series]]:
    """Of now and before, by query, a series a run."""
    now, before = ([each.values(row, difficulty) for each in some] for some in (sides.now, sides.before))
    return now, before


def _unpaired(sides: _Sides, row: str, difficulty: str) -> bool:
    """Whether some query has a value in one run and none in another."""
    now, before = _values(sides, row, difficulty)
    lacking = pd.concat([*now, *before], axis=1).isna()
    return bool((lacking.any(axis=1) & ~lacking.all(axis=1)).any())


def _equal(sides: _Sides, row: str, difficulty: str) -> Finding:
    """Ok if every query has the same value in all runs, to `DECIMALS`."""
    now, before = _values(sides, row, difficulty)
    table = pd.concat([*before, *now], axis=1)
    means = pd.DataFrame({"before": pd.concat(before, axis=1).mean(axis=1), "now": pd.concat(now, axis=1).mean(axis=1)})
    change = 100 * float((means["now"] - means["before"]).mean()) if means.notna().all(axis=1).any() else 0.0
    measure = sides.now[0].measure
    said = f"{measure.name} changed by {change:+.2f} points"
    subject = f"{row} {difficulty}"
    if _unpaired(sides, row, difficulty):
        lacking = table.isna()
        query = str(table.index[lacking.any(axis=1) & ~lacking.all(axis=1)][0])
        why = f"query {query} has a value in one run and none in another"
        return Finding("FAIL", "accuracy", subject, said, why)
    differ = table.max(axis=1) != table.min(axis=1)
    differ &= table.notna().all(axis=1)
    if not differ.any():
        return Finding("ok", "accuracy", subject, said)
    moved = tuple(
        sorted(
            (
                Moved(row, difficulty, str(query), float(of["before"]), float(of["now"]))
                for query, of in means[differ].iterrows()
            ),
            key=lambda one: -abs(one.by),
        )
    )
    why = f"candidates, code, options, features, versions and machine are the same, so {DECIMALS} decimals must be, too"
    return Finding("FAIL", "accuracy", subject, f"{said}; {_most(moved, measure, len(table))}", why, moved)


def _most(moved: Sequence[Moved], measure: Measure, queries: int) -> str:
    most = moved[0]
    return (
        f"{len(moved)} of {queries} queries changed, most: query {most.query}, {measure.of_query} "
        f"{100 * most.before:.1f} -> {100 * most.now:.1f}"
    )


def _other_weights(sides: _Sides, row: str) -> str:
    return "another version of the weights" if len({each.rows[row].weights for each in sides.all}) > 1 else ""


def _differing(sides: _Sides, row: str) -> list[str]:
    """Why values of a row need not be equal in all runs; nothing where they must be."""
    rows = [each.rows[row] for each in sides.all]
    reasons = []
    if not all(each.deterministic for each in rows):
        reasons.append("a method that is not deterministic")
    for what in ("code", "options", "features"):
        if any(getattr(each, what) != getattr(rows[0], what) for each in rows):
            reasons.append(f"other {what}")
    if "other features" not in reasons and len({each.contents for each in rows}) > 1:
        reasons.append("other contents of its features")
    if any(each.hardware != sides.before[0].hardware for each in sides.all):
        reasons.append("another machine")
    first = sides.before[0].versions
    packages = {p for each in sides.all for p in {**first, **each.versions} if first.get(p) != each.versions.get(p)}
    if packages:
        reasons.append(f"other versions of {listed(sorted(packages))}")
    return reasons


def _tested(found: Comparison, p: float, tolerance: float) -> tuple[Outcome, str]:
    """From the differences by query, in [-1, 1]; `p` is corrected, `tolerance` in points."""
    low, high = 100 * found.interval.low, 100 * found.interval.high
    said = f"95 % interval {low:+.2f} to {high:+.2f}, p {p:.3f}, tolerance {tolerance:g}"
    if 100 * found.difference < -tolerance and p < LEVEL:
        return "FAIL", said
    if low >= -tolerance - 1e-9:
        return "ok", said
    few = f"too few queries to see a change of {tolerance:g} points"
    if np.isnan(low):
        return "cannot tell", f"{few}: {found.queries}"
    enough = f": {found.queries} show one of {100 * found.detectable:.1f} four times of five"
    why = f"{few}{enough}" if 100 * found.detectable > tolerance else "a loss of more than the tolerance is possible"
    return "cannot tell", f"{why}; {said}"


def _latency(sides: _Sides, rows: Iterable[str], reference: str) -> list[Finding]:
    """Of every contender but the reference, whose ratio is 1 whatever happens."""
    quiet, why_not = _quiet(sides)
    turns = quiet or list(zip(sides.now, sides.before, strict=True))
    findings = []
    for row in rows:
        if row == reference or any(each.rows[row].time is None for each in sides.all):
            continue
        ratios = [(_ratio(now, row, reference), _ratio(before, row, reference)) for now, before in turns]
        factors = [ours / theirs for ours, theirs in ratios]
        factor, bound = median(factors), sides.limits.ratio
        several = f" of {len(factors)}, {min(factors):.2f} to {max(factors):.2f}" if len(sides.now) > 1 else ""
        said = (
            f"ms per pair is {median(ours for ours, _ in ratios):.3g} x {reference}'s, {sides.word} "
            f"{median(theirs for _, theirs in ratios):.3g} (factor {factor:.2f}{several}, bound {bound:g})"
        )
        slower, faster = factor > bound, sides.limits.kept and factor < 1 / bound
        outcome: Outcome = "cannot tell" if why_not else "FAIL" if slower or faster else "ok"
        why = why_not or ("slower" if slower else "faster than the baseline, or the reference is slower")
        findings.append(Finding(outcome, "latency", row, said, "" if outcome == "ok" else why))
    return findings


def _ratio(measured: Measured, row: str, reference: str) -> float:
    ours, theirs = measured.rows[row].time, measured.rows[reference].time
    assert ours is not None and theirs is not None
    return ours / theirs


def _quiet(sides: _Sides) -> tuple[list[tuple[Measured, Measured]], str]:
    """The turns whose times say something, now and before; where there are none, why."""
    # another processor changes ratios less than the bound of a baseline; a GPU does not, nor two versions in turn
    keys = ("gpu", "device") if sides.limits.kept else tuple(sides.before[0].hardware)
    hardware: Mapping[str, object] = sides.before[0].hardware
    if any(each.hardware.get(key) != hardware.get(key) for each in sides.all for key in keys):
        return [], "measured on another machine"
    turns = list(zip(sides.now, sides.before, strict=True))
    if quiet := [turn for turn in turns if not any(each.disturbed for each in turn)]:
        return quiet, ""
    now, before = turns[0]
    return [], f"{now.disturbed} during the run" if now.disturbed else f"{before.disturbed} during the {sides.word}"
