"""The query moves towards what the first stage found."""

from dataclasses import replace

import pytest
import torch

from bench.conformance import batch_of, example
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from bench.reranker import parse_options
from methods.aqe import AverageQueryExpansion

XFEAT = card_of("xfeat")


def image(*values: float) -> Features:
    return replace(example(0, XFEAT, 1), global_descriptor=torch.tensor(values, dtype=torch.float32))


def scores(query: Features, *candidates: Features, **options: float) -> list[float]:
    method = AverageQueryExpansion(AverageQueryExpansion.Options(**options))
    return method.score(query, batch_of(list(candidates))).tolist()


def test_a_case_by_hand() -> None:
    # weight 0.6: the expanded query is (1 + .36, .48) / sqrt(2.08)
    found = scores(image(1, 0), image(0.6, 0.8), image(0, 1), n=1, alpha=1)
    assert found == pytest.approx([1.2 / 2.08**0.5, 0.48 / 2.08**0.5])


def test_alpha_zero_is_the_plain_average() -> None:
    found = scores(image(1, 0), image(0.6, 0.8), image(0, 1), n=2, alpha=0)
    assert found == pytest.approx([(0.6 * 1.6 + 0.8 * 1.8) / 5.8**0.5, 1.8 / 5.8**0.5])


def test_a_negative_cosine_weighs_nothing() -> None:
    assert scores(image(1, 0), image(-0.6, 0.8), image(0, 1), n=2, alpha=1) == pytest.approx([-0.6, 0])


def test_only_the_first_of_the_list_expand_the_query() -> None:
    near, far = image(0.8, 0.6), image(0.6, -0.8)
    assert scores(image(1, 0), near, far, n=1) != pytest.approx(scores(image(1, 0), far, near, n=1)[::-1])
    assert scores(image(1, 0), near, far, n=2) == pytest.approx(scores(image(1, 0), far, near, n=2)[::-1])


def test_weights_come_from_the_descriptors_and_not_from_the_first_stage() -> None:
    candidates = batch_of([image(0.6, 0.8), image(0, 1)])
    other = replace(candidates, similarities=torch.tensor([0.1, 0.05]))
    method = AverageQueryExpansion()
    assert torch.equal(method.score(image(1, 0), candidates), method.score(image(1, 0), other))


@pytest.mark.parametrize("given", [{"n": "0"}, {"alpha": "-1"}, {"n": "1.5"}])
def test_a_wrong_option_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError):
        parse_options(AverageQueryExpansion, given)
