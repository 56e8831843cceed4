"""Small real image sets, one feature cache for the whole session, and a way to run the harness on them."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache as once
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import settings
from PIL import Image

import methods
from bench.datasets import Dataset, folder
from bench.features.sets import ExtractOptions, FeatureSet, SetName, features_of
from bench.places import Places
from bench.results import Run as Finished
from bench.run import Outcome, execute
from bench.setup import Selection, Setup
from cli import main
from methods.rrt.model import RRT, RRTConfig
from tests.programs import Start, starting

settings.register_profile("untimed", deadline=None)  # a machine that is busy fails no test
settings.load_profile("untimed")
collect_ignore = ["plugin"]  # a package of its own, installed by test_plugin.py
REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"
EXTRACT = ExtractOptions(max_side=160, descriptors=150)


@once
def slow_files() -> dict[Path, int]:
    """Files of tests that take seconds, and how many; the longest first."""
    lines = (REPOSITORY / "tests" / "slow.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    found = {REPOSITORY / "tests" / name: int(seconds) for seconds, name in rows}
    if missing := [str(path.relative_to(REPOSITORY)) for path in found if not path.is_file()]:
        raise pytest.UsageError(f"tests/slow.txt: no such file: {', '.join(missing)}")
    return found


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where slow files are left out, they are not even imported."""
    return True if config.option.markexpr == "not slow" and collection_path in slow_files() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, and begin with it, so that no process has a long file left when the others have none."""
    slow = slow_files()
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: -slow.get(item.path, 0))


def pytest_collection_finish() -> None:
    """What was imported stays: nobody needs to look through it again for what can go."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Features and scores of subprocesses (run with --threads 1) must equal those computed here."""
    torch.set_num_threads(1)


def _scene(seed: int, width: int = 240, height: int = 180) -> np.ndarray:
    """A picture full of corners: overlapping rectangles on noise; equal seeds give equal pictures."""
    draw = np.random.default_rng(seed)
    picture = draw.integers(90, 160, (height, width, 3)).astype(np.float64)
    for _ in range(60):
        x, y = draw.integers(0, width - 8), draw.integers(0, height - 8)
        w, h = draw.integers(6, 50, 2)
        picture[y : y + h, x : x + w] = draw.integers(0, 255, 3) * 0.9 + draw.normal(0, 8, 3)
    return picture.clip(0, 255).astype(np.uint8)


def _view(seed: int, number: int) -> np.ndarray:
    """160x120 view of a scene: shifted, brighter or darker, with noise."""
    draw = np.random.default_rng((seed, number))
    x, y = draw.integers(0, 80), draw.integers(0, 60)
    part = _scene(seed)[y : y + 120, x : x + 160].astype(np.float64)
    return (part * draw.uniform(0.8, 1.15) + draw.normal(0, 4, part.shape)).clip(0, 255).astype(np.uint8)


def _write_instances(root: Path, instances: int = 3, views: int = 3) -> Path:
    for instance in range(instances):
        (root / f"object{instance}").mkdir(parents=True)
        for view in range(views):
            Image.fromarray(_view(instance, view)).save(root / f"object{instance}" / f"view{view}.png")
    return root


def _write_buildings(root: Path) -> Path:
    """gallery/, queries/ and gnd.json: 2 queries with boxes; easy, hard and junk for both; 12 gallery images."""
    (root / "gallery").mkdir(parents=True)
    (root / "queries").mkdir()
    truth: dict = {"gallery": [], "queries": []}
    for landmark in range(2):
        names = [f"landmark{landmark}_{view}" for view in range(4)]
        for view, name in enumerate(names):
            Image.fromarray(_view(landmark, view + 1)).save(root / "gallery" / f"{name}.png")
        Image.fromarray(_view(landmark, 0)).save(root / "queries" / f"query{landmark}.png")
        truth["gallery"] += names
        truth["queries"].append(
            {
                "query": f"query{landmark}",
                "box": [10, 5, 150, 115],
                "easy": names[:1],
                "hard": names[1:3],
                "junk": names[3:],
            }
        )
    for other in range(4):
        Image.fromarray(_view(100 + other, 0)).save(root / "gallery" / f"other{other}.png")
        truth["gallery"].append(f"other{other}")
    (root / "gnd.json").write_text(json.dumps(truth))
    return root


@pytest.fixture(scope="session")
def view() -> Callable[[int, int], np.ndarray]:
    """`view(scene, number)`: (120, 160, 3) uint8; views of one scene overlap."""
    return _view


@pytest.fixture(scope="session")
def write_instances() -> Callable[..., Path]:
    return _write_instances


@pytest.fixture(scope="session")
def write_buildings() -> Callable[[Path], Path]:
    return _write_buildings


@pytest.fixture(scope="session")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 instances of 3 views, one folder each. Read only."""
    return _write_instances(tmp_path_factory.mktemp("instances") / "set")


@pytest.fixture(scope="session")
def buildings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 queries with boxes and 12 gallery images, with gnd.json. Read only."""
    return _write_buildings(tmp_path_factory.mktemp("buildings") / "set")


@pytest.fixture(params=["instances", "buildings"])
def images(request: pytest.FixtureRequest) -> Path:
    """Both layouts in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the session: every image set is extracted once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def stored(instances: Path, cache: Path) -> tuple[Dataset, FeatureSet]:
    """The instance set and its feature store."""
    dataset = folder.load(instances)
    store, _ = features_of(dataset, "xfeat", EXTRACT, torch.device("cpu"), Places.of(cache))
    return dataset, store


@pytest.fixture
def places(cache: Path, tmp_path: Path) -> Places:
    """The session's cache, this test's own runs, and no official data."""
    return Places(cache, tmp_path / "data", tmp_path / "runs")


Run = Callable[..., Outcome]


@pytest.fixture
def run(places: Places) -> Run:
    """`run(folder, "identity,oracle", top_k=5, …)`: `bench.run.execute` with the session's cache."""

    def go(path: Path, names: str, where: Places = places, **more: object) -> Outcome:
        more.setdefault("extract", EXTRACT)
        features = str(more.get("features", "xfeat"))
        if "shortlist" not in more and SetName.parse(features).takes_default(features):
            more.setdefault("first_stage", "gem-lite0")  # one part to extract where a test is not about first stages
        selection = Selection(tuple(names.split(",")), more.pop("options", {}))  # type: ignore[arg-type]
        force = bool(more.pop("force", False))
        (outcome,) = execute(Setup(f"folder:{path}", **more), [selection], where, force=force)  # type: ignore[arg-type]
        return outcome

    return go


@pytest.fixture(scope="session")
def _measurements() -> dict[str, Path]:
    """The runs that `finished` copies, by what was asked for."""
    return {}


@pytest.fixture
def finished(
    run: Run, places: Places, tmp_path_factory: pytest.TempPathFactory, _measurements: dict[str, Path]
) -> Callable[..., Finished]:
    """`finished(folder, "identity,mnn", top_k=5, …)`: a finished run that is this test's own, to read or to change.

    It is measured once a session and copied for each test; `run` measures one anew.
    """

    def go(path: Path, names: str, runs: Path = places.runs, **more: object) -> Finished:
        asked = repr((path, names, sorted(more.items())))
        if asked not in _measurements:
            where = replace(places, runs=tmp_path_factory.mktemp("measured"))
            _measurements[asked] = run(path, names, where, **more).run.folder
        folder = _measurements[asked]
        return Finished.load(Path(shutil.copytree(folder, runs / folder.name)))

    return go


@pytest.fixture(scope="session")
def spread_rrt() -> Callable[[RRTConfig], RRT]:
    """An RRT of random weights, biases included, whose logits spread."""

    def make(config: RRTConfig) -> RRT:
        torch.manual_seed(0)
        model = RRT(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def cli(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`cli("methods", …)` with every folder inside the test's own."""
    monkeypatch.setenv("RERANKBENCH_CACHE", str(cache))
    monkeypatch.setenv("RERANKBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RERANKBENCH_RUNS", str(tmp_path / "runs"))

    def go(*arguments: str) -> Result:
        result = CliRunner().invoke(main, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.output
        return result

    return go


@pytest.fixture(scope="session")
def program() -> Iterator[Start]:
    """`program("cli.py", "methods")` or `program("-c", "…")`: a real process that has everything imported."""
    with starting() as start:
        yield start


METHOD = """
import os, time
import torch
from dataclasses import dataclass
from bench.reranker import Card, Reranker, Seed, register

@register("{name}", needs={needs}, card=Card(paper=None, licence="Apache-2.0"))
class Added(Reranker):
{body}
"""


@pytest.fixture
def add_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """`add_method(name, body, needs)` puts a real file where methods are looked for, until the test ends."""
    place = tmp_path / "more_methods"
    place.mkdir()
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(place)])
    known = set(sys.modules)

    def add(name: str, body: str, needs: set[str] | frozenset[str] = frozenset()) -> Path:
        lines = "\n".join("    " + line for line in body.strip("\n").splitlines())
        (place / f"{name}.py").write_text(METHOD.format(name=name, body=lines, needs=sorted(needs)))
        importlib.invalidate_caches()
        return place

    yield add
    for module in set(sys.modules) - known:
        if module.startswith("methods."):
            del sys.modules[module]


@pytest.fixture(scope="session")
def reference() -> Path:
    """Inputs and outputs of the public reference implementations."""
    path = Path(os.environ.get("RERANKBENCH_REFERENCE", SHARED / "reference"))
    if not path.is_dir():
        pytest.skip(f"no reference data in {path}; set RERANKBENCH_REFERENCE")
    return path


@pytest.fixture(scope="session")
def official() -> Path:
    """Folder with roxford5k/gnd_roxford5k.pkl and rparis6k/gnd_rparis6k.pkl."""
    if not (SHARED / "roxford5k" / "gnd_roxford5k.pkl").is_file():
        pytest.skip(f"the official ground truth is not in {SHARED}")
    return SHARED


class DelgWriter:
    """Protobuf as DELG writes it (the schema of docs/protocols.md), by hand; `packed=False` as an old writer would."""

    @staticmethod
    def varint(value: int) -> bytes:
        more = []
        while value > 127:
            more.append(value & 127 | 128)
            value >>= 7
        return bytes([*more, value])

    @classmethod
    def field(cls, number: int, payload: bytes) -> bytes:
        """A length-delimited field."""
        return cls.varint(number << 3 | 2) + cls.varint(len(payload)) + payload

    @classmethod
    def datum(cls, values: np.ndarray, packed: bool = True, shape: bool = True) -> bytes:
        """A DatumProto; a whole `.delg_global`."""
        values = np.asarray(values, "<f4")
        floats = (
            cls.field(1, values.tobytes()) if packed else b"".join(cls.varint(1 << 3 | 5) + v.tobytes() for v in values)
        )
        dims = cls.field(1, cls.field(1, cls.varint(len(values)))) if shape else b""
        return dims + cls.field(2, floats)

    @classmethod
    def feature(cls, descriptor: np.ndarray, scalars: dict[int, float] | Sequence[float], packed: bool = True) -> bytes:
        """One DelfFeature; `scalars` are x, y, scale, orientation and strength, or some of them by field number."""
        named = scalars if isinstance(scalars, dict) else dict(enumerate(scalars, 2))
        values = [cls.varint(n << 3 | 5) + np.float32(v).tobytes() for n, v in named.items()]
        return b"".join([cls.field(1, cls.datum(descriptor, packed)), *values])

    @classmethod
    def pair(cls, stem: Path, whole: np.ndarray, descriptors: np.ndarray = np.zeros((0, 128)), scalars=()) -> None:
        """Writes `stem`.delg_global and `stem`.delg_local; `scalars` is (n, 5)."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(descriptors, scalars, strict=True)
        stem.with_name(f"{stem.name}.delg_global").write_bytes(cls.datum(whole))
        stem.with_name(f"{stem.name}.delg_local").write_bytes(b"".join(cls.field(1, cls.feature(*row)) for row in rows))


@pytest.fixture(scope="session")
def delg() -> type[DelgWriter]:
    return DelgWriter
