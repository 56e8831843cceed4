"""Global descriptors as a first stage: the most similar by their inner products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.errors import UserError
from bench.features.sets import SetName
from bench.first_stages.stage import Context, Opened
from bench.search import Dense


@dataclass(frozen=True)
class Descriptors:
    """The global descriptors of a feature set, whitened where the context says so."""

    features: SetName  # its global part alone

    @property
    def name(self) -> str:
        return self.features.name

    @property
    def sets(self) -> tuple[SetName, ...]:
        return (self.features,)

    def open(self, context: Context) -> Opened:
        dataset, found = context.dataset, context.stores.of(self.features)
        if not found.has_globals:
            raise UserError(
                f"feature set {self.name!r} of {dataset.name} has no global descriptors, and without them it is no "
                "first stage",
                hint="give candidates with --shortlist FILE, or import the features again with --globals FILE",
            )
        gallery, queries, name = found.vectors(dataset.gallery), found.global_descriptors(context.queries), self.name
        unranked = frozenset(np.flatnonzero(~queries.any(axis=1)).tolist())
        if context.whitening is not None:
            whitening = context.whitening(self.features)
            gallery, queries, name = gallery.through(whitening), whitening(queries), f"{name}+{whitening.name}"
        return Opened(
            name=name,
            content=context.content(self.features.parts[0]),
            similarities=Dense(queries, gallery),
            parts=self.features.parts,
            bytes_per_image=found.bytes_per_image(frozenset({"global"}))[0],
            unranked=unranked,
        )
