"""What every plugin must keep; an author's tests call `check_reranker` or `check_extractor` in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bench.conformance_dataset import check_dataset as check_dataset
from bench.features import FeatureBatch, FeatureCard, Features
from bench.features.extract import ExtractOptions, Part, PartExtractor
from bench.features.sets import card_of
from bench.features.store import ALL
from bench.indexes import Indexes, keeps_index
from bench.reranker import Reranker, Scored
from bench.threads import threads
from bench.timing import torch_flags


def example(n: int, card: FeatureCard, seed: int, like: Features | None = None) -> Features:
    """Random features of a 640x480 image with n local descriptors; `like` gives half of them, a little moved."""
    if not (card.local_dim and card.global_dim):
        raise ValueError(f"{card.name}: the sizes of its descriptors are not known, or it lacks one kind")
    draw = torch.Generator().manual_seed(seed)
    descriptors = torch.randn((n, card.local_dim), generator=draw)
    keypoints = torch.rand((n, 2), generator=draw) * torch.tensor([639.0, 479.0])
    if like is not None and n:
        shared = min(n, len(like)) // 2
        descriptors[:shared] = like.descriptors[:shared] + 0.05 * torch.randn((shared, card.local_dim), generator=draw)
        keypoints[:shared] = (like.keypoints[:shared] * 0.9 + 10).clamp(max=470)
    return Features(
        torch.nn.functional.normalize(torch.randn(card.global_dim, generator=draw), dim=0),
        torch.nn.functional.normalize(descriptors, dim=1),
        keypoints,
        torch.ones(n),
        torch.zeros(n),
        torch.linspace(1, 0.1, n),
        torch.tensor([640.0, 480.0]),
    )


def batch_of(images: list[Features], truth: bool = False) -> FeatureBatch:
    """Candidates with descending similarities; with `truth`, every second one is positive."""
    return FeatureBatch(
        tuple(images), torch.linspace(0.9, 0.1, len(images)), torch.arange(len(images)) % 2 == 0 if truth else None
    )


def scores_of(method: Reranker, query: Features, candidates: FeatureBatch) -> torch.Tensor:
    """(k,) float64 scores on the CPU, without their details."""
    found = method.score(query, candidates)
    return (found.scores if isinstance(found, Scored) else found).detach().double().cpu()


def _copy(features: Features) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vars(features).items()}


def check_reranker(
    cls: type[Reranker], options: Any = None, features: str | FeatureCard = "xfeat", tolerance: float = 1e-4
) -> None:
    """Raise AssertionError, naming the method, if it breaks a promise that the harness relies on.

    k finite scores; the same scores on a second call, unless it says it is not `deterministic`; for a pairwise
    method the same whatever the order and number of candidates; the same without what its `needs` do not name; the
    same from what it keeps of images; explanations, if any, are of descriptors that the images have, and add up to
    the score where they say so; the training of its weights names one of the options; an image without local
    descriptors scores lowest (where local descriptors are read) and crashes nothing; inputs and torch's global
    flags are left as they were.
    """
    card = features if isinstance(features, FeatureCard) else card_of(features)
    name = cls.spec.name
    method = cls(options)
    reason = method.skip(card)
    assert reason is None, f"{name} cannot run on {card.name}: {reason}"
    method.bind(card)
    how = method.trained()
    assert how is None or hasattr(method.options, how.option), f"{name}: no option {how.option!r} names its weights"
    method.load()
    truth = "truth" in method.needs()
    query = example(60, card, 1)
    images = [example(n, card, 10 + i, query if i % 2 == 0 else None) for i, n in enumerate((60, 50, 40, 7, 60, 1))]
    before, flags = [_copy(image) for image in (query, *images)], torch_flags()
    scores = scores_of(method, query, batch_of(images, truth))
    assert tuple(scores.shape) == (len(images),), f"{name}: {tuple(scores.shape)} scores for {len(images)} candidates"
    assert bool(torch.isfinite(scores).all()), f"{name}: scores are not finite: {scores.tolist()}"
    assert torch_flags() == flags, f"{name}: changed torch's global flags"
    for image, copy in zip((query, *images), before, strict=True):
        assert all(torch.equal(getattr(image, key), value) for key, value in copy.items()), (
            f"{name}: modified its input"
        )
    again = scores_of(method, query, batch_of(images, truth))
    assert torch.equal(scores, again) or not method.deterministic(), f"{name}: a second call gave other scores"
    _check_needs(method, query, images, scores, tolerance)
    if cls.pairwise:
        whole = batch_of(images, truth)
        for chosen in ([5, 3, 1, 0, 2, 4], [2], [4, 0]):
            found = scores_of(method, query, whole.at(chosen))
            gap = (found - scores[chosen]).abs().max().item()
            assert gap <= tolerance, f"{name}: scores depend on the other candidates (by {gap:g})"
    if keeps_index(method):
        keys = [str(i) for i in range(len(images))]
        kept, _ = Indexes().batch(method, keys, batch_of(images, truth))
        gap = (scores_of(method, query, kept) - scores).abs().max().item()
        assert gap <= tolerance, f"{name}: scores depend on what it keeps of images (by {gap:g})"
    for image, score in zip(images, scores.tolist(), strict=True):
        _check_explanation(method, query, image, score, tolerance)
    if "local" in method.needs():
        empty = example(0, card, 99)
        found = scores_of(method, query, batch_of([*images, empty], truth))
        assert found[-1] <= found.min(), f"{name}: an image without descriptors outranks others"
        nothing = scores_of(method, empty, batch_of([*images, empty], truth))
        assert bool(torch.isfinite(nothing).all()), f"{name}: a query without descriptors gives non-finite scores"
        for one, other in ((query, empty), (empty, images[0]), (empty, empty)):
            _check_explanation(method, one, other)


def _check_needs(
    method: Reranker, query: Features, images: list[Features], scores: torch.Tensor, tolerance: float
) -> None:
    """That the scores are the same from what a run hands over: what `needs` does not name is zeros, or not there."""
    if method.parts() or not method.deterministic():
        return
    needs = method.needs()
    lean = batch_of([_handed(image, needs) for image in images], "truth" in needs)
    said = f"{method.spec.name}: reads {' or '.join(sorted(ALL - needs))}, which its needs do not name"
    try:
        found = scores_of(method, _handed(query, needs), lean)
    except Exception as error:
        raise AssertionError(f"{said} ({type(error).__name__}: {error})") from error
    assert found.shape == scores.shape and (found - scores).abs().max().item() <= tolerance, said


def _handed(image: Features, needs: frozenset[str]) -> Features:
    """As a store reads it for a method of these needs."""
    found = image if "local" in needs else image.top(0)
    if "keypoints" not in needs:
        zeros = {"keypoints": torch.zeros_like(found.keypoints), "orientations": torch.zeros_like(found.orientations)}
        found = replace(found, **zeros)
    return found if "global" in needs else replace(found, global_descriptor=torch.zeros(0))


def _check_explanation(
    method: Reranker, query: Features, image: Features, score: float | None = None, tolerance: float = 0.0
) -> None:
    """Without `score`, only that it speaks of what is there: an image without descriptors may score by a rule."""
    name, found = method.spec.name, method.explain(query, image)
    if found is None:
        return
    for rows, of in zip(found.rows, (query, image), strict=True):
        assert rows <= len(of), f"{name}: explains what is not there"
    if score is not None and found.score is not None:
        assert abs(found.score - score) <= tolerance, f"{name}: explains {found.score:g}, scored {score:g}"


def _check_batch(extractor: PartExtractor, pictures: list[np.ndarray]) -> None:
    """That pictures of one size give at once what each gives alone, where the extractor takes several."""
    if not extractor.takes_several:
        return
    name = extractor.part.spec.name
    shown = [extractor.shrunk(picture) for picture in pictures]
    try:
        together = extractor.together(shown, [picture.shape for picture in pictures])
    except Exception as error:
        raise AssertionError(f"{name}, on several pictures at once: {error}") from error
    for alone, found in zip(map(extractor, pictures), together, strict=True):
        for array in alone:
            same = alone[array].shape == found[array].shape and np.allclose(alone[array], found[array], atol=1e-4)
            assert same, f"{name}: several pictures at once give other {array}"


def _check_threads(first: PartExtractor, pictures: list[np.ndarray]) -> None:
    """That two threads at once get what one gets: with an object each, or with the one that is shared."""
    name = first.part.spec.name
    other = first if first.shared else PartExtractor(first.part, first.options)

    def of_all(extractor: PartExtractor) -> list[dict[str, np.ndarray]]:
        return [extractor(picture) for picture in pictures]

    with threads(2) as pool:
        expected = pool.submit(of_all, first).result()
        try:
            both = [begun.result() for begun in [pool.submit(of_all, one) for one in (first, other)]]
        except Exception as error:
            raise AssertionError(f"{name}, in two threads at once: {error}") from error
    for found in both:
        for one, alone in zip(found, expected, strict=True):
            for array in alone:
                same = np.array_equal(one[array], alone[array])
                assert same, f"{name}: two threads at once get other {array}"


PICTURES = {"wide": (120, 160), "tall": (160, 120), "small": (24, 20), "one pixel": (1, 1)}  # height, width


def check_extractor(cls: Any, options: Any = None, descriptors: int = 50) -> None:
    """Raise AssertionError, naming the extractor, if it breaks a promise that the harness relies on.

    On noise, on one colour, on small and upright pictures: finite values of the sizes declared; descriptors of unit
    norm, sorted by descending score, with keypoints inside the picture; the same on a second call and in two threads at
    once, and to 1e-4 of several pictures at once where it takes them; inputs and torch's global flags left as they
    were.
    """
    name = cls.spec.name
    part = Part(cls, cls.Options() if options is None else options)
    reason = part.skip()
    assert reason is None, f"{name} cannot run here: {reason}"
    draw = np.random.default_rng(0)
    pictures = {what: draw.integers(0, 256, (*size, 3), np.uint8) for what, size in PICTURES.items()}
    pictures |= {"grey": np.full((120, 160, 3), 127, np.uint8), "black": np.zeros((120, 160, 3), np.uint8)}
    flags = torch_flags()
    extractor = PartExtractor(part, ExtractOptions(max_side=320, descriptors=descriptors))
    sizes = set()
    for what, picture in pictures.items():
        copy = picture.copy()
        try:
            first, second = extractor(picture), extractor(picture)
        except Exception as error:
            raise AssertionError(f"{name}, on a {what} picture: {error}") from error
        assert np.array_equal(copy, picture), f"{name}: modified its input"
        for array in first:
            assert np.array_equal(first[array], second[array]), f"{name}: a second call gave other {array}"
        if "keypoints" in first:
            edge = np.array(picture.shape[1::-1]) - 1
            inside = ((first["keypoints"] >= 0) & (first["keypoints"] <= edge)).all()
            assert inside and len(first["scores"]) <= descriptors, f"{name}: keypoints outside of the picture, or more"
        sizes.add(tuple(first[array].shape[-1] for array in ("descriptors", "global_descriptor") if array in first))
    assert len(sizes) == 1, f"{name}: descriptors of several sizes: {sorted(sizes)}"
    _check_threads(extractor, [pictures["wide"], pictures["tall"]])
    _check_batch(extractor, [pictures["wide"], pictures["grey"], pictures["wide"][::-1].copy()])
    assert torch_flags() == flags, f"{name}: changed torch's global flags"
