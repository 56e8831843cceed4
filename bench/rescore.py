"""A row of a finished run again: features of some of its images, maybe changed ones, and scores of them.

Features are read where the data set's are kept, and else extracted anew, as those of changed images are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench.changes import Change, Changes, redrawn, rows, seen
from bench.datasets import Dataset
from bench.errors import UserError
from bench.features import FeatureBatch, Features
from bench.features.extract import ExtractOptions, Part, PartExtractor, extract
from bench.features.imported import Import
from bench.features.items import Item, items, query_key
from bench.features.sets import FeatureSet, SetName, Stores, part_folder
from bench.features.store import FeatureStore
from bench.images import Box, size_of
from bench.places import Places
from bench.reranker import Reranker, Scored
from bench.results import Run
from bench.rows import Asked, Reading, Row, opened, wanted
from bench.timing import kept_torch_flags


@dataclass(frozen=True, eq=False)
class Image:
    """One image's features: what the method reads, and the same rows with their keypoints.

    Those of `placed` are in pixels of the part of the file that is read, and those of `read` in pixels of what was
    extracted.
    """

    read: Features
    placed: Features
    box: Box | None  # the part that is read, in pixels of the file; None: all of it
    hidden: tuple[Box, ...] = ()  # in pixels of the file


@dataclass(frozen=True, eq=False)
class Rereading:
    """The queries and the gallery of a data set as a row reads them; those that are changed are changed."""

    dataset: Dataset
    changes: Changes
    _reading: Reading
    _redrawn: Mapping[str, FeatureSet] = field(default_factory=dict)  # by side
    _boxes: Mapping[str, Box] = field(default_factory=dict)  # by key of the redrawn

    def query(self, number: int) -> Image:
        """The features of a query, by its number in the data set."""
        asked = self.dataset.queries[number]
        return self._image("query", query_key(self.dataset, number), asked.image, asked.box, self.changes.query)

    def candidate(self, name: str) -> Image:
        """The features of a gallery image, changed as a candidate is."""
        return self._image("candidate", name, self.dataset.gallery[name], None, self.changes.candidate)

    def plain(self, name: str) -> Image:
        """The features of a gallery image as it is."""
        return self._image("", name, self.dataset.gallery[name], None, Change())

    def _image(self, side: str, key: str, file: Path, box: Box | None, change: Change) -> Image:
        features, box = self._redrawn.get(side, self._reading.features), self._boxes.get(f"{side} {key}", box)
        needs, used = self._reading.needs, self._reading.used
        more = needs | {"keypoints"} if "local" in needs else needs
        used_here = used if not change.hide else None
        read, placed = (features.read_all([key], what, used_here)[0] for what in (needs, more))
        size = size_of(file) if change else (0, 0)
        part = box or (0.0, 0.0, float(size[0]), float(size[1]))
        if change.redraws:
            placed = _in_pixels_of_the_file(placed, part)
        if not change.hide:
            return Image(read, placed, box)
        if not have_places((placed,)):
            raise UserError(
                "--hide: these features have no keypoints, so that none lies in a box",
                hint="name features with keypoints: --method METHOD@FEATURES",
            )
        hidden = tuple(area.on(part) for area in change.hide)
        kept = seen(placed.keypoints, hidden, part)
        read, placed = (rows(image, kept).top(used(int(kept.sum()))) for image in (read, placed))
        return Image(read, placed, box, hidden)


@contextmanager
def reread(
    run: Run,
    row: str,
    dataset: Dataset,
    asked: str,
    method: Reranker,
    places: Places,
    changes: Changes = Changes(),
    changed: Collection[str] | None = None,
) -> Iterator[Rereading]:
    """Features of the queries and gallery images of `dataset`, which are some of the run's, as the row reads them.

    `asked` is the row as a user names it: METHOD or METHOD@FEATURES. `changed` are the gallery images that `candidate`
    will be asked for; None: all. Changes have one scale of each image. UserError where the features cannot be had, and
    for changes that these features cannot have.
    """
    recorded = run.record.identity.methods[row].features
    features = Asked.parse(asked).features or ("+".join(recorded) if recorded else "")
    with TemporaryDirectory(prefix="rerankbench-") as folder:
        options = ExtractOptions() if run.record.extract is None else run.record.extract
        stores = _Stores(dataset, options, method.device, replace(places, cache=Path(folder)), places)
        found = _opened(row, Asked(method.spec.name, features or None), method, stores, run)
        if tuple(part.key for read in found.reads for part in read.features.name.parts) != recorded:
            raise UserError(
                f"--method {asked}: the run read the features {'+'.join(recorded)}, these are "
                f"{'+'.join(read.features.name.name for read in found.reads)}",
                hint="name the weights that the run was given: METHOD@LOCAL:WEIGHTS",
            )
        if not found.reads:
            raise UserError(f"{row} reads no features, so a pair has no score of its own")
        (reading,) = found.reads
        if "local" not in reading.needs and (changes.query.hide or changes.candidate.hide):
            raise UserError(
                f"--hide: {row} reads no local descriptors, of which some could be hidden", hint="--keep cuts the image"
            )
        drawn, boxes = {}, {}
        queries = [(query_key(dataset, i), query.image, query.box) for i, query in enumerate(dataset.queries)]
        gallery = [(key, file, None) for key, file in dataset.gallery.items() if changed is None or key in changed]
        for side, change, images in (
            ("query", changes.query, queries),
            ("candidate", changes.candidate, gallery),
        ):
            if change.redraws:
                place, name = Path(folder) / side, reading.features.name
                drawn[side], of_side = _redrawn(images, change, name, options, method, place)
                boxes.update({f"{side} {key}": box for key, box in of_side.items()})
        yield Rereading(dataset, changes, reading, drawn, boxes)


def _in_pixels_of_the_file(image: Features, part: Box) -> Features:
    """Features of a part of a file that was drawn at another size, with keypoints as the file has them."""
    size = torch.tensor([part[2] - part[0], part[3] - part[1]])
    return replace(image, keypoints=image.keypoints * (size / image.image_size), image_size=size)


def have_places(images: Sequence[Features]) -> bool:
    """Whether descriptors have keypoints of their own; those of some other programs have none."""
    return all(len(image) < 2 or bool((image.keypoints != image.keypoints[0]).any()) for image in images)


def score(
    method: Reranker, query: Features, candidates: Sequence[Features], similarities: Sequence[float]
) -> np.ndarray:
    """(k,) float64 scores of a loaded method that scores pairs."""
    on = [image.to(method.device) for image in candidates]
    batch = FeatureBatch(tuple(on), torch.tensor(similarities, dtype=torch.float32, device=method.device))
    with kept_torch_flags():
        found = method.score(query.to(method.device), batch)
    scores = found.scores if isinstance(found, Scored) else found
    return scores.detach().double().cpu().numpy()


def _opened(row: str, asked: Asked, method: Reranker, stores: Stores, run: Run) -> Row:
    """The row with its features. What was accepted for the run, its licences too, is accepted again."""
    terms = f"{run.record.features_noncommercial or ''}, {run.record.cards[row].noncommercial or ''}".split(", ")
    try:
        found = wanted(asked, method, asked.features or "", frozenset(terms))
    except UserError as error:
        raise UserError(
            f"{row}: its features cannot be had again: {error.message}",
            hint=f"name them, with the weights that the run was given: --method {asked.method}@LOCAL:WEIGHTS",
        ) from error
    opened_row = (
        found if isinstance(found, str) else opened(found, stores, lambda: (i.key for i in items(stores.dataset)))
    )
    if isinstance(opened_row, str):
        raise UserError(f"{row} cannot run here: {opened_row}")
    return opened_row


def _redrawn(
    images: Iterable[tuple[str, Path, Box | None]],
    change: Change,
    name: SetName,
    options: ExtractOptions,
    method: Reranker,
    folder: Path,
) -> tuple[FeatureSet, dict[str, Box]]:
    """Features of images drawn anew, and by their keys which part of each that is, in pixels of its file."""
    if imported := [part.name for part in name.parts if isinstance(part, Import)]:
        raise UserError(
            f"--keep and --scale: {imported[0]} is imported, and changed images have to be extracted",
            hint="--hide leaves out descriptors of imported features, too",
        )
    folder.mkdir()
    listed, boxes, longest = [], {}, options.max_side
    for number, (key, file, box) in enumerate(images):
        part = change.read(box, size_of(file, options.max_megapixels), file)
        drawn = folder / f"{number}.png"
        longest = max(longest, *redrawn(file, part, change.scales[0], options, drawn))
        listed.append(Item(key, (drawn,), required=True))
        boxes[key] = part
    as_drawn, stores = replace(options, max_side=longest), {}  # no image is made smaller once more
    for number, one in enumerate(part for part in name.parts if isinstance(part, Part)):
        place = folder / f"features{number}"
        make = partial(PartExtractor, one, as_drawn, method.device)
        extract(listed, place, make, one.identity(as_drawn))
        stores[one.key] = FeatureStore(place)
    local, whole = (None if part is None else stores[part.key] for part in (name.local, name.global_))
    return FeatureSet(name, local, whole), boxes


class _Stores(Stores):
    """Features of some images: from where the whole data set's are kept, if they are fresh there, else extracted."""

    def __init__(self, dataset: Dataset, options: ExtractOptions, device: torch.device, places: Places, kept: Places):
        super().__init__(dataset, options, device, places)
        self._kept = kept

    def _open(self, part: Part | Import) -> FeatureStore:
        folder = part_folder(self.dataset.name, part, self.options, self._kept)
        if folder.is_dir():
            store = FeatureStore(folder)
            if _fresh(store, part, self.options, items(self.dataset)):
                return store
        if isinstance(part, Import):
            raise UserError(
                f"{folder}: has no features of these images",
                hint=f"import them again: `features import {part.name} …`, and name the same --cache-dir",
            )
        return super()._open(part)


def _fresh(store: FeatureStore, part: Part | Import, options: ExtractOptions, some: Iterable[Any]) -> bool:
    """Whether all images are there, and neither they nor what is extracted of them has changed."""
    if store.identity is None or (isinstance(part, Part) and store.identity != part.identity(options)):
        return False
    wanted_items = list(some)
    if isinstance(part, Import):
        return all(item.key in store for item in wanted_items)
    return not any(True for _ in store.stale(wanted_items))
