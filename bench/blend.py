"""How reranker scores and first-stage similarities become the order of the shortlist; replayed from stored scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.errors import UserError, unknown

FORMS = {"replace": 0, "add": 1, "sigmoid": 2}  # name -> number of parameters


@dataclass(frozen=True)
class Blend:
    """`replace`: the score. `add:w`: similarity + w score. `sigmoid:l,g`: l similarity + (1 - l) sigmoid(g score).

    The sigmoid form is that of AMES and LoCoRe (docs/protocols.md, Ties and blends).
    """

    name: str = "replace"
    parameters: tuple[float, ...] = ()

    @staticmethod
    def parse(text: str) -> Blend:
        """
        >>> Blend.parse("sigmoid:0.5,0.1")
        Blend(name='sigmoid', parameters=(0.5, 0.1))
        """
        name, _, rest = text.partition(":")
        if name not in FORMS:
            raise unknown("blend", name, FORMS)
        try:
            parameters = tuple(float(value) for value in rest.split(",")) if rest else ()
        except ValueError as error:
            raise UserError(f"--blend {text}: parameters must be numbers") from error
        if len(parameters) != FORMS[name] or not all(np.isfinite(parameters)):
            raise UserError(
                f"--blend {text}: {name} takes {FORMS[name]} finite parameters, found {len(parameters)}",
                hint="replace, add:WEIGHT or sigmoid:LAMBDA,GAMMA",
            )
        return Blend(name, parameters)

    def __call__(self, scores: np.ndarray, similarities: np.ndarray) -> np.ndarray:
        """(k,) blended scores of one list, from (k,) scores and (k,) first-stage similarities."""
        if self.name == "add":
            return similarities + self.parameters[0] * scores
        if self.name == "sigmoid":
            share, slope = self.parameters
            return share * similarities + (1 - share) * (1 + np.tanh(slope * scores / 2)) / 2
        return scores

    def __str__(self) -> str:
        return self.name + (":" + ",".join(f"{p:g}" for p in self.parameters) if self.parameters else "")
