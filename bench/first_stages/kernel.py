"""ASMK* over a whole gallery as a first stage (Tolias, Jenicek, Chum, ECCV 2020), by an inverted file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bench.errors import UserError
from bench.features.sets import SetName, folder_name
from bench.files import file_hash
from bench.first_stages.asmk import AsmkSimilarities, build, query_aggregates
from bench.first_stages.stage import Context, Opened
from bench.options import read_options
from methods.asmk import Asmk

# as HOW searches (its section 4): bits of aggregates, five words a query descriptor, one of a gallery's
DEFAULTS = {"binary": "true", "assignments": "5"}


@dataclass(frozen=True)
class Kernel:
    """The selective match kernel on the local descriptors of a feature set."""

    features: SetName  # its local part alone
    options: Asmk.Options

    @staticmethod
    def parse(options: str, features: SetName, where: str) -> Kernel:
        """From OPTION=VALUE[:OPTION=VALUE…], those of the method `asmk`; `where` is what a message says it is of."""
        given = dict(DEFAULTS)
        for piece in filter(None, options.split(":")):
            key, equals, value = piece.partition("=")
            if not equals:
                raise UserError(
                    f"{where}: {piece!r}, expected OPTION=VALUE", hint="for example asmk:binary=false@xfeat"
                )
            given[key] = value
        found = read_options(Asmk.Options, given, "asmk", f"{where}, ")
        if "codebook" in given and not found.codebook.is_file():
            raise UserError(
                f"{where}: no such codebook: {found.codebook}", hint="a .safetensors of `train asmk --recipe kmeans`"
            )
        return Kernel(features, found)

    @property
    def name(self) -> str:
        usual = asdict(read_options(Asmk.Options, DEFAULTS, "asmk", ""))
        changed = [f":{key}={_shown(value)}" for key, value in asdict(self.options).items() if value != usual[key]]
        return f"asmk{''.join(changed)}@{self.features.name}"

    @property
    def sets(self) -> tuple[SetName, ...]:
        return (self.features,)

    def open(self, context: Context) -> Opened:
        dataset, found = context.dataset, context.stores.of(self.features)
        if reason := Asmk(self.options).skip(found.card):
            raise UserError(
                f"--first-stage {self.name}: {reason}", hint="asmk:codebook=FILE.safetensors@LOCAL names one"
            )
        content = context.content(self.features.parts[0])
        kept = {"descriptors": self.options.descriptors, "binary": self.options.binary}
        made = [content, file_hash(self.options.codebook), kept]
        folder = context.places.cache / "first-stages" / f"{folder_name(dataset.name)}-{_digest(made)}"
        progress = None if context.progress is None else partial(context.progress, f"indexing {self.features.name}")
        inverted = build(found, dataset.gallery, folder, content, self.options, progress)
        similarities = AsmkSimilarities(inverted, query_aggregates(found, context.queries, self.options), self.options)
        return Opened(
            name=self.name,
            content=_digest([content, file_hash(self.options.codebook)], 64),
            similarities=similarities,
            parts=self.features.parts,
            bytes_per_image=inverted.bytes_per_image,
            unranked=frozenset(similarities.empty_queries),
        )


def _shown(value: object) -> str:
    if isinstance(value, Path):
        return file_hash(value)[:8]  # equal names mean equal first stages, wherever a file is
    return str(value).lower() if isinstance(value, bool) else str(value)


def _digest(value: object, letters: int = 12) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:letters]
