import os
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.errors import UserError
from methods.rrt.model import RRT, RRTConfig, TokenBatch, Tokens, load_checkpoint, save_checkpoint

SMALL = RRTConfig(depth=2, feedforward=48, heads=4, dim=32, global_dim=40, local_dim=16)
REFERENCE = Path(os.environ.get("RERANKBENCH_REFERENCE", "/work/shared/data/reference"))


def _image(n: int, seed: int, config: RRTConfig = SMALL) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return Tokens(
        torch.randn(n, config.local_dim, generator=generator),
        torch.randint(0, 7, (n,), generator=generator),
        torch.randn(config.global_dim, generator=generator),
    )


def _padded(images: list[Tokens], length: int) -> TokenBatch:
    b, d = len(images), images[0].local.shape[1]
    local, ids = torch.full((b, length, d), 7.0), torch.zeros(b, length, dtype=torch.int64)
    mask = torch.ones(b, length, dtype=torch.bool)
    for i, image in enumerate(images):
        n = len(image.local)
        local[i, :n], ids[i, :n], mask[i, :n] = image.local, image.scale_ids, False
    return TokenBatch(local, ids, torch.stack([image.global_ for image in images]), mask)


@pytest.mark.skipif(not (REFERENCE / "rrt_gld.safetensors").is_file(), reason=f"no reference outputs in {REFERENCE}")
def test_reference_logits_in_both_orders_with_padding(tmp_path):
    with safe_open(REFERENCE / "rrt_gld.safetensors", framework="pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    state = {f"module.{name.removeprefix('state.')}": t for name, t in arrays.items() if name.startswith("state.")}
    torch.save({"state": state, "optim": {}}, tmp_path / "released.pt")
    model = load_checkpoint(tmp_path / "released.pt")
    source, target = (
        TokenBatch(
            arrays[f"{side}.local"],
            arrays[f"{side}.scale_ids"].long(),
            arrays[f"{side}.global"],
            arrays[f"{side}.mask"].bool(),
        )
        for side in ("src", "tgt")
    )

    def images(batch: TokenBatch) -> list[Tokens]:
        kept = [~mask for mask in batch.mask]
        rows = zip(batch.local, batch.scale_ids, batch.global_, kept, strict=True)
        return [Tokens(x[k], s[k], g) for x, s, g, k in rows]

    for first, second, name in ((source, target, "logits"), (target, source, "logits_swapped")):
        expected = arrays[name].flatten()
        with torch.inference_mode():
            assert torch.allclose(model(first, second), expected, rtol=0, atol=1e-5)
        pairs = zip(images(first), images(second), strict=True)
        scored = torch.cat([model.score(query, [candidate]) for query, candidate in pairs])
        assert torch.allclose(scored, expected, rtol=0, atol=1e-5)


def test_padding_and_batch_size_change_nothing(spread_rrt):
    model, query = spread_rrt(SMALL), _image(9, 0)
    candidates = [_image(n, n + 1) for n in (5, 0, 12, 5, 7, 12)]
    scores = model.score(query, candidates)
    assert scores.std() > 0.01
    assert torch.allclose(model.score(query, candidates, batch=4), scores, rtol=0, atol=1e-5)
    for length in (12, 30):
        with torch.inference_mode():
            plain = model(_padded([query] * 6, length), _padded(candidates, length))
        assert torch.allclose(plain, scores, rtol=0, atol=1e-5)


def test_scores_do_not_depend_on_the_other_candidates_or_their_order(spread_rrt):
    model, query = spread_rrt(SMALL), _image(9, 0)
    candidates = [_image(n, n + 1) for n in (5, 3, 12, 5, 7)]
    scores = model.score(query, candidates)
    order = [3, 0, 4, 2, 1]
    assert torch.equal(model.score(query, [candidates[i] for i in order]), scores[order])
    assert torch.equal(model.score(query, candidates[2:3]), scores[2:3])
    assert model.score(query, []).shape == (0,)


def test_images_without_locals_score_finite(spread_rrt):
    model = spread_rrt(SMALL)
    scores = model.score(_image(0, 0), [_image(0, 1), _image(4, 2)])
    assert torch.isfinite(scores).all()


def test_order_of_query_and_candidate_matters(spread_rrt):
    model, one, two = spread_rrt(SMALL), _image(6, 0), _image(6, 1)
    assert not torch.allclose(model.score(one, [two]), model.score(two, [one]))


def test_released_names_and_size():
    model = RRT(RRTConfig())
    assert sum(p.numel() for p in model.parameters()) == 2_243_201  # docs/protocols.md
    assert {
        "encoder.layers.5.self_attn.in_proj_weight",
        "encoder.layers.0.norm2.bias",
        "remap.weight",
        "scale_encoder.weight",
        "seg_encoder.weight",
        "classifier.bias",
    } <= set(model.state_dict())
    assert "local_remap.weight" not in model.state_dict()


def test_config_refuses_bad_values():
    for bad in ({"depth": 0}, {"heads": 3}, {"dim": -1}, {"global_dim": 1.5}, {"depth": True}):
        with pytest.raises(ValueError):
            RRTConfig(**bad)


def test_checkpoint_round_trip(tmp_path, spread_rrt):
    model = spread_rrt(SMALL)
    save_checkpoint(model, tmp_path / "w.safetensors", {"features": "xfeat", "descriptors": 100})
    again = load_checkpoint(tmp_path / "w.safetensors")
    assert again.config == SMALL and again.card == {"features": "xfeat", "descriptors": 100} and not again.training
    assert torch.equal(again.score(_image(3, 0), [_image(4, 1)]), model.score(_image(3, 0), [_image(4, 1)]))


def _state(**changes: torch.Tensor) -> dict:
    config = {**asdict(SMALL), "heads": 4, "local_dim": 32}
    return {**RRT(RRTConfig(**config)).state_dict(), **changes}


class _Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


def _write_bad(kind: str, folder: Path, spread_rrt) -> Path:
    pt, tensors = folder / "w.pt", folder / "w.safetensors"
    if kind == "missing":
        return pt
    if kind == "empty":
        pt.write_bytes(b"")
    elif kind == "code":
        torch.save({"state": {"remap.weight": _Evil()}}, pt)
    elif kind == "plain pickled code":
        pt.write_bytes(pickle.dumps({"state": _Evil()}))
    elif kind == "truncated":
        torch.save({"state": _state()}, pt)
        pt.write_bytes(pt.read_bytes()[:-400])
    elif kind == "no state":
        torch.save({"model": _state()}, pt)
    elif kind == "other architecture":
        torch.save({"state": {"fc.weight": torch.zeros(3, 3)}}, pt)
    elif kind == "SOP":
        torch.save({"state": {"matcher.classifier.weight": torch.zeros(1, 128)}}, pt)
    elif kind == "shapes":
        torch.save({"state": _state(**{"encoder.layers.1.linear1.weight": torch.zeros(5, 32)})}, pt)
    elif kind == "missing weight":
        torch.save({"state": {k: v for k, v in _state().items() if k != "classifier.bias"}}, pt)
    elif kind == "extra weight":
        torch.save({"state": _state(extra=torch.zeros(1))}, pt)
    elif kind == "not finite":
        torch.save({"state": _state(**{"classifier.bias": torch.full((1,), float("nan"))})}, pt)
    elif kind == "truncated safetensors":
        save_checkpoint(spread_rrt(SMALL), tensors)
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif kind == "foreign safetensors":
        save_file({"a": torch.zeros(1)}, tensors)
    elif kind == "bad config":
        save_file({"a": torch.zeros(1)}, tensors, {"format": "rerankbench-rrt-1", "config": '{"depth": 0}'})
    return tensors if tensors.exists() else pt


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no such"),
        ("empty", "empty"),
        ("code", "refused"),
        ("plain pickled code", "refused"),
        ("truncated", "truncated"),
        ("no state", "expected a dictionary"),
        ("other architecture", "another architecture"),
        ("SOP", "other architecture"),
        ("shapes", r"shape \(5, 32\), expected \(48, 32\)"),
        ("missing weight", "classifier.bias"),
        ("extra weight", "extra"),
        ("not finite", "not finite"),
        ("truncated safetensors", "not a readable"),
        ("foreign safetensors", "format None, expected 'rerankbench-rrt-1'"),
        ("bad config", "configuration"),
    ],
)
def test_bad_checkpoints_are_user_errors_naming_the_file(kind, said, tmp_path, spread_rrt):
    path = _write_bad(kind, tmp_path, spread_rrt)
    with pytest.raises(UserError, match=said) as caught:
        load_checkpoint(path)
    assert path.name in caught.value.message and caught.value.hint
