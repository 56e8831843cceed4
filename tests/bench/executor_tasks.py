"""Work for the executors' tests, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.errors import UserError


class Odd(Exception):
    """Cannot be sent: it is not made of its arguments."""

    def __init__(self, one: int, two: int):
        super().__init__(f"{one} and {two}")


def _named(name: str, value: int) -> object:
    return WORK[name](value)


def _count(value: int) -> Iterator[int]:
    yield from range(value)


def _refuse(value: int) -> None:
    raise UserError(f"no {value}", hint="another number")


def _odd(value: int) -> None:
    raise Odd(value, value)


def _die(value: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _slow_first(value: int) -> int:
    time.sleep(1.0 if value == 0 else 0.0)
    return value


def _deaf(value: int) -> int:
    """The second worker heeds no polite signal any more and stays; the first waits for that."""
    deaf = Path(os.environ["DEAF"])
    if value == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        deaf.touch()
        time.sleep(600)
    while not deaf.exists():
        time.sleep(0.01)
    return value


WORK: dict[str, Callable[[int], object]] = {
    "square": lambda value: value * value,
    "count": _count,
    "pid": lambda value: (time.sleep(0.02), os.getpid())[1],
    "refuse": _refuse,
    "odd": _odd,
    "unsendable": lambda value: threading.Lock(),
    "die": _die,
    "deaf": _deaf,
    "slow first": _slow_first,
}


def threads() -> Callable[[int], tuple[int, str | None]]:
    """Torch's and the environment's."""
    import torch  # which the other workers start without

    return lambda value: (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"))


def worker(name: str) -> Callable[[int], object]:
    """The function of that name; usable as `partial(worker, name)`."""
    return partial(_named, name)


def dying(folder: Path, times: int) -> Callable[[int], int]:
    """Squares; task 3 kills its worker the first `times` times. What is begun is noted in `folder`."""

    def square(value: int) -> int:
        (folder / f"{value}-{time.monotonic_ns()}-{os.getpid()}").touch()
        if value == 3 and len(list(folder.glob("3-*"))) <= times:
            _die(value)
        return value * value

    return square


def broken() -> Callable[[int], int]:
    raise UserError("no network", hint="give weights")


def stillborn() -> Callable[[int], int]:
    _die(0)
    raise AssertionError
