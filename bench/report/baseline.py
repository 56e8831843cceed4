"""A baseline: a file of what was measured once, which later runs are compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bench.errors import UserError, listed
from bench.files import read_json, write_whole, writing
from bench.record import as_kind
from bench.report.measured import DIGITS, Measured

FORMAT = 2  # of the file
TOLERANCE = 0.3  # points of the primary measure
RATIO_BOUND = 4.0  # factor that a ratio of two rows' times may change by; of other machines, too
LARGEST = 256 * 2**20  # bytes


@dataclass(frozen=True)
class Baseline:
    """What was measured, and how far later runs may be from it."""

    tolerance: float  # points: the loss that is tolerated where values need not be equal
    ratio_bound: float  # factor that a row's time, relative to the reference's, may change by
    reference: str  # row whose time the others' are relative to; empty: there is none
    measured: Measured

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 100:
            raise ValueError(f"tolerance {self.tolerance}, expected points from 0 to 100")
        if not 1 < self.ratio_bound < float("inf"):
            raise ValueError(f"ratio_bound {self.ratio_bound}, expected a factor above 1")


def write_baseline(measured: Measured, reference: str, path: Path) -> None:
    """Keep a run, with the tolerances that it had so far. UserError where there is nothing to keep, or no room.

    `reference` is the row whose time the others' are divided by; empty: times are not kept.
    """
    if all(row.control for row in measured.rows.values()):
        raise UserError("a baseline needs at least one method that is not a control")
    tolerance, bound = _tolerances(path)
    content = asdict(measured)
    unit = measured.rows[reference].time if reference else None
    for row in content["rows"].values():
        row["time"] = None if unit is None or row["time"] is None else float(f"{row['time'] / unit:.{DIGITS}g}")
    kept: dict[str, Any] = {"format": FORMAT, "tolerance": tolerance, "ratio_bound": bound, "reference": reference}
    lacking = {"skipped", "failed"}  # what a run lacked, later ones need not have
    kept |= {one.name: content[one.name] for one in fields(Measured) if one.name not in lacking}
    with writing(path, "make room there, or choose another file with --baseline"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _by_line(kept))


def _by_line(content: Mapping[str, Any]) -> str:
    """JSON with a line for each key, and for each row: what changed shows by row where two versions are compared."""
    lines = [
        f"{json.dumps(key)}: " + (_rows(value) if key == "rows" else json.dumps(value, sort_keys=True, allow_nan=False))
        for key, value in content.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rows(rows: Mapping[str, Any]) -> str:
    lines = [
        f" {json.dumps(name)}: {json.dumps(row, sort_keys=True, allow_nan=False)}" for name, row in sorted(rows.items())
    ]
    return "{\n" + ",\n".join(lines) + "\n}"


def _tolerances(path: Path) -> tuple[float, float]:
    """Those of the file that is replaced, as its user may have changed them."""
    try:
        before = read_baseline(path)
    except UserError:
        return TOLERANCE, RATIO_BOUND
    return before.tolerance, before.ratio_bound


def read_baseline(path: Path) -> Baseline:
    """UserError for a file that is not there, of another format, or not a baseline; it says what is wrong."""
    anew = f"write it anew with: python cli.py check --baseline {path} --write"
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes, expected at most {LARGEST}")
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        if content.get("format") != FORMAT:
            known = {"identity", "accuracy", "relative_times"} <= content.keys()  # of the first format, which had none
            if known or "format" in content:
                raise UserError(
                    f"{path}: a baseline of format {content.get('format', 1)}, expected {FORMAT}", hint=anew
                )
            raise ValueError("format is missing")
        baseline = as_kind(Baseline, {**content, "measured": content})
    except OSError as error:
        raise UserError(
            f"{path}: no baseline there ({error.strerror or error})",
            hint="write one with: check --baseline FILE --write",
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not a baseline ({error})", hint=anew) from error
    rows = baseline.measured.rows
    if baseline.reference and baseline.reference not in rows:
        raise UserError(
            f"{path}: not a baseline (reference {baseline.reference!r}, its rows are {listed(sorted(rows))})", hint=anew
        )
    return baseline
