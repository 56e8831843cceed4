"""Where work is done: in this process, in several processes of this machine, or on a Ray cluster.

An executor maps tasks to results. A worker makes its state once (a network, a loaded method) and is given one task at a
time; a worker that dies has its task given to another. Results are those of the one process, whichever executor.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar, Protocol, TypeVar

from bench.errors import UserError, unknown

TRIES = 3  # workers that may die of one task, or while starting, before that is called its fault
AHEAD = 4  # tasks per worker that may be begun before the oldest unfinished one ends: what a writer in order holds
PATIENCE = 600.0  # seconds that no worker may be up; a cluster that grows needs minutes
Task = TypeVar("Task")
Result = TypeVar("Result")


class Executor(Protocol):
    """Maps tasks to results on workers. Executors are values: equal ones give equal circumstances."""

    def map(
        self, make: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task], describe: Callable[[Task], str] = str
    ) -> Iterator[tuple[int, Result]]:
        """(number of the task, its result), as they finish; tasks are drawn when a worker is free for one.

        `make` builds a worker's state and gives the function of one task; with more than one worker it and the tasks
        are pickled, and a result that is an iterator arrives as a list. What the function raises is raised here.
        UserError for a task whose workers died TRIES times; `describe` names it.
        """
        ...

    def hardware(self) -> dict[str, object]:
        """What to add to the machine's description: workers beside one another disturb each other's times."""
        ...


@dataclass(frozen=True)
class Local:
    """This machine: this very process where `workers` is 1, as many new ones otherwise."""

    name: ClassVar[str] = "local"
    workers: int = 1
    threads: int | None = None  # of each of several workers; None: the machine's cores over the workers

    def __post_init__(self) -> None:
        _check(self.workers, self.threads)

    def map(
        self, make: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task], describe: Callable[[Task], str] = str
    ) -> Iterator[tuple[int, Result]]:
        if self.workers > 1:
            yield from _scheduled(lambda: _Processes(make, self._threads), self.workers, tasks, describe)
            return
        function: Callable[[Task], Result] | None = None
        for number, task in enumerate(tasks):
            function = function or make()
            yield number, function(task)

    def hardware(self) -> dict[str, object]:
        return {} if self.workers == 1 else _hardware(self.name, self.workers, self._threads)

    @property
    def _threads(self) -> int:
        return self.threads or max(1, (os.cpu_count() or 1) // self.workers)


@dataclass(frozen=True)
class Ray:
    """A Ray cluster: an actor a worker, wherever the cluster has room for its threads.

    Every machine must see the files of the data set and of the store under the same paths, and have the same code
    installed.
    """

    name: ClassVar[str] = "ray"
    workers: int = 1
    threads: int | None = None  # CPUs that the cluster sets aside for a worker; None: 1
    address: str | None = None  # of a running cluster, or auto; None: one of this machine alone is started
    gpus: float = 0.0  # set aside for a worker

    def __post_init__(self) -> None:
        _check(self.workers, self.threads)

    def map(
        self, make: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task], describe: Callable[[Task], str] = str
    ) -> Iterator[tuple[int, Result]]:
        return _scheduled(lambda: _Actors(self, make), self.workers, tasks, describe)

    def hardware(self) -> dict[str, object]:
        return _hardware(self.name, self.workers, self.threads or 1)


EXECUTORS: Mapping[str, type[Local] | type[Ray]] = {executor.name: executor for executor in (Local, Ray)}


def executor(
    name: str, workers: int = 1, threads: int | None = None, address: str | None = None, device: str = "cpu"
) -> Executor:
    """The executor of that name, for work on `device`. UserError for an unknown name or an address of no cluster."""
    if name not in EXECUTORS:
        raise unknown("executor", name, EXECUTORS)
    if address is not None and name != Ray.name:
        raise UserError(f"--ray-address {address}: the executor is {name}", hint="--executor ray")
    cluster: dict[str, Any] = {"address": address, "gpus": float(device.startswith("cuda"))} if name == Ray.name else {}
    return EXECUTORS[name](workers=workers, threads=threads, **cluster)


def in_order(results: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """The results in their tasks' order; what comes early is held until its turn."""
    held: dict[int, Result] = {}
    following = 0
    for number, result in results:
        held[number] = result
        while following in held:
            yield held.pop(following)
            following += 1


def _check(workers: int, threads: int | None) -> None:
    if workers < 1 or (threads is not None and threads < 1):
        raise ValueError(f"{workers} workers of {threads} threads: expected at least one of each")


def _hardware(name: str, workers: int, threads: int) -> dict[str, object]:
    return {"executor": name, "workers": workers, "threads": threads}


# --- a worker's side ----------------------------------------------------------------------------------------------

READY, DONE, FAILED, LOST = "ready", "done", "failed", "lost"  # what a worker, or its end, tells
Told = tuple[str, Any]


class _Work:
    """What runs in a worker, of any executor. Every call answers; none raises what the work itself raised."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], threads: int):
        self._make, self._threads = make, threads

    def begin(self) -> Told:
        def begin() -> None:
            self._limit()
            self._function = self._make()
            self._limit()  # what it is made of may have imported torch

        return _answer(READY, begin)

    def do(self, task: Any) -> Told:
        def do() -> Any:
            result = self._function(task)
            return list(result) if isinstance(result, Iterator) else result

        return _answer(DONE, do)

    def _limit(self) -> None:
        if (torch := sys.modules.get("torch")) is not None:  # imported by the work; seconds, where it does not need it
            torch.set_num_threads(self._threads)


def _answer(good: str, call: Callable[[], Any]) -> Told:
    try:
        return good, call()
    except Exception as error:
        return FAILED, _portable(error)


def _portable(error: Exception) -> Exception:
    """The error as it can be sent, with where it came from as a note."""
    note = "in a worker:\n" + "".join(traceback.format_exception(error))
    try:
        sent = pickle.loads(pickle.dumps(error))
        assert type(sent) is type(error)
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(note)
    return sent


# --- the driver's side --------------------------------------------------------------------------------------------


class _Pool(Protocol):
    """Workers by number."""

    def start(self) -> None: ...  # one more; tells READY when it is

    def give(self, worker: int, task: Any) -> None: ...

    def wait(self, seconds: float | None) -> tuple[int, str, Any] | None:  # the next that is told, by which worker
        ...

    def close(self) -> None: ...


@dataclass
class _Begun:
    """A task and the workers it has cost."""

    number: int
    task: Any
    lost: int = 0


def _scheduled(
    open_pool: Callable[[], _Pool], workers: int, tasks: Iterable[Any], describe: Callable[[Any], str]
) -> Iterator[tuple[int, Any]]:
    numbered = (_Begun(number, task) for number, task in enumerate(tasks))
    first = next(numbered, None)
    if first is None:  # no worker is started for nothing
        return
    fresh = chain([first], numbered)
    pool = open_pool()
    busy: dict[int, _Begun] = {}
    again: deque[_Begun] = deque()  # of workers that died
    idle: list[int] = []
    drawn, stillborn, more = 0, 0, True
    try:
        for _ in range(workers):
            pool.start()
        while busy or again or more:
            found = pool.wait(None if busy else PATIENCE)
            if found is None:
                raise UserError(f"no worker could be started in {PATIENCE:.0f} seconds", hint="is there room for one?")
            worker, what, value = found
            begun = busy.pop(worker, None)
            if what == FAILED:
                raise value
            if what == LOST:
                idle = [other for other in idle if other != worker]
                stillborn += begun is None
                if begun is not None:
                    begun.lost += 1
                    again.append(begun)
                if stillborn >= TRIES or (begun is not None and begun.lost >= TRIES):
                    where = "starting" if begun is None else describe(begun.task)
                    raise UserError(
                        f"{where}: {TRIES} workers died of it, the last one so: {value}",
                        hint="often memory: fewer --workers; what is finished is kept",
                    )
                pool.start()
            else:
                stillborn = 0
                idle.append(worker)
            while idle and (again or more):
                oldest = min((one.number for one in (*busy.values(), *again)), default=drawn)
                if again:
                    following: _Begun | None = again.popleft()
                elif drawn - oldest < AHEAD * workers:
                    following = next(fresh, None)
                    more = following is not None
                    drawn += more
                else:
                    break
                if following is not None:
                    busy[idle.pop()] = following
                    pool.give(next(reversed(busy)), following.task)
            if what == DONE and begun is not None:
                yield begun.number, value  # after its worker has work again
    finally:
        pool.close()


class _Processes:
    """New processes of this machine; spawned, since torch does not survive a fork."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], threads: int):
        self._make, self._threads = make, threads
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._started = 0

    def start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._make, self._threads), daemon=True)
        with _environment(OMP_NUM_THREADS=str(self._threads)):
            process.start()
        theirs.close()  # the worker's alone: its death then ends the pipe
        self._workers[self._started] = (process, ours)
        self._started += 1

    def give(self, worker: int, task: Any) -> None:
        with suppress(OSError):  # it is dead, which `wait` tells
            self._workers[worker][1].send(task)

    def wait(self, seconds: float | None) -> tuple[int, str, Any] | None:
        ends = {pipe: worker for worker, (_, pipe) in self._workers.items()}
        for pipe in wait(list(ends), seconds):
            assert isinstance(pipe, Connection)
            worker = ends[pipe]
            try:
                return worker, *pipe.recv()
            except (EOFError, OSError):
                process, _ = self._workers.pop(worker)
                pipe.close()
                process.join()
                return worker, LOST, f"process {process.pid} ended with status {process.exitcode}"
        return None

    def close(self) -> None:
        for process, pipe in self._workers.values():
            pipe.close()
            # not terminate: a library may handle that signal, and wait for ever; a worker writes nothing
            process.kill()
        for process, _ in self._workers.values():
            process.join()
        self._workers = {}


def _serve(pipe: Connection, make: Callable[[], Callable[[Any], Any]], threads: int) -> None:
    """Answer until the driver ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's to handle
    work = _Work(make, threads)
    answer = work.begin()
    try:
        while True:
            try:
                pipe.send(answer)
            except OSError:
                return
            except Exception as error:  # a result that cannot be pickled; nothing was sent
                pipe.send((FAILED, _portable(error)))
            answer = work.do(pipe.recv())
    except (EOFError, OSError):
        return


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Actors:
    """Actors of a Ray cluster. A lost actor is not restarted by Ray but started anew here, wherever there is room."""

    def __init__(self, settings: Ray, make: Callable[[], Callable[[Any], Any]]):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray = importlib.import_module("ray")
        except ImportError as error:
            hint = "in this repository: pip install -e '.[ray]'"
            raise UserError("--executor ray: Ray is not installed", hint=hint) from error
        threads = settings.threads or 1
        self._ours = not self._ray.is_initialized()
        if self._ours:
            room = {} if settings.address else {"num_cpus": settings.workers * threads, "include_dashboard": False}
            try:
                _knock(settings.address)
                self._ray.init(settings.address or "local", log_to_driver=False, logging_level="ERROR", **room)
            except Exception as error:  # Ray raises plain ones, too
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                if settings.address:
                    raise UserError(
                        f"--ray-address {settings.address}: no Ray cluster answers there ({why})"
                    ) from error
                raise UserError(
                    f"--executor ray: Ray did not start on this machine ({why})",
                    hint="run the same command again, or --workers N without --executor ray",
                ) from error
        self._actor = self._ray.remote(_Work).options(num_cpus=threads, num_gpus=settings.gpus, max_restarts=0)
        self._settings = (self._ray.put(make), threads)
        self._actors: dict[int, Any] = {}
        self._waited: dict[Any, int] = {}  # reference of an answer -> worker
        self._started = 0

    def start(self) -> None:
        actor = self._actor.remote(*self._settings)
        self._actors[self._started] = actor
        self._waited[actor.begin.remote()] = self._started
        self._started += 1

    def give(self, worker: int, task: Any) -> None:
        self._waited[self._actors[worker].do.remote(task)] = worker

    def wait(self, seconds: float | None) -> tuple[int, str, Any] | None:
        ended, _ = self._ray.wait(list(self._waited), num_returns=1, timeout=seconds)
        for reference in ended:
            worker = self._waited.pop(reference)
            try:
                return worker, *self._ray.get(reference)
            except self._ray.exceptions.RayError as error:  # the actor, its node or the answer is lost
                self._ray.kill(self._actors.pop(worker))
                return worker, LOST, f"{type(error).__name__}: {error}"
        return None

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()


def _knock(address: str | None) -> None:
    """OSError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()
