"""The first stage gives the reranker's similarities, whatever the blocks, and its file mends itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bench.first_stages.asmk
import bench.search
from bench.conformance import batch_of
from bench.errors import UserError
from bench.features import Features
from bench.first_stages.asmk import AsmkSimilarities, build, query_aggregates
from bench.first_stages.inverted_file import InvertedFile, Layout
from bench.search import MARGIN, Found, search_by
from methods.asmk import Asmk
from methods.asmk.codebook import Codebook


def features_of(descriptors: torch.Tensor) -> Features:
    n = len(descriptors)
    return Features(
        torch.zeros(0),
        torch.nn.functional.normalize(descriptors, dim=1),
        torch.zeros(n, 2),
        torch.ones(n),
        torch.zeros(n),
        torch.linspace(1, 0, n),
        torch.tensor([640.0, 480.0]),
    )


@dataclass
class Memory:
    """Features in memory, which remembers what was read and fails from the read of `broken` on."""

    images: dict[str, Features]
    asked: list[str] = field(default_factory=list)
    broken: str | None = None

    @staticmethod
    def of(*descriptors: torch.Tensor) -> Memory:
        return Memory({f"image{i}": features_of(rows) for i, rows in enumerate(descriptors)})

    @staticmethod
    def random(sizes: Sequence[int], dim: int, seed: int = 0) -> Memory:
        draw = torch.Generator().manual_seed(seed)
        return Memory.of(*(torch.randn((n, dim), generator=draw) for n in sizes))

    def read_all(
        self, keys: Sequence[str], needs: frozenset[str], top: Callable[[int], int] | None
    ) -> tuple[Features, ...]:
        assert needs == {"local"} and top is not None
        if self.broken in keys:
            raise RuntimeError("interrupted")
        self.asked += keys
        return tuple(self.images[key].top(top(len(self.images[key]))) for key in keys)


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., Asmk.Options]:
    """Options with a random codebook of 16 words of `dim` values."""

    def made(dim: int = 64, words: int = 16, seed: int = 0, **given: object) -> Asmk.Options:
        path = tmp_path / f"{dim}-{words}-{seed}.safetensors"
        if not path.is_file():  # two savings may differ in bytes
            centroids = torch.randn((words, dim), generator=torch.Generator().manual_seed(seed)) / dim**0.5
            Codebook(centroids, "xfeat", "nothing", seed).save(path)
        return Asmk.Options(codebook=path, **given)  # type: ignore[arg-type]

    return made


def source(
    store: Memory, folder: Path, options: Asmk.Options, queries: Sequence[str] | None = None, block: int = 5
) -> AsmkSimilarities:
    """Similarities of these images, or all, to all of the store's."""
    asked = query_aggregates(store, list(store.images) if queries is None else queries, options)
    return AsmkSimilarities(build(store, store.images, folder, "content", options, block=block), asked, options)


def whole(similarities: AsmkSimilarities) -> np.ndarray:
    """(queries, count) of all blocks."""
    parts = list(similarities.blocks(slice(0, similarities.queries), 4096))
    assert [start for start, _ in parts] == np.cumsum([0, *(part.shape[1] for _, part in parts[:-1])]).tolist()
    return torch.cat([part for _, part in parts], dim=1).numpy()


def exact(similarities: AsmkSimilarities) -> np.ndarray:
    everything = np.arange(similarities.count)
    return np.stack([similarities.exact(q, everything) for q in range(similarities.queries)])


def rerank(store: Memory, options: Asmk.Options) -> np.ndarray:
    """The reranker's scores of every image for every image."""
    method, images = Asmk(options), list(store.images.values())
    method.load()
    return np.stack([method.score(image, batch_of(images)).numpy() for image in images])


def keys_of(*numbers: int) -> list[str]:
    return [f"image{i}" for i in numbers]


SIZES = (30, 1, 12, 0, 25, 40, 7, 33, 0, 18, 26, 3)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("dim", [64, 128, 32, 24, 12, 7])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"alpha": 1.0},
        {"threshold": 0.23},
        {"assignments": 4},
        {"descriptors": 9},
        {"alpha": 2.5, "assignments": 16},
    ],
)
def test_similarities_are_the_rerankers_scores(
    binary: bool, dim: int, given: dict, options: Callable, tmp_path: Path
) -> None:
    chosen, store = options(dim, binary=binary, **given), Memory.random(SIZES, dim)
    found, expected = source(store, tmp_path / "file", chosen), rerank(store, chosen)
    assert expected.max() > 0.2
    tolerance = 1e-6 if binary else 2e-3  # of half precision
    assert np.abs(whole(found) - expected).max() < tolerance
    assert np.abs(exact(found) - expected).max() < tolerance


def by_hand(query: torch.Tensor, candidate: torch.Tensor, centroids: np.ndarray, options: Asmk.Options) -> float:
    """The kernel in two loops, with the candidate's vectors in half precision."""

    def vectors(rows: torch.Tensor, assignments: int) -> dict[int, np.ndarray]:
        sums: dict[int, np.ndarray] = {}
        for row in rows[: options.descriptors].double().numpy():
            for word in np.argsort(((centroids - row) ** 2).sum(axis=1))[:assignments]:
                sums[int(word)] = sums.get(int(word), 0.0) + row - centroids[word]
        if options.binary:
            return {word: np.where(total > 0, 1.0, -1.0) / len(total) ** 0.5 for word, total in sums.items()}
        return {word: total / np.linalg.norm(total) for word, total in sums.items()}

    one, other = vectors(query, options.assignments), vectors(candidate, 1)
    score = 0.0
    for word, vector in one.items():
        for same, stored in other.items():
            product = float(vector @ (stored if options.binary else stored.astype(np.float16).astype(float)))
            if word == same and product >= options.threshold:
                score += max(product, 0.0) ** options.alpha
    return score / (len(one) * len(other)) ** 0.5 if one and other else 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 14), min_size=1, max_size=9),
    st.sampled_from([2, 3, 8, 17, 64]),
    st.integers(1, 7),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([1.0, 2.0, 3.0]),
    st.integers(1, 20),
    st.integers(0, 10**6),
)
def test_the_kernel_is_that_of_two_loops(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    dim: int,
    words: int,
    block: int,
    binary: bool,
    alpha: float,
    descriptors: int,
    seed: int,
) -> None:
    folder, store = tmp_path_factory.mktemp("case"), Memory.random(sizes, dim, seed)
    # inside the sphere of the descriptors: no residual is zero
    drawn = 0.9 * torch.rand((words, dim), generator=torch.Generator().manual_seed(seed)) - 0.45
    Codebook(drawn, "xfeat", "nothing", 0).save(folder / "c.safetensors")
    centroids = Codebook.load(folder / "c.safetensors").centroids.double().numpy()
    chosen = Asmk.Options(descriptors, folder / "c.safetensors", alpha, 0.0, min(2, words), binary)
    found = source(store, folder / "file", chosen, block=block)
    rows = [image.descriptors for image in store.images.values()]
    expected = np.array([[by_hand(query, candidate, centroids, chosen) for candidate in rows] for query in rows])
    assert np.abs(exact(found) - expected).max() < 1e-3
    assert np.abs(whole(found) - exact(found)).max() < 1e-5


def searched(similarities: AsmkSimilarities, depth: int = 6) -> Found:
    n = similarities.count
    probes = [np.setdiff1d(np.arange(n)[::-1], [q]) for q in range(similarities.queries)]
    return search_by(similarities, depth, probes=probes, own=np.arange(similarities.queries))


@pytest.mark.parametrize("binary", [False, True])
def test_the_lists_do_not_depend_on_the_blocks_or_on_which_queries_are_searched_together(
    binary: bool, options: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, store = options(binary=binary), Memory.random([20 + i % 7 for i in range(70)], 64)
    queries = keys_of(*range(12))
    first = searched(source(store, tmp_path / "whole", chosen, queries, 16_384))
    monkeypatch.setattr(bench.search, "QUERIES", 5)
    monkeypatch.setattr(bench.first_stages.asmk, "WAITING", 100)
    for block in (1, 13, 64, 69):  # of one image: more than stay open
        found = searched(source(store, tmp_path / str(block), chosen, queries, block))
        assert np.array_equal(found.order, first.order)
        assert np.array_equal(found.similarities, first.similarities)
        assert all(np.array_equal(*ranks) for ranks in zip(found.ranks, first.ranks, strict=True))


@pytest.mark.parametrize("binary", [False, True])
def test_lists_and_ranks_are_those_of_sorting_the_exact_similarities(
    binary: bool, options: Callable, tmp_path: Path
) -> None:
    found = source(Memory.random([25] * 80, 64), tmp_path / "file", options(binary=binary), block=32)
    lists, values = searched(found, 10), exact(found).astype(np.float32)
    for q in range(80):
        ranking = [int(i) for i in np.argsort(-values[q], kind="stable") if i != q]
        assert lists.order[q].tolist() == ranking[:10]
        assert lists.similarities[q].tolist() == values[q][ranking[:10]].tolist()
        probes = np.setdiff1d(np.arange(80)[::-1], [q])
        assert np.abs(lists.ranks[q] - [ranking.index(i) for i in probes]).max() <= (0 if binary else 1)


def test_more_equal_images_than_are_kept_are_in_gallery_order(options: Callable, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    same, other = (torch.randn((30, 64), generator=draw) for _ in range(2))
    store = Memory.of(other, *([same] * (3 * MARGIN)), other)
    found = source(store, tmp_path / "file", options(binary=True), ["image5"], block=9)
    lists = search_by(found, 4, own=np.array([5]), probes=[np.array([40, 0, 49])])
    assert lists.order.tolist() == [[1, 2, 3, 4]]
    assert lists.ranks[0].tolist() == [38, 47, 48]


def test_a_few_equal_images_are_in_gallery_order_in_half_precision(options: Callable, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randn((30, 64), generator=draw) for _ in range(40)]
    for place in (31, 3, 17):
        rows[place] = rows[8]
    lists = search_by(source(Memory.of(*rows), tmp_path / "file", options(), ["image8"], block=7), 4)
    assert lists.order.tolist() == [[3, 8, 17, 31]]


@pytest.mark.parametrize("binary", [False, True])
def test_what_has_no_descriptors_is_similar_to_nothing(binary: bool, options: Callable, tmp_path: Path) -> None:
    chosen, store = options(binary=binary), Memory.random([10, 0, 12, 0, 0, 0, 9], 64)
    store.images["image1"] = replace(store.images["image1"], descriptors=torch.zeros(0, 0))
    found = source(store, tmp_path / "file", chosen, block=2)  # the third block is empty
    assert found.empty_queries == [1, 3, 4, 5]
    for values in (whole(found), exact(found)):
        assert not values[found.empty_queries].any() and not values[:, found.empty_queries].any()
        assert (values.diagonal()[[0, 2, 6]] > 0.99).all()
    lists = search_by(found, 7)
    assert lists.order[3].tolist() == [*range(7)]
    nothing = source(Memory.random([0, 0], 64), tmp_path / "nothing", chosen)
    assert not exact(nothing).any() and search_by(nothing, 2).order.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("binary", [False, True])
def test_a_gallery_of_one_image_is_searched(binary: bool, options: Callable, tmp_path: Path) -> None:
    found = source(Memory.random([20], 64), tmp_path / "file", options(binary=binary))
    lists = search_by(found, 3, probes=[np.array([0])])
    assert lists.order.tolist() == [[0]] and lists.ranks[0].tolist() == [0]
    assert lists.similarities[0, 0] == pytest.approx(1, abs=1e-3)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_an_interrupted_build_goes_on_with_the_next_block(options: Callable, tmp_path: Path) -> None:
    chosen, store = options(), Memory.random([9] * 11, 64)
    store.broken = "image8"
    with pytest.raises(RuntimeError, match="interrupted"):
        build(store, store.images, tmp_path / "file", "content", chosen, block=3)
    (tmp_path / "file" / "tmp-1-killed").mkdir()  # a process that could not clean up
    store.broken, store.asked = None, []
    found = build(store, store.images, tmp_path / "file", "content", chosen, block=3)
    assert store.asked == keys_of(6, 7, 8, 9, 10)
    once = build(store, store.images, tmp_path / "once", "content", chosen, block=3)
    assert (found.count, found.bytes_per_image) == (once.count, once.bytes_per_image)
    assert files_of(tmp_path / "file") == files_of(tmp_path / "once")


def test_a_finished_file_is_not_read_or_written_again(options: Callable, tmp_path: Path) -> None:
    store = Memory.random([9] * 11, 64)
    first = build(store, store.images, tmp_path / "file", "content", options(), block=3)
    before, store.broken = stamps(tmp_path / "file"), "image0"
    again = options(alpha=1.0, threshold=0.5, assignments=3)  # what the gallery's aggregates do not depend on
    assert build(store, store.images, tmp_path / "file", "content", again, block=3) == first
    assert stamps(tmp_path / "file") == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scramble(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def zero_values(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:128] + bytes(len(content) - 128))


def other_kind(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


DAMAGE = [
    (name, how) for name in ("starts", "images", "vectors", "words_of") for how in (cut, empty, scramble, other_kind)
]


@pytest.mark.parametrize(
    ("name", "how"), [*DAMAGE, *[(name, Path.unlink) for name, _ in DAMAGE[::4]], ("images", zero_values)]
)
def test_a_damaged_block_is_built_again(name: str, how: Callable, options: Callable, tmp_path: Path) -> None:
    store, folder = Memory.random([9] * 11, 64), tmp_path / "file"
    build(store, store.images, folder, "content", options(), block=3)
    before, store.asked = files_of(folder), []
    how(folder / "000001" / f"{name}.npy")
    build(store, store.images, folder, "content", options(), block=3)
    assert store.asked == keys_of(3, 4, 5)
    assert files_of(folder) == before


@pytest.mark.parametrize(
    "changed",
    [
        {"content": "other"},
        {"seed": 1},
        {"descriptors": 5},
        {"binary": True},
        {"block": 4},
        {"about": "{"},
        {"about": "[]"},
    ],
)
def test_a_file_of_anything_else_is_built_anew(changed: dict, options: Callable, tmp_path: Path) -> None:
    store, folder = Memory.random([9] * 11, 64), tmp_path / "file"
    build(store, store.images, folder, "content", options(), block=3)
    store.asked = []
    if "about" in changed:
        (folder / "about.json").write_text(changed.pop("about"))
    content, block = changed.pop("content", "content"), changed.pop("block", 3)
    chosen = options(**changed)
    build(store, store.images, folder, content, chosen, block=block)
    assert store.asked == list(store.images)
    build(store, store.images, tmp_path / "other", content, chosen, block=block)
    assert files_of(folder) == files_of(tmp_path / "other")


def test_more_images_than_before_are_added_and_fewer_are_not_mixed_up(options: Callable, tmp_path: Path) -> None:
    store, folder = Memory.random([9] * 11, 64), tmp_path / "file"
    for images in (11, 7, 11):
        keys = list(store.images)[:images]
        found = AsmkSimilarities(
            build(store, keys, folder, "content", options(), block=3),
            query_aggregates(store, keys, options()),
            options(),
        )
        assert np.abs(whole(found) - rerank(store, options())[:images, :images]).max() < 2e-3


def test_of_two_builds_at_once_one_does_the_work(options: Callable, tmp_path: Path) -> None:
    store, chosen = Memory.random([9] * 200, 64), options()
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(build, store, store.images, tmp_path / "f", "x", chosen, block=50) for _ in range(4)]
    assert len({run.result() for run in runs}) == 1
    assert sorted(store.asked) == sorted(store.images)


def test_what_is_done_is_told(options: Callable, tmp_path: Path) -> None:
    store, told = Memory.random([2] * 150, 64), []
    build(store, store.images, tmp_path / "f", "x", options(), lambda *done: told.append(done), block=100)
    assert [done for done, _ in told] == [64, 100, 100, 150, 150] and {total for _, total in told} == {150}


def test_bytes_of_an_image_are_those_of_its_arrays(options: Callable, tmp_path: Path) -> None:
    store = Memory.random([1, 1], 12)
    starts, number, words_of = 17 * 8 / 2, 2, 4
    for binary, vector in ((False, 24), (True, 2)):
        found = build(store, store.images, tmp_path / str(binary), "x", options(12, binary=binary))
        assert found.bytes_per_image == starts + number + words_of + vector


def test_features_of_another_size_are_refused(options: Callable, tmp_path: Path) -> None:
    store = Memory.random([5, 5], 32)
    for call in (
        lambda: build(store, store.images, tmp_path / "f", "x", options(64)),
        lambda: query_aggregates(store, ["image0"], options(64)),
    ):
        with pytest.raises(UserError, match="a codebook of 64-d descriptors, but the features have 32-d ones"):
            call()


def test_a_folder_that_cannot_be_written_is_said(options: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Memory.random([5], 64)
    with pytest.raises(UserError, match="file: cannot write"):
        build(store, store.images, tmp_path / "file", "x", options())


def test_damage_since_the_build_is_said_with_its_place(options: Callable, tmp_path: Path) -> None:
    found = source(Memory.random([9] * 11, 64), tmp_path / "file", options(), block=3)
    cut(tmp_path / "file" / "000002" / "vectors.npy")
    with pytest.raises(UserError, match="000002: damaged since it was built"):
        search_by(found, 3)


def test_aggregates_of_another_file_are_refused(options: Callable, tmp_path: Path) -> None:
    store = Memory.random([9] * 3, 64)
    file = build(store, store.images, tmp_path / "file", "x", options())
    asked = query_aggregates(store, list(store.images), options())
    with pytest.raises(ValueError, match="vectors of 8 uint8, the inverted file has 64 float16"):
        AsmkSimilarities(file, asked, options(binary=True))
    with pytest.raises(ValueError, match="none of the inverted file's 16"):
        AsmkSimilarities(file, query_aggregates(store, ["image0"], options(words=300, assignments=300)), options())
    small = query_aggregates(Memory.random([9], 32), ["image0"], options(32))
    with pytest.raises(ValueError, match="one codebook"):
        AsmkSimilarities(file, [*asked, *small], options())


@pytest.mark.parametrize("wrong", [(0, 4, 1), (4, 0, 1), (4, 4, 0), (4, 4, 65_537)])
def test_a_layout_that_cannot_be_stored_is_refused(wrong: tuple[int, int, int]) -> None:
    words, width, block = wrong
    with pytest.raises(ValueError, match="block in 1 to 65536"):
        Layout(words, width, "float16", block)
    assert InvertedFile(Path(), Layout(4, 4, "float16", 65_536), 65_537, 0).blocks == 2
