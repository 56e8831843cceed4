"""A codebook by Lloyd's k-means, of photographs or of a feature store: `train asmk --recipe kmeans`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.datasets import folder as folders
from bench.errors import UserError
from bench.features.sets import ExtractOptions, FeatureExtractor
from bench.features.store import FeatureStore
from bench.images import decode, read_bytes
from bench.training import Progress
from methods.asmk.codebook import Codebook

Read = Callable[[], np.ndarray]  # (n, d) descriptors of one image


@dataclass(frozen=True)
class TrainOptions:
    """What is clustered and how."""

    photos: Path | None = None  # folder of photographs, with its subfolders; not those that are tested on
    features: str = "xfeat"  # feature set of the photographs
    store: Path | None = None  # feature store to read instead, for example one of `features import`
    words: int = 4096  # clusters
    descriptors: int = 400  # best-scored local descriptors per photograph
    max_side: int = 640  # longer image side, pixels
    iterations: int = 20  # of k-means, at most
    seed: int = 0  # equal seeds give equal codebooks on one machine

    def __post_init__(self) -> None:
        if (self.photos is None) == (self.store is None):
            raise UserError(
                "expected one thing to train on", hint="name photographs (--photos) or a feature store (--store)"
            )
        for name in ("words", "descriptors", "iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: expected at least 1")


def cluster(descriptors: np.ndarray, words: int, iterations: int, seed: int) -> np.ndarray:
    """(words, d) centres of (n, d) descriptors; UserError where there are fewer descriptors than words."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if len(descriptors) < words:
        raise UserError(f"{len(descriptors)} descriptors for {words} words", hint="give more photographs, or --words")
    with threadpool_limits(1):  # several threads add up in no fixed order
        fitted = KMeans(words, init="random", n_init=1, max_iter=iterations, random_state=seed).fit(descriptors)
    return fitted.cluster_centers_


def train(options: TrainOptions, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Cluster local descriptors into the visual words of ASMK."""
    images, key, where = _of_store(options.store, options) if options.store else _of_photos(options)
    found = []
    for done, image in enumerate(images, 1):
        found.append(image())
        if progress:
            progress("reading descriptors", done, len(images))
    descriptors = np.concatenate(found)
    centroids = torch.from_numpy(cluster(descriptors, options.words, options.iterations, options.seed))
    trained_on = f"{len(descriptors)} {key} descriptors of {len(images)} images ({where.name})"
    Codebook(centroids, key, trained_on, options.seed).save(out)
    return {"words": options.words, "trained_on": trained_on, "seed": options.seed}


def _of_photos(options: TrainOptions) -> tuple[Sequence[Read], str, Path]:
    """A function that reads the descriptors of each photograph, the key of their feature set, and the folder."""
    assert options.photos is not None
    paths = list(folders.images(options.photos).values())
    if not paths:
        raise UserError(f"{options.photos}: no photographs in this folder")
    extractor = FeatureExtractor(options.features, ExtractOptions(options.max_side))

    def read(path: Path) -> np.ndarray:
        return extractor(decode(read_bytes(path), path))["descriptors"][: options.descriptors]

    return [partial(read, path) for path in paths], extractor.card.local_key, options.photos


def _of_store(folder: Path, options: TrainOptions) -> tuple[Sequence[Read], str, Path]:
    """The same for the readable images of a feature store."""
    store = FeatureStore(folder)
    keys = [key for key in store if store.error(key) is None]
    if not keys or store.identity is None:
        raise UserError(f"{folder}: no feature store with readable images")

    def read(key: str) -> np.ndarray:
        return store.read(key, frozenset({"local"}), options.descriptors).descriptors.numpy()

    name = next(str(store.identity[said]) for said in ("local", "kind", "features") if said in store.identity)
    return [partial(read, key) for key in keys], name, folder
