"""Several workers, on this machine or on a Ray cluster, give what one process gives, whoever of them dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import DEVNULL

import pandas as pd
import pytest

from bench.executor import Executor, Local, Ray
from bench.features.sets import ExtractOptions
from bench.places import Places
from bench.results import Run
from bench.run import Outcome, execute
from bench.setup import Selection, Setup
from tests.programs import Start

METHODS = "identity,mnn,ransac"
KERNEL = "asmk@xfeat"  # a first stage that has one part of features extracted, for tests of what happens after that


@pytest.fixture
def alone(tmp_path: Path, instances: Path) -> Callable[..., tuple[Outcome, Places]]:
    """A run with an empty cache: images are extracted by the executor too."""

    return partial(_alone, tmp_path, instances)


def _alone(
    place: Path,
    images: Path,
    executor: Executor,
    told: Callable[[str, int, int], None] | None = None,
    first_stage: str | None = None,
) -> tuple[Outcome, Places]:
    places = Places(place / "cache", place / "data", place / "runs")
    setup = Setup(f"folder:{images}", extract=ExtractOptions(160, 150), executor=executor, first_stage=first_stage)
    (outcome,) = execute(setup, [Selection(tuple(METHODS.split(",")))], places, told)
    return outcome, places


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, instances: Path) -> tuple[Outcome, Places]:
    """What one process gives. Read only."""
    return _alone(tmp_path_factory.mktemp("one"), instances, Local(threads=1))


@pytest.fixture(scope="module")
def on_kernel(tmp_path_factory: pytest.TempPathFactory, instances: Path) -> tuple[Outcome, Places]:
    """The same with KERNEL. Read only."""
    return _alone(tmp_path_factory.mktemp("kernel"), instances, Local(threads=1), first_stage=KERNEL)


def scores(run: Run) -> pd.DataFrame:
    columns = ["method", "list", "query", "candidate", "score"]
    return run.scores[columns].sort_values(columns, ignore_index=True)


def stored(places: Places) -> dict[str, bytes]:
    home = places.cache / "features"
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*.npy"))}


def same(one: tuple[Outcome, Places], other: tuple[Outcome, Places]) -> None:
    pd.testing.assert_frame_equal(scores(one[0].run), scores(other[0].run))
    assert one[0].run.seal == other[0].run.seal and not other[0].run.record.failed
    assert stored(one[1]) == stored(other[1])


def journal(run: Run) -> list[tuple[str, str]]:
    lines = (run.folder / "journal.jsonl").read_text().splitlines()
    return [(record["method"], record["query"]) for record in map(json.loads, lines)]


def test_two_workers_give_what_one_process_gives_in_a_run_of_their_own(
    alone: Callable, one: tuple[Outcome, Places]
) -> None:
    two = alone(Local(2, threads=1))
    same(one, two)
    assert two[0].run.record.identity.hardware["workers"] == 2
    assert "workers" not in one[0].run.record.identity.hardware
    assert one[0].run.folder.name != two[0].run.folder.name  # their times do not compare
    done = journal(two[0].run)
    assert len(done) == len(set(done)) == 27


def test_a_worker_killed_during_the_run_changes_nothing(alone: Callable, on_kernel: tuple[Outcome, Places]) -> None:
    killed: list[int] = []

    def kill(what: str, done: int, total: int) -> None:
        if what == "scoring" and done >= 3 and not killed:
            child = multiprocessing.active_children()[0]
            killed.append(int(child.pid or 0))
            os.kill(killed[0], signal.SIGKILL)

    found = alone(Local(2, threads=1), kill, KERNEL)
    assert killed
    same(on_kernel, found)


def test_a_driver_killed_goes_on_where_it_stopped(
    program: Start, tmp_path: Path, instances: Path, on_kernel: tuple[Outcome, Places]
) -> None:
    command = ["cli.py", "run", "-m", METHODS, "-d", f"folder:{instances}", "--workers", "2"]
    command += ["--threads", "1", "--max-side", "160", "--keep-descriptors", "150", "--first-stage", KERNEL]
    command += ["--cache-dir", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs")]
    driver = program(*command, stdout=DEVNULL, stderr=DEVNULL)
    before = 0
    while driver.poll() is None and not before:
        before = sum(len(path.read_text().splitlines()) for path in (tmp_path / "runs").glob("*/journal.jsonl"))
        time.sleep(0.002)
    driver.kill()
    driver.wait()
    done = program(*command).finish()
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    run = Run.load(folder)
    assert before and len(journal(run)) == len(set(journal(run))) == 27
    pd.testing.assert_frame_equal(scores(run), scores(on_kernel[0].run))


@pytest.mark.timeout(240)
def test_a_ray_node_killed_during_the_run_changes_nothing(alone: Callable, one: tuple[Outcome, Places]) -> None:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(3)]
        cluster.wait_for_nodes()
        killed: list[object] = []

        def kill(what: str, done: int, total: int) -> None:
            if what == "scoring" and done >= 3 and not killed:
                busy = {actor["NodeID"] for actor in _actors() if actor["State"] == "ALIVE"}
                node = next(node for node in nodes if node.node_id in busy)
                killed.append(node.node_id)
                cluster.remove_node(node, allow_graceful=False)

        found = alone(Ray(2, 1, cluster.address), kill)
        assert killed
    finally:
        ray.shutdown()
        cluster.shutdown()
    same(one, found)
    assert found[0].run.record.identity.hardware["executor"] == "ray"


def _actors() -> list[dict]:
    from ray._private.state import actors

    return [{"NodeID": a["Address"]["NodeID"], "State": a["State"]} for a in actors().values()]
