"""What README, pages and cards tell a user to type is typed here, page by page, on data small enough for a test.

The folder that it is typed in holds small stand-ins under the names that the pages use: PATH, PHOTOS, FEATURES.h5, …
Options are added that make images, lists and trainings small; nothing else of a command is changed.
"""

from __future__ import annotations

import json
import pickle
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
import torch
from click.testing import CliRunner, Result

from bench.datasets import Dataset, cached, demo, folder, revisited
from bench.datasets.demo.generate import DemoSpec
from bench.features.sets import IMPORTS, ExtractOptions, part_folder
from bench.places import Places
from cli import main
from methods.rrt.model import RRT, load_checkpoint, save_checkpoint
from tests.methods.lightglue.test_lightglue import released as released_lightglue
from tests.test_readme import PAGES, REPOSITORY, commands, parsed
from third_party.superpoint_weights import NAMES

pytestmark = pytest.mark.timeout(900)  # a page is many commands
LISTS = ("--max-side", "112", "--keep-descriptors", "500", "--threads", "1")
TRUNK = ("--trunk", "efficientnet-lite0", "--epochs", "1", "--batch", "4", "--held-out", "0.34", "--threads", "1")
SMALL_RRT = ("--triplets", "2", "--neighbours", "20", "--least-positives", "2", "--held-out", "0.25", "--checked", "20")
# a command begins so -> what makes it small; of an option given twice, the last one holds
SIZES: Mapping[str, Sequence[str]] = {
    "run": (*LISTS, "--top-k", "3"),
    "sweep": (*LISTS, "--top-k", "3"),
    "first-stages": LISTS,
    "features diff": ("--max-side", "112", "--keep-descriptors", "500"),
    "train asmk": ("--words", "16", "--iterations", "2", "--descriptors", "50", "--max-side", "160"),
    "train rrt-sop": (*TRUNK, "--depth", "1", "--feedforward", "16", "--checked", "2"),
    **{f"train {m} --recipe gld": (*SMALL_RRT, "--epochs", "0.05", "--threads", "1") for m in ("rrt", "ames", "elvis")},
}
MANY = re.compile(r"^(--vary|--descriptors)$")  # options whose lists of values are cut
KEPT = 2  # values of such a list


@dataclass(frozen=True)
class Instead:
    """Why a command is not typed as it stands, and what is typed instead; None: it is only parsed."""

    reason: str
    typed: str | None = None


COMPARED = (
    "--photos PHOTOS --limit 400 --generated 1,3 --checked-on 2 --fewest 25 --most 120 --batch 128 --pairs 512000 "
    "--warmup 200 --decay 0.6 --check-every 500"
)
NOT_TYPED: Mapping[str, Instead] = {
    **{
        command: Instead("fetches weights of hundreds of megabytes from a hub")
        for command in (
            "run -d demo --method identity,aqe --features hf:facebook/dinov2-base:size=518",
            "run -d demo --method identity,mnn --features "
            "hf-patches:facebook/dinov2-base:rank=cls+hf:facebook/dinov2-base",
            "run -d demo --method identity --features timm:vit_small_patch16_dinov3.lvd1689m:pooling=cls-gem",
            "run -d demo --method identity --features hub:gmberton/MegaLoc --trust-code gmberton/MegaLoc",
        )
    },
    "run -d folder:PATH --first-stage gem-lite0 -m identity,mnn --search ivfpq:probes=64": Instead(
        "trains on a gallery of 9,984 images or more"
    ),
    "export --to wandb --project NAME": Instead("sends what it says to a tracker", "export --help"),
    "datasets download roxford": Instead("asks servers for gigabytes", "datasets download roxford --dry-run"),
    **{
        f"train {method} --recipe views --photos PHOTOS --out WEIGHTS.safetensors": Instead(
            "renders and extracts thousands of views", f"train {method} --recipe views --help"
        )
        for method in ("rrt", "ames", "elvis")
    },
    **{
        f"train rrt --recipe views --photos PHOTOS --seed {seed} --out s{seed}.safetensors": Instead(
            "renders and extracts thousands of views"
        )
        for seed in (0, 1)
    },
    **{
        f"train {method} {COMPARED} {own} --out {out}.safetensors": Instead(
            "is for a GPU: thousands of steps of 128 pairs"
        )
        for method, own, seed in (
            ("rrt", "--lr 2e-3 --hide-global 0.4 --precision bf16", 2),
            ("ames", "--lr 5e-4 --precision bf16", 1),
            ("elvis", "--lr 1e-3", 0),
        )
        for own, out in (
            (f"{own} --seed 0", f"{method}-s0"),
            (f"{own} --seed {seed}{' --half true' if method == 'ames' else ''} --device cuda", "weights"),
        )
    },
}
# what else than 0 a command may end with, having done what it says
STATUS: Mapping[str, Sequence[int]] = {
    "check --baseline results/baseline/demo.json --strict": (0, 1),  # a busy machine cannot tell
    "check --base ../runs/base-1 --head ../runs/head-1 --summary summary.md": (0, 1),  # nor can it compare times
    "datasets verify roxford": (1,),  # the small set was not downloaded
    "doctor": (0, 1),  # of the machine that it is typed on
}


def shown(page: Path) -> list[str]:
    return [shlex.join(arguments) for arguments in commands(page.read_text())]


WITH_COMMANDS = [page for page in PAGES if shown(page)]


def small(arguments: Sequence[str]) -> list[str]:
    """The command with what makes it small."""
    cut = [
        value if not MANY.match(option) else ",".join(value.split(",")[:KEPT])
        for option, value in zip(["", *arguments], arguments, strict=False)
    ]
    if "--help" in arguments:
        return cut
    text = " ".join(arguments)
    sizes = next((more for start, more in SIZES.items() if f"{text} ".startswith(f"{start} ")), ())
    return [*cut, *sizes]


# the stand-ins


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def of_image(draw: np.random.Generator, size: int, whole: int) -> dict[str, np.ndarray]:
    """Features as other programs have them: `size` values a local descriptor, `whole` the global one."""
    return {
        "keypoints": draw.uniform(5, 100, (12, 2)).astype(np.float32),
        "descriptors": unit(np.abs(draw.normal(size=(12, size)))),
        "scores": draw.permutation(12).astype(np.float32) + 1,
        "image_size": np.array([160, 120]),
        "global_descriptor": unit(draw.normal(size=whole)),
    }


def write_demo(place: Path, write_buildings: Callable[[Path], Path]) -> None:
    """The small buildings, with a query and an image under the names that `show` is shown with."""
    write_buildings(place)
    truth = (place / "gnd.json").read_text()
    for name, image in (("queries/query0", "QUERY"), ("gallery/landmark0_0", "CANDIDATE")):
        old = place / f"{name}.png"
        old.rename(old.with_name(f"{image}.png"))
        truth = truth.replace(f'"{old.stem}"', f'"{image}"')
    (place / "gnd.json").write_text(truth)


def write_roxford(data: Path, buildings: Path) -> None:
    """The small buildings in the layout of Revisited Oxford."""
    truth = json.loads((buildings / "gnd.json").read_text())
    (data / "roxford5k" / "jpg").mkdir(parents=True)
    places = {name: i for i, name in enumerate(truth["gallery"])}
    content = {
        "imlist": truth["gallery"],
        "qimlist": [query["query"] for query in truth["queries"]],
        "gnd": [
            {"bbx": query["box"], **{grade: [places[i] for i in query[grade]] for grade in ("easy", "hard", "junk")}}
            for query in truth["queries"]
        ],
    }
    (data / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, 3))
    for image in [*(buildings / "gallery").iterdir(), *(buildings / "queries").iterdir()]:
        shutil.copy(image, data / "roxford5k" / "jpg" / f"{image.stem}.jpg")


def write_hloc(local: Path, whole: Path, names: Sequence[str]) -> None:
    draw = np.random.default_rng(0)
    with h5py.File(local, "w") as file, h5py.File(whole, "w") as globals_:
        for name in names:
            found = of_image(draw, 128, 16)
            for part in ("keypoints", "scores", "image_size"):
                file[f"{name}.jpg/{part}"] = found[part]
            file[f"{name}.jpg/descriptors"] = found["descriptors"].T
            globals_[f"{name}.jpg/global_descriptor"] = found["global_descriptor"]


def camera_of(width: int, height: int) -> pycolmap.Camera:
    return pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId.SIMPLE_PINHOLE, 100.0, width, height)


def write_colmap(path: Path, names: Sequence[str]) -> None:
    draw = np.random.default_rng(1)
    database = pycolmap.Database.open(str(path))
    camera = database.write_camera(camera_of(160, 120))
    for name in names:
        found = of_image(draw, 128, 16)
        number = database.write_image(pycolmap.Image(name=f"{name}.png", camera_id=camera))
        database.write_keypoints(number, found["keypoints"])
        rows = np.rint(found["descriptors"] * 255).astype(np.uint8)
        kind = pycolmap.FeatureExtractorType.SIFT
        database.write_descriptors(number, pycolmap.FeatureDescriptors(type=kind, data=rows))
    database.close()


def write_arrays(place: Path, names: Sequence[str]) -> None:
    draw = np.random.default_rng(2)
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(place / f"{name}.npz", **of_image(draw, 256, 16))


def write_matrices(log: Path, city: Path) -> None:
    """Global descriptors of a place-recognition tool, a row a file."""
    log.mkdir(parents=True)
    draw = np.random.default_rng(3)
    for part in ("database", "queries"):
        files = [path for path in (city / "images" / "test" / part).rglob("*") if path.is_file()]
        np.save(log / f"{part}_descriptors.npy", unit(draw.normal(size=(len(files), 16))))


def write_city(place: Path, photographs: Sequence[Path]) -> None:
    """Database and queries of a street, ten metres from one to the next; and a list of other places by degrees."""
    for part in ("database", "queries", "queries_night"):
        (place / "images" / "test" / part).mkdir(parents=True)
        for number, photograph in enumerate(photographs):
            name = f"@{584844 + 10 * number}@4477316@17@T@{part}@.png"
            shutil.copy(photograph, place / "images" / "test" / part / name)
    roles = ("database", "database", "query")
    lines = [
        f"{photograph},{48.8582 + number / 100_000:.6f},2.2945,{roles[number % 3]}"
        for number, photograph in enumerate(photographs)
    ]
    Path("list.csv").write_text("\n".join(["image,latitude,longitude,role", *lines]))


def write_delg(place: Path, roxford: Dataset, delg: type) -> None:
    """Of roxford, and of 24 labels of 6 training images that `train.txt` lists."""
    draw = np.random.default_rng(3)

    def write(stem: Path, label: int) -> None:
        like, count = np.random.default_rng(label), 5
        whole = unit(like.normal(size=2048) + 0.5 * draw.normal(size=2048))
        descriptors = unit(like.normal(size=(count, 128)) + 0.2 * draw.normal(size=(count, 128)))
        scalars = [[9 * n + 5, 7 * n + 5, draw.choice([0.5, 1, 2]), 0, 100 - n] for n in range(count)]
        delg.pair(stem, whole, descriptors, scalars)

    for number, query in enumerate(roxford.queries):
        write(place / "query" / query.id, number)
    for number, image in enumerate(roxford.gallery):
        write(place / "index" / image, number // 4)
    lines = []
    for number in range(24 * 6):
        write(place / f"i{number}", 100 + number // 6)
        lines.append(f"jpg/i{number}.jpg,{number // 6},160,120")
    Path("train.txt").write_text("\n".join(lines))


def write_weights() -> None:
    """RRT's own weights, and random ones of other people's networks in the layouts in which they are released."""
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    torch.manual_seed(0)
    state = {f"module.{name}": tensor for name, tensor in RRT().state_dict().items()}
    torch.save({"state": state, "optim": {"param_groups": []}}, "r50_gldv2.pt")
    theirs = {ours: name for name, ours in NAMES.items()}
    state = {}
    for name, tensor in SuperPointForKeypointDetection(SuperPointConfig()).state_dict().items():
        layer, _, part = name.rpartition(".")
        state[f"{theirs[layer]}.{part}"] = 3 * tensor  # so that scores differ
    torch.save(state, "WEIGHTS")
    shutil.copy(REPOSITORY / "methods" / "rrt" / "weights.safetensors", "WEIGHTS.safetensors")
    shipped = load_checkpoint(Path("WEIGHTS.safetensors"))
    for seed in (0, 1):
        recipe = {**shipped.card["recipe"], "seed": seed}
        save_checkpoint(shipped, Path(f"s{seed}.safetensors"), {**shipped.card, "recipe": recipe})
    for method in ("rrt", "ames", "elvis"):
        shutil.copy(REPOSITORY / "methods" / method / "weights.safetensors", f"{method}-s0.safetensors")
    released_lightglue("superpoint", Path("MATCHER"))


@dataclass(frozen=True)
class Workplace:
    """A folder to type commands in, and where they keep their files."""

    here: Path
    places: Places

    def with_runs(self, runs: Path) -> Workplace:
        """The same with a copy of its runs, so that no page has those of another to report."""
        shutil.copytree(self.places.runs, runs)
        return replace(self, places=replace(self.places, runs=runs))

    def left_out(self) -> set[tuple[str, str]]:
        """Run and row of every row that was asked for and has no scores."""
        read = [(path.parent.name, json.loads(path.read_text())) for path in self.places.runs.glob("*/run.json")]
        return {(run, row) for run, record in read for row in [*record["skipped"], *record.get("failed", ())]}

    def type(self, *arguments: str) -> Result:
        folders = {f"RERANKBENCH_{name.upper()}": str(place) for name, place in vars(self.places).items()}
        with chdir(self.here):
            return CliRunner(env=folders).invoke(main, arguments)


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory,
    instances: Path,
    buildings: Path,
    write_instances: Callable[..., Path],
    write_buildings: Callable[[Path], Path],
    delg: type,
) -> Iterator[Workplace]:
    """With every file that the pages take from elsewhere, and one finished run of the demo."""
    pytest.importorskip("transformers", reason="the extra hf is not installed, which commands of the pages need")
    here = tmp_path_factory.mktemp("typed") / "repository"  # some commands write beside it
    here.mkdir()
    place = Workplace(here, Places(here / "cache", here / "data", here / "results" / "runs"))
    with chdir(here):
        for name in ("PATH", "PHOTOS", "DVD", "TEST"):
            Path(name).symlink_to(instances)
        for name in ("OXFORD", "COPY"):
            Path(name).symlink_to(buildings)
        write_instances(Path("TRAIN"), instances=4, views=2)
        Path("DIR").mkdir()
        cached.make(demo._place(place.places.cache, DemoSpec()), lambda made: write_demo(made, write_buildings))
        write_roxford(place.places.data, buildings)
        roxford = revisited.load("roxford", place.places.data)
        objects = list(folder.load(instances).gallery)
        photographs = [*roxford.gallery, *(query.id for query in roxford.queries)]
        write_hloc(Path("FEATURES.h5"), Path("GLOBALS.h5"), photographs)
        write_colmap(Path("DATABASE"), objects)
        write_arrays(Path("FOLDER"), objects)
        write_city(Path("CITY"), sorted(Path("TRAIN").rglob("*.png")))
        write_matrices(Path("logs", "RUN"), Path("CITY"))
        made = demo.load(place.places.cache)
        write_arrays(Path("MINE"), [*made.gallery, *(query.id for query in made.queries)])
        write_delg(Path("DIR"), roxford, delg)
        listed = part_folder(f"list:{Path('train.txt').resolve()}", IMPORTS.get("delg"), ExtractOptions(), place.places)
        Path("STORE").symlink_to(listed)  # there once it is imported
        lines = [f"{query.id} Q0 {image} 1 1 theirs" for query in roxford.queries for image in roxford.gallery]
        Path("theirs.run").write_text("\n".join(lines))
        write_weights()
    rows = "identity,rrt,ransac,lightglue"
    baseline = str(here / "results" / "baseline" / "demo.json")
    for typed in (
        small(["run", "-d", "demo", "-m", rows]),
        ["check", "--write", "--baseline", baseline],
        [*small(["run", "-d", "demo", "-m", "identity,mnn"]), "-k", "2", "--runs", "elsewhere"],
        ["export", "--format", "bundle", "--out", "DIR", "--runs", "elsewhere"],
    ):
        done = place.type(*typed)
        assert done.exit_code == 0, (typed, done.output)
    (bundle,) = (here / "DIR").glob("*.rerankbench.zip")
    shutil.copy(here / "results" / "baseline" / "demo.json", here / "FILE.json")
    for side in ("base", "head"):
        shutil.copytree(place.places.runs, here / "RUNS" / side)
    shutil.copy(bundle, here / "FILE")
    bundle.rename(here / "DIR" / "RUN.rerankbench.zip")
    yield place


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_the_commands_of_a_page_can_be_typed(page: Path, workplace: Workplace, tmp_path: Path) -> None:
    place = workplace.with_runs(tmp_path / "runs")
    for command in shown(page):
        instead = NOT_TYPED.get(command)
        typed = command if instead is None else instead.typed
        if typed is None:
            parsed(shlex.split(command))
            continue
        known = place.left_out()
        done = place.type(*small(shlex.split(typed)))
        assert done.exit_code in STATUS.get(command, (0,)), f"{typed}\n{done.output}"
        assert done.exception is None or isinstance(done.exception, SystemExit), f"{typed}\n{done.output}"
        assert "Error:" not in done.output, f"{typed}\n{done.output}"
        if not re.search(r"(-m|--method) all\b", typed):  # which names what cannot run here
            assert place.left_out() == known, typed


def test_what_is_said_of_commands_is_said_of_commands_that_are_shown() -> None:
    everything = {command for page in PAGES for command in shown(page)}
    assert not (NOT_TYPED.keys() | STATUS.keys()) - everything
    for start in SIZES:
        assert any(f"{command} ".startswith(f"{start} ") for command in everything), start
    assert all(instead.reason for instead in NOT_TYPED.values())


def test_commands_are_made_small_without_losing_what_they_say() -> None:
    typed = "sweep -d demo -m mnn --vary mnn.descriptors=1,2,3 --vary mnn.threshold=0.1,0.2,0.3 --out DIR"
    assert small(shlex.split(typed)) == [
        *shlex.split("sweep -d demo -m mnn --vary mnn.descriptors=1,2 --vary mnn.threshold=0.1,0.2 --out DIR"),
        *SIZES["sweep"],
    ]
    assert small(["train", "rrt", "--recipe", "views", "--help"]) == ["train", "rrt", "--recipe", "views", "--help"]
    assert small(["report"]) == ["report"]


def others(pattern: str) -> set[str]:
    """What other programs are told to do on the pages, in blocks and in running text."""
    return {found for page in PAGES for found in re.findall(pattern, page.read_text())}


def test_the_targets_of_make_that_are_shown_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    named = others(r"(?:^|`)make ([a-z-]+)")
    assert named and named <= targets


def test_the_modules_that_are_shown_exist() -> None:
    named = others(r"python -m ([\w.]+)")
    assert named and all(find_spec(module) for module in named)


def test_the_extras_that_are_shown_exist() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for text in others(r"pip install -e '\.\[([\w,]+)\]'") for extra in text.split(",")}
    assert named and named <= extras.keys()
