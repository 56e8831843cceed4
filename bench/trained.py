"""How weights were trained, as far as their card says: the seed, and a digest of all else that decides them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# options of every recipe that decide no weights; a card need not have them
SPARED = frozenset({"device", "threads", "workers", "save_every"})


@dataclass(frozen=True)
class Training:
    """Weights of equal `but_seed` are of one recipe on the same data, and differ in what their seeds drew.

    ValueError for a negative seed, and where a digest or an option is missing.
    """

    seed: int  # at least 0
    but_seed: str  # sha256 of everything in the card that decides the weights, but the seed
    option: str = "weights"  # of the method, which names their file

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed {self.seed}, expected at least 0")
        for name in ("but_seed", "option"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")

    @staticmethod
    def of(card: Mapping[str, Any], option: str = "weights") -> Training | None:
        """From the card that `bench.training.fit` puts into weights; None where it has no recipe with a seed.

        What was found on the held-out split decides nothing, nor where a run computed, nor what a file is called
        whose contents the card has.

        >>> one, two = ({"steps": 9, "recipe": {"lr": 0.1, "seed": seed}} for seed in (0, 1))
        >>> Training.of(one) == Training.of(two), Training.of(one).but_seed == Training.of(two).but_seed
        (False, True)
        """
        recipe = card.get("recipe")
        seed = recipe.get("seed") if isinstance(recipe, Mapping) else None
        if not isinstance(recipe, Mapping) or type(seed) is not int or seed < 0:
            return None
        rest = {name: _nameless(value) for name, value in card.items() if name not in ("recipe", "validation")}
        options = {name: value for name, value in recipe.items() if name != "seed" and name not in SPARED}
        content = json.dumps({**rest, "recipe": options}, sort_keys=True)
        return Training(seed, hashlib.sha256(content.encode()).hexdigest(), option)


def _nameless(value: Any) -> Any:
    """A file's digest without the file's name."""
    if isinstance(value, Mapping) and value.keys() == {"name", "sha256"}:
        return {"sha256": value["sha256"]}
    return value
