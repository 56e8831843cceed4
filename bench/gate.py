"""Gates: rerank only the queries whose first candidate looks wrong; replayed from stored scores.

Inliers with the first candidate tell whether reranking can help: To Match or Not to Match, CVPR workshops 2025, arXiv
2504.06116.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import UserError
from bench.replay import Replay, newest_row, replayed
from bench.results import Run
from bench.shortlist import UNION

REPLAYED = "gate (replayed)"


@dataclass(frozen=True)
class Gate:
    """`reranker` reorders the list where `judge` scores the first candidate at most `most`; else nothing moves."""

    judge: str
    most: float
    reranker: str

    @staticmethod
    def parse(text: str) -> Gate:
        """From JUDGE:MOST,RERANKER; ValueError for anything else.

        >>> Gate.parse("ransac:20,lightglue@aliked")
        Gate(judge='ransac', most=20.0, reranker='lightglue@aliked')
        """
        first, comma, reranker = text.partition(",")
        judge, colon, most = first.rpartition(":")
        try:
            limit = float(most)
        except ValueError:
            limit = math.nan
        if not (comma and colon and judge and reranker) or "," in reranker or not math.isfinite(limit):
            raise ValueError("expected JUDGE:MOST,RERANKER, MOST a number")
        return Gate(judge, limit, reranker)


def replay(runs: Sequence[Run], text: str) -> Replay | None:
    """The gate from stored scores of runs of one shortlist; None if no run has one of its two methods.

    The judge costs one candidate a list, the reranker all of them where it is asked. UserError for a gate that cannot
    be read, and for a judge that scores whole lists: its score of one candidate alone is not known.
    """
    try:
        gate = Gate.parse(text)
    except ValueError as error:
        raise UserError(f"--gate {text}: {error}", hint="--gate ransac:20,lightglue") from error
    judge, reranker = (newest_row(runs, name) for name in (gate.judge, gate.reranker))
    if judge is None or reranker is None:
        return None
    stored = judge[0].scores
    if not (stored[stored.method == judge[1]]["list"] == UNION).all():
        raise UserError(
            f"--gate {text}: {gate.judge} scores whole lists", hint="take a method that scores pairs, such as ransac"
        )
    rankings, shortlist = judge[0].rankings(), judge[0].shortlist
    numbers = range(len(shortlist.queries))
    firsts = [rankings.scores(judge[1], name, query)[0] for query in numbers for name in shortlist.lists]
    opens = sum(first <= gate.most for first in firsts)

    def decide(scores: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
        first, others = scores[0][0], scores[1]
        if first <= gate.most:
            return np.argsort(-others, kind="stable"), [1, len(others)]
        return np.arange(len(others)), [1, 0]

    paper = (
        f"replayed from stored scores; {gate.reranker} reorders {opens} of {len(firsts)} lists, those whose first "
        f"candidate has at most {gate.most:g} by {gate.judge}; its times are implied, not measured"
    )
    return replayed(REPLAYED, {"gate": text}, [judge, reranker], decide, paper)
