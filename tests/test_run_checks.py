"""What a run refuses and what it says under its table: no positives, the query itself, unreadable queries."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from bench.features.shards import write_shard

SMALL = ("--max-side", "160", "--keep-descriptors", "150")
Cli = Callable[..., Result]


@pytest.fixture
def see(cli: Cli) -> Callable[..., Result]:
    """`see(folder, "mnn", …)`: the command line's `run` on a folder."""
    return lambda path, methods="mnn,identity", *more: cli("run", "-d", f"folder:{path}", "-m", methods, *SMALL, *more)


@pytest.fixture
def truth(tmp_path: Path, view: Callable) -> Callable[..., Path]:
    """`truth(queries, …)`: two scenes with two gallery views each and a query each, and these entries of gnd.json."""

    def make(queries: list[dict], gallery: tuple[str, ...] = ("a0", "a1", "b0", "b1")) -> Path:
        root = tmp_path / "set"
        for name in (*(f"gallery/{image}" for image in gallery), *(f"queries/{entry['query']}" for entry in queries)):
            scene, number = (0 if "a" in Path(name).stem else 1), int(Path(name).stem[1:])
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(view(scene, number + 2 * name.startswith("queries"))).save(root / f"{name}.png")
        (root / "gnd.json").write_text(json.dumps({"gallery": list(gallery), "queries": queries}))
        return root

    return make


def said(result: Result) -> str:
    return " ".join(result.output.split())


# --- queries without positives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("grades", [{}, {"junk": ["a0"]}, {"easy": [], "hard": []}])
def test_no_query_with_a_positive_is_an_error_before_anything_is_extracted(
    see: Cli, truth: Callable, grades: dict
) -> None:
    result = see(truth([{"query": "a5", **grades}, {"query": "b5", **grades}]))
    assert result.exit_code == 1 and "none of its 2 queries has a positive" in result.output
    assert "extracting" not in result.output and "nan" not in result.output


def test_queries_without_positives_are_counted_and_named_once_for_all_their_difficulties(
    see: Cli, truth: Callable
) -> None:
    result = see(truth([{"query": "a5", "easy": ["a0"]}, {"query": "b5", "junk": ["b0"]}]))
    assert result.exit_code == 0
    assert "Without a positive at Easy and Medium, and left out of the means there: 1 of 2 queries (b5)." in said(
        result
    )
    assert "No query has a positive at Hard: there are no values." in said(result)


def test_a_query_that_is_its_own_only_positive_has_none(see: Cli, truth: Callable) -> None:
    root = truth([{"query": "a0", "easy": ["a0"]}, {"query": "b1", "easy": ["b1"]}])
    for name in ("a0", "b1"):
        shutil.copy(root / "gallery" / f"{name}.png", root / "queries" / f"{name}.png")
    result = see(root)
    assert result.exit_code == 1 and "has a positive besides itself" in result.output


# --- the query itself ---------------------------------------------------------------------------------------------


def test_a_gallery_image_that_only_has_the_id_of_a_query_is_its_candidate(see: Cli, truth: Callable) -> None:
    """The folders number their files alike: 0 of the queries and 0 of the gallery are two photographs."""
    root = truth([{"query": "a0", "easy": ["a0", "a1"]}, {"query": "b0", "easy": ["b0", "b1"]}])
    result = see(root, "mnn,oracle,identity")
    assert result.exit_code == 0 and "top-4" in result.output  # four possible candidates: none is the query
    assert "nan" not in result.output and "left out of the means" not in said(result)
    oracle = next(line for line in result.output.splitlines() if line.split()[:1] == ["oracle*"])
    assert oracle.split()[2] == "100.0"  # behind its name and what it reads


def test_the_same_bytes_under_the_same_id_are_the_query_itself(see: Cli, truth: Callable) -> None:
    root = truth([{"query": "a0", "easy": ["a0", "a1"]}, {"query": "b0", "easy": ["b1"]}])
    shutil.copy(root / "gallery" / "a0.png", root / "queries" / "a0.png")
    result = see(root)
    assert result.exit_code == 0 and "top-3" in result.output and "same bytes" not in result.output


def test_the_same_bytes_under_another_id_stay_a_candidate_and_are_named(see: Cli, truth: Callable) -> None:
    root = truth([{"query": "a5", "easy": ["a0", "a1"]}, {"query": "b5", "easy": ["b1"]}])
    shutil.copy(root / "gallery" / "a0.png", root / "queries" / "a5.png")
    result = see(root)
    assert result.exit_code == 0 and "top-4" in result.output
    assert (
        "1 of 2 queries have the same bytes as a gallery image of another id, which stays their candidate: a5 = a0."
        in said(result)
    )


# --- other features, another run ----------------------------------------------------------------------------------


def test_other_features_on_one_imported_list_are_another_run_and_another_row_of_one_table(
    see: Cli, cli: Cli, truth: Callable, tmp_path: Path
) -> None:
    root = truth([{"query": "a5", "easy": ["a0", "a1"]}, {"query": "b5", "easy": ["b1"]}])
    lists = {"a5": ("b0", "a0", "a1", "b1"), "b5": ("a0", "b1", "b0", "a1")}
    lines = [f"{q} Q0 {g} {rank} {9 - rank} x\n" for q, images in lists.items() for rank, g in enumerate(images)]
    (tmp_path / "theirs.run").write_text("".join(lines))
    seals, folders = set(), set()
    for descriptors in ("150", "20"):
        result = see(root, "mnn", "--shortlist", str(tmp_path / "theirs.run"), "--keep-descriptors", descriptors)
        assert result.exit_code == 0 and "already finished" not in result.output
        seals.add(re.findall(r"seal (\w+)", result.output)[0])
        folders.add(re.findall(r"run: (.*)", result.output)[0])
    assert len(seals) == 1 and len(folders) == 2
    (table,) = cli("report", "--format", "json").output.splitlines()
    rows = json.loads(table)["rows"]
    names, used = ({row[what] for row in rows} for what in ("method", "desc max"))
    assert len(rows) == len(names) == 2 and all(re.fullmatch(r"mnn \[features \w{8}\]", name) for name in names)
    assert min(used) == 20 < max(used)


# --- a table from nothing -----------------------------------------------------------------------------------------


def test_one_candidate_a_list_is_said_to_leave_nothing_to_change(see: Cli, truth: Callable) -> None:
    result = see(truth([{"query": "a5", "easy": ["a0"]}], gallery=("a0",)))
    assert result.exit_code == 0 and "Every list has one candidate" in said(result)


def test_a_first_stage_at_the_ceiling_is_said_to_leave_nothing_to_gain(see: Cli, truth: Callable) -> None:
    result = see(truth([{"query": "a5", "easy": ["a0", "a1"]}], gallery=("a0", "a1")))
    assert result.exit_code == 0 and "already is at the ceiling" in said(result)


def test_equal_similarities_and_equal_scores_are_said(see: Cli, truth: Callable) -> None:
    root = truth([{"query": "a5", "easy": ["a1"]}, {"query": "b5", "easy": ["b1"]}])
    for image in root.rglob("*.png"):
        Image.fromarray(np.full((120, 160, 3), 90, np.uint8)).save(image)
    result = see(root, "mnn,identity,constant")
    assert result.exit_code == 0
    assert "The first stage gave all candidates of 2 of 2 lists the same similarity" in said(result)
    assert "mnn gave all candidates of every query the same score" in said(result)
    assert "constant gave" not in said(result)


def test_a_report_says_what_the_run_said(see: Cli, cli: Cli, truth: Callable) -> None:
    root = truth([{"query": "a5", "easy": ["a0", "a1"]}, {"query": "b5", "easy": ["b1"]}])
    shutil.copy(root / "gallery" / "a0.png", root / "queries" / "a5.png")
    assert see(root).exit_code == 0
    for form in ("terminal", "md", "json", "latex"):
        assert "same bytes as a gallery image" in said(cli("report", "--format", form)), form


# --- unreadable queries -------------------------------------------------------------------------------------------


def broken(root: Path) -> Path:
    """Three of six images of an instance folder spoilt, each in its own way."""
    (root / "object0" / "view0.png").write_bytes(b"")
    (root / "object0" / "view1.png").write_bytes(b"<html>404</html>")
    (root / "object1" / "view2.png").write_bytes((root / "object1" / "view2.png").read_bytes()[:-200])
    return root


def test_all_unreadable_queries_are_named_at_once(see: Cli, write_instances: Callable, tmp_path: Path) -> None:
    root = broken(write_instances(tmp_path / "set", 2, 3))
    for _ in range(2):  # the second time from the store
        result = see(root)
        assert result.exit_code == 1 and "3 query images cannot be read" in result.output
        assert all(name in result.output for name in ("object0/view0.png", "object0/view1.png", "object1/view2.png"))
        assert "--skip-unreadable" in result.output


def test_unreadable_queries_can_be_left_out_and_the_table_says_so(
    see: Cli, cli: Cli, write_instances: Callable, tmp_path: Path
) -> None:
    root = broken(write_instances(tmp_path / "set", 2, 3))
    result = see(root, "mnn,identity", "--skip-unreadable")
    assert result.exit_code == 0 and "3 queries" in result.output
    for output in (said(result), said(cli("report"))):
        assert (
            "3 of 6 queries cannot be read and are left out (--skip-unreadable): object0/view0, object0/view1, "
            "object1/view2." in output
        )


def test_a_mended_image_is_read_again(see: Cli, write_instances: Callable, tmp_path: Path, view: Callable) -> None:
    root = write_instances(tmp_path / "set", 2, 3)
    (root / "object0" / "view0.png").write_bytes(b"")
    assert see(root).exit_code == 1
    Image.fromarray(view(0, 0)).save(root / "object0" / "view0.png")
    result = see(root)
    assert result.exit_code == 0 and "cannot be read" not in result.output


def test_gallery_images_are_not_extracted_for_queries_that_cannot_be_read(
    see: Cli, truth: Callable, cache: Path
) -> None:
    """An unreadable query is said after the queries, not after the hours that a large gallery takes."""
    root = truth([{"query": "a5", "easy": ["a0"]}])
    for number in range(200):
        data = (root / "gallery" / "b0.png").read_bytes() + b"%d" % number  # of contents that no store has
        (root / "gallery" / f"c{number}.png").write_bytes(data)
    content = json.loads((root / "gnd.json").read_text())
    (root / "gnd.json").write_text(json.dumps(content | {"gallery": [f"c{n}" for n in range(200)] + ["a0"]}))
    (root / "queries" / "a5.png").write_bytes(b"")
    before = set((cache / "features").iterdir()) if (cache / "features").is_dir() else set()
    assert see(root).exit_code == 1
    (made,) = set((cache / "features").iterdir()) - before
    images = [len(json.loads(path.read_text())["images"]) for path in made.rglob("shard.json")]
    assert sum(images) < 200


def test_no_readable_query_is_an_error(see: Cli, truth: Callable) -> None:
    root = truth([{"query": "a5", "easy": ["a0"]}])
    (root / "queries" / "a5.png").write_bytes(b"")
    result = see(root, "mnn", "--skip-unreadable")
    assert result.exit_code == 1 and "no query image can be read" in result.output


# --- a full disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_room_for_xfeat(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, *arguments: object) -> None:
        if "xfeat" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_shard(folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("bench.features.fill.write_shard", write)


def test_a_full_disk_ends_the_command_instead_of_leaving_out_rows(
    no_room_for_xfeat: None, cli: Cli, instances: Path, tmp_path: Path
) -> None:
    """Else a run without those rows would be begun, which nobody asked for."""
    where = ("-d", f"folder:{instances}", "--cache-dir", str(tmp_path / "cache"), *SMALL)
    runs = ("--runs", str(tmp_path / "runs"))
    result = cli("run", "-m", "identity,mnn", "--first-stage", "gem-lite0", *where, *runs)
    assert result.exit_code == 1 and "No space left on device" in said(result) and "make room" in said(result)
    assert not list((tmp_path / "runs").glob("*/*"))
    compared = cli("first-stages", "--first-stage", "gem-lite0", "--first-stage", "asmk@xfeat", *where)
    assert compared.exit_code == 1 and "No space left on device" in said(compared) and "mAP" not in said(compared)
