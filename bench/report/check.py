"""Regression check: a finished run against a committed baseline."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import UserError
from bench.evaluation import evaluate
from bench.files import read_json, write_json, writing
from bench.first_stages.names import parse
from bench.metrics import Measure, primary
from bench.report.tables import per_query
from bench.results import Run

TOLERANCE = 0.3  # percent of the primary measure: other processors round differently, the same one never
RATIO_BOUND = 4.0  # a method's ms per pair, relative to the run's reference method, may change by this factor


@dataclass(frozen=True)
class Finding:
    """One comparison with the baseline; `ok` is False for a regression."""

    ok: bool
    text: str


def _accuracy(run: Run) -> dict[str, dict[str, dict[str, float | None]]]:
    """row -> difficulty -> query -> the primary measure (None without positives)."""
    metrics = evaluate(run.rankings())  # from the sealed list and the scores, not as stored
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for method in run.record.costs:
        for difficulty in run.dataset.difficulties:
            values = per_query(metrics, method, difficulty, primary(run.dataset.protocol).name)
            found.setdefault(method, {})[difficulty] = {
                str(q): None if pd.isna(v) else round(float(v), 6) for q, v in values.items()
            }
    return found


def _relative_times(run: Run, reference: str) -> dict[str, float]:
    """Median ms per pair of each contender over that of the reference, both of this run."""
    ledger = run.ledger.assign(pair=run.ledger.score_ms / run.ledger.pairs)
    median = ledger.groupby("method")["pair"].median()
    controls = {name for name, card in run.record.cards.items() if card.control}
    return {str(m): round(float(v / median[reference]), 4) for m, v in median.items() if m not in controls}


def _identity(run: Run) -> dict[str, Any]:
    header = run.shortlist.header
    return {
        "dataset": header.dataset,
        "first_stage": header.first_stage,
        "policy": header.policy,
        "k": header.k,
        "options": {m: _options(v.options) for m, v in run.record.identity.methods.items()},
        "features": {m: "+".join(v.features) for m, v in run.record.identity.methods.items()},
    }


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without the places of files, which differ between checkouts; what is in them shows in the accuracy."""
    return {key: value for key, value in given.items() if not (isinstance(value, str) and Path(value).is_absolute())}


def write_baseline(run: Run, path: Path) -> None:
    """Write what `check` compares later runs with. UserError where the file cannot be written."""
    contenders = [name for name, card in run.record.cards.items() if not card.control]
    if not contenders:
        raise UserError("a baseline needs at least one method that is not a control")
    reference = "ransac" if "ransac" in contenders else contenders[0]
    content = {
        "identity": _identity(run),
        "tolerance": TOLERANCE,
        "ratio_bound": RATIO_BOUND,
        "reference": reference,
        "accuracy": _accuracy(run),
        "relative_times": _relative_times(run, reference),
        "made": {
            "seal": run.seal,
            "commit": run.record.provenance.get("commit"),
            "versions": run.record.provenance.get("versions"),
        },
    }
    with writing(path, "make room there, or choose another file with --baseline"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)


def read_baseline(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        return {
            key: content[key]
            for key in ("identity", "tolerance", "ratio_bound", "reference", "accuracy", "relative_times", "made")
        }
    except OSError as error:
        raise UserError(
            f"{path}: no baseline there ({error.strerror or error})",
            hint="write one with: check --baseline FILE --write",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a baseline ({type(error).__name__}: {error})") from error


def matching_run(runs: list[Run], baseline: Mapping[str, Any]) -> Run:
    """The newest finished run of the baseline's data set, first stage, policy and k that holds all its rows."""
    wanted = {key: baseline["identity"][key] for key in ("dataset", "first_stage", "policy", "k")}
    for run in reversed(runs):
        header = vars(run.record.identity.shortlist)
        same = all(header[key] == value for key, value in wanted.items())
        if same and set(baseline["accuracy"]) <= set(run.record.costs):
            return run
    raise UserError(
        "no finished run to check: "
        + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in wanted.items())
        + f", methods {', '.join(baseline['accuracy'])}",
        hint=f"python cli.py run --dataset {wanted['dataset']} --method {','.join(baseline['accuracy'])} "
        f"--top-k {wanted['k']} --policy {wanted['policy']}{_asking_for(wanted['first_stage'])}",
    )


def _asking_for(first_stage: str) -> str:
    """The option that asks for it; nothing for lists and whitened ones, whose names do not say where they are from."""
    try:
        parse(first_stage)
    except UserError:
        return ""
    return f" --first-stage {shlex.quote(first_stage)}"


def compare(run: Run, baseline: Mapping[str, Any]) -> list[Finding]:
    """Findings, regressions first: accuracy per method and difficulty, then relative times, then the tie sentinel."""
    findings = []
    identity = _identity(run)
    for method, options in baseline["identity"]["options"].items():
        if identity["options"].get(method) != options:
            findings.append(Finding(False, f"{method}: options {identity['options'].get(method)}, baseline {options}"))
        reads, before = identity["features"].get(method), baseline["identity"]["features"].get(method)
        if reads != before:
            findings.append(
                Finding(False, f"{method}: reads {reads or 'nothing'}, in the baseline {before or 'nothing'}")
            )
    now, measure = _accuracy(run), primary(run.dataset.protocol)
    for method, difficulties in baseline["accuracy"].items():
        for difficulty, before in difficulties.items():
            findings.append(
                _compare_accuracy(
                    f"{method} {difficulty}", measure, before, now[method].get(difficulty, {}), baseline["tolerance"]
                )
            )
    times = _relative_times(run, baseline["reference"])
    for method, before in baseline["relative_times"].items():
        factor = times[method] / before
        ok = 1 / baseline["ratio_bound"] <= factor <= baseline["ratio_bound"]
        findings.append(
            Finding(
                ok,
                f"{method}: ms per pair is {times[method]:.3g} x {baseline['reference']}'s, baseline "
                f"{before:.3g} (factor {factor:.2f}, bound {baseline['ratio_bound']:g})",
            )
        )
    if {"constant", "identity"} <= now.keys():
        same = now["constant"] == now["identity"]
        findings.append(
            Finding(
                same,
                "constant equals identity"
                if same
                else "constant differs from identity: ties do not keep the first stage's order",
            )
        )
    return sorted(findings, key=lambda finding: finding.ok)


def _compare_accuracy(
    row: str, measure: Measure, before: Mapping[str, float | None], now: Mapping[str, float | None], tolerance: float
) -> Finding:
    if before.keys() != now.keys():
        return Finding(False, f"{row}: other queries than the baseline's")
    deltas = {q: 100 * ((now[q] or 0) - (before[q] or 0)) for q in before if (before[q] is None) == (now[q] is None)}
    scored = [q for q in before if before[q] is not None]
    change = sum(deltas.get(q, 0) for q in scored) / max(1, len(scored))
    most = max(deltas, key=lambda q: abs(deltas[q]), default=None)
    text = f"{row}: {measure.name} changed by {change:+.2f} points (tolerance {tolerance:g})"
    if most is not None and deltas[most]:
        was, is_now = (100 * (values[most] or 0) for values in (before, now))
        text += f"; most: query {most}, {measure.of_query} {was:.1f} -> {is_now:.1f}"
    return Finding(abs(change) <= tolerance and len(deltas) == len(before), text)
