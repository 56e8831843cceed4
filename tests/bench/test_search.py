"""Searching in blocks finds what a full sort finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.search import ENGINES, Vectors, search


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
