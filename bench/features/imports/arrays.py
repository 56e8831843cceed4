"""Arrays of one's own: one file an image, named as the image."""

from __future__ import annotations

from bench.features.imported import Import
from third_party.foreign_features import ImageFiles

ARRAYS = Import(
    "arrays",
    "your own arrays",
    "a folder with one .npz or .safetensors an image: descriptors (n, d), keypoints (n, 2), and if there are "
    "scales, orientations, scores, image_size, global_descriptor; without scores, --ordered says that rows are "
    "best first",
    lambda source: ImageFiles(source.place),
    expects="folder",
)
