"""Executors of this machine: the same results in one process and in several, whatever happens to the workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from bench import executor as executors
from bench.errors import UserError
from bench.executor import AHEAD, TRIES, Executor, Local, Ray, executor, in_order

HERE = Path(__file__).parent


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`executor_tasks`, as worker processes import it."""
    monkeypatch.syspath_prepend(HERE)
    import executor_tasks

    return executor_tasks


@pytest.fixture(params=[Local(), Local(2, threads=1)], ids=["one process", "two processes"])
def either(request: pytest.FixtureRequest) -> Executor:
    return request.param


def test_every_task_has_its_result_once(either: Executor, tasks: ModuleType) -> None:
    found = list(either.map(partial(tasks.worker, "square"), iter(range(20))))
    assert sorted(found) == [(n, n * n) for n in range(20)]
    assert list(in_order(found)) == [n * n for n in range(20)]


def test_no_tasks_need_no_worker(either: Executor, tasks: ModuleType) -> None:
    assert list(either.map(tasks.stillborn, [])) == []


@pytest.mark.timeout(120)
def test_a_worker_that_a_polite_signal_does_not_end_ends_too(
    tasks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEAF", str(tmp_path / "deaf"))
    results = Local(2, threads=1).map(partial(tasks.worker, "deaf"), range(2))
    assert next(results) == (0, 0)
    results.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_an_iterator_can_be_a_result(either: Executor, tasks: ModuleType) -> None:
    assert {number: list(found) for number, found in either.map(partial(tasks.worker, "count"), [2, 0, 3])} == {
        0: [0, 1],
        1: [],
        2: [0, 1, 2],
    }


def test_what_the_work_raises_is_raised_here(either: Executor, tasks: ModuleType) -> None:
    with pytest.raises(UserError, match="no 7") as caught:
        list(either.map(partial(tasks.worker, "refuse"), [7]))
    assert caught.value.hint == "another number"
    with pytest.raises(UserError, match="no network"):
        list(either.map(tasks.broken, [7]))


def test_errors_and_results_that_cannot_be_sent_are_named(tasks: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="Odd: 4 and 4") as caught:
        list(Local(2, threads=1).map(partial(tasks.worker, "odd"), [4]))
    assert "executor_tasks.py" in caught.value.__notes__[0]  # where it was raised
    with pytest.raises(Exception, match=r"pickle.*lock"):
        list(Local(2, threads=1).map(partial(tasks.worker, "unsendable"), [4]))


def test_one_worker_is_this_process_and_several_share_the_work(tasks: ModuleType) -> None:
    make = partial(tasks.worker, "pid")
    assert {pid for _, pid in Local().map(make, range(3))} == {os.getpid()}
    pids = Counter(pid for _, pid in Local(2, threads=1).map(make, range(100)))
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_worker_has_its_threads_and_this_process_keeps_its_own(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert dict(Local(2, threads=3).map(tasks.threads, [0])) == {0: (3, "3")}
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_task_whose_worker_dies_is_given_to_another(tasks: ModuleType, tmp_path: Path) -> None:
    found = list(Local(2, threads=1).map(partial(tasks.dying, tmp_path, TRIES - 1), range(12)))
    assert sorted(found) == [(n, n * n) for n in range(12)]
    begun = Counter(int(path.name.split("-")[0]) for path in tmp_path.iterdir())
    assert begun == Counter(range(12)) + Counter({3: TRIES - 1})  # no other task was done twice


def test_a_task_that_kills_every_worker_is_named(tasks: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"query 3: {TRIES} workers died.*status -9"):
        list(Local(2, threads=1).map(partial(tasks.dying, tmp_path, 99), range(12), "query {}".format))
    assert len(list(tmp_path.glob("3-*"))) == TRIES


def test_workers_that_die_at_birth_are_not_replaced_for_ever(tasks: ModuleType) -> None:
    with pytest.raises(UserError, match=rf"starting: {TRIES} workers died"):
        list(Local(2, threads=1).map(tasks.stillborn, [0]))


def test_a_worker_killed_from_outside_changes_nothing(tasks: ModuleType) -> None:
    killed, found = False, []
    for result in Local(2, threads=1).map(partial(tasks.worker, "square"), range(30)):
        found.append(result)
        if not killed and len(found) == 5:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            killed = True
    assert killed and sorted(found) == [(n, n * n) for n in range(30)]
    assert multiprocessing.active_children() == []


def test_tasks_are_drawn_as_they_are_needed(tasks: ModuleType) -> None:
    drawn = []

    def many() -> Iterator[int]:
        for number in range(10**9):
            drawn.append(number)
            yield number

    found = Local(2, threads=1).map(partial(tasks.worker, "slow first"), many())
    early = []
    for number, _ in found:
        early.append(number)
        if number == 0:
            break
    found.close()  # type: ignore[attr-defined]
    assert len(early) > 2  # the others did not wait for the slow one …
    assert len(drawn) <= 2 * AHEAD * 2 + 2  # … nor run away from it
    assert multiprocessing.active_children() == []


def test_workers_end_with_their_driver(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\n"
        "from functools import partial\nimport executor_tasks\nfrom bench.executor import Local\n"
        "if __name__ == '__main__':\n"
        "    for _, pid in Local(2, threads=1).map(partial(executor_tasks.worker, 'pid'), iter(int, 1)):\n"
        "        print(pid, flush=True)\n"
    )
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pids: set[int] = set()
    while len(pids) < 2:
        pids.add(int(driver.stdout.readline()))
    driver.kill()
    driver.wait()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    driver.stdout.close()


def test_one_process_adds_nothing_to_the_record_and_several_do() -> None:
    assert Local().hardware() == Local(threads=4).hardware() == {}
    records = [e.hardware() for e in (Local(2, 1), Local(3, 1), Local(2, 2), Ray(2, 1))]
    assert records[0] == {"executor": "local", "workers": 2, "threads": 1}
    assert all(a != b for i, a in enumerate(records) for b in records[:i])
    assert Local(4).hardware()["threads"] == max(1, (os.cpu_count() or 1) // 4)
    assert Ray(2, 1, "one:1").hardware() == Ray(2, 1, "two:1").hardware()  # the same work is found again elsewhere


def test_an_executor_is_chosen_by_name() -> None:
    assert executor("local", 2) == Local(2)
    assert executor("ray", 3, 2, "auto", "cuda:0") == Ray(3, 2, "auto", gpus=1.0)
    assert executor("ray").hardware()["workers"] == 1
    with pytest.raises(UserError, match="did you mean 'local'"):
        executor("locl")
    with pytest.raises(UserError, match="--executor ray"):
        executor("local", address="auto")
    with pytest.raises(ValueError, match="0 workers"):
        Local(0)
    with pytest.raises(ValueError, match="of 0 threads"):
        Ray(1, 0)


def test_no_worker_ever_up_is_an_error(tasks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "PATIENCE", 0.001)  # starting Python takes longer
    with pytest.raises(UserError, match="no worker could be started"):
        list(Local(2, threads=1).map(partial(tasks.worker, "square"), [1]))
