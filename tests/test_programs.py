"""A program of `tests.programs` is what a process begun by itself is: its output, status, signals, folder and main."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import programs
from tests.programs import REPOSITORY, Start, starting


@pytest.fixture(params=["forked", "by itself"])
def started(request: pytest.FixtureRequest, program: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    if request.param == "forked":
        yield program
        return
    monkeypatch.setattr(programs, "THREADS", Path("/nowhere"))
    with starting() as start:
        yield start


def test_a_program_says_what_it_is_told_and_ends_with_its_status(started: Start) -> None:
    code = "import json, os, sys; print(json.dumps([sys.argv, os.getcwd(), os.environ['TOLD']])); sys.exit('no more')"
    done = started("-c", code, "one", "two", env={"TOLD": "é"}).finish()
    assert json.loads(done.stdout) == [["-c", "one", "two"], str(REPOSITORY), "é"]
    assert done.returncode == 1 and done.stderr == "no more\n"


def test_an_error_is_printed_and_what_was_printed_before_is_not_lost(started: Start) -> None:
    done = started("-c", "print('before')\n1 / 0").finish()
    assert done.returncode == 1 and done.stdout == "before\n" and "ZeroDivisionError" in done.stderr


def test_a_file_is_a_main_module_with_its_folder_first(started: Start, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("HERE = 3")
    (tmp_path / "main.py").write_text("import beside\nif __name__ == '__main__':\n    print(beside.HERE, __file__)")
    assert started(str(tmp_path / "main.py")).finish().stdout == f"3 {tmp_path / 'main.py'}\n"


def test_a_killed_program_ends_by_that_signal_and_nobody_waits_for_what_runs(started: Start) -> None:
    running = started("-c", "import time; print('up', flush=True); time.sleep(1000)")
    assert running.stdout is not None and running.stdout.readline() == b"up\n"
    assert running.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.01)
    running.kill()
    assert running.wait(100) == running.poll() == -signal.SIGKILL
    running.communicate()


def test_programs_share_nothing(program: Start) -> None:
    both = [
        program("-c", f"import bench; bench.mark = getattr(bench, 'mark', 0) + {n}; print(bench.mark)") for n in (1, 2)
    ]
    assert [one.finish().stdout for one in both] == ["1\n", "2\n"]
