"""Training AMES on stored features of landmarks, as its authors do on Google Landmarks: `train ames --recipe gld`.

The same triplets, budget and choice of weights as RRT (methods/_landmarks/triplets.py). The authors draw positives and
negatives by similarity, and learn with a cosine schedule: this recipe draws them evenly, and the rate falls linearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.training import Progress, Recipe, fit
from methods._landmarks.network import NetworkOptions, Triple
from methods._landmarks.network import recipe as network_recipe
from methods._local_weights import save_checkpoint
from methods.ames.model import FORMAT
from methods.ames.training.start import Sizes, initial


@dataclass(frozen=True)
class TrainOptions(NetworkOptions, Sizes):
    """What is trained on, for how long and how."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.config(1)


def train(options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train on the features of a landmark data set (Google Landmarks) and write OUT.

    The weights are chosen on held-out landmarks. An interrupted training goes on from its last saved state when called
    again, and ends at the same weights.
    """
    return fit(recipe(options, progress), options, out, progress)


def recipe(options: TrainOptions, progress: Progress | None = None) -> Recipe[Triple]:
    """What the loop trains."""
    return network_recipe(
        lambda local_dim: initial(options, local_dim, options.start),
        lambda config: config.dim,
        options,
        lambda model, path, card: save_checkpoint(model, FORMAT, path, card, options.half),
        progress,
    )
