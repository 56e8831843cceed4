"""Threads of this process that work side by side, each with one of torch's threads.

Threads that share one small network wait for one another, and wait long where another program keeps one of them from
its core. What a thread computes by itself depends neither on their number nor on other programs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


@contextmanager
def threads(count: int) -> Iterator[Executor]:
    """`count` threads, each of which computes with one of torch's.

    When the body ends, what they have begun is waited for, and what they have not is dropped. Inference mode and other
    settings of a thread are not handed on to them.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # the workers set what later threads start with


def in_turn(pool: Executor, work: Callable[[S], T], items: Iterable[S], ahead: int) -> Iterator[T]:
    """`work` of every item, in order; `ahead` items at most are drawn before it is their turn.

    >>> with threads(2) as pool:
    ...     list(in_turn(pool, abs, [-3, 2, -1], 2))
    [3, 2, 1]
    """
    begun: deque[Future[T]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
