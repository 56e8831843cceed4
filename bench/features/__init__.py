"""What is known of an image besides its pixels: one global descriptor and its local descriptors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureCard:
    """What a feature set holds, as far as a method must know to read it. A size is 0 where there is no descriptor."""

    name: str  # LOCAL+GLOBAL, as tables have it
    local: str  # what the local descriptors are, for example xfeat; empty where there are none
    global_: str  # what the global descriptor is
    local_dim: int | None  # values of a descriptor; None where only extraction will tell
    global_dim: int | None
    local_key: str = ""  # `local`, with the contents of the weights given
    weights: tuple[Path, ...] = ()  # files given for the local descriptors
    imported: bool = False  # made by another program

    @property
    def known(self) -> bool:
        """Whether both sizes are known."""
        return self.local_dim is not None and self.global_dim is not None


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one image.

    Rows of the local arrays are sorted by `scores`, descending, so that the first m rows are the best m. n may be 0.
    What a method has not declared to read is empty (global, local) or zero (keypoints, orientations).
    """

    global_descriptor: Tensor  # (D,) unit norm; D is 0 where a method does not read it
    descriptors: Tensor  # (n, d) unit norm
    keypoints: Tensor  # (n, 2) x, y in pixels of the image (of the crop, for a query with a box)
    scales: Tensor  # (n,) detector scale in pixels; 1 where the detector has a single scale
    orientations: Tensor  # (n,) radians; 0 where the detector has none
    scores: Tensor  # (n,) detector response, descending
    image_size: Tensor  # (2,) width, height in pixels

    def __post_init__(self) -> None:
        n = self.descriptors.shape[0]
        shapes = {"keypoints": (n, 2), "scales": (n,), "orientations": (n,), "scores": (n,), "image_size": (2,)}
        if self.global_descriptor.ndim != 1 or self.descriptors.ndim != 2:
            raise ValueError("global_descriptor must be (D,) and descriptors (n, d)")
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")
        if n > 1 and bool((self.scores[1:] > self.scores[:-1]).any()):
            raise ValueError("local descriptors must be sorted by descending score")

    @staticmethod
    def checked(**fields: Tensor) -> Features:
        """Features whose shapes and order the caller has made sure of, for many images at once."""
        made = object.__new__(Features)
        vars(made).update(fields)
        return made

    def __len__(self) -> int:
        return self.descriptors.shape[0]

    def top(self, m: int) -> Features:
        """The same image with its best m local descriptors."""
        if m >= len(self):
            return self
        local = ("descriptors", "keypoints", "scales", "orientations", "scores")
        return replace(self, **{name: getattr(self, name)[:m] for name in local})

    def to(self, device: torch.device) -> Features:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """The candidates of one query, in shortlist order; ragged, because images differ in their number of descriptors."""

    images: tuple[Features, ...]
    similarities: Tensor  # (k,) first-stage similarity of each candidate
    positives: Tensor | None = None  # (k,) bool, only for controls that declare `truth`
    index: tuple[Mapping[str, Tensor], ...] | None = None  # what the method's `index` gave of each; None: not made

    def __post_init__(self) -> None:
        if tuple(self.similarities.shape) != (len(self.images),):
            raise ValueError(f"{len(self.images)} images but similarities of shape {tuple(self.similarities.shape)}")
        if self.index is not None and len(self.index) != len(self.images):
            raise ValueError(f"{len(self.images)} images but {len(self.index)} of them indexed")

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Features]:
        return iter(self.images)

    def at(self, places: Sequence[int]) -> FeatureBatch:
        """The candidates at these places, in this order."""
        rows = torch.as_tensor(places, dtype=torch.long, device=self.similarities.device)
        return FeatureBatch(
            tuple(self.images[i] for i in places),
            self.similarities[rows],
            None if self.positives is None else self.positives[rows],
            None if self.index is None else tuple(self.index[i] for i in places),
        )

    def with_index(self, index: Sequence[Mapping[str, Tensor]]) -> FeatureBatch:
        """The same candidates with what a method keeps of each."""
        return replace(self, index=tuple(index))

    def global_descriptors(self) -> Tensor:
        """(k, D)"""
        return torch.stack([image.global_descriptor for image in self.images])
