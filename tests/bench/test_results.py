"""Runs on disk: which folders hold one, which are named and left out, and what a folder is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.errors import UserError
from bench.places import Places
from bench.results import Run, read_runs, run_name, sound_run
from bench.run import Outcome
from cli import main

Go = Callable[..., Outcome]


@pytest.mark.parametrize(
    "text", ['{"status": "fini', "", "[]", None, '{"status": "running"}', '{"status": "finished"}']
)
def test_a_folder_that_holds_no_run_is_named_or_left_out(
    run: Go, instances: Path, places: Places, text: str | None
) -> None:
    """Damaged: named with the reason, since it may have been a result. Unfinished or of another format: counted."""
    run(instances, "identity")
    (places.runs / "odd one").mkdir()
    if text is not None:
        (places.runs / "odd one" / "run.json").write_text(text)
    result = CliRunner().invoke(main, ["report", "--runs", str(places.runs), "--format", "json"])
    assert result.exit_code == 0
    assert [row["method"] for row in json.loads(result.stdout)["rows"]] == ["identity"]
    counted = text is not None and (text.endswith('d"}') or "running" in text)
    assert ("odd one is damaged and left out: " in result.stderr) == (text is not None and not counted)
    assert (f"left out of {places.runs}: odd one" in result.stderr) == counted


def test_a_folder_that_a_user_names_holds_a_finished_sound_run(run: Go, instances: Path, tmp_path: Path) -> None:
    done = run(instances, "identity").run
    assert sound_run(done.folder).seal == done.seal
    record = done.folder / "run.json"
    content = json.loads(record.read_text())
    for text, said in (
        ('{"status": "fini', "is damaged: run.json: "),
        (json.dumps({**content, "status": "running"}), "no finished run in"),
        (json.dumps({**content, "format": 1}), "no finished run in"),
        (json.dumps({**content, "costs": None}), "is damaged: run.json: costs is null, expected an object"),
    ):
        record.write_text(text)
        with pytest.raises(UserError, match=said) as refusal:
            Run.load(done.folder)
        assert refusal.value.hint and str(done.folder) in refusal.value.message
    record.write_text(json.dumps(content))
    (done.folder / "ledger.parquet").unlink()
    assert Run.load(done.folder).seal == done.seal
    with pytest.raises(UserError, match=r"is damaged: ledger.parquet: .*No such file"):
        sound_run(done.folder)
    with pytest.raises(UserError, match=r"not a run \(it has no run.json\)"):
        Run.load(tmp_path)


def test_runs_that_are_not_wanted_are_not_gone_through(run: Go, instances: Path, places: Places) -> None:
    done = run(instances, "identity").run
    (done.folder / "scores.parquet").unlink()
    assert not read_runs(places.runs, lambda run: run.record.identity.shortlist.k == 1).damaged
    assert list(read_runs(places.runs).damaged) == [done.folder.name]


def test_a_run_is_called_by_what_it_is(run: Go, instances: Path) -> None:
    done = run(instances, "identity,cascade", options={"cascade": {"stages": "identity,mnn:3"}}).run
    identity = done.record.identity
    assert run_name(identity) == done.folder.name and "-gem-lite0-blind-k8" in done.folder.name
    assert identity.methods["cascade"].parts[1].method == "mnn"
    assert run_name(replace(identity, hardware={**identity.hardware, "threads": 9})) != done.folder.name
