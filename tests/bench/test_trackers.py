"""What a run tracker is told is what the table and the record say."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from bench.blend import Blend
from bench.errors import UserError
from bench.report.tables import compare
from bench.results import Run
from bench.run import Outcome
from bench.trackers import TRACKERS, Tracked, send, tracked

LOGGED = '''
"""A tracker of three functions and a table, which keeps what it is told in a list."""

calls = []

class Table:
    def __init__(self, columns, data):
        self.columns, self.data = columns, data

def init(project, name, group, config):
    calls.append(("init", {"project": project, "name": name, "group": group, "config": config}))

def log(values):
    calls.append(("log", values))

def finish():
    calls.append(("finish", {}))
'''
MLFLOW = '''
"""As much of mlflow as is used, which keeps what it is told in a list."""

from contextlib import contextmanager

calls = []

@contextmanager
def start_run(run_name, tags):
    calls.append(("start_run", run_name, tags))
    yield
    calls.append(("end", ))

def __getattr__(name):
    return lambda *values: calls.append((name, *values))
'''


@pytest.fixture
def done(finished: Callable[..., Run], buildings: Path) -> Run:
    return finished(buildings, "identity,mnn,ransac@sift,rrt", top_k=8, options={"mnn": {"descriptors": 100}})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """`installed(name, source)`: a module of that name that is found before any other, until the test ends."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in TRACKERS}

    def install(name: str, source: str) -> ModuleType:
        (place / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield install
    for name in TRACKERS:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def numbers(run: Run, blend: Blend = Blend()) -> list[dict[str, float]]:
    """The values of a run's own table, row by row, those that it has."""
    rows = compare([run], blend).rows
    return [{name: value for name, value in row.items() if np.isfinite(value)} for row in rows.to_dict("records")]


# --- what is sent ---------------------------------------------------------------------------------------------------


def test_a_row_has_the_numbers_of_the_table(done: Run) -> None:
    rows = tracked(done)
    assert [list(one.summary.values()) for one in rows] == [list(row.values()) for row in numbers(done)]
    (mnn,) = [one for one in rows if one.name == "mnn@xfeat descriptors=100"]
    assert mnn.summary["mAP_Medium"] == compare([done]).rows.loc["mnn descriptors=100", "mAP Medium"]
    assert {"mP_10_Medium", "ms_query_p50", "KiB_image", "gain_low", "p"} <= mnn.summary.keys()
    (first,) = [one for one in rows if one.name == "identity"]
    assert "gain" not in first.summary and first.config["control"] is True


def test_rows_are_named_by_method_and_features(done: Run) -> None:
    assert {one.name for one in tracked(done)} == {
        "identity",
        "mnn@xfeat descriptors=100",
        "ransac@sift",
        "rrt@xfeat+gem-lite0",
    }


def test_the_configuration_is_the_identity_of_the_row(done: Run) -> None:
    of = {str(one.config["row"]): one.config for one in tracked(done)}
    header = done.shortlist.header
    for row, config in of.items():
        identity = done.record.identity.methods[row]
        assert (config["seal"], config["dataset"], config["policy"], config["k"]) == (
            done.seal,
            header.dataset,
            header.policy,
            8,
        )
        assert config["run"] == done.folder.name and config["hardware_threads"] == 1
        assert config["source_sha256"] == identity.source_sha256
        assert config.get("weights_sha256") == identity.weights_sha256
        for key, value in identity.options.items():
            assert config.get(f"option_{key}") == value
        assert [v for k, v in config.items() if k.startswith("content_")] == list(dict.fromkeys(identity.contents))
        assert config["version_torch"] == done.record.provenance["versions"]["torch"]
    assert of["mnn"]["option_descriptors"] == 100 and of["mnn"]["features"] == "xfeat"
    assert of["rrt"]["weights_sha256"] and "weights_sha256" not in of["mnn"]


def test_the_mean_of_the_queries_is_the_tables_value(done: Run) -> None:
    for one in tracked(done):
        assert list(one.queries.columns) == ["query", "AP Easy", "AP Medium", "AP Hard"]
        assert one.queries["query"].tolist() == [query.id for query in done.dataset.queries]
        for difficulty in ("Easy", "Medium", "Hard"):
            assert one.queries[f"AP {difficulty}"].mean() == pytest.approx(one.summary[f"mAP_{difficulty}"], abs=1e-12)


def test_a_blend_is_that_of_the_table_and_is_said(done: Run) -> None:
    blend = Blend.parse("add:0")
    rows = tracked(done, blend)
    assert [list(one.summary.values()) for one in rows] == [list(row.values()) for row in numbers(done, blend)]
    assert {one.config["blend"] for one in rows} == {"add:0"}
    assert len({one.summary["mAP_Medium"] for one in rows}) == 1


def test_names_and_numbers_that_a_tracker_would_refuse_are_refused_here(done: Run) -> None:
    one = tracked(done)[0]
    with pytest.raises(ValueError, match="'mP@10' is a name that not every tracker takes"):
        replace(one, summary={"mP@10": 1.0})
    with pytest.raises(ValueError, match="p is nan, expected a finite number"):
        replace(one, summary={"p": float("nan")})


# --- how it is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_row_is_a_run_that_begins_and_ends(done: Run, installed: Callable, name: str) -> None:
    module, rows = installed(name, LOGGED), tracked(done)
    assert send(done, name, "mine") == tuple(one.name for one in rows)
    assert [kind for kind, _ in module.calls] == ["init", "log", "finish"] * len(rows)
    for one, begun, told in zip(rows, module.calls[::3], module.calls[1::3], strict=True):
        assert begun[1] == {"project": "mine", "name": one.name, "group": done.folder.name, "config": dict(one.config)}
        table = told[1].pop("queries")
        assert told[1] == one.summary
        pd.testing.assert_frame_equal(pd.DataFrame(table.data, columns=table.columns), one.queries)
        json.dumps([begun[1], told[1], table.data], allow_nan=False)


def test_a_query_without_a_value_is_none_in_the_table(
    run: Callable[..., Outcome], write_buildings: Callable, installed: Callable, tmp_path: Path
) -> None:
    root = write_buildings(tmp_path / "set")
    truth = json.loads((root / "gnd.json").read_text())
    truth["queries"][1]["easy"] = []
    (root / "gnd.json").write_text(json.dumps(truth))
    module = installed("wandb", LOGGED)
    send(run(root, "identity", top_k=8).run, "wandb")
    table = module.calls[1][1]["queries"]
    assert table.data[1][1] is None and isinstance(table.data[0][1], float)


def test_a_tracker_without_tables_is_told_the_numbers(done: Run, installed: Callable) -> None:
    module = installed("wandb", LOGGED)
    del module.Table
    send(done, "wandb")
    assert [told for kind, told in module.calls if kind == "log"] == [one.summary for one in tracked(done)]


def test_mlflow_is_told_the_same(done: Run, installed: Callable) -> None:
    module, rows = installed("mlflow", MLFLOW), tracked(done)
    send(done, "mlflow", "mine")
    at = iter(module.calls)
    for one in rows:
        assert next(at) == ("set_experiment", "mine")
        assert next(at) == ("start_run", one.name, {"group": done.folder.name})
        assert next(at) == ("log_params", one.config) and next(at) == ("log_metrics", one.summary)
        kind, text, name = next(at)
        assert (kind, name) == ("log_text", "queries.csv")
        pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), one.queries)
        assert next(at) == ("end",)
    assert not list(at)


def test_a_refusal_says_how_many_rows_were_sent_and_ends_the_run(done: Run, installed: Callable) -> None:
    module = installed("wandb", LOGGED)
    log, told = module.log, []

    def full(values: Mapping[str, Any]) -> None:
        if len(told) == 2:
            raise RuntimeError("the project is full")
        told.append(log(values))

    module.log = full
    with pytest.raises(UserError, match=r"was refused, 2 of 4 rows were sent before \(RuntimeError: the project is"):
        send(done, "wandb")
    assert module.calls[-1][0] == "finish" and [kind for kind, _ in module.calls].count("finish") == 3


@pytest.mark.parametrize("name", TRACKERS)
def test_what_is_not_installed_is_said_with_its_command(done: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"--to {name}: it is not installed") as refused:
        send(done, name)
    assert refused.value.hint == f"in this repository: pip install -e '.[{name}]'"


def test_the_command_sends_or_writes_and_not_both(
    cli: Callable[..., Result], buildings: Path, tmp_path: Path, installed: Callable
) -> None:
    module = installed("trackio", LOGGED)
    small = ("--max-side", "160", "--keep-descriptors", "150", "-k", "6")
    assert cli("run", "-m", "identity,mnn", "-d", f"folder:{buildings}", *small).exit_code == 0
    sent = cli("export", "--to", "trackio")
    assert sent.exit_code == 0 and "sent to trackio: mnn@xfeat" in sent.output
    assert module.calls[0][1]["project"] == "rerankbench"
    assert cli("export", "--to", "trackio", "--project", "mine").exit_code == 0
    assert module.calls[-3][1]["project"] == "mine"
    for arguments, said in (
        ((), "neither --out nor --to"),
        (("--to", "trackio", "--out", str(tmp_path / "out")), "both --out and --to"),
        (("--out", str(tmp_path / "out"), "--project", "mine"), "--project mine without a tracker"),
    ):
        refused = cli("export", *arguments)
        assert refused.exit_code == 1 and said in refused.output
    assert not (tmp_path / "out").exists()


# --- the packages themselves ----------------------------------------------------------------------------------------


def test_trackio_keeps_what_it_is_told(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    project = f"test-{tmp_path.name}"
    monkeypatch.setattr(importlib.import_module("trackio.utils"), "TRACKIO_DIR", tmp_path)
    monkeypatch.setattr(importlib.import_module("trackio.sqlite_storage"), "TRACKIO_DIR", tmp_path)
    send(done, "trackio", project)
    kept = {run.name: run for run in trackio.Api().runs(project)}
    assert (tmp_path / f"{project}.db").is_file() and len(kept) == len(tracked(done))
    for one in tracked(done):
        (told,) = storage.get_logs(project, one.name)
        assert {name: told[name] for name in one.summary} == one.summary
        assert {name: kept[one.name].config[name] for name in one.config} == one.config
        pd.testing.assert_frame_equal(pd.DataFrame(told["queries"]["_value"]), one.queries)


def test_mlflow_keeps_what_it_is_told(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow keeps runs in a database with sqlalchemy, which is not installed")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    send(done, "mlflow", "mine")
    client = mlflow.MlflowClient()
    kept = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("mine").experiment_id])}
    for one in tracked(done):
        run = kept.pop(one.name)
        assert run.data.metrics == one.summary and run.info.status == "FINISHED"
        assert run.data.params == {name: str(value) for name, value in one.config.items()}
        text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/queries.csv")
        pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), one.queries)
    assert not kept


def records(path: Path) -> Iterator[Any]:
    """What wandb wrote of a run: a log of LevelDB's form, whose records are protocol buffers."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield record.FromString(part)
            part = b""


def test_wandb_keeps_what_it_is_told(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    send(done, "wandb", "mine")
    kept: dict[str, Tracked] = {one.name: one for one in tracked(done)}
    for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb"):
        told: dict[str, Any] = {}
        for record in records(path):
            if record.WhichOneof("record_type") == "run":
                one = kept.pop(record.run.display_name)
                config = {update.key: json.loads(update.value_json) for update in record.run.config.update}
                assert {name: config[name] for name in one.config} == one.config and record.run.project == "mine"
            if record.WhichOneof("record_type") == "history":
                told |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        assert {name: told[name] for name in one.summary} == one.summary
        (table,) = (path.parent / "files" / "media" / "table").glob("*.json")
        content = json.loads(table.read_text())
        pd.testing.assert_frame_equal(pd.DataFrame(content["data"], columns=content["columns"]), one.queries)
    assert not kept
