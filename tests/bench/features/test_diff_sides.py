"""`features diff`: what its two names may be, what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from bench.datasets import Dataset, folder
from bench.features.diff import diff
from bench.features.diff_sides import side_of
from bench.features.diff_stored import StoredSet
from bench.features.sets import FeatureSet, SetName
from bench.features.store import FeatureStore
from bench.report.features_diff import to_json, to_markdown

Cli = Callable[..., Result]
Change = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def write(place: Path, dataset: Dataset, change: Change = lambda image: image) -> Path:
    """An .npz of every image, as another program might write it."""
    for number, image in enumerate(dataset.gallery):
        draw = np.random.default_rng(number)
        (place / image).parent.mkdir(parents=True, exist_ok=True)
        made = {
            "keypoints": draw.uniform(0, 1, (30, 2)) * [159, 119],
            "descriptors": draw.normal(size=(30, 8)),
            "scores": np.linspace(1, 0, 30),
            "image_size": np.array([160, 120]),
            "global_descriptor": draw.normal(size=6),
        }
        np.savez(place / f"{image}.npz", **change(made))  # type: ignore[arg-type]
    return place


def swapped(image: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**image, "keypoints": image["keypoints"][:, ::-1]}


@pytest.fixture
def here(instances: Path, tmp_path: Path) -> tuple[str, ...]:
    return ("-d", f"folder:{instances}", "--cache-dir", str(tmp_path / "cache"))


@pytest.fixture
def imported(cli: Cli, instances: Path, here: tuple[str, ...], tmp_path: Path) -> Path:
    """The right features in the cache, and those with x and y swapped in the folder `mine`."""
    dataset = folder.load(instances)
    mine = tmp_path / "mine"
    assert cli("features", "import", "arrays", str(write(tmp_path / "right", dataset)), *here).exit_code == 0
    wrong = write(tmp_path / "wrong", dataset, swapped)
    done = cli("features", "import", "arrays", str(wrong), *here, "--into", str(mine))
    assert done.exit_code == 0
    assert f"now: python cli.py features diff arrays {mine} --dataset folder:{instances}" in done.output
    return mine


def test_two_imports_of_one_kind_are_compared_and_the_first_is_kept(
    cli: Cli, here: tuple[str, ...], imported: Path
) -> None:
    done = cli("features", "diff", "arrays", str(imported), *here)
    assert done.exit_code == 0
    assert f"A: arrays, B: {imported}, of folder:" in done.output.replace("\n", " ").replace("  ", " ")
    assert "Verdict: x and y swapped." in done.output
    assert "9 of 9 in both" in done.output and "keypoints at one place" in done.output
    assert "they were normalised" in done.output  # what the imports said is repeated
    again = cli("features", "diff", "arrays", "arrays", *here)
    assert again.exit_code == 0 and "Verdict: same." in again.output


def test_it_is_printed_in_every_format_with_the_same_verdict(cli: Cli, here: tuple[str, ...], imported: Path) -> None:
    markdown = cli("features", "diff", "arrays", str(imported), *here, "--format", "md").stdout
    assert "**Verdict: x and y swapped.**" in markdown and "\n- x and y swapped: 100 % of" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables if "keypoints" in line}) == 1
    found = json.loads(cli("features", "diff", "arrays", str(imported), *here, "--format", "json").stdout)
    assert found["verdict"] == "x and y swapped" and not found["same"]
    assert found["numbers"]["local"]["whole"]["swapped"] is True
    assert found["numbers"]["a"]["counts"]["median"] == 30 and found["numbers"]["seed"] == 0
    assert len(found["worst"]) == 0  # after the swap nothing differs


def test_names_with_signs_of_markdown_do_not_break_its_tables(stored: tuple[Dataset, FeatureSet]) -> None:
    dataset, found = stored
    one = StoredSet("a|b", found.local, None)
    made = diff(dataset, one, one)
    assert "a\\|b" in to_markdown(made) and json.loads(to_json(made))["numbers"]["a"]["name"] == "a|b"


def test_what_is_extracted_here_is_extracted_first(cli: Cli, instances: Path, here: tuple[str, ...]) -> None:
    small = ("--max-side", "96", "--keep-descriptors", "50")
    done = cli("features", "diff", "xfeat", "sift+gem-lite0", *here, *small)
    assert done.exit_code == 0
    assert "another extractor (64 against 128 values)" in done.output
    assert "cosines of global descriptors" in done.output
    (place,) = (Path(here[3]) / "features").glob("*-xfeat-*")
    again = cli("features", "diff", "xfeat", str(place), *here, *small)
    assert "Verdict: same." in again.output and "only xfeat has global descriptors" in again.output


def test_a_set_that_is_not_there_is_refused_with_what_to_run(cli: Cli, here: tuple[str, ...], tmp_path: Path) -> None:
    done = cli("features", "diff", "hloc", "arrays", *here)
    assert done.exit_code == 1 and "python cli.py features import hloc PLACE" in done.output
    done = cli("features", "diff", "xfaet", "arrays", *here)
    assert done.exit_code == 1 and "did you mean 'xfeat'" in done.output
    done = cli("features", "diff", "arrays", str(tmp_path / "nowhere"), *here)
    assert done.exit_code == 1 and f"{tmp_path / 'nowhere'}: no such folder" in done.output and "hint" in done.output
    (tmp_path / "empty" / "shards").mkdir(parents=True)
    done = cli("features", "diff", str(tmp_path / "empty"), str(tmp_path / "empty"), *here)
    assert done.exit_code == 1 and "it holds no image" in done.output


def test_a_store_of_another_data_set_is_refused(
    cli: Cli, here: tuple[str, ...], imported: Path, buildings: Path
) -> None:
    done = cli("features", "diff", str(imported), str(imported), "-d", f"folder:{buildings}", *here[2:])
    assert done.exit_code == 1
    assert f"{imported}: none of the 14 images of folder:{buildings} is in {imported}" in done.output
    assert "both sets must be of the data set that --dataset names" in done.output


def test_an_import_takes_the_place_of_nothing_but_an_import(
    cli: Cli, here: tuple[str, ...], imported: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    into = ("--into", str(tmp_path / "photos"))
    done = cli("features", "import", "arrays", str(tmp_path / "right"), *here, *into)
    assert done.exit_code == 1 and "it holds something else than features that were imported" in done.output
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    again = cli("features", "import", "arrays", str(tmp_path / "right"), *here, "--into", str(imported))
    assert again.exit_code == 0 and "changed since" in again.output
    assert "Verdict: same." in cli("features", "diff", "arrays", str(imported), *here).output
    listing = cli("features", "import", "delg", str(tmp_path), "--list", str(tmp_path / "l"), *into)
    assert listing.exit_code == 2 and "--into goes with --dataset" in listing.output


def test_a_path_is_a_folder_unless_it_begins_with_the_name_of_a_set(tmp_path: Path, instances: Path) -> None:
    (tmp_path / "shards").mkdir()
    assert side_of(str(tmp_path)) == tmp_path
    named = side_of("xfeat+gem-lite0")
    assert isinstance(named, SetName) and named.name == "xfeat+gem-lite0"
    assert FeatureStore(tmp_path).identity is None
