"""RootSIFT local descriptors from COLMAP (Lowe 2004; Arandjelovic and Zisserman 2012), best = largest scale."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from bench.extractor import Card, LocalFeatures, extractor


@extractor(
    "sift",
    gives="local",
    version=1,
    local_dim=128,
    card=Card("Lowe, IJCV 2004; Arandjelovic and Zisserman, CVPR 2012 (RootSIFT)", "BSD-3-Clause"),
    packages=("pycolmap",),
)
class Sift:
    """RootSIFT local descriptors with scale and orientation."""

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 1000  # largest-scale descriptors kept

    def __init__(self, options: Options, device: torch.device):
        """`device` is ignored: COLMAP's CPU implementation is used everywhere, so results do not depend on it."""
        import pycolmap

        settings = pycolmap.FeatureExtractionOptions()
        settings.use_gpu = False
        settings.num_threads = 1
        settings.sift.max_num_features = options.descriptors
        self._limit = options.descriptors
        with warnings.catch_warnings():  # pycolmap 4.2 prefers FeatureExtractor.create
            warnings.simplefilter("ignore", DeprecationWarning)
            self._sift = pycolmap.Sift(settings, device=pycolmap.Device.cpu)

    def __call__(self, image: np.ndarray) -> LocalFeatures:
        grey = np.asarray(Image.fromarray(image).convert("L"))
        if min(grey.shape) < 16:  # fewer pixels than one descriptor window, and COLMAP's pyramid needs some
            keypoints, descriptors = np.zeros((0, 4), np.float32), np.zeros((0, 128), np.float32)
        else:
            keypoints, descriptors = self._sift.extract(np.ascontiguousarray(grey))
        # COLMAP gives no detector response; it keeps large scales first, so scale is the score
        order = np.argsort(-keypoints[:, 2], kind="stable")[: self._limit]
        keypoints, descriptors = keypoints[order], descriptors[order].astype(np.float32)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True).clip(1e-12)
        return LocalFeatures(
            descriptors=descriptors,
            keypoints=keypoints[:, :2],
            scales=keypoints[:, 2],
            orientations=keypoints[:, 3],
            scores=keypoints[:, 2],
        )
