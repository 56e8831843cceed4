"""The match kernel with the candidates' aggregates at hand, against aggregating them for every query."""

from __future__ import annotations

from bench.conformance import batch_of, example
from bench.features.sets import card_of
from bench.indexes import Indexes
from methods.asmk import Asmk
from tests.speed import interleaved
from tests.speed.table import Probe, Row, Work, flops_of, show

TIMES_FASTER = 8.0  # a pair


def bench_asmk(descriptors: int = 500, candidates: int = 20, rounds: int = 5) -> bool:
    """One query against its candidates, random descriptors; whether the scores are equal to the bit."""
    card, method = card_of("xfeat"), Asmk()
    method.load()
    query = example(descriptors, card, 0)
    batch = batch_of([example(descriptors, card, i, query) for i in range(1, candidates + 1)])
    kept, made = Indexes().batch(method, [str(i) for i in range(candidates)], batch)
    probe = Probe()
    medians = interleaved(
        {"anew": lambda: method.score(query, batch), "kept": lambda: method.score(query, kept), **probe.calls}, rounds
    )
    same = bool((method.score(query, batch) == method.score(query, kept)).all())
    seconds, work = medians.seconds["kept"], Work(flops_of(lambda: method.score(query, kept)), made.bytes)
    ratio, bound = medians.seconds["anew"] / seconds, probe.peaks(medians).bound(work, seconds)
    name = f"asmk {descriptors}, {candidates} kept"
    return show([Row(name, seconds / candidates, "aggregating", ratio, TIMES_FASTER, bound, same)], medians)
