"""Where training starts: what attention finds before the first step."""

import numpy as np
import pytest
import torch

from methods.rrt.model import RRT, SINGLE_SCALE, RRTConfig, TokenBatch, Tokens
from methods.rrt.training.start import begin, fits, start_matching

XFEAT = RRTConfig(depth=3, feedforward=64, global_dim=96, local_dim=64)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _scenes(rng: np.random.Generator, scenes: int, views: int, parts: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Locals (scenes, views, parts, 64), two thirds of a view shared by its scene, and globals (scenes, views, 96)."""
    common = rng.normal(size=(scenes, 1, parts, 64)) + 0.15 * rng.normal(size=(scenes, views, parts, 64))
    own = rng.normal(size=(scenes, views, parts, 64))
    locals_ = np.where(np.arange(parts)[:, None] < parts * 2 // 3, common, own) + 1.0  # not centred, as real ones
    globals_ = rng.normal(size=(scenes, views, 96))
    return _unit(locals_), _unit(globals_)


def _tokens(local: np.ndarray, global_: np.ndarray) -> Tokens:
    return Tokens(
        torch.from_numpy(local[np.random.default_rng(0).permutation(len(local))]),
        torch.full((len(local),), SINGLE_SCALE),
        torch.from_numpy(global_),
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_with_matches_score_above_pairs_without_before_any_training(seed: int) -> None:
    locals_, globals_ = _scenes(np.random.default_rng(seed), 12, 2)
    torch.manual_seed(seed)
    model = RRT(XFEAT).eval()
    assert fits(model)
    begin(model, "matching", locals_.reshape(-1, 64), globals_.reshape(-1, 96))
    for scene in range(12):
        others = [_tokens(locals_[other, 1], globals_[other, 1]) for other in range(12)]
        scores = model.score(_tokens(locals_[scene, 0], globals_[scene, 0]), others)
        assert int(scores.argmax()) == scene


def test_a_start_depends_on_what_will_be_read_and_on_torchs_generator_alone() -> None:
    locals_, globals_ = _scenes(np.random.default_rng(0), 12, 2)

    def made(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        model = RRT(XFEAT)
        begin(model, "matching", locals_.reshape(-1, 64), globals_.reshape(-1, 96))
        return model.state_dict()

    assert all(torch.equal(a, b) for a, b in zip(made(0).values(), made(0).values(), strict=True))
    assert not torch.equal(
        made(0)["encoder.layers.2.self_attn.in_proj_weight"], made(1)["encoder.layers.2.self_attn.in_proj_weight"]
    )
    assert all(value.isfinite().all() for value in made(0).values())


@pytest.mark.parametrize(
    "config",
    [
        RRTConfig(depth=3, global_dim=96, local_dim=128),  # the token is the descriptor: no room for markers
        RRTConfig(depth=1, global_dim=96, local_dim=64),
        RRTConfig(depth=3, heads=8, global_dim=96, local_dim=64),
    ],
)
def test_networks_without_room_start_as_a_search_with_centred_globals(config: RRTConfig) -> None:
    rng = np.random.default_rng(0)
    globals_ = _unit(rng.normal(size=(200, 96)) + 2)
    model = RRT(config)
    assert not fits(model)
    begin(model, "matching", _unit(rng.normal(size=(50, config.local_dim))), globals_)
    for layer in model.encoder.layers[:-1]:
        query, key, _ = layer.self_attn.in_proj_weight.split(config.dim)
        assert torch.equal(query, key)
    assert model.remap(torch.from_numpy(globals_)).mean(dim=0).abs().max() < 1e-5


def test_notes_tell_matched_tokens_from_others() -> None:
    """After the first layer the note of the shared two thirds is above that of the rest."""
    locals_, globals_ = _scenes(np.random.default_rng(2), 12, 2)
    torch.manual_seed(0)
    model = RRT(XFEAT).eval()
    start_matching(model, locals_.reshape(-1, 64), globals_.reshape(-1, 96))
    one, two = (torch.from_numpy(locals_[3, view])[None] for view in (0, 1))
    ids = torch.full((1, 30), SINGLE_SCALE)
    batches = [TokenBatch(x, ids, torch.from_numpy(globals_[3, v])[None]) for v, x in enumerate((one, two))]
    with torch.inference_mode():
        x = model._join(model.embed(batches[0], "src"), model.embed(batches[1], "tgt"))
        note = model.encoder.layers[0](x, None)[0, 2:32, 64 + 4]
    assert note[:20].median() > 4 and note[20:].max() < 0.5


def test_a_plain_start_reads_no_samples_and_finds_nothing() -> None:
    locals_, globals_ = _scenes(np.random.default_rng(0), 12, 2)
    made = []
    for samples in (locals_, locals_[::-1]):
        torch.manual_seed(0)
        model = RRT(XFEAT)
        begin(model, "xavier", samples.reshape(-1, 64), globals_.reshape(-1, 96))
        made.append(model)
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))
    query, key, _ = made[0].encoder.layers[0].self_attn.in_proj_weight.split(128)
    assert not torch.equal(query, key)
