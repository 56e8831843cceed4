"""Data sets are known by what files declare; a broken one is visible and stops nothing else."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import Result

import bench.datasets
from bench import doors
from bench.datasets import catalogue
from bench.datasets.dataset import Dataset, Place, Query, dataset
from bench.datasets.official.sources import Source
from bench.errors import UserError
from bench.places import Places

REPOSITORY = Path(bench.__file__).parent.parent
PAGE = REPOSITORY / "docs" / "data-sets.md"
OFFICIAL = ["gldv2", "gldv2-private", "gldv2-public", "roxford", "roxford+1m", "rparis", "rparis+1m", "sop"]
SHIPPED = ["demo", "folder", *OFFICIAL, "views", "vpr", "gpr1200", "ilias", "instre", "met"]
FILE = """
from pathlib import Path
from bench.datasets.dataset import Dataset, File, Place, Query, Source, dataset
{before}

def read(place: Place) -> Dataset:
    image = place.data / "{name}.png"
    return Dataset(place.name, "instance", "v1", (Query("q", image),), {{"a": image}}, {{"q": {{"a": "easy"}}}})

SOURCE = Source("{name}-files", (File("{name}/f", ("http://localhost/f",)),), "v1", "MIT")
{name} = dataset("{name}", summary="what {name} is", licence="MIT", needs="{name}/", source=SOURCE)(read)
{name}_part = dataset("{name}-part", summary="a part of it", licence="MIT", needs="as {name}", takes="PART")(read)
"""


@pytest.fixture
def add_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`add_file(name, text)` puts a real file where data sets are looked for, until the test ends."""
    place = tmp_path / "more_datasets"
    place.mkdir()
    monkeypatch.setattr(bench.datasets, "__path__", [*bench.datasets.__path__, str(place)])
    known = set(sys.modules)

    def add(name: str, text: str = FILE, before: str = "") -> None:
        (place / f"{name}.py").write_text(text.format(name=name, before=before))
        importlib.invalidate_caches()

    yield add
    for module in set(sys.modules) - known:
        if module.startswith("bench.datasets."):
            del sys.modules[module]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`install(("name", "module:attribute"), …)`: entry points of installed packages, as the catalogue sees them."""
    place = tmp_path / "site"
    place.mkdir()
    for name in ("plugged", "other"):
        (place / f"{name}.py").write_text(FILE.format(name=name, before=""))
    (place / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(place))
    for name in ("plugged", "other", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def go(*points: tuple[str, str]) -> None:
        def found(group: str) -> list[EntryPoint]:
            wanted = group == catalogue.DATASETS.group
            return [EntryPoint(name, value, group) for name, value in points] if wanted else []

        monkeypatch.setattr(doors, "installed", found)

    return go


def test_what_is_shipped_is_known_by_name() -> None:
    assert set(SHIPPED) <= set(catalogue.names())
    for name in SHIPPED:
        loader = catalogue.get(name)
        assert loader.name == name and loader.summary and loader.licence and loader.needs
    assert {"demo", "folder:PATH", "views:PATH"} <= set(catalogue.usages())


def test_the_page_on_data_sets_names_them_all_and_its_source_is_one() -> None:
    page = PAGE.read_text()
    assert not [usage for usage in catalogue.usages() if f"`{usage}`" not in page]
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "SOURCE =" in block)
    exec(example, values := {})
    assert isinstance(values["SOURCE"], Source) and values["SOURCE"].files[1].unpack


def test_nothing_of_the_network_is_loaded_to_read_a_local_data_set(instances: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from bench.datasets import catalogue; from bench.places import Places;"
        f"catalogue.sources(); catalogue.load('folder:{instances}', Places(*[Path('nowhere')] * 3));"
        "assert not {'httpx', 'torch', 'bench.datasets.official.download'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


def test_a_file_is_all_that_a_data_set_needs(
    add_file: Callable[..., None], cli: Callable[..., Result], tmp_path: Path
) -> None:
    add_file("added", before="from bench.datasets.sop import read as another")
    assert {"added", "added-part", "sop"} <= set(catalogue.names()) and catalogue.get("sop").sources
    places = Places(tmp_path, tmp_path, tmp_path)
    assert catalogue.load("added", places).name == "added"
    assert catalogue.load(f"added-part:{tmp_path}", places).name == f"added-part:{tmp_path}"
    listed = " ".join(cli("datasets").output.split())
    assert "what added is" in listed and "added-part:PART" in listed
    assert "added-files" in cli("datasets", "download", "--help").output
    for name in ("added", "added-files"):
        assert "http://localhost/f" in cli("datasets", "download", name, "--dry-run").output
    assert "known: added, added-part:PART, demo" in cli("run", "-m", "identity", "-d", "nothing").output


def test_every_source_of_a_data_set_is_verified(
    add_file: Callable[..., None], cli: Callable[..., Result], tmp_path: Path
) -> None:
    more = '(SOURCE, Source("more", (File("more/g", ("http://localhost/g",)),), "v1", "MIT"))'
    add_file("added", FILE.replace("source=SOURCE", f"source={more}"))
    for folder in ("added-files", "more"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "data" / "more" / "g").touch()
    sound = cli("datasets", "verify", "more")
    assert sound.exit_code == 0 and "1 files are as they should be" in sound.output
    (tmp_path / "data" / "more" / "g").unlink()
    found = cli("datasets", "verify", "added")
    assert found.exit_code == 1 and "added/f" in found.output and "more/g" in found.output


def test_a_file_that_cannot_be_imported_is_listed_with_its_error_and_stops_nothing_else(
    add_file: Callable[..., None], cli: Callable[..., Result], tmp_path: Path
) -> None:
    add_file("broken_set", "import a_package_that_is_not_there\n")
    listed = " ".join(cli("datasets").output.split())
    assert "broken-set" in listed and "a_package_that_is_not_there" in listed.replace(" ", "")
    assert "folder:PATH" in listed and "broken-set" in catalogue.usages() and "roxford" in catalogue.sources()
    with pytest.raises(UserError, match="data set 'broken-set' cannot be loaded: ModuleNotFoundError") as refusal:
        catalogue.load("broken-set", Places(tmp_path, tmp_path, tmp_path))
    assert "--dataset" in str(refusal.value.hint)


def test_a_name_that_two_files_declare_is_refused_with_both(add_file: Callable[..., None]) -> None:
    add_file("added")
    add_file("again", FILE.replace('"{name}"', '"added"'))
    with pytest.raises(
        UserError, match="'added' is registered by bench/datasets/again and by bench/datasets/added"
    ) as refusal:
        catalogue.get("added")
    assert refusal.value.hint and catalogue.get("added-part") and catalogue.get("again-part")


def test_a_plugin_is_a_data_set_like_any_other(
    install: Callable[..., None], tmp_path: Path, cli: Callable[..., Result]
) -> None:
    install(("plugged", "plugged"), ("plugged-part", "plugged"), ("other", "other:other"), ("odd", "broken:X"))
    places = Places(tmp_path, tmp_path, tmp_path)
    assert catalogue.load("plugged", places).name == "plugged" and catalogue.load("other", places).name == "other"
    assert "plugged-part:PART" in catalogue.usages() and "plugged-files" in catalogue.sources()
    listed = " ".join(cli("datasets").output.split())
    assert "odd" in listed and "cannot be loaded" in listed and "what plugged is" in listed and "roxford" in listed


def test_a_name_that_is_taken_is_refused_with_both_origins(install: Callable[..., None]) -> None:
    install(("sop", "plugged:plugged"), ("plugged", "plugged:plugged"), ("plugged", "other:other"))
    with pytest.raises(UserError, match="'sop' is registered by plugged:plugged and by bench/datasets/sop"):
        catalogue.get("sop")
    with pytest.raises(UserError, match="'plugged' is registered by other:other and by plugged:plugged"):
        catalogue.get("plugged")
    assert catalogue.get("demo")


def test_an_entry_point_gives_the_data_set_of_its_own_name(install: Callable[..., None]) -> None:
    install(("odd", "plugged:plugged"))
    with pytest.raises(UserError, match="expected exactly one data set registered as 'odd', found 0"):
        catalogue.get("odd")


def test_a_path_without_the_kind_of_data_set_is_told_how_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a path, expected the name of a data set") as error:
        catalogue.load(str(tmp_path), Places(tmp_path, tmp_path, tmp_path))
    assert error.value.hint == f"--dataset folder:{tmp_path}"


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("roxfrod", "unknown data set 'roxfrod'", "did you mean 'roxford'"),
        ("foldr:/tmp", "unknown data set 'foldr'", "did you mean 'folder:PATH'"),
        ("folder", "folder: needs a path", "--dataset folder:PATH"),
        ("views:", "views: needs a path", "--dataset views:PATH"),
        ("sop:/tmp", "sop: takes no path, found /tmp", "--dataset sop"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_ones(name: str, says: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        catalogue.load(name, Places(tmp_path, tmp_path, tmp_path))
    assert hint in str(refusal.value.hint)


def test_the_list_says_what_a_data_set_lacks(tmp_path: Path, add_file: Callable[..., None]) -> None:
    places = Places(tmp_path, tmp_path, tmp_path)
    states = {name: catalogue.state(catalogue.get(name), places) for name in SHIPPED}
    assert states["folder"] == "ready" and states["demo"] == states["views"] == "made on first use"
    assert {states[name] for name in OFFICIAL} == {f"not in {tmp_path}"}
    folder = tmp_path / "sop" / "Stanford_Online_Products"
    folder.mkdir(parents=True)
    (folder / "Ebay_test.txt").write_text("image_id class_id super_class_id path\n1 1 1 a/0.JPG\n2 1 1 a/1.JPG\n")
    assert catalogue.state(catalogue.get("sop"), places) == ("2 of 2 photographs missing; imported features need none")
    (folder / "Ebay_test.txt").write_text("image_id")
    assert "expected image_id class_id" in catalogue.state(catalogue.get("sop"), places)
    add_file("failing", FILE.replace("    image =", "    raise KeyError('column')\n    image ="))
    assert "KeyError: 'column'" in catalogue.state(catalogue.get("failing"), places)
    add_file("lost", FILE.replace("    image =", "    (place.data / 'lost.csv').read_text()\n    image ="))
    assert "lost.csv: No such file" in catalogue.state(catalogue.get("lost"), places)


def test_options_follow_a_path_and_those_that_differ_are_part_of_the_name(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Options:
        side: float = 2.0
        split: str = "all"

    def read(place: Place) -> Dataset:
        image = place.data / "a.png"
        return Dataset(place.name, "instance", f"{place.options}", (Query("q", image),), {"a": image}, {})

    said = {"summary": "a set", "licence": "MIT", "needs": "nothing"}
    loader = dataset("tried", **said, takes="PATH", options=Options)(read)

    def named(text: str) -> str:
        return loader(Place(tmp_path, tmp_path, Path(text))).name

    assert named(f"{tmp_path}:side=2:split=all") == named(f"{tmp_path}") == f"tried:{tmp_path}"
    assert named(f"{tmp_path}:split=a/b:side=3") == f"tried:{tmp_path}:side=3:split=a/b"
    assert named(named(f"{tmp_path}:side=0.1").removeprefix("tried:")) == f"tried:{tmp_path}:side=0.1"
    with pytest.raises(UserError, match="unknown option of data set tried 'size'"):
        named(f"{tmp_path}:size=3")
    with pytest.raises(ValueError, match="options follow a path, and it takes none"):
        dataset("tried", **said, options=Options)(read)
