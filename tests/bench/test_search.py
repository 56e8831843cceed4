"""Searching in blocks finds what a full sort finds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.search import ENGINES, MARGIN, Vectors, search, search_by


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def by_sorting(queries: np.ndarray, gallery: np.ndarray, own: np.ndarray) -> list[list[int]]:
    """Whole rankings, ties in gallery order, without the query's own image."""
    values = (gallery.astype(np.float64) @ queries.astype(np.float64).T).T.astype(np.float32)
    return [[int(i) for i in np.argsort(-row, kind="stable") if i != o] for row, o in zip(values, own, strict=True)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int, list[np.ndarray]]:
    """Queries, gallery with many equal rows (small whole numbers: products are exact), own, depth, block, probes."""
    n, nq, dim = draw(st.integers(2, 60)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    seed = np.random.default_rng(draw(st.integers(0, 10**6)))
    gallery, queries = (seed.integers(-2, 3, (rows, dim)).astype(np.float32) for rows in (n, nq))
    own = np.array([draw(st.integers(-1, n - 1)) for _ in range(nq)])
    probes = [
        seed.permutation(np.setdiff1d(np.arange(n), [own[q]]))[: draw(st.integers(0, n))].astype(np.int64)
        for q in range(nq)
    ]
    return queries, gallery, own, draw(st.integers(1, n - 1)), draw(st.integers(1, 70)), probes


@given(cases())
def test_search_equals_a_stable_sort_whatever_the_blocks(case: tuple) -> None:
    queries, gallery, own, depth, block, probes = case
    found = search(queries, Vectors.of(gallery), depth, probes=probes, own=own, block=block)
    for q, ranking in enumerate(by_sorting(queries, gallery, own)):
        assert found.order[q].tolist() == ranking[:depth]
        assert found.ranks[q].tolist() == [ranking.index(probe) for probe in probes[q]]
        assert found.similarities[q].tolist() == [float(gallery[i] @ queries[q]) for i in ranking[:depth]]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_real_values_are_found_in_the_order_of_double_precision(kind: type, engine: str) -> None:
    draw = np.random.default_rng(0)
    queries = unit(draw.normal(size=(5, 64))).astype(np.float32)
    gallery = unit(draw.normal(size=(3000, 64))).astype(kind)
    own, probes = np.array([7, -1, 2999, -1, 0]), [draw.permutation(2998)[:50] + 1 for _ in range(5)]
    probes = [asked[asked != o] for asked, o in zip(probes, own, strict=True)]
    found = search(queries, Vectors.of(gallery), 100, probes=probes, own=own, block=512, engine=engine)
    for q, ranking in enumerate(by_sorting(queries, gallery, own)):
        assert found.order[q].tolist() == ranking[:100]
        ranks = np.array([ranking.index(probe) for probe in probes[q]])
        assert np.abs(found.ranks[q] - ranks).max() <= 1  # the tail is counted in single precision
        assert len(set(found.ranks[q].tolist())) == len(probes[q])


def test_the_lists_do_not_depend_on_blocks_or_on_which_queries_are_searched_together() -> None:
    draw = np.random.default_rng(1)
    queries, gallery = (unit(draw.normal(size=(n, 32))).astype(np.float32) for n in (2100, 500))
    whole = search(queries, Vectors.of(gallery), 20)
    one = search(queries[1500:1501], Vectors.of(gallery), 20, block=7)
    assert np.array_equal(whole.order[1500], one.order[0])
    assert np.array_equal(whole.similarities[1500], one.similarities[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_similarities_that_are_not_finite_are_refused(value: float) -> None:
    gallery = np.ones((8, 2), np.float32)
    gallery[5, 1] = value
    with pytest.raises(UserError, match="gallery image 5 gives similarities that are not finite"):
        search(np.ones((1, 2)), Vectors.of(gallery), 2, block=3)
    with pytest.raises(UserError, match="query 2 gives similarities that are not finite"):
        search(gallery[3:6], Vectors.of(gallery), 2, block=3)
    gallery[5] = 1e30  # finite, its inner product not
    with pytest.raises(UserError, match="gallery image 5"):
        search(np.full((1, 2), 1e30), Vectors.of(gallery), 2, block=3)


def test_a_memory_mapped_gallery_is_read_block_by_block(tmp_path) -> None:
    np.save(tmp_path / "g.npy", unit(np.random.default_rng(2).normal(size=(100, 8))).astype(np.float16))
    mapped, asked = np.load(tmp_path / "g.npy", mmap_mode="r"), []
    gallery = Vectors(100, lambda a, b: asked.append((a, b)) or mapped[a:b], lambda i: mapped[i])
    found = search(mapped[:3], gallery, 10, own=np.arange(3), block=40)
    assert asked == [(0, 40), (40, 80), (80, 100)]
    assert np.array_equal(found.order, search(mapped[:3], Vectors.of(np.array(mapped)), 10, own=np.arange(3)).order)


@dataclass(frozen=True, eq=False)
class Table:
    """Similarities written down, given in blocks of these sizes, whatever is asked for."""

    values: np.ndarray
    sizes: tuple[int, ...]
    error: float = 0.0  # of every second image in blocks

    @property
    def count(self) -> int:
        return self.values.shape[1]

    @property
    def queries(self) -> int:
        return len(self.values)

    def blocks(self, queries: slice, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        start = 0
        while start < self.count:
            for wide in self.sizes:
                if start < self.count:
                    block = self.values[queries, start : start + wide].astype(np.float32)
                    block[:, start % 2 :: 2] += self.error
                    yield start, torch.from_numpy(block)
                start += wide

    def exact(self, query: int, images: np.ndarray) -> np.ndarray:
        return self.values[query, images]


@given(cases(), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_any_similarity_is_searched_in_blocks_of_any_size(case: tuple, sizes: list[int]) -> None:
    queries, gallery, own, depth, _, probes = case
    found = search_by(Table((queries @ gallery.T).astype(np.float64), tuple(sizes)), depth, probes=probes, own=own)
    for q, ranking in enumerate(by_sorting(queries, gallery, own)):
        assert found.order[q].tolist() == ranking[:depth]
        assert found.ranks[q].tolist() == [ranking.index(probe) for probe in probes[q]]


@pytest.mark.parametrize("size", [1, MARGIN + 3, MARGIN + 4, 500])
def test_equal_similarities_are_in_gallery_order_whatever_the_blocks(size: int) -> None:
    found = search_by(Table(np.zeros((3, 200)), (size,)), 3, own=np.array([-1, 0, 2]), probes=[[150, 3]] * 3)
    assert found.order.tolist() == [[0, 1, 2], [1, 2, 3], [0, 1, 3]]
    assert [ranks.tolist() for ranks in found.ranks] == [[150, 3], [149, 2], [149, 2]]


def test_what_blocks_confuse_is_ordered_by_the_exact_similarities() -> None:
    values = np.random.default_rng(3).permutation(60)[None] / 1000.0
    found = search_by(Table(values, (7,), error=0.003), 20)
    assert found.order[0].tolist() == np.argsort(-values[0])[:20].tolist()
    assert found.similarities[0].tolist() == [np.float32(i / 1000) for i in range(59, 39, -1)]


def test_a_similarity_that_is_no_number_is_refused_with_its_image() -> None:
    values = np.zeros((2, 30))
    values[1, 17] = np.nan
    with pytest.raises(UserError, match="gallery image 17 gives similarities that are not finite"):
        search_by(Table(values, (8,)), 2)


def test_a_search_says_how_many_queries_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.search.QUERIES", 3)
    draw = np.random.default_rng(0)
    queries, gallery = draw.normal(size=(5, 4)), draw.normal(size=(40, 4))
    told: list[tuple[int, int]] = []
    search(queries, Vectors.of(gallery), 2, block=20, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 5), (3, 5), (4, 5), (5, 5)]


def test_images_that_are_alike_are_counted_and_not_kept() -> None:
    probes = [np.array([7, 3, 1_990]), np.array([1_000])]

    def most(count: int) -> int:
        gallery = Vectors(
            count, lambda start, stop: np.ones((stop - start, 1), np.float32), lambda at: np.ones((len(at), 1))
        )
        tracemalloc.start()
        found = search(np.ones((2, 1)), gallery, 3, probes=probes, block=500)
        _, held = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [rank.tolist() for rank in found.ranks] == [[7, 3, 1_990], [1_000]]
        return held

    assert most(40_000) < most(2_000) + 20_000
