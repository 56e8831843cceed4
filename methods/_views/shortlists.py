"""Held-out shortlists, by which the weights are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.metrics import evaluate_query
from methods._views.bank import Bank
from methods._views.pairs import PairOptions, positives, too_little

QUERIES, CANDIDATES = 24, 30  # of a validation: photographs, and as many buildings; and views reranked for each


@dataclass(frozen=True)
class View:
    """What is read of one view."""

    local: Tensor  # (n, local_dim) unit vectors
    global_: Tensor  # (global_dim,)


class Shortlists:
    """Held-out views as queries, each with its nearest held-out views by global similarity, to be reranked."""

    def __init__(self, bank: Bank, options: PairOptions):
        usable = np.flatnonzero(bank.held_out & (bank.counts >= options.descriptors))
        same = positives(bank, usable, options.least_overlap)
        if not same or len(np.unique(bank.groups[usable])) < 2:
            raise too_little("validate", len(same), bank, usable, options.descriptors)
        self.bank, self.descriptors, self.positives = bank, options.descriptors, same
        order = np.random.default_rng(options.seed).permutation(sorted(same))
        kinds = {"photographs": order[bank.shows[order, 0] >= 0], "buildings": order[bank.shows[order, 0] < 0]}
        self.queries = {kind: views[:QUERIES].tolist() for kind, views in kinds.items() if len(views)}
        vectors = bank.global_[usable].astype(np.float32)
        self.candidates: dict[int, np.ndarray] = {}
        for query in (q for views in self.queries.values() for q in views):
            unfair = bank.share(np.array([query]), usable)[0] & ~np.isin(usable, same[query])
            similar = np.where(unfair, -np.inf, vectors @ bank.global_[query].astype(np.float32))
            self.candidates[query] = usable[np.argsort(-similar, kind="stable")[: min(CANDIDATES, (~unfair).sum())]]

    def mean_ap(self, score: Callable[[View, Sequence[View]], Tensor], blank: Tensor | None = None) -> dict[str, float]:
        """mAP of the reranked shortlists by kind of query, in [0, 1]; with `blank` in the place of every global."""
        found: dict[str, float] = {}
        for kind, queries in self.queries.items():
            values = []
            for query in queries:
                candidates = self.candidates[query]
                scores = score(self._read(query, blank), [self._read(int(c), blank) for c in candidates])
                ranking = candidates[scores.cpu().argsort(descending=True, stable=True).numpy()]
                values.append(evaluate_query(ranking, set(self.positives[query].tolist()), (), ("mAP",))["mAP"])
            found[kind] = float(np.mean(values))
        return found

    def _read(self, view: int, blank: Tensor | None) -> View:
        local = torch.from_numpy(self.bank.local[view, : self.descriptors].astype(np.float32))
        return View(local, torch.from_numpy(self.bank.global_[view].astype(np.float32)) if blank is None else blank)
