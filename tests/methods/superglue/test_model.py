"""SuperGlue's network equals the reference and the paper, and other files than its weights are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bench.errors import UserError
from methods import _sinkhorn
from methods.superglue.model import Keypoints, SuperGlue, SuperGlueConfig, load, matches, sinkhorn
from tests.speed.learned import PlainSuperGlue, random_keypoints, random_state

REFERENCE = Path(os.environ.get("RERANKBENCH_REFERENCE", "/work/shared/data/reference"))
SMALL = SuperGlueConfig(dim=32, layers=4, encoder=(8, 16))


def assignment(model: SuperGlue, query: Keypoints, candidate: Keypoints) -> torch.Tensor:
    with torch.inference_mode():
        return model.log_assignment(model.first(model.encode(query)), model.first(model.encode(candidate)))


def test_the_reference_assignment_and_matches() -> None:
    if not (REFERENCE / "superglue_2x2layers.safetensors").is_file():
        pytest.skip(f"no reference outputs in {REFERENCE}")
    found = load_file(REFERENCE / "superglue_2x2layers.safetensors")
    model = SuperGlue({name[6:]: tensor for name, tensor in found.items() if name.startswith("state.")})
    images = [
        Keypoints(*(found[f"{what}{i}"][0] for what in ("keypoints", "scores")), found[f"descriptors{i}"][0].T, size)
        for i, size in ((0, found["image_size0"]), (1, found["image_size1"]))
    ]
    log_assignment = assignment(model, *images)
    assert (log_assignment - found["log_assignment"][0]).abs().max() <= 1e-4
    for side, values in (("0", log_assignment), ("1", log_assignment.T)):
        places, confidence = matches(values, 0.2)
        assert torch.equal(places, found[f"matches{side}"][0])
        assert torch.allclose(confidence, found[f"matching_scores{side}"][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (1, 7), (9, 1)])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_it_is_the_network_of_the_paper(n: int, m: int, layers: int) -> None:
    config = replace(SMALL, layers=layers)
    state = random_state(config)
    plain = PlainSuperGlue(config)
    plain.load_state_dict(state)
    one = random_keypoints(n, 32, 1)
    other = random_keypoints(m, 32, 2, one)
    expected = plain.log_assignment(one, other)
    found = assignment(SuperGlue(state), one, other)
    assert (found - expected).abs().max() <= 1e-4
    assert torch.equal(matches(found, 0.2)[0], matches(expected, 0.2)[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.floats(0.01, 12), st.integers(0, 99))
def test_exponentials_and_logarithms_give_one_assignment(n: int, m: int, scale: float, seed: int) -> None:
    similarity = scale * torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
    found = sinkhorn(similarity, torch.tensor(1.0), 200)
    rows = torch.cat([torch.ones(n), torch.tensor([float(m)])])
    columns = torch.cat([torch.ones(m), torch.tensor([float(n)])])
    assert torch.allclose(found.exp().sum(dim=0), columns, rtol=1e-3)  # normalised last
    couplings = torch.nn.functional.pad(similarity, (0, 1, 0, 1), value=1.0)
    slow = _sinkhorn._logarithmic(couplings, rows, columns, 200)
    assert torch.allclose(found, slow, rtol=0, atol=1e-3)


def test_scores_too_far_apart_for_exponentials_stay_finite() -> None:
    similarity = torch.tensor([[300.0, -300.0], [-300.0, 300.0]])
    found = sinkhorn(similarity, torch.tensor(0.0), 20)
    assert torch.isfinite(found).all()
    assert matches(found, 0.2)[0].tolist() == [0, 1]


def test_matches_are_mutual_and_above_the_threshold() -> None:
    probability = torch.tensor([[0.6, 0.1, 0.2, 1], [0.5, 0.3, 0.1, 1], [0.0, 0.1, 0.15, 1], [1, 1, 1, 1]])
    places, confidence = matches(probability.log(), 0.18)
    assert places.tolist() == [0, -1, -1] and confidence.tolist() == pytest.approx([0.6, 0, 0])
    assert matches(probability.log(), 0.7)[0].tolist() == [-1, -1, -1]
    assert matches(probability.T.log(), 0.18)[0].tolist() == [0, -1, -1]


def test_images_without_keypoints_have_no_matches() -> None:
    model, some, none = SuperGlue(random_state(SMALL)), random_keypoints(5, 32, 0), random_keypoints(0, 32, 0)
    for query, candidate in ((some, none), (none, some), (none, none)):
        ((places, confidence),) = model.score(query, [candidate], 20, 0.2)
        assert len(places) == len(confidence) == len(query.keypoints) and (places == -1).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_pairs_do_not_depend_on_each_other_or_on_threads(threads: int) -> None:
    model, query = SuperGlue(random_state(SMALL)), random_keypoints(14, 32, 0)
    images = [random_keypoints(n, 32, n, query) for n in (5, 30, 14, 1)]
    alone = [assignment(model, query, image) for image in images]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = model.score(query, images, 20, 0.2)
    finally:
        torch.set_num_threads(before)
    for (places, confidence), values in zip(found, alone, strict=True):
        expected = matches(values, 0.2)
        assert torch.equal(places, expected[0]) and torch.allclose(confidence, expected[1], rtol=0, atol=1e-5)


def test_a_turned_order_of_keypoints_turns_the_matches() -> None:
    model, query = SuperGlue(random_state(SMALL)), random_keypoints(14, 32, 0)
    image = random_keypoints(20, 32, 1, query)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    turned = Keypoints(image.keypoints[order], image.scores[order], image.descriptors[order], image.image_size)
    ((one, _), (other, _)) = model.score(query, [image, turned], 20, 0.2)
    assert (one >= 0).sum() > 3
    assert torch.equal(torch.where(other >= 0, order[other], -1), one)


BAD: dict[str, tuple[Callable[[dict], object], str]] = {
    "another network": (lambda state: state.clear() or state.update(a=torch.zeros(3)), "another architecture"),
    "no keypoint encoder": (
        lambda state: [state.pop(n) for n in list(state) if n.startswith("kenc")],
        "another architecture",
    ),
    "a layer cut off": (lambda state: state.pop("gnn.layers.1.mlp.3.bias"), r"gnn\.layers\.1\.mlp\.3\.bias"),
    "something more": (lambda state: state.update(more=torch.zeros(1)), "do not belong"),
    "another shape": (lambda state: state.update({"gnn.layers.0.mlp.0.weight": torch.zeros(3, 3, 1)}), "has shape"),
    "not finite": (lambda state: state.update(bin_score=torch.tensor(float("nan"))), "not finite"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_files_that_are_not_its_weights_are_refused(tmp_path: Path, kind: str) -> None:
    change, said = BAD[kind]
    state = random_state(SMALL)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=said) as error:
        load(tmp_path / "w.pth")
    assert "w.pth" in str(error.value)


def test_official_files_say_their_sizes(tmp_path: Path) -> None:
    torch.save(random_state(SMALL), tmp_path / "w.pth")
    assert load(tmp_path / "w.pth").config == SMALL
    assert SuperGlueConfig() == SuperGlueConfig(256, 18, (32, 64, 128, 256))
    with pytest.raises(ValueError, match="multiple"):
        SuperGlueConfig(dim=30)
