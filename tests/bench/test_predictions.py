"""Lists as VPR-methods-evaluation writes them are read as candidates, and runs are written so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.candidates import imported_shortlist
from bench.datasets import Dataset, Query
from bench.errors import UserError
from bench.predictions import content_of, read_file, read_folder, text_of
from bench.results import Run

ELSEWHERE = "/home/them/pitts/images/test"


def names(folder: str, count: int) -> list[str]:
    return [f"{folder}/@{500_000 + 100 * i}.00@4000000.00@17@T@@.jpg" for i in range(count)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two queries, five images of which two have one base name in two folders."""
    gallery = [*names("database/2019", 2), *names("database/2020", 3)]
    queries = names("queries", 2)
    root = tmp_path / "images"
    return Dataset(
        "vpr:tiny",
        "vpr",
        "v1",
        tuple(Query(query, root / query) for query in queries),
        {image: root / image for image in gallery},
        {queries[0]: {gallery[1]: "easy"}},
    )


def written(folder: Path, lists: Mapping[str, list[str]], root: str = ELSEWHERE) -> Path:
    """A folder of predictions, as the other program writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (query, images) in enumerate(lists.items()):
        blocks = [["Query path:", f"{root}/{query}"], ["Predictions paths:", *(f"{root}/{image}" for image in images)]]
        blocks.append(["Positives paths:", f"{root}/{images[-1]}"])
        (folder / f"{number:03d}.txt").write_text("\n\n".join("\n".join(block) for block in blocks) + "\n")
    return folder


@pytest.fixture
def lists(dataset: Dataset) -> dict[str, list[str]]:
    gallery = list(dataset.gallery)
    orders = ([3, 0, 1], [4, 2, 0])
    return {query.id: [gallery[i] for i in order] for query, order in zip(dataset.queries, orders, strict=True)}


def candidates(dataset: Dataset, folder: Path, k: int = 3) -> list[list[str]]:
    made = imported_shortlist(folder, dataset, "blind", k).shortlist
    return [[made.gallery[i] for i in made.candidates("any", q)] for q in range(len(made.queries))]


@pytest.mark.parametrize("below", ["preds", "logs/preds"])
def test_paths_of_another_machine_are_found_by_their_ends(
    dataset: Dataset, lists: dict[str, list[str]], tmp_path: Path, below: str
) -> None:
    """Base names alone would not tell the two folders apart."""
    written(tmp_path / below, lists)
    (tmp_path / below / "000.jpg").write_bytes(b"the picture beside it")
    assert candidates(dataset, (tmp_path / below).parent if "logs" in below else tmp_path / below) == [*lists.values()]


def test_the_order_of_files_and_their_line_ends_do_not_matter(
    dataset: Dataset, lists: dict[str, list[str]], tmp_path: Path
) -> None:
    here = written(tmp_path / "preds", dict(reversed(lists.items())))
    for file in here.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert candidates(dataset, here) == [*lists.values()]


def test_files_are_read_by_number(dataset: Dataset, lists: dict[str, list[str]], tmp_path: Path) -> None:
    here = written(tmp_path / "preds", lists)
    (here / "000.txt").rename(here / "1000.txt")
    (here / "001.txt").rename(here / "999.txt")
    assert [each.query.rpartition("test/")[2] for each in read_folder(here)] == [*reversed(lists)]


def test_another_image_at_any_place_is_another_seal(
    dataset: Dataset, lists: dict[str, list[str]], tmp_path: Path
) -> None:
    here = written(tmp_path / "preds", lists)
    before = content_of(here)
    assert imported_shortlist(here, dataset, "blind", 2).shortlist.header.first_stage_content == before
    file = here / "001.txt"
    file.write_text(file.read_text().replace("database/2019", "database/2020"))
    assert content_of(here) != before


def test_an_image_that_the_gallery_lacks_is_named(
    dataset: Dataset, lists: dict[str, list[str]], tmp_path: Path
) -> None:
    stranger = names("database/2021", 1)[0]
    first, *_ = lists
    here = written(tmp_path / "preds", {**lists, first: [stranger, *lists[first]]})
    with pytest.raises(UserError, match=r"which is not in the gallery; 1 of its 4 images are not") as refusal:
        imported_shortlist(here, dataset, "blind", 2)
    assert f"{ELSEWHERE}/{stranger}" in refusal.value.message and first in refusal.value.message


def test_a_query_without_a_file_and_one_with_two_are_named(
    dataset: Dataset, lists: dict[str, list[str]], tmp_path: Path
) -> None:
    first, second = lists
    here = written(tmp_path / "preds", {first: lists[first]})
    with pytest.raises(UserError, match=f"no list of query '{second}'"):
        imported_shortlist(here, dataset, "blind", 2)
    (here / "001.txt").write_bytes((here / "000.txt").read_bytes())
    with pytest.raises(UserError, match="are lists of one query"):
        imported_shortlist(here, dataset, "blind", 2)


BAD: Mapping[str, tuple[str, str]] = {
    "empty": ("", "no path below 'Query path:'"),
    "no query": ("Query path:\n\nPredictions paths:\na\n", "no path below 'Query path:'"),
    "no predictions": ("Query path:\nq\n\nPositives paths:\na\n", "no path below 'Predictions paths:'"),
    "two queries": ("Query path:\nq\nr\n\nPredictions paths:\na\n", "line 3: a second query, 'r'"),
    "twice": ("Query path:\nq\n\nQuery path:\nr\n", "line 4: 'Query path:' for the second time"),
    "before": ("hello\nQuery path:\nq\n", "line 1: found 'hello'"),
    "binary": ("Query path:\nq\0\n", "line 2: found"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_of_another_form_is_named_with_its_line(what: str, tmp_path: Path) -> None:
    content, says = BAD[what]
    (tmp_path / "000.txt").write_text(content)
    with pytest.raises(UserError, match=says) as refusal:
        read_folder(tmp_path)
    assert "000.txt" in refusal.value.message


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "000.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no files of predictions, NNN\.txt"):
        read_folder(tmp_path)


paths = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=12).map(
    lambda text: Path("/x" + text)
)


@given(paths, st.lists(paths, min_size=1, max_size=4), st.lists(paths, max_size=2))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, query: Path, images: list, right: list
) -> None:
    file = tmp_path_factory.mktemp("p") / "000.txt"
    file.write_text(text_of(query, images, right), encoding="utf-8", newline="")
    found = read_file(file)
    assert found.query == str(query) and list(found.images) == [str(image) for image in images]


def test_a_run_written_so_and_read_again_has_the_same_values(
    cli: Callable[..., Result], view: Callable[[int, int], np.ndarray], tmp_path: Path
) -> None:
    root = tmp_path / "city"
    for number in range(3):
        for folder, shot in (("database", 1), ("database", 3), ("queries", 2)):
            path = root / folder / f"@{500_000 + 1000 * number + shot}.00@4000000.00@17@T@@.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(view(number, shot)).save(path)
    small = ("-d", f"vpr:{root}", "--max-side", "160", "--keep-descriptors", "99", "-k", "4")
    assert cli("run", "-m", "identity,mnn", *small).exit_code == 0
    done = cli("export", "--format", "vpr-preds", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0 and done.output.count("written:") == 3
    (first,) = (tmp_path / "runs").iterdir()
    text = (tmp_path / "out" / "mnn" / "preds" / "000.txt").read_text()
    query, listed, right = (block.splitlines() for block in text.split("\n\n"))
    assert query[0] == "Query path:" and listed[0] == "Predictions paths:" and len(listed) == 5
    assert right == [
        "Positives paths:",
        *(str(root / "database" / f"@50000{n}.00@4000000.00@17@T@@.png") for n in (1, 3)),
    ]
    again = cli("run", "-m", "identity", *small, "--shortlist", str(tmp_path / "out" / "mnn"))
    assert again.exit_code == 0, again.output
    (other,) = (path for path in (tmp_path / "runs").iterdir() if path != first)
    values = [
        found[found.method == method].set_index(["query", "measure"])["value"].to_dict()
        for found, method in ((Run.load(first).metrics(), "mnn"), (Run.load(other).metrics(), "identity"))
    ]
    recall = [{key: value for key, value in each.items() if key[1] != "Recall@100"} for each in values]
    assert recall[0] == recall[1] and len(recall[0]) == 12
