"""What methods keep of gallery images between queries: made once an image, up to so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from bench.features import FeatureBatch, Features
from bench.reranker import Reranker

LARGEST = 512 * 2**20  # bytes kept for all methods of a process together


@dataclass(frozen=True)
class Made:
    """How many images were indexed anew, and the bytes of what is kept of them."""

    images: int = 0
    bytes: int = 0

    def __add__(self, other: Made) -> Made:
        return Made(self.images + other.images, self.bytes + other.bytes)


def keeps_index(method: Reranker) -> bool:
    """Whether the method implements `index`."""
    return type(method).index is not Reranker.index


class Indexes:
    """What `Reranker.index` gave of each image, by method and key; those used longest ago go first.

    Another process begins with none.
    """

    def __init__(self, largest: int = LARGEST):
        self._largest, self._bytes = largest, 0
        self._kept: OrderedDict[tuple[Reranker, str], Mapping[str, Tensor]] = OrderedDict()

    def __reduce__(self) -> tuple[type[Indexes], tuple[int]]:
        return Indexes, (self._largest,)

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        return self._bytes

    def batch(self, method: Reranker, keys: Sequence[str], images: FeatureBatch) -> tuple[FeatureBatch, Made]:
        """The images with what the method keeps of each, made where it is not there. `keys` are their names."""
        found, made = [], Made()
        for key, image in zip(keys, images, strict=True):
            entry = self._kept.get((method, key))
            if entry is None:
                entry = method.index(_read(method, image))
                made += Made(1, _bytes(entry))
                self._keep((method, key), entry)
            else:
                self._kept.move_to_end((method, key))
            found.append(entry)
        return images.with_index(found), made

    def _keep(self, place: tuple[Reranker, str], entry: Mapping[str, Tensor]) -> None:
        self._kept[place] = entry
        self._bytes += _bytes(entry)
        while self._bytes > self._largest:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _bytes(dropped)


def _read(method: Reranker, image: Features) -> Features:
    """No more descriptors than the method reads by itself: it may share its reading with others."""
    return image.top(method.descriptors_used(len(image)))


def _bytes(entry: Mapping[str, Tensor]) -> int:
    return sum(values.nbytes for values in entry.values())
