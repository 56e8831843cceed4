"""The kernel by hand and as the authors' package computes it; codebooks fit one feature set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.conformance import batch_of, check_reranker, example
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from bench.indexes import Indexes
from bench.reranker import parse_options
from methods.asmk import SHIPPED, Asmk, aggregate, similarity
from methods.asmk.codebook import Codebook

XFEAT = card_of("xfeat")
CENTROIDS = torch.tensor([[0.0, 0], [10, 0]])
QUERY = torch.tensor([[0.6, 0.8], [-0.6, 0.8], [10, 1]])  # residuals (0, 1.6) to the first word, (0, 1) to the second
CANDIDATE = torch.tensor([[0.8, 0.6], [9, 0.5]])  # (0.8, 0.6) and (-1, 0.5)


def test_aggregates_by_hand() -> None:
    found = aggregate(QUERY, CENTROIDS)
    assert found.words.tolist() == [0, 1]
    assert torch.allclose(found.vectors, torch.tensor([[0.0, 1], [0, 1]]))
    signs = aggregate(QUERY, CENTROIDS, binary=True)
    assert torch.allclose(signs.vectors, torch.tensor([[-1.0, 1], [-1, 1]]) / 2**0.5)


def test_several_assignments_by_hand() -> None:
    found = aggregate(QUERY[2:], torch.tensor([[0.0, 0], [10, 0], [10, 3]]), assignments=2)
    assert found.words.tolist() == [1, 2]
    assert torch.allclose(found.vectors, torch.tensor([[0.0, 1], [0, -1]]))


def test_the_kernel_by_hand() -> None:
    query, candidate = aggregate(QUERY, CENTROIDS), aggregate(CANDIDATE, CENTROIDS)
    cosines = 0.6, 0.5 / 1.25**0.5  # of the first and of the second word
    assert float(similarity(query, candidate, 3, 0)) == pytest.approx((cosines[0] ** 3 + cosines[1] ** 3) / 2)
    assert float(similarity(query, candidate, 1, 0.5)) == pytest.approx(cosines[0] / 2)
    assert float(similarity(query, candidate, 3, 0.7)) == 0
    binary = [aggregate(each, CENTROIDS, binary=True) for each in (QUERY, CANDIDATE)]
    assert float(similarity(*binary, 3, 0)) == pytest.approx((0 + 1) / 2)  # signs -+ and ++, then -+ and -+


def test_only_common_words_count_and_all_words_normalise() -> None:
    query, candidate = aggregate(QUERY[2:], CENTROIDS), aggregate(QUERY, CENTROIDS)
    assert float(similarity(query, candidate, 3, 0)) == pytest.approx(1 / 2**0.5)
    assert float(similarity(query, aggregate(CANDIDATE[:1], CENTROIDS), 3, 0)) == 0


@pytest.mark.parametrize("binary", [False, True])
@given(
    st.integers(1, 60), st.integers(1, 5), st.sampled_from([0.0, 0.2]), st.sampled_from([1.0, 3.0]), st.integers(0, 99)
)
def test_scores_are_those_of_the_authors_package(
    binary: bool, n: int, assignments: int, threshold: float, alpha: float, seed: int
) -> None:
    kernels = pytest.importorskip("asmk.kernel", reason="the authors' package asmk is not installed")
    from asmk.codebook import Codebook as TheirCodebook
    from asmk.index import FaissL2Index
    from asmk.inverted_file import IVF

    centroids = 0.3 * torch.randn((16, 32), generator=torch.Generator().manual_seed(seed))
    card = replace(XFEAT, local_dim=32)
    images = [example(m, card, seed + m).descriptors for m in (n, 1, 20, 60)]
    theirs = TheirCodebook(FaissL2Index(), size=16)
    theirs.index(centroids.numpy())
    kernel = kernels.ASMKKernel(theirs, binary=binary)
    index = IVF.initialize_empty(codebook_size=16, use_idf=False)

    def aggregated(ids: np.ndarray, *descriptors: torch.Tensor, multiple: int) -> tuple:
        rows = theirs.quantize(torch.cat(descriptors).numpy(), ids, multiple_assignment=multiple)
        return kernel.aggregate(*rows)

    index.add(*aggregated(np.repeat(np.arange(3), [len(i) for i in images[1:]]), *images[1:], multiple=1))
    vectors, words, _ = aggregated(np.zeros(n, dtype=int), images[0], multiple=assignments)

    def selected(*given: np.ndarray) -> tuple:
        return kernel.similarity(*given, alpha=alpha, similarity_threshold=threshold)

    ranks, scores = index.search(vectors, words, similarity_func=selected, topk=3)
    query = aggregate(images[0], centroids, assignments, binary)
    ours = [similarity(query, aggregate(i, centroids, 1, binary), alpha, threshold) for i in images[1:]]
    assert [float(ours[i]) for i in ranks] == pytest.approx(scores.tolist(), abs=1e-4)


def test_an_image_is_most_similar_to_itself(images: list[Features]) -> None:
    whole, part, other = images
    for options in (Asmk.Options(), Asmk.Options(binary=True)):
        method = Asmk(options)
        method.load()
        same, similar, different = method.score(whole, batch_of([whole, part, other])).tolist()
        assert same == pytest.approx(1, abs=1e-5) and same > similar > different >= 0


def test_only_the_best_descriptors_are_used(images: list[Features]) -> None:
    method, whole = Asmk(Asmk.Options(descriptors=30)), Asmk()
    for each in (method, whole):
        each.load()
    query, candidates = images[0], batch_of(images)
    shorter = batch_of([image.top(30) for image in images])
    assert torch.equal(method.score(query, candidates), whole.score(query.top(30), shorter))


def test_only_the_query_is_assigned_to_several_words(images: list[Features]) -> None:
    method, centroids = Asmk(Asmk.Options(assignments=5)), Codebook.load(SHIPPED).centroids
    method.load()
    one, two = (image.descriptors for image in images[:2])
    expected = similarity(aggregate(one, centroids, 5), aggregate(two, centroids, 1), 3, 0)
    assert method.score(images[0], batch_of(images[1:2])).tolist() == [float(expected)]


@pytest.mark.parametrize("options", [Asmk.Options(), Asmk.Options(binary=True), Asmk.Options(assignments=5)])
@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=3), st.integers(0, 20), st.integers(0, 99))
def test_kept_aggregates_give_the_scores_of_the_kernel_as_it_is_written(
    options: Asmk.Options, sizes: list[int], asked: int, seed: int
) -> None:
    method = Asmk(options)
    method.load()
    query = example(asked, XFEAT, seed)
    batch = batch_of([example(n, XFEAT, seed + i + 1, query) for i, n in enumerate(sizes)])
    kept, made = Indexes().batch(method, [str(i) for i in range(len(sizes))], batch)
    centroids = Codebook.load(SHIPPED).centroids
    expected = [kernel(query.descriptors, image.descriptors, centroids, options) for image in batch]
    assert made.images == len(sizes) and kept.index is not None
    assert method.score(query, kept).tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(method.score(query, kept), method.score(query, batch))


def kernel(query: torch.Tensor, candidate: torch.Tensor, centroids: torch.Tensor, options: Asmk.Options) -> float:
    """The sums of the paper, word by word."""
    sides = []
    for rows, assignments in ((query, options.assignments), (candidate, 1)):
        words: dict[int, torch.Tensor] = {}
        for row in rows:
            near = (row - centroids).square().sum(dim=1).argsort(stable=True)[:assignments].tolist()
            for word in near:
                words[word] = words.get(word, torch.zeros(64)) + row - centroids[word]
        signs = {word: torch.where(total > 0, 1.0, -1.0) for word, total in words.items()}
        vectors = signs if options.binary else words
        sides.append({word: vector / vector.norm() for word, vector in vectors.items()})
    one, other = sides
    cosines = [float(one[word] @ other[word]) for word in one.keys() & other.keys()]
    total = sum(max(cosine, 0) ** options.alpha for cosine in cosines if cosine >= options.threshold)
    return total / max(1, len(one) * len(other)) ** 0.5


@pytest.mark.parametrize("options", [Asmk.Options(binary=True), Asmk.Options(assignments=5), Asmk.Options(alpha=1)])
def test_variants_conform(options: Asmk.Options) -> None:
    check_reranker(Asmk, options)


def test_the_shipped_codebook_is_for_xfeat_and_says_what_it_is() -> None:
    found = Codebook.load(SHIPPED)
    assert (found.features, found.centroids.shape, found.seed) == ("xfeat", (4096, 64), 0)
    assert "1200 images" in found.trained_on
    assert SHIPPED.stat().st_size <= 600 * 1024


def test_another_feature_set_is_skipped_with_the_command_that_trains_a_codebook() -> None:
    reason = Asmk().skip(card_of("sift"))
    assert reason is not None and "train asmk --recipe kmeans --photos PHOTOS --features sift" in reason
    assert "--store STORE" in str(Asmk().skip(card_of("delg")))
    assert Asmk().skip(XFEAT) is None


def test_a_codebook_of_equal_size_but_other_features_is_refused(tmp_path: Path) -> None:
    Codebook(torch.eye(128), "sift", "nothing", 0).save(tmp_path / "c.safetensors")
    method = Asmk(Asmk.Options(codebook=tmp_path / "c.safetensors", assignments=200))
    assert "sift" in str(method.skip(card_of("delg")))
    assert "128 words" in str(method.skip(card_of("sift")))
    assert "nothing" in str(method.card().trained_on) and Asmk().card().trained_on == Asmk.spec.card.trained_on


def test_codebooks_survive_their_file_up_to_half_precision(tmp_path: Path) -> None:
    made = Codebook(torch.randn((7, 5), generator=torch.Generator().manual_seed(0)), "xfeat", "seven", 3)
    made.save(tmp_path / "new" / "c.safetensors")
    found = Codebook.load(tmp_path / "new" / "c.safetensors")
    assert torch.equal(found.centroids, made.centroids.half().float())
    assert (found.features, found.trained_on, found.seed) == ("xfeat", "seven", 3)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(0, 4), torch.full((2, 2), torch.nan)])
def test_what_is_no_table_of_centroids_is_refused(values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="centroids"):
        Codebook(values, "xfeat", "", 0)


def test_a_file_that_is_no_codebook_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name, write in {
        "text": lambda path: path.write_text("centroids"),
        "bare": lambda path: save_file({"centroids": torch.zeros(2, 2)}, path),
        "other": lambda path: save_file({"weights": torch.zeros(2, 2)}, path),
    }.items():
        write(tmp_path / name)
        with pytest.raises(UserError, match="not a codebook"):
            Asmk(Asmk.Options(codebook=tmp_path / name)).skip(XFEAT)
    with pytest.raises(UserError, match="no such file"):
        Asmk(Asmk.Options(codebook=tmp_path / "absent")).skip(XFEAT)


@pytest.mark.parametrize(
    "given", [{"descriptors": "0"}, {"assignments": "0"}, {"alpha": "0"}, {"threshold": "1"}, {"threshold": "-0.1"}]
)
def test_a_wrong_option_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        parse_options(Asmk, given)
