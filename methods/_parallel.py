"""Work on several candidates at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def each(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """`work` of every item, in order, as many at a time as torch has threads.

    Each has one of torch's threads, so that results do not depend on their number. Inference mode is a thread's own:
    `work` enters it itself.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return list(map(work, items))
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # the workers set what later threads start with
