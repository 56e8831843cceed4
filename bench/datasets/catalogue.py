"""Which data sets there are and how each is loaded, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.datasets import Dataset, demo, folder, gldv2, revisited, sop, views
from bench.errors import UserError, unknown
from bench.places import Places

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    """One row of `datasets`."""

    summary: str
    licence: str
    needs: str
    load: Callable[[Places, Progress | None, bool], Dataset]  # the last: whether the images must be here


ENTRIES: Mapping[str, Entry] = {
    "demo": Entry(
        "generated buildings: 40 landmarks, 400 confusable distractors",
        "Apache-2.0",
        "nothing",
        lambda places, progress, _: demo.load(places.cache, progress),
    ),
    "roxford": Entry(
        "Revisited Oxford: 70 queries, 4,993 photographs",
        "Flickr photographs, research use",
        "roxford5k/ below the data root",
        lambda places, _, images: revisited.load("roxford", places.data, images),
    ),
    "rparis": Entry(
        "Revisited Paris: 70 queries, 6,322 photographs",
        "Flickr photographs, research use",
        "rparis6k/ below the data root",
        lambda places, _, images: revisited.load("rparis", places.data, images),
    ),
    "roxford+1m": Entry(
        "Revisited Oxford among a million distractors",
        "Flickr photographs, research use",
        "roxford5k/ and revisitop1m/ below the data root",
        lambda places, _, images: revisited.load("roxford+1m", places.data, images),
    ),
    "rparis+1m": Entry(
        "Revisited Paris among a million distractors",
        "Flickr photographs, research use",
        "rparis6k/ and revisitop1m/ below the data root",
        lambda places, _, images: revisited.load("rparis+1m", places.data, images),
    ),
    "gldv2": Entry(
        "Google Landmarks v2 retrieval: 1,129 queries, 761,757 photographs",
        "annotations CC BY 4.0, photographs CC0 or public domain",
        "gldv2/ below the data root",
        lambda places, _, images: gldv2.load("gldv2", places.data, images),
    ),
    "gldv2-public": Entry(
        "its 379 public queries, to choose options on",
        "as gldv2",
        "as gldv2",
        lambda places, _, images: gldv2.load("gldv2-public", places.data, images),
    ),
    "gldv2-private": Entry(
        "its 750 private queries",
        "as gldv2",
        "as gldv2",
        lambda places, _, images: gldv2.load("gldv2-private", places.data, images),
    ),
    "sop": Entry(
        "Stanford Online Products: 60,502 test images, each a query",
        "none stated; research",
        "sop/ below the data root",
        lambda places, _, images: sop.load(places.data, images),
    ),
}
MANY = frozenset(name for name in ENTRIES if "1m" in name or "gldv2" in name)  # too many files to look for in a list
FOLDER = "folder:"
VIEWS = "views:"


def load(name: str, places: Places, progress: Progress | None = None, images: bool = True) -> Dataset:
    """The data set of that name; `folder:PATH` is a user's own, `views:PATH` is made from photographs.

    `images`: whether official photographs must be here.
    """
    if name.startswith(FOLDER):
        if not name.removeprefix(FOLDER):
            raise UserError("folder: needs a path", hint="--dataset folder:PATH")
        return folder.load(Path(name.removeprefix(FOLDER)).expanduser().resolve())
    if name.startswith(VIEWS):
        return views.load(Path(name.removeprefix(VIEWS)).expanduser().resolve(), places.cache, progress)
    if name not in ENTRIES:
        raise unknown("data set", name, [*ENTRIES, "folder:PATH", "views:PATH"])
    return ENTRIES[name].load(places, progress, images)


def state(name: str, places: Places) -> str:
    """`ready`, or why the data set cannot be used here."""
    if name == "demo":
        return "ready" if demo.ready(places.cache) else "generated on first use"
    try:
        load(name, places, images=name not in MANY)
    except UserError as error:
        return (
            f"{error.message.split(' photographs are missing')[0].split(': ')[-1]} photographs missing; "
            "imported features need none"
            if "photographs are missing" in error.message
            else f"not in {places.data}"
        )
    return "ready"
