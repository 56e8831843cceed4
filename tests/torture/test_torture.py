"""One real round of each cheap scenario, and the pieces that tell a sound folder from another."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture import state
from tests.torture.process import ROOT, Moment
from tests.torture.scenarios import SCENARIOS

QUICK = ("kill-import", "kill-import-again", "kill-download", "full-disk-import", "full-disk-download")
LINE = {"method": "m", "query": "q", "scores": {"union": [1.0]}, "details": {}}


def test_one_round_of_what_is_quick_is_sound() -> None:
    command = [sys.executable, "-m", "tests.torture", "--rounds", "1"]
    command += [part for name in QUICK for part in ("--only", name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[1:]] == list(QUICK) and all(row[1] == "1" or "skipped:" in row for row in rows[1:])


def test_names_of_scenarios_are_their_own() -> None:
    assert all(name == scenario.name for name, scenario in SCENARIOS.items()) and len(SCENARIOS) == 19


def test_a_file_that_is_left_over_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    before = state.contents(tmp_path)
    (tmp_path / "a.json.tmp-7").write_text("")
    (tmp_path / "b").mkdir()
    assert [line.partition(":")[0] for line in state.differences(state.contents(tmp_path), before)] == [
        "a.json.tmp-7",
        "b",
    ]
    assert len(state.differences({}, before)) == 1


def test_a_query_twice_is_another_journal_and_one_scored_again_is_work_repeated(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({**LINE, "score_ms": 1.0}) + "\n")
    once, done = state.contents(tmp_path), state.finished(tmp_path)
    path.write_text(json.dumps({**LINE, "score_ms": 2.0}) + "\n")
    assert state.contents(tmp_path) == once  # times may differ
    assert len(state.repeated(done, state.finished(tmp_path))) == 1
    path.write_text(2 * (json.dumps(LINE) + "\n"))
    assert state.contents(tmp_path) != once


def test_a_lock_that_is_held_is_found_and_one_that_is_left_is_not(tmp_path: Path) -> None:
    with (tmp_path / ".a.lock").open("w") as lock:
        assert state.contents(tmp_path) == {}
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state.contents(tmp_path) == {".a.lock": "a lock that is held"}


@pytest.mark.parametrize(("moment", "said"), [(Moment(), "never"), (Moment(write=3), "before write 3")])
def test_a_moment_says_when(moment: Moment, said: str) -> None:
    assert str(moment) == said
