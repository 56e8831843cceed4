"""A codebook of visual words and its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import UserError
from bench.files import writing


@dataclass(frozen=True, eq=False)
class Codebook:
    """Centres of clusters of local descriptors, and where they come from."""

    centroids: Tensor  # (words, d) float32
    features: str  # key of the feature set
    trained_on: str  # data, in words
    seed: int

    def __post_init__(self) -> None:
        if self.centroids.ndim != 2 or 0 in self.centroids.shape or not bool(torch.isfinite(self.centroids).all()):
            raise ValueError(f"expected finite centroids (words, d), not values of shape {tuple(self.centroids.shape)}")

    def save(self, path: Path) -> None:
        """Centroids go to half precision. UserError where the file cannot be written."""
        from safetensors.torch import save

        about = {"features": self.features, "trained_on": self.trained_on, "seed": str(self.seed)}
        part = path.with_suffix(".part")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {"centroids": self.centroids.half().contiguous()}
            part.write_bytes(save(tensors, {**about, "words": str(len(self.centroids))}))
            part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Codebook:
        """UserError where the file is not such a codebook."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                centroids = file.get_tensor("centroids").float()
            return cls(centroids, about["features"], about["trained_on"], int(about["seed"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"{path}: not a codebook ({error})", hint="give a .safetensors written by `train asmk`"
            ) from error
