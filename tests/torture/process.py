"""Processes that are killed: forked from this one, which has imported everything, or begun afresh.

Importing torch takes seconds, so most processes are forks of one that runs no thread.
"""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tests.torture import inside
from tests.torture.inside import Settings

ROOT = Path(__file__).resolve().parents[2]
# before anything is imported that would start threads, which a fork does not have
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
ALONE |= {"JE_ARROW_MALLOC_CONF": "background_thread:false", "MPLBACKEND": "agg"}
PATIENCE = 1200.0  # seconds that a command may take: far more than any does
PACKAGES = ("bench.datasets", "bench.features.extractors", "bench.features.imports", "methods", "bench.report")
MODULES = ("cli", "bench.sweep", "bench.training", "bench.datasets.official.download", "methods.rrt.training.views")
# pictures before pycolmap: the copy of zlib that its wheel brings ends the process where Pillow's is loaded after it
PICTURES = ("PIL._imaging", "matplotlib.backends.backend_agg", "seaborn")
OTHERS = (*PICTURES, "pycolmap", "kornia", "pyarrow.parquet", "h5py", "httpx")
T = TypeVar("T")


def prepare() -> None:
    """Import what commands need, without a thread. RuntimeError if one was started: a fork would not have it."""
    for name in (*OTHERS, *MODULES):
        importlib.import_module(name)
    for package in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            with suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(f"{package}.{module.name}")
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise RuntimeError(f"{threads} threads run after the imports, expected one")


@dataclass(frozen=True)
class Moment:
    """When a process is killed: after so many seconds, or before so many of its writes; or never."""

    seconds: float | None = None
    write: int | None = None

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"after {self.seconds:.3f} s"
        return "never" if self.write is None else f"before write {self.write}"


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int  # of exit; below 0 the signal
    output: str
    seconds: float
    moment: Moment = Moment()

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


@dataclass(frozen=True)
class Running:
    """A process that leads a group of its own."""

    pid: int
    output: Path
    began: float
    moment: Moment

    def wait(self) -> Ended:
        """Kill it at its moment, wait for its end, and end what it left in its group."""
        limit = self.began + (PATIENCE if self.moment.seconds is None else self.moment.seconds)
        pause = 0.0005
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() >= limit:
                self.kill()
                limit = float("inf")
            time.sleep(pause)
            pause = min(0.01, pause * 1.5, max(0.0, limit - time.monotonic()))
        seconds = time.monotonic() - self.began
        self.kill()
        said = self.output.read_text(errors="replace")
        if self.moment == Moment() and seconds > PATIENCE:
            said += f"\nended after {PATIENCE:.0f} s"
        return Ended(os.waitstatus_to_exitcode(status), said, seconds, self.moment)

    def alive(self) -> bool:
        """Whether it still runs; it is not waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self) -> None:
        """It and all of its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Command:
    """A command of the program with what its process is told."""

    arguments: tuple[str, ...]
    settings: Settings
    fresh: bool = False  # a process of its own from the beginning, not a fork
    before: Callable[[], None] | None = None  # done in the fork first, such as becoming another user

    def __str__(self) -> str:
        return f"python cli.py {' '.join(self.arguments)}"

    def start(self, output: Path, moment: Moment = Moment()) -> Running:
        settings = replace(self.settings, event=moment.write)
        output.touch()
        began = time.monotonic()
        if self.fresh:
            line = [sys.executable, "-m", "tests.torture.inside", inside.told(settings), *self.arguments]
            with output.open("wb") as file:
                process = subprocess.Popen(line, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
            process.returncode = 0  # `Running` waits for it, not this
            return Running(process.pid, output, began, moment)
        pid = os.fork()
        if not pid:
            _as_child(output, lambda: self._run(settings))
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # here too, so that it leads its group before it may be killed
        return Running(pid, output, began, moment)

    def _run(self, settings: Settings) -> int:
        if self.before is not None:
            self.before()
        return inside.run(settings, self.arguments)


def _as_child(output: Path, work: Callable[[], int]) -> None:
    """Never returns."""
    status = 99
    try:
        os.setpgid(0, 0)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(ROOT)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def apart(function: Callable[..., T], *arguments: object) -> T:
    """What the function gives, from a fork: whatever threads it starts are not here. RuntimeError if it raises."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer: tuple[bool, object] = True, function(*arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        with os.fdopen(write, "wb") as file:
            file.write(pickle.dumps(answer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        content = file.read()
    os.waitpid(pid, 0)
    good, value = pickle.loads(content)
    if not good:
        raise RuntimeError(str(value))
    return value


def background(work: Callable[[], None], output: Path) -> int:
    """A fork that does the work until it is killed; its pid, which leads a group."""
    pid = os.fork()
    if not pid:
        _as_child(output, lambda: (work(), 0)[1])
    return pid
