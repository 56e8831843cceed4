"""A gallery keeps a million ids in little room and finds any of them."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.datasets.gallery import Gallery, Layout
from bench.errors import UserError

IDS = st.lists(st.text(min_size=1, max_size=12).filter(lambda t: "\0" not in t and t.isprintable()), unique=True)


@given(IDS)
def test_a_gallery_is_the_mapping_of_its_ids(ids: list[str]) -> None:
    gallery = Gallery(ids, [Layout(Path("here"))])
    assert list(gallery) == ids and len(gallery) == len(ids)
    for number, image in enumerate(ids):
        assert image in gallery and gallery.index(image) == number and gallery.id_at(number) == image
        assert gallery[image] == Path("here") / f"{image}.jpg"
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


def test_an_image_costs_about_fifty_bytes() -> None:
    ids = [f"1m/{i % 1000:03d}/photo{i:012d}" for i in range(100_000)]
    tracemalloc.start()
    gallery = Gallery(ids, [Layout(Path("p"))])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(ids) < 60 and gallery.index(ids[77_777]) == 77_777
