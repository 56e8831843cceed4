"""One process at a time: locks on files, which the system lifts when their holder ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})  # said by file systems without locks


def lock_of(place: Path) -> Path:
    """The lock file of a folder or file: beside it, since what is locked may itself be deleted and made anew."""
    return place.with_name(f".{place.name}.lock")


@contextmanager
def alone(place: Path, doing: str) -> Iterator[bool]:
    """No other process or thread that asks for `place` is inside at the same time; who comes later waits.

    The wait is said once on stderr: `doing` is what the other does, such as "extracting into". True inside, or False
    where the file system has no locks. OSError where the lock file cannot be written. Not to be entered twice by one
    thread for one place.
    """
    lock = lock_of(place)
    file, locked = _taken(lock, f"another process is {doing} {place}; waiting for it to end")
    try:
        yield locked
    finally:
        if _is_at(file, lock):
            with suppress(OSError):
                lock.unlink()  # while it is held: who has waited for this very file sees that it is gone
        os.close(file)


@contextmanager
def alone_if_free(place: Path) -> Iterator[bool]:
    """As `alone` without the wait: False inside where another is at work, or where `place` cannot be locked."""
    lock = lock_of(place)
    try:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield False
        return
    free = False
    try:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = _is_at(file, lock)
        yield free
    finally:
        if free:
            with suppress(OSError):
                lock.unlink()
        os.close(file)


def _taken(lock: Path, wait: str) -> tuple[int, bool]:
    """A descriptor of the lock file, and whether it is locked."""
    told = False
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    with suppress(OSError):
                        print(wait, file=sys.stderr, flush=True)
                    told = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, lock):
                return file, True
            os.close(file)  # its holder removed it; another one may be there by now
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in UNSUPPORTED:
                return file, False
            os.close(file)
            raise


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
