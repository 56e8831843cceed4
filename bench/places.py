"""Where things are kept: the cache, the data root and the results."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def _default_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RERANKBENCH_CACHE") or Path(home) / "rerankbench")


@dataclass(frozen=True)
class Places:
    """Folders of one invocation; none is created before it is written to."""

    cache: Path  # generated data sets and features
    data: Path  # data root of the official layouts
    runs: Path  # one folder per run

    @staticmethod
    def of(cache: Path | None = None, data: Path | None = None, runs: Path | None = None) -> Places:
        """Given folders, else RERANKBENCH_CACHE, _DATA and _RUNS, else the user's cache directory and results/runs."""
        cache = cache or _default_cache()
        data = data or Path(os.environ.get("RERANKBENCH_DATA") or cache / "data")
        runs = runs or Path(os.environ.get("RERANKBENCH_RUNS") or PROJECT / "results" / "runs")
        return Places(cache, data, runs)


def slug(text: str) -> str:
    """A name safe for a file: letters, digits, dot, underscore and dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[-60:]
