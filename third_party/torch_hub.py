"""Models that repositories offer through `torch.hub`: from GitHub, or from a folder with a hubconf.py.

Their code is run. So the caller asks only for what the user said to trust.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import UserError

HUBCONF = "hubconf.py"
ON_GITHUB = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{7,40}")
FORMS = "hub:OWNER/REPO:ENTRY, or hub:FOLDER:ENTRY where FOLDER begins with /, ./ or ~"


def local_folder(repository: str) -> Path | None:
    """The folder that is meant, or None for a name on GitHub, which no folder of that name hides. UserError else."""
    if not repository.startswith(("/", ".", "~")):
        if not ON_GITHUB.fullmatch(repository):
            raise UserError(f"hub:{repository}: no name of a repository", hint=f"expected {FORMS}")
        return None
    folder = Path(repository).expanduser()
    if not (folder / HUBCONF).is_file():
        raise UserError(f"hub:{repository}: no {HUBCONF} in this folder", hint=f"expected {FORMS}")
    return folder


def contents(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that a model may be made of: all but hidden ones and compiled code."""
    files = (path for path in folder.rglob("*") if path.is_file())
    parts = ((path, path.relative_to(folder).parts) for path in files)
    hidden = {"__pycache__"}
    return tuple(
        sorted(path for path, names in parts if not any(name in hidden or name.startswith(".") for name in names))
    )


def state_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 of a network's weights, by name and value."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()


@contextmanager
def _modules_of_its_own(folder: Path) -> Iterator[None]:
    """Forget what was imported from below `folder`: two repositories may name a module alike."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[name]


def load(repository: str, entry: str, arguments: Mapping[str, Any], ref: str, device: torch.device) -> torch.nn.Module:
    """What an entry of a repository gives, ready to run. Runs the repository's code. UserError where that fails."""
    folder = local_folder(repository)
    where = f"hub:{repository}:{entry}"
    # torch looks for a branch or tag of that name, so that no fork's is taken; it finds no commit
    at_commit = COMMIT.fullmatch(ref) is not None
    try:
        with _modules_of_its_own(folder or Path(torch.hub.get_dir())), redirect_stdout(sys.stderr):
            if folder is not None:
                model = torch.hub.load(str(folder), entry, source="local", **arguments)
            else:
                named = f"{repository}:{ref}" if ref else repository
                asked = {"trust_repo": True, "verbose": False, "skip_validation": at_commit}
                model = torch.hub.load(named, entry, **asked, **arguments)
    except Exception as error:  # of the network, or whatever their code raises
        line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{where}: cannot be loaded ({type(error).__name__}: {line})",
            hint="install what its hubconf.py needs; without a network, give the folder of a copy of the repository",
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise UserError(
            f"{where}: gave {type(model).__name__}, expected a torch module", hint="name an entry that gives a model"
        )
    return model.eval().to(device)
