"""What a process of the program does of itself: small shards, a log of what it writes, a kill, a clock that jumps.

`python -m tests.torture.inside SETTINGS ARGUMENT…` is such a process from its beginning; others are forked.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, cycle
from pathlib import Path

HERE = Path(__file__).parent
WRITES = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"})
CALLS = 20  # of the clock between two jumps


@dataclass(frozen=True)
class Settings:
    """What one process is told besides the arguments of its command."""

    root: str  # only what is written below it counts
    log: str  # file that each of its writes is named in, before it happens
    event: int | None = None  # kill the whole group before this write, counted from 1
    shard: int = 2  # images of a shard
    merged: int = 3  # small shards that become one
    jumps: tuple[float, ...] = ()  # seconds that the clock is ahead by, one after another; empty: the true time
    server: str = "http://127.0.0.1:1"

    def __post_init__(self) -> None:
        if min(self.shard, self.merged, self.event or 1) < 1:
            raise ValueError(f"{self}: expected at least 1")


def run(settings: Settings, arguments: Sequence[str]) -> int:
    """The command in this process, and its exit status."""
    os.environ["TORTURE_SERVER"] = settings.server
    import bench.datasets
    from bench.features import fill, shards
    from cli import main

    bench.datasets.__path__.append(str(HERE / "more_datasets"))
    fill.SHARD_IMAGES, shards.MERGED = settings.shard, settings.merged
    if settings.jumps:
        _jump(settings.jumps)
    sys.addaudithook(_watching(settings))
    try:
        main(list(arguments), prog_name="cli.py")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _watching(settings: Settings) -> Callable[[str, tuple], None]:
    log = os.open(settings.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    numbers = count(1)
    me = os.getpid()

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in WRITES:
            return
        paths = [os.fsdecode(a) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
        if os.getpid() == me and any(path.startswith(settings.root) for path in paths):
            number = next(numbers)
            os.write(log, f"{event} {' '.join(paths)}\n".encode())
            if number == settings.event:
                os.killpg(0, signal.SIGKILL)

    return hook


def _jump(jumps: Sequence[float]) -> None:
    """Python's own clock, and the `datetime` that modules of this project have imported."""
    import datetime

    true, true_ns = time.time, time.time_ns
    ahead: Iterator[float] = (jump for jump in cycle(jumps) for _ in range(CALLS))

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Jumping:
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: true() + next(ahead)
    time.time_ns = lambda: true_ns() + int(next(ahead) * 1e9)
    for name, module in list(sys.modules.items()):
        if name.startswith("bench.") and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = Jumping  # type: ignore[attr-defined]


def told(settings: Settings) -> str:
    """As `main` reads them."""
    return json.dumps(asdict(settings))


def main() -> int:
    content = json.loads(sys.argv[1])
    return run(Settings(**{**content, "jumps": tuple(content["jumps"])}), sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
