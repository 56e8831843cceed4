"""Every file below a folder is found once, however its folders are linked, and what systems leave is no file of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.walk import walk


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_plain_folders_are_listed_as_paths_sort(tmp_path: Path) -> None:
    files = [touch(tmp_path / name) for name in ("b/2", "a-b/1", "a/b/1", "a/c", "z")]
    assert walk(tmp_path).files == tuple(sorted(files))


def test_loops_end_and_a_real_folder_is_read_under_its_own_name(tmp_path: Path) -> None:
    top = tmp_path / "top"
    file = touch(top / "b" / "1")
    for name, target in (("a", top / "b"), ("b/up", top), ("b/self", top / "b"), ("out", tmp_path)):
        (top / name).symlink_to(target)
    found = walk(top)
    assert found.files == (file,) and found.again == tuple(sorted(top / n for n in ("a", "b/up", "b/self", "out")))


def test_links_to_folders_and_files_outside_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "outside" / "x" / "1")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "l").symlink_to(tmp_path / "outside")
    (tmp_path / "top" / "file").symlink_to(tmp_path / "outside" / "x" / "1")
    (tmp_path / "top" / "lost").symlink_to(tmp_path / "nowhere")
    found = walk(tmp_path / "top")
    assert found.files == (tmp_path / "top" / "file", tmp_path / "top" / "l" / "x" / "1")
    assert found.broken == (tmp_path / "top" / "lost",) and found.again == ()


def test_the_folder_itself_may_be_hidden_or_a_link(tmp_path: Path) -> None:
    touch(tmp_path / ".cache" / "a" / "1")
    (tmp_path / "l~").symlink_to(tmp_path / ".cache")
    assert walk(tmp_path / ".cache").files == (tmp_path / ".cache" / "a" / "1",)
    assert walk(tmp_path / "l~").files == (tmp_path / "l~" / "a" / "1",)


@pytest.mark.parametrize("name", [".git/x", ".hidden", "@eaDir/x", "__MACOSX/x", "a/Thumbs.db", "a/x.jpg~", "a/x.bak"])
def test_what_systems_and_editors_leave_is_passed_over(tmp_path: Path, name: str) -> None:
    touch(tmp_path / name)
    assert walk(tmp_path).files == ()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: cannot be listed \(No such file"):
        walk(tmp_path / "none")


@given(links=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=8))
def test_any_links_among_folders_leave_every_file_found_once(
    links: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = tmp_path_factory.mktemp("top")
    folders = [top / str(n >> 2) / str(n >> 1 & 1) / str(n & 1) for n in range(8)]
    files = [touch(path / "file") for path in folders]
    for number, (here, there) in enumerate(links):
        (folders[here] / f"link{number}").symlink_to(folders[there].parents[there % 3])
    found = walk(top)
    assert found.files == tuple(sorted(files)) and len(found.again) == len(links)
