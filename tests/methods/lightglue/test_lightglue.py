"""LightGlue: with the real LighterGlue weights, and with files in the released layout for other features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kornia.feature import LightGlue as Network

from bench.conformance import batch_of, check_reranker, example, scores_of
from bench.errors import UserError
from bench.features import Features
from bench.features.sets import card_of
from methods.lightglue import LightGlue
from methods.lightglue.model import LightGlueConfig, LightGlueNetwork
from third_party import lightglue_weights
from third_party.lightglue_weights import network, read, settings


@pytest.fixture(scope="module")
def method() -> LightGlue:
    method = LightGlue()
    method.load()
    return method


def released(kind: str, path: Path) -> Path:
    """Random weights as cvg/LightGlue releases them: blocks are counted, not layers."""
    torch.manual_seed(0)
    state = {}
    for name, tensor in network(kind).state_dict().items():
        parts = name.split(".")
        if parts[0] == "transformers":
            name = ".".join([parts[2], parts[1], *parts[3:]])
        state[name] = tensor
    torch.save(state, path)
    return path


def likelihoods(kind: str, path: Path, query: Features, image: Features) -> torch.Tensor:
    """(n, m) log assignment by the network that `load` makes of a file."""
    network = LightGlueNetwork(read(path)[1], LightGlueConfig(**settings(kind)))
    with torch.inference_mode():
        return network.log_assignment(network.encode(query), network.encode(image))


def test_the_same_scene_has_more_matches_than_another(images: list[Features], method: LightGlue) -> None:
    same, shifted, other = scores_of(method, images[0], batch_of(images)).tolist()
    assert same > 0.8 * len(images[0])
    assert same >= shifted > 3 * other


def test_the_order_and_number_of_candidates_change_nothing(images: list[Features], method: LightGlue) -> None:
    together = scores_of(method, images[0], batch_of(images))
    assert torch.equal(together.flip(0), scores_of(method, images[0], batch_of(images[::-1])))
    assert torch.equal(together[2:], scores_of(method, images[0], batch_of(images[2:])))


def test_verified_matches_are_some_of_the_matches(images: list[Features], method: LightGlue) -> None:
    verified = LightGlue(LightGlue.Options(verify="ransac"))
    verified.load()
    found = verified.score(images[0], batch_of(images))
    matches, inliers = found.details["matches"], found.details["inliers"]
    assert torch.equal(found.scores, inliers) and (inliers <= matches).all()
    assert torch.equal(matches.double(), scores_of(method, images[0], batch_of(images)))
    assert inliers[1] > 0.9 * matches[1]  # a part of the same picture moves as one
    check_reranker(LightGlue, LightGlue.Options(verify="ransac", descriptors=40))


def test_leaving_keypoints_out_is_another_count_of_the_same_scene(images: list[Features], method: LightGlue) -> None:
    adaptive = LightGlue(LightGlue.Options(adaptive=True))
    adaptive.load()
    same, shifted, other = scores_of(adaptive, images[0], batch_of(images)).tolist()
    assert same >= shifted > 3 * other
    assert [same, shifted, other] != scores_of(method, images[0], batch_of(images)).tolist()


def test_other_features_need_their_own_weights() -> None:
    assert "sift_lightglue.pth with -o lightglue.weights=FILE" in str(LightGlue().skip(card_of("sift")))
    assert "no LightGlue is trained for delg" in str(LightGlue().skip(card_of("delg")))


def test_released_weights_for_sift_run_on_sift_alone(tmp_path: Path) -> None:
    path = released("sift", tmp_path / "sift_lightglue.pth")
    options = LightGlue.Options(weights=path, match_threshold=0.0)
    method = LightGlue(options)
    assert method.skip(card_of("sift")) is None
    assert "is for sift or dog_affnet_hardnet descriptors, not for xfeat" in str(method.skip(card_of("xfeat")))
    assert "sift_lightglue.pth" in str(method.card().trained_on)
    check_reranker(LightGlue, options, features="sift")
    query = example(30, card_of("sift"), 0)
    turned = replace(query, orientations=query.orientations + torch.linspace(0, 3, 30))
    assert not torch.allclose(likelihoods("sift", path, query, query), likelihoods("sift", path, query, turned))


def test_the_weights_in_the_file_are_those_that_are_used(tmp_path: Path) -> None:
    path = released("superpoint", tmp_path / "superpoint_lightglue.pth")
    kinds, state = read(path)
    torch.manual_seed(0)
    expected = network("superpoint").state_dict()
    assert kinds == ("superpoint", "dedodeb") and state.keys() == expected.keys()
    loaded: Network = lightglue_weights.load(path, "superpoint", torch.device("cpu"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training


@pytest.mark.parametrize("kind", ["keynet_affnet_hardnet", "cut", "noise"])
def test_files_for_what_is_not_read_here_are_refused(tmp_path: Path, kind: str) -> None:
    path = released(kind if kind == "keynet_affnet_hardnet" else "sift", tmp_path / "w.pth")
    if kind == "cut":
        state = torch.load(path)
        state.pop("self_attn.3.out_proj.bias")
        torch.save(state, path)
    if kind == "noise":
        path.write_bytes(b"noise")
    with pytest.raises(UserError, match=r"w\.pth"):
        LightGlue(LightGlue.Options(weights=path)).skip(card_of("sift"))
    with pytest.raises(UserError, match="no such file"):
        LightGlue(LightGlue.Options(weights=tmp_path / "none.pth")).skip(card_of("sift"))


def test_a_file_for_disk_is_told_by_numbers_that_no_layer_reads(tmp_path: Path) -> None:
    path = released("disk", tmp_path / "w.pth")
    assert read(path)[0] == ("aliked", "disk")  # of one shape: the set that is read decides
    state = torch.load(path)
    torch.save({**state, **{f"log_assignment.{layer}.r": torch.tensor(1.0) for layer in range(9)}}, path)
    kinds, weights = read(path)
    assert kinds == ("disk",) and not any(name.endswith(".r") for name in weights)
    given = LightGlue.Options(weights=path)
    assert LightGlue(given).skip(card_of("disk")) is None
    assert "is for disk descriptors, not for aliked" in str(LightGlue(given).skip(card_of("aliked")))
    check_reranker(LightGlue, given, features="disk")


def test_a_file_of_two_kinds_runs_as_the_features_ask(tmp_path: Path) -> None:
    """The one for HardNet takes a sixth of a scale, that for SIFT all of it; their files are of one shape."""
    path = released("sift", tmp_path / "w.pth")
    for name in ("sift", "dog-affnet-hardnet"):
        assert LightGlue(LightGlue.Options(weights=path)).skip(card_of(name)) is None
    query, image = (example(40, card_of("sift"), seed) for seed in (1, 2))
    large = [replace(each, scales=torch.linspace(6, 60, 40)) for each in (query, image)]
    small = [replace(each, scales=torch.linspace(6, 60, 40) / 6) for each in (query, image)]
    hardnet = likelihoods("dog_affnet_hardnet", path, *large)
    torch.testing.assert_close(hardnet, likelihoods("sift", path, *small))
    assert not torch.allclose(hardnet, likelihoods("sift", path, *large))


def test_a_kind_whose_file_is_fetched_conforms(tmp_path: Path) -> None:
    kind = "dog_affnet_hardnet"
    options = LightGlue.Options(weights=released(kind, tmp_path / "w.pth"), match_threshold=0.0)
    check_reranker(LightGlue, options, features="dog-affnet-hardnet")
    assert kind in lightglue_weights.FILES  # without the option


def test_of_a_file_no_other_network_is_made(tmp_path: Path) -> None:
    path = released("superpoint", tmp_path / "w.pth")
    with pytest.raises(ValueError, match="superpoint or dedodeb descriptors, not for sift"):
        lightglue_weights.load(path, "sift", torch.device("cpu"))
    assert "not for sift" in str(LightGlue(LightGlue.Options(weights=path)).skip(card_of("sift")))


@pytest.mark.parametrize(
    ("features", "what"),
    [("keynet-hardnet", "affine frames, which are not stored"), ("dedode", "descriptors of any norm")],
)
def test_what_is_not_stored_as_lightglue_reads_it_is_refused(features: str, what: str) -> None:
    reason = str(LightGlue().skip(card_of(features)))
    assert what in reason and "dog-affnet-hardnet" in reason


def test_the_small_aliked_is_of_another_size() -> None:
    card = replace(card_of("aliked:t16"), local_dim=64)  # as its store has it
    assert "reads 128-d descriptors" in str(LightGlue().skip(card))
