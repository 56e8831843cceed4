"""The commands that are disturbed, each with what it needs beforehand and what may be said of its work alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.torture.inputs import Inputs
from tests.torture.server import Server
from tests.torture.state import repeated

NO_MERGING = 10_000


@dataclass(frozen=True)
class Place:
    """A folder that a command works in, with the inputs beside it."""

    root: Path
    inputs: Inputs
    server: Server

    @property
    def dataset(self) -> str:
        return f"folder:{self.inputs.pictures}"

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(f"--{name}={self.root / where}" for name, where in FOLDERS.items())


FOLDERS = {"cache-dir": "cache", "data-root": "data", "runs": "runs"}
EXTRACTION = ("--max-side=160", "--keep-descriptors=60", "--threads=1", "--device=cpu")
STAGE = "--first-stage=gem-lite0"


@dataclass(frozen=True)
class Before:
    """What was there before a command was started again."""

    finished: Mapping[str, str]
    requests: int  # that the server had answered
    parts: Mapping[str, int]  # bytes received of files that were not whole


@dataclass(frozen=True)
class Work:
    """A command. `wrong` says what it did again although it was done; `needs` are commands given undisturbed first."""

    name: str
    arguments: Callable[[Place], Sequence[str]]
    needs: tuple[Callable[[Place], Sequence[str]], ...] = ()
    merged: int = 3  # small shards that become one
    wrong: Callable[[Place, Before, Mapping[str, str]], list[str]] = lambda place, before, after: repeated(
        before.finished, after
    )


def run(methods: str, *more: str) -> Callable[[Place], Sequence[str]]:
    return lambda p: ("run", "-m", methods, "-d", p.dataset, STAGE, *EXTRACTION, *p.folders, *more)


def _extract(place: Place) -> Sequence[str]:
    return ("first-stages", "-d", place.dataset, STAGE, "--first-stage=asmk@xfeat", *EXTRACTION, *place.folders)


def _import(version: int) -> Callable[[Place], Sequence[str]]:
    def arguments(place: Place) -> Sequence[str]:
        return ("features", "import", "hloc", str(place.inputs.foreign(version)), "-d", place.dataset, *place.folders)

    return arguments


def _sweep(place: Place) -> Sequence[str]:
    given = ("sweep", "-m", "mnn", "-d", place.dataset, STAGE, "--descriptors=10,20,40", f"--out={place.root}/out")
    return (*given, *EXTRACTION, *place.folders)


TRAINING = {
    "generated": "none",
    "views": "4",
    "pairs": "96",
    "batch": "4",
    "descriptors": "12",
    "fewest": "8",
    "most": "12",
    "depth": "1",
    "feedforward": "16",
    "dim": "32",
    "hardest": "4",
    "threads": "1",
    "warmup": "3",
    "save-every": "3",
    "check-every": "12",
    "device": "cpu",
}


def _train(place: Place) -> Sequence[str]:
    options = (f"--{name}={value}" for name, value in TRAINING.items())
    at = (
        f"--photos={place.inputs.photos}",
        f"--bank={place.inputs.bank}",
        f"--out={place.root}/out/weights.safetensors",
    )
    return ("train", "rrt", "--recipe=views", *at, *options)


def _download(place: Place) -> Sequence[str]:
    return ("datasets", "download", "torture-served", *place.folders)


def _asked_again(place: Place, before: Before, after: Mapping[str, str]) -> list[str]:
    """What was fetched is not asked for, and what was begun is gone on with."""
    wrong = repeated(before.finished, after)
    first: dict[str, int] = {}
    for name, begin in place.server.asked(before.requests):
        first.setdefault(name, begin)
    for name, size in before.parts.items():
        if size and first.get(name, size) != size:
            wrong.append(f"{name}: asked for from byte {first[name]}, expected {size}, which were here")
    return wrong


WORKS: Mapping[str, Work] = {
    work.name: work
    for work in (
        Work("extract", _extract),
        Work("import", _import(0), merged=NO_MERGING),
        # what the first import finished goes with its files, so nothing is said of it
        Work("import-again", _import(1), (_import(0),), merged=NO_MERGING, wrong=lambda place, before, after: []),
        Work("run", run("identity,mnn,ransac")),
        Work("sweep", _sweep, (run("identity", "--features=xfeat"),)),
        Work("train", _train),
        Work("download", _download, wrong=_asked_again),
        Work("run-workers", run("identity,mnn", "--workers=2")),
        Work("run-ray", run("identity,mnn", "--workers=2", "--executor=ray")),
    )
}


def fresh(root: Path) -> None:
    """An empty folder there."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
