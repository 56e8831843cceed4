"""Which data sets there are: files of `bench/datasets/` that declare one or several, and entry points."""

from __future__ import annotations

from pathlib import Path

from bench.datasets import Dataset
from bench.datasets.dataset import Loader, Place, Progress
from bench.datasets.official.local import MissingImages, NotHere
from bench.datasets.official.sources import Source
from bench.doors import Door
from bench.errors import UserError, unknown
from bench.places import Places

FIRST_USE = "made on first use"


def _name(value: object) -> str | None:
    return value.name if isinstance(value, Loader) else None


DATASETS: Door[Loader] = Door("data set", "--dataset", "bench.datasets", "rerankbench.datasets", _name, families=True)
names, get = DATASETS.names, DATASETS.get


def load(name: str, places: Places, progress: Progress | None = None, images: bool = True) -> Dataset:
    """The data set of that name, or of `NAME:PATH`. `images`: whether photographs must be here.

    UserError for an unknown name, and as of the data set's own function.
    """
    base, _, path = name.partition(":")
    if base not in names():
        if Path(name).exists():
            raise UserError(
                f"--dataset {name}: a path, expected the name of a data set", hint=f"--dataset folder:{name}"
            )
        raise unknown("data set", base, usages())
    return get(base)(Place(places.data, places.cache, Path(path) if path else None, images, progress))


def usages() -> list[str]:
    """How each data set is named on the command line; those that cannot be loaded by their names alone."""

    def usage(name: str) -> str:
        try:
            return get(name).usage
        except UserError:
            return name

    return [usage(name) for name in names()]


def sources() -> dict[str, tuple[Source, ...]]:
    """What can be downloaded: by data set, and each part by its folder below the data root."""
    found: dict[str, tuple[Source, ...]] = {}
    for name in names():
        try:
            loader = get(name)
        except UserError:  # it is listed with its error
            continue
        if loader.sources:
            found[name] = loader.sources
            found |= {source.folder: (source,) for source in loader.sources if source.folder not in found}
    return found


def sources_of(name: str) -> tuple[Source, ...]:
    """What `datasets download` fetches of that name. UserError for an unknown one."""
    known = sources()
    if name not in known:
        raise unknown("data set to download", name, known)
    return known[name]


def state(loader: Loader, places: Places) -> str:
    """`ready`, or why the data set cannot be used here."""
    place = Place(places.data, places.cache, images=not loader.many)
    if loader.takes is not None:
        return "ready" if loader.made is None else FIRST_USE
    try:
        if loader.made is not None:
            return "ready" if loader.made(place) else FIRST_USE
        loader(place)
    except MissingImages as error:
        return f"{error.missing} of {error.total} photographs missing; imported features need none"
    except NotHere:
        return f"not in {places.data}"
    except UserError as error:
        return error.message
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return "ready"
