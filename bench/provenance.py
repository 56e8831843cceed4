"""What a result was made with: machine, versions, source and settings."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

import methods
import third_party
from bench import packages
from bench.closure import Closure, closure, find
from bench.errors import UserError
from bench.files import content_hash
from bench.options import named_files
from bench.reranker import Reranker
from bench.timing import torch_flags


def closure_of(cls: type[Reranker]) -> Closure:
    """The code of a method: its module, and what it imports from `methods`, `third_party` and its own package."""
    module = cls.__module__
    own = module.partition(".")[0]
    homes = {
        "methods": methods.__path__,
        "third_party": third_party.__path__,
        own: getattr(sys.modules.get(own), "__path__", ()),  # a single file has none
    }
    roots = {name: tuple(map(Path, places)) for name, places in homes.items()}
    return closure(module, find(module, roots) or Path(inspect.getfile(cls)), roots)


def source_hash(cls: type[Reranker]) -> str:
    """sha256 of the code that a method's scores depend on, as `closure_of` finds it; no training is part of it."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in closure_of(cls).files.values())).hexdigest()


def given_files(method: Reranker) -> dict[str, Path]:
    """By option, the files and folders that the options of a method name. UserError for one that is not there."""
    named, name = named_files(method.options), method.spec.name
    for option, path in named.items():
        if not path.exists():
            raise UserError(f"-o {name}.{option}={path}: no such file", hint=f"give one with -o {name}.{option}=FILE")
    return named


def weights_hash(method: Reranker) -> str | None:
    """sha256 of the weights of a method: of the one file that it or an option names, or over those of all.

    None where there is none. UserError for a file that is not there.
    """
    own, named = method.weights(), given_files(method).values()
    digests = [content_hash(path) for path in dict.fromkeys([*([] if own is None else [own]), *named])]
    if len(digests) < 2:
        return next(iter(digests), None)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def versions(rerankers: Iterable[Reranker] = (), modules: Iterable[str] = ()) -> dict[str, str | None]:
    """Version of Python and of every package that can change a result.

    Among them are what the rerankers import, and `modules`, which extractors need.
    """
    return {"python": platform.python_version(), **packages.versions(_outside(rerankers).union(modules))}


def _outside(rerankers: Iterable[Reranker]) -> set[str]:
    """The modules that rerankers and their parts import from elsewhere."""
    found: set[str] = set()
    for reranker in rerankers:
        found |= closure_of(type(reranker)).outside | _outside(reranker.parts())
    return found - {"bench"}


@cache
def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware(device: torch.device) -> dict[str, object]:
    """The machine as far as it decides speed; two results are comparable in time only if these are equal."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "machine": platform.machine(),
        "gpu": gpu,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The project's git commit, with `+changes` where the checkout has uncommitted ones; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return None if head is None else head + ("+changes" if git("status", "--porcelain", "-uno") else "")


def record(device: torch.device, rerankers: Iterable[Reranker] = (), modules: Iterable[str] = ()) -> dict[str, object]:
    """Everything about the circumstances of a run that is not the run's own identity."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": commit(),
        "versions": versions(rerankers, modules),
        "hardware": hardware(device),
        "torch_flags": torch_flags(),
    }
