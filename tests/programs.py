"""Real processes of Python that begin with everything imported: forks of one process that runs no thread.

Importing torch takes seconds of a core, which a test of signals, streams or exit statuses need not pay each time.
A program has its arguments, folder, environment and streams of its own, and its interpreter ends as any other does.
What Python reads of its environment before it begins, such as the encoding of its streams, is that of the first one.
A test of such things begins a process of its own, and so does one that must have imported nothing else.
Where the system does not say how many threads run, nothing is forked: every program then begins by itself.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Protocol

from tests.torture import process

REPOSITORY = Path(__file__).resolve().parent.parent
THREADS = Path("/proc/self/task")
NUMBER = struct.Struct("q")
PIPE = subprocess.PIPE


# --- the side of the tests ----------------------------------------------------------------------------------------


class Program:
    """A program that runs, with what `subprocess.Popen` has; its streams are of bytes."""

    def __init__(self, pid: int, told: int, args: Sequence[str], stdout: IO[bytes] | None, stderr: IO[bytes] | None):
        self.pid, self.args, self.stdout, self.stderr = pid, args, stdout, stderr
        self.returncode: int | None = None
        self._told = told  # says the exit status once

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if (status := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """What is left in its streams, to their ends; and wait for its own."""
        end = None if timeout is None else time.monotonic() + timeout
        said: dict[IO[bytes], list[bytes]] = {stream: [] for stream in (self.stdout, self.stderr) if stream is not None}
        with selectors.DefaultSelector() as waiting:
            for stream in said:
                waiting.register(stream, selectors.EVENT_READ)
            while waiting.get_map():
                ready = waiting.select(None if end is None else max(0.0, end - time.monotonic()))
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                for key, _ in ready:
                    stream = next(stream for stream in said if stream is key.fileobj)
                    assert isinstance(stream, io.BufferedReader)
                    said[stream].append(stream.read1())
                    if not said[stream][-1]:
                        waiting.unregister(stream)
                        stream.close()
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        out, err = (b"" if stream is None else b"".join(said[stream]) for stream in (self.stdout, self.stderr))
        return out, err

    def finish(self, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with text; a program that takes longer is killed."""
        return _finished(self, timeout)

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as waiting:
                waiting.register(self._told, selectors.EVENT_READ)
                if waiting.select(seconds):
                    self.returncode = _number(self._told)
                    os.close(self._told)
        return self.returncode


class ByItself(subprocess.Popen):
    """A program that is no fork."""

    def finish(self, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        return _finished(self, timeout)


def _finished(program: Program | ByItself, timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        out, err = program.communicate(timeout)
    except subprocess.TimeoutExpired:
        program.kill()
        raise
    return subprocess.CompletedProcess(program.args, program.wait(), (out or b"").decode(), (err or b"").decode())


class Start(Protocol):
    """Starts a program: `start("cli.py", "methods")` or `start("-c", "print(1)")`. PIPE: its stream is one."""

    def __call__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdout: int | IO = PIPE,
        stderr: int | IO = PIPE,
    ) -> Program | ByItself: ...


@contextmanager
def starting() -> Iterator[Start]:
    """`start` while this lasts. The process that is forked is begun when it is first needed."""
    first: list[tuple[subprocess.Popen, socket.socket]] = []

    def start(
        *arguments: str, env: Mapping[str, str] | None = None, stdout: int | IO = PIPE, stderr: int | IO = PIPE
    ) -> Program | ByItself:
        environment = {**os.environ, **(env or {})}
        if not THREADS.is_dir():
            command = [sys.executable, *arguments]
            return ByItself(command, cwd=REPOSITORY, env=environment, stdout=stdout, stderr=stderr)
        if not first:
            first.append(_begin())
        asked = _Asked(arguments, str(REPOSITORY), environment)
        told, tell = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR)
        pipes: list[IO[bytes] | None] = []
        theirs = []
        for stream in (stdout, stderr):
            ours, end = os.pipe() if stream == PIPE else (None, nothing)
            pipes.append(None if ours is None else os.fdopen(ours, "rb"))
            theirs.append(end if stream in (PIPE, subprocess.DEVNULL) or isinstance(stream, int) else stream.fileno())
        asked.send(first[0][1], [nothing, *theirs, tell])
        for end in {nothing, tell, *(end for end, pipe in zip(theirs, pipes, strict=True) if pipe is not None)}:
            os.close(end)
        return Program(_number(told), told, [sys.executable, *arguments], *pipes)

    try:
        yield start
    finally:
        for process_, control in first:
            control.close()
            process_.wait()


def _begin() -> tuple[subprocess.Popen, socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        begun = subprocess.Popen(
            [sys.executable, "-m", "tests.programs", str(theirs.fileno())],
            cwd=REPOSITORY,
            env={**os.environ, **process.ALONE},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return begun, ours


def _number(pipe: int) -> int:
    content = os.read(pipe, NUMBER.size)  # written at once
    if len(content) != NUMBER.size:
        raise RuntimeError("the process that programs are forked from has ended; its error is printed above")
    return NUMBER.unpack(content)[0]


# --- the side of the programs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """What a program is to be, without its streams."""

    arguments: Sequence[str]
    folder: str
    environment: Mapping[str, str]

    def send(self, control: socket.socket, descriptors: Sequence[int]) -> None:
        content = pickle.dumps(self)
        socket.send_fds(control, [NUMBER.pack(len(content))], descriptors)
        control.sendall(content)

    @classmethod
    def receive(cls, control: socket.socket) -> tuple[_Asked, list[int]] | None:
        """With descriptors of its three streams, and of the pipe that is told pid and status; None: no more comes."""
        head, descriptors, *_ = socket.recv_fds(control, NUMBER.size, 4)
        if not head:
            return None
        content = b""
        while len(content) < NUMBER.unpack(head)[0]:
            content += control.recv(NUMBER.unpack(head)[0] - len(content))
        return pickle.loads(content), descriptors


def _serve(control: socket.socket) -> _Asked | None:
    """Fork a program for each that is asked for. Returns in each of them; and None here, when no more comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (received := _Asked.receive(control)) is not None:
        asked, descriptors = received
        if not os.fork():  # who waits for the program, so that this process need not
            control.close()
            *streams, tell = descriptors
            if not (pid := os.fork()):
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                for descriptor in descriptors:
                    os.close(descriptor)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                return asked
            for stream in streams:
                os.close(stream)
            os.write(tell, NUMBER.pack(pid))
            _, status = os.waitpid(pid, 0)
            os.write(tell, NUMBER.pack(os.waitstatus_to_exitcode(status)))
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        _reap(os.WNOHANG)
    _reap(0)
    return None


def _reap(options: int) -> None:
    try:
        while os.waitpid(-1, options)[0]:
            pass
    except ChildProcessError:
        return


def _become(asked: _Asked) -> None:
    """Run the program as Python would from its beginning, in a main module of its own."""
    os.chdir(asked.folder)
    os.environ.clear()
    os.environ.update(asked.environment)
    for number, name in enumerate(("stdin", "stdout", "stderr")):  # the first process's are of a file, and seek in it
        kind, old = ("w" if number else "r"), getattr(sys, name)
        stream = open(number, kind, 1 if number == 2 else -1, old.encoding, old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    first, *rest = asked.arguments
    main = ModuleType("__main__")
    if first == "-c":
        source, name, sys.argv = rest[0], "<string>", ["-c", *rest[1:]]
        place = ""
    else:
        source, name, sys.argv = Path(first).read_text(), first, [first, *rest]
        place, main.__file__ = str(Path(first).resolve().parent), first
    told = asked.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [place, *(path for path in told if path and path not in sys.path)]
    sys.modules["__main__"] = main
    exec(compile(source, name, "exec"), vars(main))


if __name__ == "__main__":
    process.prepare()
    gc.freeze()  # what all have is looked through by none
    if (wanted := _serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        mine = sys.modules["__main__"]  # kept: its functions are running
        _become(wanted)
    else:
        os._exit(0)  # at once
