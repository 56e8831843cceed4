"""What every training on a bank of views is to the loop, whatever the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.training import Recipe
from methods._views.bank import Bank
from methods._views.pairs import PairOptions, Pairs, Sampler


def recipe_of(
    bank: Bank,
    options: PairOptions,
    sampler: Sampler,
    module: nn.Module,
    loss: Callable[[Pairs, int], Tensor],
    validate: Callable[[], Mapping[str, float]],
    write: Callable[[Path, Mapping[str, Any]], None],
) -> Recipe[Pairs]:
    """The pairs of `sampler`, AdamW, and the weights of the best `mAP` that `validate` gives."""
    digest = bank.digest()
    return Recipe(
        module=module,
        optimizer=lambda: torch.optim.AdamW(
            module.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
        ),
        draw=sampler.draw,
        loss=loss,
        validate=validate,
        selection="mAP",
        write=write,
        steps=options.steps,
        identity={"bank": digest},
        card={
            "features": options.features,
            "descriptors": options.descriptors,
            "photos": options.photos is not None,
            "pairs": options.steps * options.batch,
            "bank": digest,
            "views": len(bank),
        },
    )
