"""Which data sets there are and how each is loaded, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.datasets import Dataset, demo, folder, revisited, views
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
}
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
        load(name, places)
    except UserError as error:
        return (
            f"{error.message.split(' photographs are missing')[0].split(': ')[-1]} photographs missing; "
            "imported features need none"
            if "photographs are missing" in error.message
            else f"not in {places.data}"
        )
    return "ready"
