"""Which rerankers there are: one file or folder in `methods/` each, and entry points of other packages.

Names are known without importing anything; a method is imported when it is first asked for.
"""

from __future__ import annotations

import inspect

from bench.doors import Door
from bench.reranker import Reranker
from bench.reranker import register as register  # where authors looked for it at first


def _name(value: object) -> str | None:
    declared = inspect.isclass(value) and issubclass(value, Reranker) and "spec" in vars(value)
    return value.spec.name if declared else None  # type: ignore[attr-defined]


RERANKERS: Door[type[Reranker]] = Door("method", "--method", "methods", "rerankbench.rerankers", _name)
names, get = RERANKERS.names, RERANKERS.get
