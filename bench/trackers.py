"""A finished run in a run tracker: Weights & Biases, Trackio or MLflow. Our own files stay what is true.

A row of the table is a run there: what made it is its configuration, the table's numbers are its summary, and the main
measure by query is a table. Where a tracker keeps its data is the tracker's to say, by its own environment variables.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pandas as pd

from bench.blend import Blend
from bench.errors import UserError
from bench.metrics import primary
from bench.record import MethodIdentity
from bench.report.columns import per_query
from bench.report.row_names import newest_rows
from bench.report.tables import compare
from bench.results import Run, run_name

PROJECT = "rerankbench"
QUERIES = "queries"  # the name of the table by query
LONGEST = 250  # characters of a name that all trackers take


@dataclass(frozen=True, eq=False)
class Tracked:
    """One row of a table as a tracker's run."""

    name: str  # METHOD@FEATURES, and the options that are not the defaults
    group: str  # the folder name of the run it is of
    config: Mapping[str, str | int | float | bool]  # what made it
    summary: Mapping[str, float]  # the table's numbers that it has, in the table's units
    queries: pd.DataFrame  # query, and the main measure at each difficulty, percent; NaN without positives

    def __post_init__(self) -> None:
        if bad := [key for key in (*self.config, *self.summary) if key != _key(key)]:
            raise ValueError(f"{bad[0]!r} is a name that not every tracker takes")
        if bad := [key for key, value in self.summary.items() if not math.isfinite(value)]:
            raise ValueError(f"{bad[0]} is {self.summary[bad[0]]}, expected a finite number")


def _key(text: str) -> str:
    """The text as a name that every tracker can sort, filter and plot by.

    >>> _key("ms/query p50"), _key("mP@10 Medium")
    ('ms_query_p50', 'mP_10_Medium')
    """
    return re.sub(r"\W+", "_", text, flags=re.ASCII)[:LONGEST]


def tracked(run: Run, blend: Blend = Blend()) -> tuple[Tracked, ...]:
    """The rows of a run's own table, in its order; gains and p are those of this table."""
    table, rows, metrics = compare([run], blend), newest_rows([run]), run.metrics(blend)
    found = []
    for name in map(str, table.rows.index):
        _, row = rows[name]
        values = {_key(column.name): float(table.rows.loc[name, column.name]) for column in table.columns}  # type: ignore[arg-type]
        reads = table.features[name]
        found.append(
            Tracked(
                f"{row}@{reads}{name[len(row) :]}" if reads and "@" not in row else name,
                run_name(run.record.identity),
                _config(run, row, blend) | {"features": reads, "control": name in table.controls},
                {key: value for key, value in values.items() if math.isfinite(value)},
                _by_query(run, metrics, row),
            )
        )
    return tuple(found)


def _config(run: Run, row: str, blend: Blend) -> dict[str, str | int | float | bool]:
    """Everything that a row's numbers depend on, without what is not known or not there."""
    record, header, identity = run.record, run.shortlist.header, run.record.identity.methods[row]
    known = {
        "row": row,
        "run": run_name(record.identity),
        "seal": run.seal,
        **{_key(name): value for name, value in vars(header).items()},
        "blend": str(blend),
        "commit": record.provenance.get("commit"),
        "finished": record.finished,
        **{_key(f"option_{name}"): value for name, value in identity.options.items()},
        **_hashes("", identity),
        **{key: value for part in identity.parts for key, value in _hashes(f"{part.method}_", part).items()},
        **{_key(f"hardware_{name}"): value for name, value in record.identity.hardware.items()},
        **{_key(f"version_{name}"): value for name, value in (record.provenance.get("versions") or {}).items()},
    }
    return {
        key: value if isinstance(value, _PLAIN) else str(value) for key, value in known.items() if value is not None
    }


_PLAIN = (str, int, float, bool)


def _hashes(prefix: str, identity: MethodIdentity) -> dict[str, str | None]:
    """sha256 of weights, code and the content of each part of features."""
    contents = zip(identity.features, identity.contents, strict=True)
    return {
        _key(f"{prefix}weights_sha256"): identity.weights_sha256,
        _key(f"{prefix}source_sha256"): identity.source_sha256,
        **{_key(f"{prefix}content_{part}"): sha for part, sha in contents},
    }


def _by_query(run: Run, metrics: pd.DataFrame, row: str) -> pd.DataFrame:
    measure = primary(run.dataset.protocol)
    queries = [query.id for query in run.dataset.queries]
    values = {
        f"{measure.of_query} {difficulty}": 100 * per_query(metrics, row, difficulty, measure.name).reindex(queries)
        for difficulty in run.dataset.difficulties
    }
    return pd.DataFrame(values, index=queries).rename_axis("query").reset_index()


# --- trackers -------------------------------------------------------------------------------------------------------


def send_logged(module: ModuleType, project: str, one: Tracked) -> None:
    """To a module that has `init`, `log` and `finish`, and perhaps `Table`: wandb, trackio."""
    module.init(project=project, name=one.name, group=one.group, config=dict(one.config))
    try:
        values: dict[str, Any] = dict(one.summary)
        if hasattr(module, "Table"):
            rows = one.queries.astype(object).where(one.queries.notna(), None)
            values[QUERIES] = module.Table(columns=list(rows.columns), data=rows.to_numpy().tolist())
        module.log(values)
    finally:
        module.finish()


def send_to_mlflow(module: ModuleType, project: str, one: Tracked) -> None:
    """To the module mlflow; the table by query is the artifact `queries.csv`."""
    module.set_experiment(project)
    with module.start_run(run_name=one.name, tags={"group": one.group}):
        module.log_params(dict(one.config))
        module.log_metrics(dict(one.summary))
        module.log_text(one.queries.to_csv(index=False), f"{QUERIES}.csv")


Send = Callable[[ModuleType, str, Tracked], None]
# tracker, which is the name of its module and of the extra that installs it -> how a row is sent, and what may help
TRACKERS: Mapping[str, tuple[Send, str]] = {
    "wandb": (send_logged, "`wandb login`, or WANDB_MODE=offline to keep it here"),
    "trackio": (send_logged, "TRACKIO_DIR names the folder that it is kept in"),
    "mlflow": (send_to_mlflow, "MLFLOW_TRACKING_URI names the server or the database, for example sqlite:///mlflow.db"),
}


def send(run: Run, tracker: str, project: str = PROJECT, blend: Blend = Blend()) -> tuple[str, ...]:
    """Send every row of a run's table to one of TRACKERS; the names that they have there.

    UserError where its package is not installed, or where it takes a row no more than in part; rows before that stay.
    """
    how, help = TRACKERS[tracker]
    rows = tracked(run, blend)
    try:
        module = importlib.import_module(tracker)
    except ImportError as error:
        raise UserError(
            f"--to {tracker}: it is not installed ({error})",
            hint=f"in this repository: pip install -e '.[{tracker}]'",
        ) from error
    for number, one in enumerate(rows):
        try:
            how(module, project, one)
        except Exception as error:  # trackers raise errors of many kinds
            done = f"{number} of {len(rows)} rows were sent before"
            raise UserError(
                f"--to {tracker}: {one.name} was refused, {done} ({type(error).__name__}: {error})", hint=help
            ) from error
    return tuple(one.name for one in rows)
