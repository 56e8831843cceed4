"""Training ELViS on a bank of views: the same pairs, budget and choice of weights as RRT and AMES (`train elvis`).

The authors' optimizer and loss: AdamW, binary cross-entropy of a logit of the sum of votes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.training import Progress, Recipe, fit
from methods._local_weights import save_checkpoint
from methods._views.bank import Bank
from methods._views.network import NetworkOptions
from methods._views.network import recipe as network_recipe
from methods._views.pairs import Pairs, bank_of
from methods.elvis.model import FORMAT
from methods.elvis.training.start import Start, initial


@dataclass(frozen=True)
class TrainOptions(NetworkOptions, Start):
    """What is trained on, for how long and how."""


def train(options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train on warped views of photographs and on generated buildings, and write OUT.

    An interrupted training goes on from its last saved state when called again, and ends at the same weights.
    """
    return train_on(bank_of(options, progress), options, out, progress)


def train_on(bank: Bank, options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """`train` on a bank already in memory."""
    return fit(recipe(bank, options), options, out, progress)


def recipe(bank: Bank, options: TrainOptions) -> Recipe[Pairs]:
    """What the loop trains."""
    return network_recipe(
        lambda local_dim: initial(options, local_dim, 2 * options.descriptors, options.start),
        lambda config: 1,
        bank,
        options,
        lambda model, path, card: save_checkpoint(model, FORMAT, path, card),
    )
