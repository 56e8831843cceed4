"""What is done to commands. A scenario is a frozen dataclass that plays one round, or raises what it found."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.torture import state
from tests.torture.inputs import Inputs
from tests.torture.inside import Settings
from tests.torture.process import Command, Ended, Moment, Running, apart
from tests.torture.server import Server
from tests.torture.works import WORKS, Before, Place, Work, fresh

KILLS = 4  # of one command in a round at most
FRESH = 0.04  # of the rounds, whose processes are no forks
IMPORTS = 8.0  # seconds that such a process takes to begin
NOBODY = 65_534  # a user who owns nothing
HOUR = 3600.0


class Wrong(AssertionError):
    """What a round found that must not be."""


class Skipped(Exception):
    """Why a scenario cannot be played here."""


@dataclass(frozen=True)
class Undisturbed:
    """What a command leaves when nothing happens to it, how long it takes and how often it writes."""

    contents: Mapping[str, str]
    seconds: float
    writes: int
    bytes: int  # of the folder afterwards


@dataclass(frozen=True, eq=False)
class Bench:
    """The inputs, the server, and what undisturbed commands leave, which is found out when first asked for."""

    folder: Path
    inputs: Inputs
    server: Server
    _known: dict[str, Undisturbed] = field(default_factory=dict)

    def place(self, root: Path) -> Place:
        return Place(root, self.inputs, self.server)

    def command(
        self,
        work: Work,
        place: Place,
        *,
        number: int | None = None,
        fresh: bool = False,
        jumps: tuple[float, ...] = (),
        before: Callable[[], None] | None = None,
    ) -> Command:
        """The work's own command, or that of the given number that it needs beforehand."""
        made = work.arguments if number is None else work.needs[number]
        log = place.root.with_name(f"{place.root.name}.writes")
        settings = Settings(f"{place.root}/", str(log), merged=work.merged, jumps=jumps, server=self.server.address)
        return Command(tuple(made(place)), settings, fresh, before)

    def prepare(self, work: Work, place: Place) -> None:
        """Give the commands that are needed beforehand. RuntimeError if one fails."""
        for number in range(len(work.needs)):
            self._undisturbed(self.command(work, place, number=number), place)

    def _undisturbed(self, command: Command, place: Place) -> Ended:
        ended = command.start(place.root.with_name(f"{place.root.name}.out")).wait()
        if ended.status:
            raise RuntimeError(f"{command} ended with {ended.status} undisturbed:\n{ended.output}")
        return ended

    def undisturbed(self, work: Work, fresh_process: bool = False) -> Undisturbed:
        if work.name not in self._known:
            place = self.place(self.folder / "undisturbed" / work.name)
            fresh(place.root)
            self.prepare(work, place)
            command = self.command(work, place, fresh=fresh_process)
            log = Path(command.settings.log)
            log.unlink(missing_ok=True)
            ended = self._undisturbed(command, place)
            size = sum(path.stat().st_size for path in place.root.rglob("*") if path.is_file())
            writes = len(log.read_text().splitlines())
            found = apart(state.contents, place.root)
            self._known[work.name] = Undisturbed(found, ended.seconds, writes, size)
        return self._known[work.name]


@dataclass
class Round:
    """One round: a folder of its own, draws of its own, and a record of what was done."""

    bench: Bench
    folder: Path
    rng: random.Random
    steps: list[str] = field(default_factory=list)
    hits: int = 0  # disturbances that a command met

    def __post_init__(self) -> None:
        fresh(self.folder / "work")

    @property
    def place(self) -> Place:
        return self.bench.place(self.folder / "work")

    def start(self, command: Command, moment: Moment = Moment()) -> Running:
        self.steps.append(f"{command}\n    ({'a process' if command.fresh else 'a fork'}, to be killed {moment})")
        return command.start(self.folder / f"{len(self.steps):02d}.out", moment)

    def end(self, running: Running) -> Ended:
        """Its end, which is no signal but ours, and without a traceback."""
        ended = running.wait()
        ours = ended.killed and ended.moment != Moment()
        self.hits += ours
        self.steps[-1] += f": {'killed' if ours else f'status {ended.status}'} after {ended.seconds:.2f} s"
        if "Traceback (most" in ended.output or (ended.status < 0 and not ours):
            raise Wrong(f"status {ended.status}, expected no signal and no traceback:\n{ended.output[-3000:]}")
        return ended

    def play(self, command: Command, moment: Moment = Moment()) -> Ended:
        return self.end(self.start(command, moment))

    def finish(self, *all_running: Running) -> None:
        """All of them to a good end."""
        for ended in [self.end(running) for running in all_running]:
            self.require_good(ended)

    def complete(self, work: Work, jumps: tuple[float, ...] = ()) -> None:
        """The work's command to a good end, with nothing that disturbs it but jumps of the clock."""
        self.finish(self.start(self.bench.command(work, self.place, jumps=jumps)))

    def require_good(self, ended: Ended) -> None:
        if ended.status:
            raise Wrong(f"exit status {ended.status}, expected 0:\n{ended.output[-3000:]}")

    def moment(self, work: Work, extra: float = 0.0) -> Moment:
        """Any of its time or of its writes, early ones more often: what is done already is not done again."""
        usual = self.bench.undisturbed(work)
        if self.rng.random() < 0.4:
            return Moment(seconds=extra + 1.1 * usual.seconds * self.rng.random() ** 1.5)
        return Moment(write=max(1, int((usual.writes + 1) ** self.rng.random())))

    def before(self) -> Before:
        parts = {path.name.removesuffix(".part"): path.stat().st_size for path in self.place.root.rglob("*.part")}
        return Before(apart(state.finished, self.place.root), len(self.bench.server.asked(0)), parts)

    def require_kept(self, work: Work, before: Before) -> None:
        if wrong := work.wrong(self.place, before, apart(state.finished, self.place.root)):
            raise Wrong("finished work was not kept:\n" + "\n".join(wrong))

    def require_same(self, *works: Work) -> None:
        expected: dict[str, str] = {}
        for work in works:
            expected |= self.bench.undisturbed(work).contents
        if wrong := state.differences(apart(state.contents, self.place.root), expected):
            raise Wrong("after it the folder is another than after an undisturbed command:\n" + "\n".join(wrong))


class Scenario(Protocol):
    """One kind of disturbance."""

    @property
    def name(self) -> str: ...

    def play(self, round: Round) -> None:
        """One round. Wrong for what must not be, Skipped where it cannot be played here."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL for the whole group, once or several times, then the same command again until it ends."""

    work: Work

    @property
    def name(self) -> str:
        return f"kill-{self.work.name}"

    def play(self, round: Round) -> None:
        round.bench.undisturbed(self.work)
        round.bench.prepare(self.work, round.place)
        begun = round.rng.random() < FRESH
        kills = 1 if begun else round.rng.randint(1, KILLS)
        for left in range(kills, -1, -1):
            before = round.before()
            command = round.bench.command(self.work, round.place, fresh=begun)
            if not left:
                round.finish(round.start(command))
            elif not round.play(command, round.moment(self.work, IMPORTS * begun)).killed:
                left = 0
            round.require_kept(self.work, before)
            if not left:
                break
        round.require_same(self.work)


def _mounted(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def _mount(place: Path, *arguments: str) -> Iterator[None]:
    if os.geteuid():
        raise Skipped("only root may mount a file system")
    _mounted(*arguments, str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], capture_output=True)


@dataclass(frozen=True)
class FullDisk:
    """A file system of too few bytes: the command says so, and the same one ends when there is room."""

    work: Work

    @property
    def name(self) -> str:
        return f"full-disk-{self.work.name}"

    def play(self, round: Round) -> None:
        usual, place = round.bench.undisturbed(self.work), round.place
        much = 8 * usual.bytes + 2**25
        with _mount(place.root, "-t", "tmpfs", "-o", f"size={much}", "tmpfs"):
            round.bench.prepare(self.work, place)
            held = sum(path.stat().st_blocks * 512 for path in place.root.rglob("*"))
            room = held + 4096 * round.rng.randint(2, max(3, usual.bytes // 4096))
            _mounted("-o", f"remount,size={room}", str(place.root))
            round.steps.append(f"{room} bytes of room, {held} of them taken")
            before = round.before()
            ended = round.play(round.bench.command(self.work, place))
            if ended.status and "Error: " not in ended.output:
                raise Wrong(f"exit status {ended.status} without a message:\n{ended.output[-3000:]}")
            round.hits += bool(ended.status)
            round.require_kept(self.work, before)
            _mounted("-o", f"remount,size={much}", str(place.root))
            round.steps.append(f"{much} bytes of room")
            before = round.before()
            try:
                round.complete(self.work)
                round.require_kept(self.work, before)
                round.require_same(self.work)
            except Wrong:
                shutil.copytree(place.root, round.folder / "disk")  # it goes with the mount
                raise


def _become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@contextmanager
def _unwritable(folder: Path) -> Iterator[Callable[[], None] | None]:
    """Nothing below the folder may be written; what a process must do first for that to be so."""
    try:
        with _mount(folder, "--bind", str(folder)):
            _mounted("-o", "remount,bind,ro", str(folder))
            yield None
    except Skipped:
        if not os.geteuid():
            (folder.parent / "runs").mkdir(exist_ok=True)
            (folder.parent / "runs").chmod(0o777)
            yield _become_nobody
            return
        places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        for place in places:
            place.chmod(0o555)
        try:
            yield None
        finally:
            for place in places:
                place.chmod(0o755)


@dataclass(frozen=True)
class ReadOnly:
    """A cache that may not be written: enough for a run if it is whole, else the command says so and writes nothing.

    It is whole in half of the rounds, and in the others as a killed extraction left it.
    """

    name: str = "read-only-cache"

    def play(self, round: Round) -> None:
        run, place, rng = WORKS["run"], round.place, round.rng
        usual = round.bench.undisturbed(run)
        stored = {name: mark for name, mark in usual.contents.items() if name.endswith("shards")}
        cache = place.root / "cache"
        cache.mkdir()
        moment = Moment() if rng.random() < 0.5 else round.moment(run)
        round.play(round.bench.command(run, place), moment)
        found = apart(state.contents, place.root, True)
        whole = not state.differences({n: m for n, m in found.items() if n.endswith("shards")}, stored)
        subprocess.run(["rm", "-rf", str(place.root / "runs")], check=True)
        before = apart(state.contents, cache, True)
        with _unwritable(cache) as first:
            ended = round.play(round.bench.command(run, place, before=first))
            round.hits += 1
            # without the features of some rows alone the others have a table, which says why these are missing
            said = str(cache) in ended.output and (ended.status or "did not run" in ended.output)
            if bool(ended.status or said) == whole:
                raise Wrong(f"the cache is {'' if whole else 'not '}whole, status {ended.status}:\n{ended.output}")
        if wrong := state.differences(apart(state.contents, cache, True), before):
            raise Wrong("the read-only cache was changed:\n" + "\n".join(wrong))
        if not whole:  # the run of fewer rows is one that an undisturbed command does not leave
            subprocess.run(["rm", "-rf", str(place.root / "runs")], check=True)
        round.complete(run)
        round.require_same(run)


@dataclass(frozen=True)
class Together:
    """Two commands on one cache at once; in half of the rounds one of them is killed, and given again."""

    name: str = "together"
    pairs: tuple[tuple[str, str], ...] = (("run", "run"), ("extract", "extract"), ("extract", "run"))

    def play(self, round: Round) -> None:
        rng, place = round.rng, round.place
        works = [WORKS[name] for name in rng.choice(self.pairs)]
        rng.shuffle(works)
        moment = round.moment(works[0]) if rng.random() < 0.5 else Moment()
        for work in works:
            round.bench.undisturbed(work)
        first = round.start(round.bench.command(works[0], place), moment)
        time.sleep(rng.uniform(0, 0.5))
        second = round.start(round.bench.command(works[1], place))
        try:
            ended = round.end(first)
            if ended.killed:
                round.complete(works[0])
            else:
                round.require_good(ended)
            round.finish(second)
        finally:
            second.kill()
        round.hits += moment == Moment()
        # a command that was killed beside the other may have left what only the next one clears away
        for work in works if moment != Moment() else ():
            round.complete(work)
        round.require_same(*works)


@dataclass(frozen=True)
class Clock:
    """A clock that jumps by hours while a command runs, and files that seem hours older or newer afterwards.

    Python's `time.time` and `time.time_ns` jump, and `datetime.now` in modules of `bench`. Clocks that libraries in C
    read do not, and no monotonic clock does.
    """

    name: str = "clock"
    works: tuple[str, ...] = ("extract", "run", "train")

    def play(self, round: Round) -> None:
        rng, place = round.rng, round.place
        work = WORKS[rng.choice(self.works)]

        def jumps() -> tuple[float, ...]:
            return tuple(rng.uniform(-30 * HOUR, 30 * HOUR) for _ in range(5))

        moment = round.moment(work)
        round.bench.prepare(work, place)
        killed = round.play(round.bench.command(work, place, jumps=jumps()), moment).killed
        before = round.before()
        pictures = round.bench.inputs.pictures
        times = {path: path.stat() for path in pictures.rglob("*") if path.is_file()}
        try:
            for path in [*times, *(p for p in place.root.rglob("*") if p.is_file())]:
                at = time.time() + rng.uniform(-30 * HOUR, 30 * HOUR)
                os.utime(path, (at, at))
            round.complete(work, jumps())
        finally:
            for path, stat in times.items():
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        round.hits += not killed
        round.require_kept(work, before)
        round.require_same(work)


def _descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Process and command line of everything that a process has started, and what that has."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        with suppress(OSError, ValueError):
            parents[int(entry)] = int(Path(f"/proc/{int(entry)}/stat").read_text().rpartition(")")[2].split()[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    for child in sorted(below - {pid}):
        with suppress(OSError):
            yield child, Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


@dataclass(frozen=True)
class LostWorker:
    """A worker of several is killed at any moment; the command ends as if nothing had happened."""

    name: str
    work: str
    marks: tuple[str, ...]  # in a worker's command line, one of them
    needs: str | None = None  # a package

    def play(self, round: Round) -> None:
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            raise Skipped(f"{self.needs} is not installed")
        work, rng = WORKS[self.work], round.rng
        round.bench.undisturbed(work, fresh_process=True)
        running = round.start(round.bench.command(work, round.place, fresh=True))
        try:
            self._kill_one(running, rng, round)
            round.finish(running)
        finally:
            for pid, _ in list(_descendants(running.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            running.kill()
        round.require_same(work)

    def _kill_one(self, running: Running, rng: random.Random, round: Round) -> None:
        """At a random moment after the first worker is there; nothing if the command ends before."""
        wait = rng.uniform(0, 6)
        begun: float | None = None
        while running.alive():
            workers = [pid for pid, line in _descendants(running.pid) if any(mark in line for mark in self.marks)]
            begun = time.monotonic() if workers and begun is None else begun
            if workers and begun is not None and time.monotonic() >= begun + wait:
                os.kill(rng.choice(workers), signal.SIGKILL)
                round.hits += 1
                round.steps.append(f"a worker killed {wait:.2f} s after the first was there")
                return
            time.sleep(0.05)


DISTURBED = ("extract", "import", "import-again", "run", "sweep", "train", "download")  # killed, and without room
SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        *(Kill(WORKS[name]) for name in DISTURBED),
        *(FullDisk(WORKS[name]) for name in DISTURBED),
        ReadOnly(),
        Together(),
        Clock(),
        LostWorker("lost-worker", "run-workers", ("multiprocessing.spawn",)),
        # not its agents, without which Ray ends its node and the program with it
        # not what Ray starts ahead (ray::IDLE): where that is lost while `ray.init` connects, Ray waits for ever
        LostWorker("lost-ray-worker", "run-ray", ("ray::_Work",), "ray"),
    )
}
