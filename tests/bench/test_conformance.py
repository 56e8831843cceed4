"""Every registered reranker keeps its promises, and one that breaks any of them is caught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench import registry
from bench.conformance import batch_of, check_reranker, example
from bench.features import FeatureBatch, Features
from bench.features.sets import card_of
from bench.reranker import Card, Reranker, Training, register
from bench.timing import kept_torch_flags


@pytest.mark.parametrize("features", ["xfeat", "sift", "delg"])  # all whose sizes are known without files
@pytest.mark.parametrize("name", registry.names())
def test_every_registered_reranker_conforms(name: str, features: str) -> None:
    cls = registry.get(name)
    if reason := cls().skip(card_of(features)):
        pytest.skip(reason)
    check_reranker(cls, features=features)


class Good(Reranker):
    """Sum of the best non-negative cosines of the query's descriptors."""

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return torch.tensor(
            [
                0.0
                if not len(query) or not len(c)
                else float((query.descriptors @ c.descriptors.T).max(dim=1).values.clamp(min=0).sum())
                for c in candidates
            ]
        )


class WrongShape(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return super().score(query, candidates)[None]


class NotANumber(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return super().score(query, candidates).log().neg().sqrt()


class OrderDependent(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        scores = super().score(query, candidates)
        return scores - 0.01 * torch.arange(len(scores)) * (scores > 0)


class ListDependent(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        scores = super().score(query, candidates)
        return scores / scores.max().clamp(min=1e-6)


class Modifies(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        scores = super().score(query, candidates)
        for candidate in candidates:
            candidate.descriptors[:, 0] = 0
        return scores


class ModifiesQuery(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        scores = super().score(query, candidates)
        query.keypoints.mul_(0.5)
        return scores


class ChangesThreads(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().score(query, candidates)


class TurnsGradOff(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        torch.set_grad_enabled(False)
        return super().score(query, candidates)


class EmptyOutranks(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return super().score(query, candidates) + torch.tensor([1e3 if not len(c) else 0.0 for c in candidates])


class CrashesOnEmpty(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return torch.stack([(query.descriptors @ c.descriptors.T).max() for c in candidates])


class Random(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return torch.rand(len(candidates))


class Noisy(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        scores = super().score(query, candidates)
        return scores + 1e-5 * torch.rand(len(candidates)) * (scores > 0)


class NoisyAndSaysSo(Noisy):
    def deterministic(self) -> bool:
        return False


class KeepsTooLittle(Good):
    def index(self, image: Features) -> Mapping[str, Tensor]:
        return {"descriptors": image.descriptors[:-1]}

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        if candidates.index is not None:
            kept = [
                replace(image.top(len(kept["descriptors"])), descriptors=kept["descriptors"])
                for image, kept in zip(candidates, candidates.index, strict=True)
            ]
            candidates = replace(candidates, images=tuple(kept))
        return super().score(query, candidates)


class ReadsKeypointsUnsaid(Good):
    """In a run they are zeros for it, and its row would be another method's."""

    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return super().score(query, candidates) * torch.tensor([1 + float(c.keypoints.sum()) for c in candidates])


class ReadsGlobalsUnsaid(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        near = torch.stack([query.global_descriptor @ c.global_descriptor for c in candidates])
        return super().score(query, candidates) * (2 + near)


class SlicesGlobalsUnsaid(Good):
    def score(self, query: Features, candidates: FeatureBatch) -> Tensor:
        return super().score(query, candidates) * (2 + query.global_descriptor[0])


class RefusesToRun(Good):
    def skip(self, features: object) -> str | None:
        return "no weights"


class TrainedByNoOption(Good):
    def trained(self) -> Training | None:
        return Training(0, "d1", "file")


def declared(cls: type[Reranker]) -> type[Reranker]:
    return register(cls.__name__.lower(), needs={"local"}, card=Card(paper=None, licence="Apache-2.0"))(cls)


BAD = {
    WrongShape: "scores for 6 candidates",
    NotANumber: "not finite",
    OrderDependent: "depend on the other candidates",
    ListDependent: "depend on the other candidates",
    Modifies: "modified its input",
    ModifiesQuery: "modified its input",
    ChangesThreads: "global flags",
    TurnsGradOff: "global flags",
    EmptyOutranks: "outranks others",
    Random: "second call",
    Noisy: "second call",
    KeepsTooLittle: "depend on what it keeps",
    ReadsKeypointsUnsaid: "reads global or keypoints, which its needs do not name",
    ReadsGlobalsUnsaid: "which its needs do not name",
    SlicesGlobalsUnsaid: "which its needs do not name .IndexError",
    RefusesToRun: "no weights",
    TrainedByNoOption: "no option 'file'",
}


@pytest.mark.parametrize("cls", [Good, NoisyAndSaysSo], ids=lambda cls: cls.__name__)
def test_a_good_reranker_passes(cls: type[Reranker]) -> None:
    check_reranker(declared(cls))


def test_a_method_of_parts_draws_if_a_part_does_and_a_gpu_may_add_in_another_order() -> None:
    class Both(Good):
        def parts(self) -> list[Reranker]:
            return [Good(), NoisyAndSaysSo()]

    assert [declared(cls)().deterministic() for cls in (Good, NoisyAndSaysSo, Both)] == [True, False, False]
    assert not declared(Good)(device="cuda").deterministic()


@pytest.mark.parametrize("cls", list(BAD), ids=lambda cls: cls.__name__)
def test_a_bad_reranker_is_caught_and_named(cls: type[Reranker]) -> None:
    with kept_torch_flags(), pytest.raises(AssertionError, match=BAD[cls]) as caught:
        check_reranker(declared(cls))
    assert cls.__name__.lower() in str(caught.value)


def test_a_crash_on_an_image_without_descriptors_is_not_hidden() -> None:
    with pytest.raises(RuntimeError):
        check_reranker(declared(CrashesOnEmpty))


def test_the_examples_are_valid_features_and_share_descriptors_where_asked() -> None:
    card = card_of("xfeat")
    one = example(40, card, 1)
    like, unlike = example(40, card, 2, one), example(40, card, 2)
    best = [(one.descriptors @ other.descriptors.T).max(dim=1).values.mean() for other in (like, unlike)]
    assert best[0] > best[1] + 0.2
    assert torch.equal(batch_of([one, like], truth=True).positives, torch.tensor([True, False]))
    assert len(example(0, card, 3)) == 0
