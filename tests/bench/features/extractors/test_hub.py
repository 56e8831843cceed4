"""Models of torch.hub: code in a folder here, and in the cache where torch keeps what it loads from GitHub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.conformance import check_extractor
from bench.errors import UserError
from bench.features.extract import ExtractOptions, Part
from bench.features.extractors.hub import KNOWN, Hub, read_arguments
from bench.features.sets import FeatureExtractor, SetName

CPU = torch.device("cpu")
# its descriptor begins with the height, width, and the mean of the pixels that it was given
HUBCONF = """
from pathlib import Path
dependencies = ["torch"]
Path(__file__).with_name("ran").touch()
from model import Sizes

def sizes(dims=8, **more):
    print("returning a model")
    return Sizes(int(dims), more)

get_trained_model = get_trained_boq = sizes
"""
MODEL = """
import torch

class Sizes(torch.nn.Module):
    def __init__(self, dims, more):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.dims = dims
        self.more = more

    def forward(self, x):
        assert x.ndim == 4 and x.dtype == torch.float32 and not self.training
        found = torch.zeros(1, self.dims)
        found[0, :3] = torch.tensor([x.shape[2] / 100, x.shape[3] / 100, x.mean()])
        found = found * self.scale
        return (found, ["attentions"]) if self.more.get("pair", True) else found
"""


def write(folder: Path, model: str = MODEL) -> Path:
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text(HUBCONF)
    (folder / "model.py").write_text(model)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write(tmp_path / "repository")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`cached("owner_repo_branch")`: a repository where torch looks before it asks the network."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return lambda name: write(tmp_path / "hub" / name)


def seen(model: Hub, image: np.ndarray) -> tuple[float, float]:
    """Height and width that the model was given: the descriptor is normalised, so by the mean of a white image."""
    found = model(image)
    return float(found[0] / found[2]) * 100, float(found[1] / found[2]) * 100


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def test_it_conforms(repository: Path) -> None:
    check_extractor(Hub, Hub.Options(str(repository), "sizes"))


def test_code_is_not_run_unless_it_is_trusted(repository: Path, instances: Path, run: Callable[..., Any]) -> None:
    name = f"hub:{repository}:sizes"
    for trusted in (frozenset(), frozenset({"another/repository"})):
        with pytest.raises(UserError, match="runs code of") as error:
            run(instances, "identity", features=name, trust_code=trusted)
        assert f"--trust-code {repository}" in str(error.value)
    outcome = run(instances, f"identity,aqe@{name}")
    assert f"--trust-code {repository}" in outcome.run.record.skipped[f"aqe@{name}"]
    with pytest.raises(UserError, match="for runs alone"):
        FeatureExtractor(name)
    assert not (repository / "ran").exists()
    # a licence that is accepted trusts no code
    with pytest.raises(UserError, match="runs code of"):
        run(instances, "identity", features=name, accept_licence=frozenset({str(repository)}))
    assert not (repository / "ran").exists()
    outcome = run(instances, "identity,aqe", features=name, trust_code=frozenset({str(repository)}))
    assert (repository / "ran").exists() and not outcome.run.record.skipped


def test_the_command_line_says_what_to_trust(repository: Path, instances: Path, cli: Callable[..., Any]) -> None:
    asked = ["run", "-d", f"folder:{instances}", "--method", "identity", "--features", f"hub:{repository}:sizes"]
    refused = cli(*asked)
    assert refused.exit_code != 0 and f"--trust-code {repository}" in refused.output
    assert not (repository / "ran").exists()
    assert cli(*asked, "--trust-code", str(repository)).exit_code == 0


def test_a_model_is_named_by_its_code_and_not_by_its_place(repository: Path, tmp_path: Path) -> None:
    def key(folder: Path) -> str:
        return SetName.parse(f"hub:{folder}:sizes").name

    first = key(repository)
    moved = Path(shutil.copytree(repository, tmp_path / "moved"))
    (moved / "__pycache__").mkdir()
    (moved / "__pycache__" / "x.pyc").touch()
    (moved / ".git").mkdir()
    (moved / ".git" / "HEAD").touch()
    assert key(moved) == first and first.startswith("hub-sizes-")
    (moved / "model.py").write_text(MODEL + "\n")
    assert key(moved) != first
    assert SetName.parse(f"hub:{repository}:sizes:arguments=dims=9").name != first


def test_arguments_and_either_kind_of_output(repository: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    pair = Hub(Hub.Options(str(repository), "sizes", ("dims=5",)), CPU)(image)
    plain = Hub(Hub.Options(str(repository), "sizes", ("dims=5", "pair=false")), CPU)(image)
    assert pair.shape == (5,)
    np.testing.assert_array_equal(pair, plain)
    assert read_arguments(("a=1", "b=0.5", "c=none", "d=x/y")) == {"a": 1, "b": 0.5, "c": None, "d": "x/y"}
    for wrong in ("a", "1=2", "=3"):
        with pytest.raises(UserError, match="NAME=VALUE"):
            SetName.parse(f"hub:{repository}:sizes:arguments={wrong}")


def test_sizes_are_those_asked_for(repository: Path) -> None:
    def of(image: np.ndarray, **options: Any) -> tuple[float, float]:
        return seen(Hub(Hub.Options(str(repository), "sizes", normalise="none", **options), CPU), image)

    np.testing.assert_allclose(of(white(40, 60)), (40, 60), rtol=1e-5)
    np.testing.assert_allclose(of(white(40, 60), size=120), (80, 120), rtol=1e-5)
    np.testing.assert_allclose(of(white(40, 60), multiple=14), (42, 56), rtol=1e-5)
    np.testing.assert_allclose(of(white(40, 60), square=50), (50, 50), rtol=1e-5)


def test_pixels_are_normalised_as_imagenets(repository: Path) -> None:
    grey = np.full((100, 100, 3), [124, 116, 104], np.uint8)  # ImageNet's mean
    found = Hub(Hub.Options(str(repository), "sizes"), CPU)(grey)
    assert abs(found[2] / found[0]) < 0.01
    found = Hub(Hub.Options(str(repository), "sizes", normalise="none"), CPU)(grey)
    assert found[2] / found[0] == pytest.approx(np.mean([124, 116, 104]) / 255, abs=1e-5)


@pytest.mark.parametrize("name", KNOWN)
def test_known_models_are_used_as_their_authors_do(name: str, cached: Callable[[str], Path]) -> None:
    cached(name.replace("/", "_") + "_main")
    known = KNOWN[name]
    extra = tuple(text for text in known.arguments if not text.startswith("dims"))
    options = Hub.Options(name, arguments=(*extra, f"dims={known.dim}"), ref="main", normalise="none")
    found = Hub(options, CPU)(white(400, 300))
    assert found.shape == (known.dim,)
    height, width = (100 * float(found[i] / found[2]) for i in (0, 1))
    if known.square:
        np.testing.assert_allclose((height, width), known.square, rtol=1e-4)
    else:
        np.testing.assert_allclose((height, width), [round(s / known.multiple) * known.multiple for s in (400, 300)])
    part = SetName.parse(f"hub:{name}:ref=main").global_
    assert isinstance(part, Part) and part.spec.global_dim == known.dim and part.spec.card.licence == "MIT"
    assert part.spec.runs == name and part.spec.full_size == (known.square is not None)
    other = SetName.parse(f"hub:{name}:arguments=fc_output_dim=64").global_
    assert isinstance(other, Part) and other.spec.global_dim is None  # extraction will tell


def test_a_folder_does_not_hide_a_repository_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: Callable[[str], Path]
) -> None:
    """`--trust-code owner/repo` trusts what is on GitHub, wherever the command is run."""
    there = cached("owner_repo_main")
    here = write(tmp_path / "owner" / "repo")
    monkeypatch.chdir(tmp_path)
    Hub(Hub.Options("owner/repo", "sizes", ref="main"), CPU)
    assert (there / "ran").exists() and not (here / "ran").exists()


def test_two_repositories_may_name_a_module_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = white(50, 50)
    one = Hub(Hub.Options(str(write(tmp_path / "one")), "sizes"), CPU)
    doubled = MODEL.replace("x.shape[2] / 100", "x.shape[2] / 50")
    other = Hub(Hub.Options(str(write(tmp_path / "other", doubled)), "sizes"), CPU)
    assert seen(other, image)[0] == pytest.approx(2 * seen(one, image)[0], rel=1e-4)
    assert capsys.readouterr().out == ""  # tables are written there


def test_weights_are_checked_where_their_checksum_is_given(repository: Path) -> None:
    from third_party.torch_hub import state_hash

    right = state_hash({"scale": torch.ones(1)})
    Hub(Hub.Options(str(repository), "sizes", sha256=right[:12]), CPU)
    with pytest.raises(UserError, match=f"begins with {right[:16]}"):
        Hub(Hub.Options(str(repository), "sizes", sha256="0123456789"), CPU)
    assert right != state_hash({"scale": torch.zeros(1)}) != state_hash({"other": torch.zeros(1)})
    with pytest.raises(UserError, match="at least 8"):
        SetName.parse(f"hub:{repository}:sizes:sha256=0123")


def test_what_cannot_be_loaded_is_refused_with_what_to_do(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs weights"):
        SetName.parse("hub")
    for text, message in {
        "nothing": "no name of a repository",
        f"{tmp_path}": "no hubconf.py",
        f"{repository}": "names no entry",
        "owner/repo": "names no entry",
        f"{repository}:sizes:size=3": "32 to 8192",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            SetName.parse(f"hub:{text}")
        assert error.value.hint or "expected" in error.value.message
    with pytest.raises(UserError, match="cannot be loaded"):
        Hub(Hub.Options(str(repository), "nothing"), CPU)
    conf = repository / "hubconf.py"
    conf.write_text(conf.read_text() + "\ndef text():\n    return 'text'\n")
    with pytest.raises(UserError, match="expected a torch module"):
        Hub(Hub.Options(str(repository), "text"), CPU)
    conf.write_text(conf.read_text() + "\ndef maps():\n    return torch.nn.Identity()\nimport torch\n")
    with pytest.raises(UserError, match=r"expected a descriptor \(1, D\)"):
        Hub(Hub.Options(str(repository), "maps"), CPU)(white(32, 32))
    conf.write_text(conf.read_text().replace('["torch"]', '["torch", "no_such_package"]'))
    with pytest.raises(UserError, match="no_such_package"):
        Hub(Hub.Options(str(repository), "sizes"), CPU)


def test_trusted_code_leaves_keep_descriptors_and_size_to_the_harness(repository: Path) -> None:
    part = SetName.parse(f"hub:{repository}:sizes").global_
    assert isinstance(part, Part) and not part.spec.full_size
    assert part.identity(ExtractOptions(320))["max_side"] == 320
