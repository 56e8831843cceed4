"""First stages by name: GLOBAL, asmk[:OPTION=VALUE…]@LOCAL, or sum:A[*WEIGHT],B[*WEIGHT]."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.errors import UserError, unknown
from bench.features.sets import EXTRACTORS, IMPORTS, SetName
from bench.first_stages.descriptors import Descriptors
from bench.first_stages.kernel import Kernel
from bench.first_stages.stage import FirstStage
from bench.first_stages.weighted_sum import Sum

# the best of its size on views and demo (docs/measurements.md, First stages); no test photograph was asked
DEFAULT = "sum:gem-lite0,asmk@xfeat*0.5"
# what is compared where nothing else is asked for
COMPARED = ("gem-lite0", "asmk@xfeat", "asmk:assignments=1:binary=false@xfeat", DEFAULT)
OPTION = "--first-stage"
FORMS = "GLOBAL, asmk@LOCAL, or sum:A*WEIGHT,B"


def parse(text: str) -> FirstStage:
    """The first stage of that name. UserError, with a suggestion, where it is not known or does not fit.

    >>> parse("sum:gem-lite0*2,asmk:binary=false@sift").name
    'sum:gem-lite0*2,asmk:binary=false@sift'
    """
    kind = text.partition("@")[0].partition(":")[0]
    return KINDS.get(kind, _descriptors)(text)


def default_for(features: str) -> str:
    """The first stage where none is named: the global descriptors that `features` names itself, else DEFAULT."""
    return DEFAULT if SetName.parse(features).takes_default(features) else features


def _descriptors(text: str) -> FirstStage:
    base = text.partition(":")[0].split("+")[0]
    if base not in (*EXTRACTORS.names(), *IMPORTS.names()):
        raise unknown("first stage", base, [*_known(), *KINDS, "list"])
    name = SetName.parse(text, f"{OPTION} {text}")
    if name.takes_default(text):
        raise UserError(
            f"{OPTION} {text}: {text!r} gives no global descriptors",
            hint=f"asmk@{text} searches its local ones; a first stage is {FORMS}",
        )
    return Descriptors(SetName(None, name.global_))


def _known() -> list[str]:
    """Names of what gives global descriptors."""
    return [name for name in EXTRACTORS.names() if EXTRACTORS.get(name).spec.gives != "local"] + IMPORTS.names()


def _kernel(text: str) -> FirstStage:
    kind, at, local = text.partition("@")
    if not at or not local:
        raise UserError(f"{OPTION} {text}: it names no local descriptors", hint="for example asmk@xfeat")
    where = f"{OPTION} {text}"
    features = SetName.parse(local, where).reading(frozenset({"local"}))
    if features is None:
        raise UserError(f"{where}: {local!r} gives no local descriptors", hint="for example asmk@xfeat")
    return Kernel.parse(kind.partition(":")[2], features, where)


def _sum(text: str) -> FirstStage:
    stages, weights = [], []
    for piece in map(str.strip, text.partition(":")[2].split(",")):
        name, star, weight = piece.rpartition("*")
        try:
            weights.append(float(weight) if star else 1.0)
        except ValueError as error:
            raise UserError(f"{OPTION} {text}: {weight!r} is no weight", hint="sum:A*WEIGHT,B adds two") from error
        name = name if star else piece
        if name.partition(":")[0] in ("sum", "list") or not name:
            raise UserError(
                f"{OPTION} {text}: {name!r} cannot be added, a sum adds GLOBAL and asmk@LOCAL",
                hint="sum:A*WEIGHT,B adds two; each must know its similarities to the whole gallery",
            )
        stages.append(parse(name))
    try:
        return Sum(tuple(stages), tuple(weights))
    except UserError as error:
        raise UserError(f"{OPTION} {text}: {error.message}", hint=error.hint) from error


KINDS: Mapping[str, Callable[[str], FirstStage]] = {"asmk": _kernel, "sum": _sum}
