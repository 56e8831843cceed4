"""Work on several candidates at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from bench.threads import threads

S = TypeVar("S")
T = TypeVar("T")


def each(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """`work` of every item, in order, as many at a time as torch has threads.

    Each has one of torch's threads, so that results do not depend on their number. Inference mode is a thread's own:
    `work` enters it itself.
    """
    count = torch.get_num_threads()
    if count == 1:
        return list(map(work, items))
    with threads(count) as pool:
        return list(pool.map(work, items))


def together(work: Callable[[Tensor], Tensor], images: Sequence[Tensor], most: int = 128) -> Tensor:
    """(k,) numbers of k images, (m, d) descriptors each, of which `work` gets stacks (b, m, d) and gives (b,).

    The images of a stack, up to `most`, are equally long, so that nothing is padded.

    >>> together(lambda stack: stack.sum(dim=(1, 2)), [torch.ones(2, 3), torch.ones(1, 3), torch.ones(2, 3)]).tolist()
    [6.0, 3.0, 6.0]
    """
    by_length: dict[int, list[int]] = {}
    for index, image in enumerate(images):
        by_length.setdefault(len(image), []).append(index)
    stacks = [rows[i : i + most] for rows in by_length.values() for i in range(0, len(rows), most)]
    found = [work(torch.stack([images[index] for index in stack])) for stack in stacks]
    order = torch.tensor([index for stack in stacks for index in stack]).argsort()
    return torch.cat(found)[order.to(found[0].device)]
