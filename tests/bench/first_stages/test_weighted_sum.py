"""Similarities put on one scale and added: as written down in double precision, whatever the blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.first_stages.weighted_sum import DIGITS, Scaled, Summed, aligned
from bench.search import search_by


@dataclass(frozen=True, eq=False)
class Table:
    """Similarities written down in single precision, given in blocks of these sizes, over and over."""

    values: np.ndarray
    sizes: tuple[int, ...] = (7,)

    @property
    def count(self) -> int:
        return self.values.shape[1]

    @property
    def queries(self) -> int:
        return len(self.values)

    def blocks(self, queries: slice, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        for start, stop in cuts(self.count, self.sizes):
            yield start, torch.from_numpy(self.values[queries, start:stop].astype(np.float32))

    def exact(self, query: int, images: np.ndarray) -> np.ndarray:
        return self.values[query, images].astype(np.float64)


def cuts(count: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of blocks of these sizes, over and over, of `count` images."""
    ends = [end for end in accumulate(sizes * count) if end < count]
    return list(zip([0, *ends], [*ends, count], strict=True))


def whole(source: Scaled | Summed, queries: slice | None = None) -> np.ndarray:
    """(queries, count) of all blocks."""
    parts = list(source.blocks(slice(0, source.queries) if queries is None else queries, 5))
    assert [start for start, _ in parts] == [0, *accumulate(part.shape[1] for _, part in parts[:-1])]
    return torch.cat([part for _, part in parts], dim=1).numpy()


def exactly(source: Scaled | Summed) -> np.ndarray:
    return np.stack([source.exact(query, np.arange(source.count)) for query in range(source.queries)])


def by_hand(values: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of whole rows, without the queries' own images."""
    rows = [np.delete(row.astype(np.float64), [] if o < 0 else [o]) for row, o in zip(values, own, strict=True)]
    return np.array([row.mean() for row in rows]), np.array([row.std() for row in rows])


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@st.composite
def rows(draw: st.DrawFn, count: int) -> np.ndarray:
    """(count,) a query's similarities: multiples of 1/64, or all equal."""
    if draw(st.booleans()):
        return np.full(count, draw(st.floats(-1e3, 1e3, width=32)), np.float32)
    seed = np.random.default_rng(draw(st.integers(0, 10**6)))
    return (seed.integers(-96, 97, count) / 64 + draw(st.sampled_from([0, 1, 20]))).astype(np.float32)


@st.composite
def cases(draw: st.DrawFn, stages: int = 1) -> tuple[list[Table], np.ndarray]:
    """Similarities of several first stages to one gallery, in blocks of their own, and the queries' own images."""
    count, queries = draw(st.integers(2, 40)), draw(st.integers(1, 5))
    tables = [Table(np.stack([draw(rows(count)) for _ in range(queries)]), draw(sizes)) for _ in range(stages)]
    return tables, np.array([draw(st.integers(-1, count - 1)) for _ in range(queries)])


@given(cases())
def test_mean_and_deviation_are_those_of_the_gallery_without_the_querys_own_image(case: tuple) -> None:
    (table,), own = case
    means, deviations = Scaled(table, own).moments
    for found, expected in zip((means, deviations), by_hand(table.values, own), strict=True):
        np.testing.assert_allclose(found, expected, rtol=5.1 * 10.0**-DIGITS, atol=1e-9)
        assert [float(f"{value:.{DIGITS - 1}e}") for value in found] == found.tolist()


@given(cases())
def test_a_similarity_is_in_deviations_above_the_mean(case: tuple) -> None:
    (table,), own = case
    scaled = Scaled(table, own)
    means, deviations = (column[:, None] for column in scaled.moments)
    above = table.values.astype(np.float64) - means
    expected = np.divide(above, deviations, out=np.zeros_like(above), where=deviations > 0)
    np.testing.assert_allclose(exactly(scaled), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(whole(scaled), exactly(scaled).astype(np.float32))
    mean, deviation = (column[:, None] for column in by_hand(table.values, own))
    naive = np.divide(table.values - mean, deviation, out=np.zeros_like(above), where=deviation > 0)
    found = exactly(scaled)
    spread = np.abs(naive[:, :, None] - naive[:, None])  # of any two images: their order does not hang on the mean
    np.testing.assert_allclose(np.abs(found[:, :, None] - found[:, None]), spread, rtol=6 * 10.0**-DIGITS, atol=1e-9)


@given(st.integers(2, 300), st.floats(-1e6, 1e6, width=32), st.integers(-1, 1), sizes)
def test_images_that_are_all_alike_to_a_query_count_nothing(count: int, value: float, own: int, sizes: tuple) -> None:
    values = np.full((1, count), value, np.float32)
    if own >= 0:
        values[0, own] = value + 1  # more like itself than all others
    scaled = Scaled(Table(values, sizes), np.array([own]))
    assert scaled.moments[1].tolist() == [0] and not exactly(scaled).any() and not whole(scaled).any()


def test_the_querys_own_image_moves_neither_mean_nor_deviation() -> None:
    values = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    changed = values.copy()
    changed[[0, 2], [4, 49]] = 1e3
    own = np.array([4, -1, 49])
    for before, after in zip(Scaled(Table(values), own).moments, Scaled(Table(changed), own).moments, strict=True):
        assert before.tolist() == after.tolist()


def test_machines_that_differ_in_the_last_bit_scale_alike() -> None:
    values = np.random.default_rng(1).normal(0.4, 0.1, (6, 500)).astype(np.float32)
    own = np.full(6, -1)
    for nearby in (np.nextafter(values, np.float32(9)), np.nextafter(values, np.float32(-9))):
        for one, other in zip(Scaled(Table(values), own).moments, Scaled(Table(nearby), own).moments, strict=True):
            assert one.tolist() == other.tolist()


@given(cases(stages=3), st.lists(st.floats(0.01, 100), min_size=3, max_size=3))
def test_a_sum_adds_what_each_first_stage_gives_times_its_weight(case: tuple, weights: list[float]) -> None:
    tables, own = case
    scaled = tuple(Scaled(table, own) for table in tables)
    summed = Summed(scaled, tuple(weights))
    expected = sum(weight * exactly(one) for weight, one in zip(weights, scaled, strict=True))
    assert (summed.count, summed.queries) == (tables[0].count, tables[0].queries)
    np.testing.assert_allclose(exactly(summed), expected, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(whole(summed), expected, rtol=1e-5, atol=1e-3)


@given(cases(stages=2), sizes, sizes, st.integers(1, 50))
def test_the_lists_do_not_depend_on_the_blocks(case: tuple, one: tuple, other: tuple, block: int) -> None:
    tables, own = case
    depth = tables[0].count - 1

    def lists(tables: Sequence[Table]) -> tuple[list, list]:
        summed = Summed(tuple(Scaled(table, own) for table in tables), (1.0, 0.5))
        probes = [np.setdiff1d(np.arange(depth + 1), [o]) for o in own]
        found = search_by(summed, min(3, depth), probes=probes, own=own, block=block)
        return found.order.tolist(), found.similarities.tolist()

    assert lists(tables) == lists([replace(t, sizes=s) for t, s in zip(tables, (one, other), strict=True)])


@given(st.integers(0, 10**6), sizes, sizes)
def test_which_queries_are_asked_together_changes_nothing(seed: int, one: tuple, other: tuple) -> None:
    draw = np.random.default_rng(seed)
    tables = [Table(draw.normal(size=(4, 30)).astype(np.float32), sizes) for sizes in (one, other)]
    summed = Summed(tuple(Scaled(table, np.array([-1, 3, 0, 29])) for table in tables), (1.0, 2.0))
    np.testing.assert_array_equal(whole(summed)[1:3], whole(summed, slice(1, 3)))


@pytest.mark.parametrize("heavy", [0, 1])
def test_a_weight_that_is_far_larger_gives_that_first_stages_lists(heavy: int) -> None:
    draw = np.random.default_rng(2)
    tables = [Table(draw.permutation(400).reshape(1, 400).repeat(5, 0).astype(np.float32)) for _ in range(2)]
    for table in tables:
        for row in table.values:
            draw.shuffle(row)
    own, weights = np.array([-1, 0, 399, 5, -1]), [1.0, 1.0]
    weights[heavy] = 1e4
    found = search_by(Summed(tuple(Scaled(table, own) for table in tables), tuple(weights)), 50, own=own)
    alone = [search_by(table, 50, own=own) for table in tables]
    assert found.order.tolist() == alone[heavy].order.tolist() != alone[1 - heavy].order.tolist()


def test_equal_weights_let_a_first_stage_that_spreads_less_say_as_much() -> None:
    """What is added are deviations; by powers of ten, since these are rounded to decimal digits."""
    draw = np.random.default_rng(3)
    one, other = (draw.normal(size=(4, 200)) for _ in range(2))
    own = np.full(4, -1)

    def order(*values: np.ndarray) -> list:
        tables = [Table(table.astype(np.float32)) for table in values]
        return search_by(Summed(tuple(Scaled(t, own) for t in tables), (1.0, 1.0)), 20, own=own).order.tolist()

    assert order(one, other) == order(one, other * 0.01) == order(one * 100, other)
    assert order(one, other) == order(other, one)


@given(st.integers(1, 60), st.lists(sizes, min_size=1, max_size=4))
def test_blocks_are_aligned_whatever_their_sizes(count: int, of_sources: list[tuple]) -> None:
    rows = [np.arange(2 * count).reshape(2, count) + 1000 * place for place in range(len(of_sources))]
    sources = [Table(values, sizes).blocks(slice(0, 2), 1) for values, sizes in zip(rows, of_sources, strict=True)]
    found = list(aligned(sources))
    starts = [start for start, _ in found]
    assert starts == sorted({start for sizes in of_sources for start, _ in cuts(count, sizes)})
    for (_, blocks), width in zip(found, np.diff([*starts, count]), strict=True):
        assert [tuple(block.shape) for block in blocks] == [(2, width)] * len(of_sources)
    for place, values in enumerate(rows):
        np.testing.assert_array_equal(torch.cat([blocks[place] for _, blocks in found], dim=1).numpy(), values)
