"""Descriptors of vision backbones of transformers; tiny ones with random weights here, of every family there is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bench.conformance import check_extractor
from bench.errors import UserError
from bench.features.extract import ExtractOptions, Part, PartExtractor
from bench.features.extractors.hf import Hf
from bench.features.extractors.hf_patches import HfPatches
from bench.features.sets import EXTRACTORS, FeatureExtractor, SetName

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
from tests.bench.features.extractors.backbones import FAMILIES, MEAN, STD, save  # noqa: E402

OPTIONS = ExtractOptions(max_side=160, descriptors=60)
WITH_CLS = {"dinov2-with-registers": 4, "dinov3-vit": 2, "clip-vision-model": 0}  # and registers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`models(family)`: the folder of a saved model. Read only."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = save(family, tmp_path_factory.mktemp("models") / family)
        return made[family]

    return of


@pytest.fixture
def own(models: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a model to spoil."""
    return Path(shutil.copytree(models("dinov2-with-registers"), tmp_path / "own"))


@pytest.fixture
def picture(view: Callable[[int, int], np.ndarray]) -> np.ndarray:
    return view(1, 0)


def descriptor(model: Path, image: np.ndarray, **options: Any) -> np.ndarray:
    return Hf(Hf.Options(str(model), **options), torch.device("cpu"))(image)


@torch.no_grad()
def reference(model: Path, family: str, image: np.ndarray) -> Any:
    """What transformers itself says of an image whose sides are multiples of the patch."""
    config = transformers.AutoConfig.from_pretrained(model)
    vision = getattr(config, "vision_config", config)
    loaded = transformers.AutoModel.from_pretrained(model, config=vision).eval()
    pixels = (torch.from_numpy(image).permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    more = {"interpolate_pos_encoding": True} if family in ("clip-vision-model", "siglip-vision-model") else {}
    return loaded, loaded(pixel_values=pixels[None].float(), **more)


def cut(image: np.ndarray, rows: int, columns: int, patch: int) -> np.ndarray:
    return image[: rows * patch, : columns * patch]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_conforms_as_a_global_and_as_local_descriptors(models: Callable[[str], Path], family: str) -> None:
    check_extractor(Hf, Hf.Options(str(models(family))))
    check_extractor(HfPatches, HfPatches.Options(str(models(family))))
    check_extractor(HfPatches, HfPatches.Options(str(models(family)), size=96))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_tells_kind_and_size_before_weights_are_read(
    models: Callable[[str], Path], family: str, picture: np.ndarray
) -> None:
    part = SetName.parse(f"hf:{models(family)}").global_
    assert isinstance(part, Part) and part.key.startswith(f"hf-{family}-")
    assert part.spec.global_dim == 16 == len(PartExtractor(part, OPTIONS)(picture)["global_descriptor"])


@pytest.mark.parametrize(("family", "registers"), WITH_CLS.items())
def test_cls_and_registers_are_not_pooled_as_patches(
    models: Callable[[str], Path], family: str, registers: int, picture: np.ndarray
) -> None:
    model = models(family)
    patch = 14 if family.startswith("dinov2") else 8
    image = cut(picture, 6, 8, patch)
    loaded, out = reference(model, family, image)
    hidden = out.last_hidden_state[0]
    if family == "clip-vision-model":  # whose patches are not normalised as its CLS token is
        with torch.no_grad():
            hidden = loaded.post_layernorm(hidden)
    patches = hidden[1 + registers :]
    assert len(patches) == 48
    for how, expected in {"cls": out.pooler_output[0], "mean": patches.mean(0), "max": patches.amax(0)}.items():
        found = descriptor(model, image, pooling=how)
        np.testing.assert_allclose(found, torch.nn.functional.normalize(expected, dim=0).numpy(), atol=1e-5)
    np.testing.assert_array_equal(descriptor(model, image), descriptor(model, image, pooling="cls"))
    both = descriptor(model, image, pooling="cls-gem")
    np.testing.assert_allclose(both[:16], descriptor(model, image, pooling="cls") / np.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(both[16:], descriptor(model, image, pooling="gem") / np.sqrt(2), atol=1e-6)


@pytest.mark.parametrize("family", ["siglip-vision-model", "siglip2-vision-model", "convnextv2"])
def test_a_model_without_cls_token_takes_its_own_pooling_and_refuses_cls(
    models: Callable[[str], Path], family: str, picture: np.ndarray
) -> None:
    model = models(family)
    assert not np.allclose(descriptor(model, picture), descriptor(model, picture, pooling="mean"), atol=1e-3)
    np.testing.assert_array_equal(descriptor(model, picture), descriptor(model, picture, pooling="pooler"))
    with pytest.raises(UserError, match="no CLS token") as error:
        descriptor(model, picture, pooling="cls")
    assert "pooling=own" in str(error.value)
    with pytest.raises(UserError, match="rank=norm"):
        HfPatches(HfPatches.Options(str(model), "cls"), torch.device("cpu"))(picture)


@pytest.mark.parametrize("family", ["siglip-vision-model", "convnextv2"])
def test_pooled_output_is_that_of_the_library(models: Callable[[str], Path], family: str, picture: np.ndarray) -> None:
    image = cut(picture, 2, 3, 32)
    _, out = reference(models(family), family, image)
    expected = torch.nn.functional.normalize(out.pooler_output[0], dim=0).numpy()
    np.testing.assert_allclose(descriptor(models(family), image), expected, atol=1e-5)


def test_siglip2_is_given_rows_of_patches_with_colours_last(picture: np.ndarray) -> None:
    from third_party.hf_backbone import _rows_of_patches

    pixels = torch.from_numpy(cut(picture, 5, 7, 8).copy()).permute(2, 0, 1).float()
    given = _rows_of_patches(torch.stack([pixels, pixels.flip(1)]), 8)
    for image, rows in zip((pixels, pixels.flip(1)), given["pixel_values"], strict=True):
        cells = [image[:, y : y + 8, x : x + 8] for y in range(0, 40, 8) for x in range(0, 56, 8)]
        assert torch.equal(rows, torch.stack([cell.permute(1, 2, 0).flatten() for cell in cells]))
    assert given["spatial_shapes"].tolist() == [[5, 7], [5, 7]] and given["pixel_attention_mask"].sum() == 2 * 35


def test_pixels_are_normalised_as_the_models_preprocessor_says(own: Path, picture: np.ndarray) -> None:
    before = descriptor(own, picture)
    for said in (
        {"image_mean": MEAN, "image_std": STD},  # rescaling is the default
        {"image_mean": [v * 255 for v in MEAN], "image_std": [v * 255 for v in STD], "do_rescale": False},
    ):
        (own / "preprocessor_config.json").write_text(json.dumps(said))
        np.testing.assert_allclose(descriptor(own, picture), before, atol=1e-5)
    (own / "preprocessor_config.json").unlink()
    (own / "processor_config.json").write_text(json.dumps({"image_processor": {"image_mean": MEAN, "image_std": STD}}))
    np.testing.assert_allclose(descriptor(own, picture), before, atol=1e-5)
    (own / "processor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert not np.allclose(descriptor(own, picture), before, atol=1e-3)


def test_size_is_the_longer_side_rounded_to_the_patch(models: Callable[[str], Path], picture: np.ndarray) -> None:
    model = models("dinov2-with-registers")
    large = np.asarray(Image.fromarray(picture).resize((112, 84), Image.Resampling.BICUBIC))  # 120x160: 8 x 6 patches
    np.testing.assert_allclose(descriptor(model, picture, size=115), descriptor(model, large), atol=1e-6)
    for size in (0, 31, 9000):
        with pytest.raises(UserError, match="32 to 8192"):
            SetName.parse(f"hf:{model}:size={size}")


def test_with_a_size_the_harness_does_not_shrink_first(models: Callable[[str], Path], picture: np.ndarray) -> None:
    name = f"hf:{models('convnextv2')}:size=128"
    small = FeatureExtractor(name, replace(OPTIONS, max_side=32))(picture)["global_descriptor"]
    np.testing.assert_array_equal(small, FeatureExtractor(name, OPTIONS)(picture)["global_descriptor"])
    unsized = [
        FeatureExtractor(f"hf:{models('convnextv2')}", replace(OPTIONS, max_side=side))(picture)["global_descriptor"]
        for side in (32, 160)
    ]
    assert not np.array_equal(*unsized)


def test_a_model_is_named_by_its_contents_and_not_by_its_place(own: Path, tmp_path: Path) -> None:
    def key(folder: Path) -> tuple[str, object]:
        part = SetName.parse(f"hf:{folder}").global_
        assert isinstance(part, Part)
        return part.key, part.identity(OPTIONS)

    first = key(own)
    moved = Path(shutil.copytree(own, tmp_path / "moved"))
    assert key(moved) == first
    state = load_file(moved / "model.safetensors")
    name = next(iter(state))
    save_file({**state, name: state[name] + 1}, moved / "model.safetensors", {"format": "pt"})
    assert key(moved)[0] != first[0] and key(moved)[1] != first[1]
    said = json.loads((own / "preprocessor_config.json").read_text())
    (own / "preprocessor_config.json").write_text(json.dumps({**said, "image_mean": [0.0, 0.0, 0.0]}))
    assert key(own)[0] != first[0]
    assert SetName.parse(f"hf:{own}:mean").name == SetName.parse(f"hf:{own}:pooling=mean").name != key(own)[0]


def test_patches_stand_at_the_centres_of_their_cells(models: Callable[[str], Path], picture: np.ndarray) -> None:
    model = HfPatches(HfPatches.Options(str(models("dinov3-vit")), size=64, descriptors=500), torch.device("cpu"))
    image = picture[:100]  # 100x160 to 40x64: 5 x 8 patches of 20 x 20 pixels
    found = model(image)
    grid = [((column + 0.5) * 20 - 0.5, (row + 0.5) * 20 - 0.5) for row in range(5) for column in range(8)]
    assert sorted(map(tuple, found.keypoints.tolist())) == sorted(grid)
    np.testing.assert_allclose(found.scales, 20)
    assert (np.diff(found.scores) <= 0).all()
    few = HfPatches(HfPatches.Options(str(models("dinov3-vit")), size=64, descriptors=7), torch.device("cpu"))(image)
    np.testing.assert_array_equal(few.descriptors, found.descriptors[:7])


def test_rank_cls_orders_by_cosine_to_the_cls_token(models: Callable[[str], Path], picture: np.ndarray) -> None:
    model = models("dinov2-with-registers")
    found = HfPatches(HfPatches.Options(str(model), "cls"), torch.device("cpu"))(picture)
    whole = descriptor(model, picture, pooling="cls")
    np.testing.assert_allclose(found.descriptors @ whole, found.scores, atol=1e-5)


def test_global_and_local_descriptors_of_models_in_one_run(
    models: Callable[[str], Path], instances: Path, run: Callable[..., Any]
) -> None:
    model = models("dinov2-with-registers")
    outcome = run(instances, f"identity,aqe,mnn@hf-patches:{model}:size=112,constant", features=f"hf:{model}")
    key = SetName.parse(f"hf:{model}").name
    assert not outcome.run.record.skipped
    rows = set(outcome.run.record.cards)
    patches = SetName.parse(f"hf-patches:{model}:size=112").name.split("+")[0]
    assert f"mnn@{patches}" in rows and f"aqe@{key}" in rows, rows


def test_a_licence_that_forbids_commercial_use_has_to_be_accepted(
    own: Path, instances: Path, run: Callable[..., Any]
) -> None:
    (own / "README.md").write_text("---\ntags: [vision]\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    assert SetName.parse(f"hf:{own}").terms == ("cc-by-nc-4.0",)
    with pytest.raises(UserError, match="may not be used commercially") as error:
        run(instances, "identity", features=f"hf:{own}")
    assert "--accept-licence cc-by-nc-4.0" in str(error.value)
    accepted = frozenset({"cc-by-nc-4.0"})
    assert run(instances, "identity", features=f"hf:{own}", accept_licence=accepted).run.record.features_noncommercial
    (own / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    part = SetName.parse(f"hf:{own}").global_
    assert isinstance(part, Part) and part.spec.card.licence == "apache-2.0" and not part.spec.card.noncommercial


def test_a_name_is_looked_up_in_the_hubs_local_cache(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: np.ndarray
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        SetName.parse("hf:some/model").name  # noqa: B018 - what it raises is the test
    place = tmp_path / "hub" / "models--some--model"
    shutil.copytree(own, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    assert SetName.parse("hf:some/model").name == SetName.parse(f"hf:{own}").name
    np.testing.assert_array_equal(descriptor(Path("some/model"), picture), descriptor(own, picture))


def test_a_part_of_a_model_in_the_cache_is_not_taken_for_the_whole(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs ask for the weights alone, or are stopped between two of their files."""
    import huggingface_hub
    from huggingface_hub import constants

    from third_party.hf_backbone import find

    partial = Path(shutil.copytree(own, tmp_path / "partial"))
    asked: list[bool] = []

    def snapshot_download(model: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        return str(partial if local_files_only else own)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert find("some/model").folder == partial and asked == [True]
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find("some/model").folder == own and asked == [True, True, False]
    (partial / "model.safetensors.index.json").unlink()
    (partial / "preprocessor_config.json").unlink()
    assert find("some/model").folder == own
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no preprocessor_config.json"):
        find("some/model")


def test_a_download_that_fails_says_how_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    def snapshot_download(model: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="cannot be downloaded") as error:
        SetName.parse("hf:some/model")
    assert "Name or service" in error.value.message and "give their folder" in str(error.value)


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _said(name: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **fields}))

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def go(folder: Path) -> None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})

    return go


def _text_model(folder: Path) -> None:
    shutil.rmtree(folder)
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(**config, vocab_size=50)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))


BAD = {
    "no config.json": (_without("config.json"), "no config.json", "save_pretrained"),
    "pickled weights": (_pickled, "pytorch_model.bin is a pickle", "save_pretrained"),
    "no weights": (_without("model.safetensors"), r"no model\*.safetensors", "save_pretrained"),
    "no preprocessor": (_without("preprocessor_config.json"), "no preprocessor_config.json", "copy"),
    "no mean": (_said("preprocessor_config.json", image_mean=None), "image_mean", "copy"),
    "one mean": (_said("preprocessor_config.json", image_mean=[0.5]), "image_mean", "copy"),
    "no deviation": (_said("preprocessor_config.json", image_std=[0, 0, 0]), "image_std", "copy"),
    "code of its own": (_said("config.json", model_type="their-own"), "config.json", "without code"),
    "a text model": (_text_model, "'bert'", "takes images|vision backbone"),
    "values that are not finite": (
        _weights(lambda state: {name: tensor * float("nan") for name, tensor in state.items()}),
        "not finite for a grey image",
        "copy or download",
    ),
    "a weight is missing": (
        _weights(lambda state: dict(list(state.items())[1:])),
        "1 weights are missing",
        "copy both again",
    ),
    "another size": (_said("config.json", hidden_size=32), "cannot be loaded", "copy or download"),
    "damaged": (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be loaded", "copy"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_folder_that_cannot_be_used_is_refused_with_what_to_do(what: str, own: Path) -> None:
    spoil, message, hint = BAD[what]
    spoil(own)
    with pytest.raises(UserError, match=message) as error:
        FeatureExtractor(f"hf:{own}", OPTIONS)
    assert error.value.hint is not None
    assert any(word in error.value.hint for word in hint.split("|"))


def test_a_place_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for text in ("hf", "hf-patches"):
        with pytest.raises(UserError, match="needs weights") as error:
            SetName.parse(text)
        assert f"{text}:NAME_OR_FOLDER" in str(error.value)
    with pytest.raises(UserError, match="no such folder"):
        SetName.parse(f"hf:{tmp_path / 'nothing'}")


def test_rows_that_name_a_bad_model_are_left_out_with_the_reason(
    own: Path, instances: Path, run: Callable[..., Any]
) -> None:
    (own / "config.json").unlink()
    outcome = run(instances, f"identity,mnn@hf-patches:{own}")
    (reason,) = outcome.run.record.skipped.values()
    assert "no config.json" in reason


def test_both_extractors_are_listed() -> None:
    assert {"hf", "hf-patches"} <= set(EXTRACTORS.names())
