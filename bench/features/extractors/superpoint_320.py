"""SuperPoint of images made 320 x 320, as SuperGlue was run on products (docs/protocols.md, Crops and sizes)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bench.extractor import LocalFeatures, extractor
from bench.features.extractors.superpoint import CARD, PACKAGES, SuperPoint

SIDE = 320  # pixels of both sides


@extractor("superpoint-320", gives="local", version=1, card=CARD, local_dim=256, packages=PACKAGES, takes="WEIGHTS")
class SuperPoint320(SuperPoint):
    """SuperPoint of images made 320 x 320, as SuperGlue was run on products."""

    def __call__(self, image: np.ndarray) -> LocalFeatures:
        square = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        found = super().__call__(square)
        back = np.array([image.shape[1], image.shape[0]], dtype=np.float32) / SIDE
        return LocalFeatures(**{**vars(found), "keypoints": found.keypoints * back})
