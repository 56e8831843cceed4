"""A Ray cluster of several nodes on this machine gives what one process gives, also when a node is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from bench.errors import UserError
from bench.executor import TRIES, Ray, in_order

pytest.importorskip("ray", reason="the extra ray is not installed")
HERE = Path(__file__).parent / "bench"
ROOM = 80 * 2**20  # bytes of each node's object store
QUICK = {  # a dead node is noticed within a second or two
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}


class Nodes:
    """A head and two nodes, one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "object_store_memory": ROOM, "include_dashboard": False, "_system_config": QUICK}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self.cluster.address
        self.others = [self.add(), self.add()]

    def add(self):
        return self.cluster.add_node(num_cpus=1, object_store_memory=ROOM)

    def lose_one(self) -> None:
        """Kill a node as a power cut would; another of its kind joins later, as on a cluster that repairs itself."""
        os.kill(self.others.pop().all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self.others.insert(0, self.add())


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(HERE))  # as the working code must be on every machine, so must the tests'
        found = Nodes()
        yield found
        found.cluster.shutdown()


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    import executor_tasks

    return executor_tasks


def test_every_task_has_its_result_once(nodes: Nodes, tasks: ModuleType) -> None:
    found = list(Ray(3, address=nodes.address).map(partial(tasks.worker, "square"), iter(range(40))))
    assert sorted(found) == [(n, n * n) for n in range(40)]
    assert list(in_order(found)) == [n * n for n in range(40)]


OWN = """
from functools import partial
import executor_tasks
from bench.executor import Ray
print(list(Ray(1).map(partial(executor_tasks.worker, "square"), [3])))
"""


def test_without_an_address_a_cluster_that_runs_here_is_left_alone(nodes: Nodes) -> None:
    root = Path(__file__).parent.parent
    # as Ray itself would look for one; in a process of its own, since Ray keeps what it was started with
    settings = {**os.environ, "RAY_ADDRESS": nodes.address, "PYTHONPATH": f"{root}{os.pathsep}{HERE}"}
    done = subprocess.run([sys.executable, "-c", OWN], env=settings, capture_output=True, text=True, timeout=200)
    assert done.stdout == "[(0, 9)]\n", done.stderr


def test_an_iterator_can_be_a_result_and_a_worker_has_its_threads(nodes: Nodes, tasks: ModuleType) -> None:
    assert list(Ray(1, address=nodes.address).map(partial(tasks.worker, "count"), [3])) == [(0, [0, 1, 2])]
    assert list(Ray(1, address=nodes.address).map(tasks.threads, [0])) == [(0, (1, "1"))]


def test_what_the_work_raises_is_raised_here(nodes: Nodes, tasks: ModuleType) -> None:
    with pytest.raises(UserError, match="no 7") as caught:
        list(Ray(2, address=nodes.address).map(partial(tasks.worker, "refuse"), [7]))
    assert caught.value.hint == "another number"
    with pytest.raises(UserError, match="no network"):
        list(Ray(1, address=nodes.address).map(tasks.broken, [7]))


def test_a_task_whose_worker_dies_is_given_to_another(nodes: Nodes, tasks: ModuleType, tmp_path: Path) -> None:
    found = list(Ray(2, address=nodes.address).map(partial(tasks.dying, tmp_path, TRIES - 1), range(12)))
    assert sorted(found) == [(n, n * n) for n in range(12)]
    assert len(list(tmp_path.glob("3-*"))) == TRIES


def test_a_task_that_kills_every_worker_is_named(nodes: Nodes, tasks: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"query 3: {TRIES} workers died"):
        list(Ray(2, address=nodes.address).map(partial(tasks.dying, tmp_path, 99), range(12), "query {}".format))
    assert len(list(tmp_path.glob("3-*"))) == TRIES


def test_a_lost_node_changes_nothing(nodes: Nodes, tasks: ModuleType) -> None:
    counted, lost = {}, False
    for number, pid in Ray(3, address=nodes.address).map(partial(tasks.worker, "pid"), range(300)):
        assert number not in counted
        counted[number] = pid
        if not lost and len(set(counted.values())) == 3:  # every node has worked
            nodes.lose_one()
            lost = True
    assert lost and set(counted) == set(range(300))


def test_a_node_that_does_not_start_is_said_in_a_line(tasks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a plain exception where a machine is too busy for it."""

    def init(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.\nSome of the raylet failed.")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UserError, match=r"did not start on this machine \(The current node timed out") as refused:
        list(Ray(1).map(partial(tasks.worker, "square"), [3]))
    assert "\n" not in refused.value.message and refused.value.hint
