"""A gallery keeps a million ids in little room and finds any of them."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.datasets import gallery as galleries
from bench.datasets.gallery import MISSING, Gallery, Layout
from bench.errors import UserError

IDS = st.lists(st.text(min_size=1, max_size=12).filter(lambda t: "\0" not in t and t.isprintable()), unique=True)


@given(IDS)
def test_a_gallery_is_the_mapping_of_its_ids(ids: list[str]) -> None:
    gallery = Gallery(ids, [Layout(Path("here"))])
    assert list(gallery) == ids and len(gallery) == len(ids)
    for number, image in enumerate(ids):
        assert image in gallery and gallery.index(image) == number and gallery.id_at(number) == image
        assert gallery[image] == Path("here") / f"{image}.jpg" == Path(gallery.layout(image).text(image))
    assert list(gallery.items()) == [(image, gallery[image]) for image in ids]
    assert list(gallery.values()) == [gallery[image] for image in ids]
    assert "nobody is called so" not in gallery and 3 not in gallery
    with pytest.raises(KeyError):
        gallery["nobody is called so"]
    with pytest.raises(KeyError):
        gallery.index("nobody is called so")
    assert dict(pickle.loads(pickle.dumps(gallery))) == dict(gallery)


def test_layouts_go_by_prefix_and_may_be_spread() -> None:
    gallery = Gallery(["abcdef", "1m/x/y"], [Layout(Path("index"), spread=3), Layout(Path("more"), ".png", "1m/")])
    assert gallery["abcdef"] == Path("index/a/b/c/abcdef.jpg")
    assert gallery["1m/x/y"] == Path("more/x/y.png")


def test_an_id_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="list names the image 'b' twice"):
        Gallery(["a", "b", "c", "b"], [Layout(Path("p"))], "list")


def names(count: int) -> Iterator[str]:
    return (f"1m/{i % 1000:03d}/photo{i:012d}" for i in range(count))


def traced(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that what `work` gives holds, and bytes that were held at most meanwhile."""
    tracemalloc.start()
    kept = work()
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return held, most


def test_an_image_costs_twelve_bytes_and_its_id_and_a_list_of_ids_need_not_be_held() -> None:
    few, many = 50_000, 100_000
    length = len(next(names(1)))
    (held, most), (held_of_more, most_of_more) = (
        traced(lambda count=count: Gallery(names(count), [Layout(Path("p"))])) for count in (few, many)
    )
    # A little of what is held grows with nothing, and Python may free it between the two.
    assert (held_of_more - held) / few == pytest.approx(length + 12, abs=1)
    assert (most_of_more - most) / few < 3 * length  # of Python's own strings more than 70 bytes an image
    gallery = Gallery(names(many), [Layout(Path("p"))])
    assert gallery.index("1m/777/photo000000077777") == 77_777


def test_files_cost_sixteen_bytes_an_image_once_they_were_asked_for(tmp_path: Path) -> None:
    few, many = 1_000, 2_000

    def asked(count: int) -> Gallery:
        gallery = Gallery(names(count), [Layout(tmp_path)])
        assert (gallery.stamps == MISSING).all()
        return gallery

    (held, _), (held_of_more, _) = (traced(lambda count=count: asked(count)) for count in (few, many))
    assert (held_of_more - held) / few < len(next(names(1))) + 12 + 16 + 4


def test_ids_of_equal_hashes_are_told_apart_and_one_given_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(galleries, "_hash", lambda image: len(image))
    ids = ["ab", "c", "ba", "d", "bb", "abc"]
    gallery = Gallery(ids, [Layout(Path("p"))])
    assert [gallery.index(image) for image in ids] == list(range(6)) and "cc" not in gallery
    with pytest.raises(UserError, match="list names the image 'ab' twice"):
        Gallery([*ids, "ab"], [Layout(Path("p"))], "list")


def test_files_are_asked_for_once_until_that_is_forgotten_and_by_another_process_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"123")
    (tmp_path / "folder.jpg").mkdir()
    gallery = Gallery(["a", "none", "folder", "\0"], [Layout(tmp_path)])
    changed = (tmp_path / "a.jpg").stat().st_mtime_ns
    assert list(gallery.each_stamp()) == [(3, changed), MISSING, MISSING, MISSING]
    (tmp_path / "a.jpg").write_bytes(b"12345")
    assert gallery.stamp("a") == (3, changed)
    assert pickle.loads(pickle.dumps(gallery)).stamp("a")[0] == 5
    gallery.forget()
    assert gallery.stamp("a")[0] == 5
