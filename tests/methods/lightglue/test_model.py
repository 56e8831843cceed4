"""The network is kornia's of the same weights, of any number of heads, layers and keypoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.feature import LightGlue as Kornia

from bench.conformance import batch_of, example
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from methods.lightglue import LightGlue, _image
from methods.lightglue.model import LightGlueConfig, LightGlueNetwork, assign
from third_party import lightglue_weights
from third_party.lightglue_weights import EXACT
from third_party.xfeat_weights import weights_file

CARD = replace(card_of("xfeat"), local_dim=16)


def random_pair(heads: int, layers: int, dim: int = 32, oriented: bool = False) -> tuple[Kornia, LightGlueNetwork]:
    """kornia's network with random weights, every bias and norm included, and ours with the same."""
    sizes = {"input_dim": 16, "descriptor_dim": dim, "n_layers": layers, "num_heads": heads, "add_scale_ori": oriented}
    model = Kornia(None, weights=None, scale_coef=0.5, filter_threshold=0.1, **sizes, **EXACT).eval()
    draw = torch.Generator().manual_seed(heads + layers)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            weight.copy_(1 + 0.2 * noise if name.endswith("ffn.1.weight") else noise * weight.shape[-1] ** -0.5)
    return model, LightGlueNetwork(model.state_dict(), LightGlueConfig(heads, oriented, 0.5))


def image(n: int, seed: int, like: Features | None = None) -> Features:
    found = example(n, CARD, seed, like)
    draw = torch.Generator().manual_seed(seed)
    scales, turned = 1 + torch.rand(n, generator=draw), 6 * torch.rand(n, generator=draw)
    return replace(found, scales=scales, orientations=turned)


@torch.inference_mode()
def both_ways(model: Kornia, ours: LightGlueNetwork, query: Features, other: Features) -> tuple[torch.Tensor, ...]:
    """(n, m) likelihoods of kornia's network and of ours."""
    expected = model({"image0": _image(query), "image1": _image(other)})["log_assignment"][0, :-1, :-1]
    return expected.exp(), ours.log_assignment(ours.encode(query), ours.encode(other)).exp()


@pytest.mark.parametrize(("n", "m"), [(20, 20), (1, 1), (1, 9), (13, 1), (30, 7)])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("oriented", [False, True])
def test_it_is_kornias_network(heads: int, layers: int, oriented: bool, n: int, m: int) -> None:
    model, ours = random_pair(heads, layers, oriented=oriented)
    query = image(n, 1)
    expected, found = both_ways(model, ours, query, image(m, 2, query))
    assert found.shape == (n, m) and (found - expected).abs().max() <= 1e-5


def test_descriptors_of_the_networks_size_are_not_projected() -> None:
    model, ours = random_pair(heads=2, layers=2, dim=16)
    assert not any(name.startswith("input_proj") for name in model.state_dict())
    expected, found = both_ways(model, ours, image(12, 1), image(9, 2))
    assert (found - expected).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def shipped() -> tuple[Kornia, LightGlueNetwork]:
    path = weights_file("xfeat-lighterglue.pt")
    model = lightglue_weights.load(path, "xfeat", torch.device("cpu"))
    state = lightglue_weights.read(path)[1]
    return model, LightGlueNetwork(state, LightGlueConfig(**lightglue_weights.settings("xfeat")))


def test_the_shipped_weights_give_kornias_matches(
    images: list[Features], shipped: tuple[Kornia, LightGlueNetwork]
) -> None:
    model, ours = shipped
    same = replace(images[0], keypoints=images[0].keypoints.flip(0), descriptors=images[0].descriptors.flip(0))
    found = ours.match(images[0], [*images, same], 0.1)
    assert [len(pairs) > 20 for pairs in found[:2]] == [True, True]
    for pairs, other in zip(found, [*images, same], strict=True):
        with torch.inference_mode():
            expected = model({"image0": _image(images[0]), "image1": _image(other)})["matches"][0]
        assert torch.equal(pairs, expected)
        reference, likelihoods = both_ways(model, ours, images[0], other)
        assert (likelihoods - reference).abs().max() <= 1e-4


def test_the_shipped_weights_for_aliked_give_kornias_matches() -> None:
    try:
        path = lightglue_weights.FILES["aliked"].file("-o lightglue.weights=FILE")
    except UserError:
        pytest.skip("no weights of LightGlue for ALIKED here: `make models`")
    model = lightglue_weights.load(path, "aliked", torch.device("cpu"))
    ours = LightGlueNetwork(lightglue_weights.read(path)[1], LightGlueConfig(**lightglue_weights.settings("aliked")))
    card = replace(card_of("aliked"), local_dim=128, global_dim=1)
    query = example(60, card, 0)
    other = example(50, card, 1, query)
    with torch.inference_mode():
        expected = model({"image0": _image(query), "image1": _image(other)})["matches"][0]
    assert len(expected) > 10 and torch.equal(ours.match(query, [other], 0.1)[0], expected)
    reference, likelihoods = both_ways(model, ours, query, other)
    assert (likelihoods - reference).abs().max() <= 1e-4


def test_an_image_without_keypoints_matches_nothing() -> None:
    _, ours = random_pair(heads=1, layers=2)
    some, none = image(5, 1), image(0, 2)
    found = [*ours.match(none, [some, none], 0.0), *ours.match(some, [none, none], 0.0)]
    assert [tuple(pairs.shape) for pairs in found] == [(0, 2)] * 4
    assert ours.match(some, [], 0.0) == []


def test_the_query_is_encoded_once_and_is_not_changed_by_its_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = random_pair(heads=1, layers=2)
    query, others = image(20, 1), [image(n, n) for n in (20, 5, 20)]
    alone = [ours.match(query, [other], 0.0)[0] for other in others]
    seen, encode = [], ours.encode
    monkeypatch.setattr(ours, "encode", lambda given: (seen.append(len(given)), encode(given))[1])
    together = ours.match(query, others, 0.0)
    assert seen == [20, 20, 5, 20]
    assert all(map(torch.equal, alone, together)) and any(len(pairs) for pairs in together)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_no_match(threads: None) -> None:
    _, ours = random_pair(heads=4, layers=2)
    query, others, found = image(40, 1), [image(n, n) for n in (40, 5, 31, 40)], []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(ours.match(query, others, 0.0))
        assert torch.get_num_threads() == count
    assert all(map(torch.equal, *found))


def test_nothing_of_kornia_and_none_of_torchs_flags_are_touched() -> None:
    """Two methods of other settings, one after the other, leave the tables that the next one is made of."""
    before = repr((Kornia.default_conf, Kornia.features, Kornia.pruning_keypoint_thresholds))
    for adaptive in (False, True):
        method = LightGlue(LightGlue.Options(adaptive=adaptive, match_threshold=0.3))
        method.load()
        some = example(30, card_of("xfeat"), 1)
        method.score(some, batch_of([some]))
    assert repr((Kornia.default_conf, Kornia.features, Kornia.pruning_keypoint_thresholds)) == before


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"scale": 0.0}, {"scale": float("nan")}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected at least 1, and above 0"):
        LightGlueConfig(**wrong)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.floats(0, 0.9))
def test_assigned_are_the_best_of_their_row_and_column(n: int, m: int, seed: int, threshold: float) -> None:
    likelihoods = torch.rand(n, m, generator=torch.Generator().manual_seed(seed))
    expected = [
        [i, j]
        for i in range(n)
        for j in range(m)
        if likelihoods[i, j] == likelihoods[i].max() == likelihoods[:, j].max() and likelihoods[i, j] > threshold
    ]
    assert assign(likelihoods.log(), threshold).tolist() == expected
