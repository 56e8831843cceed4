"""Keypoints and descriptors of a COLMAP database."""

from __future__ import annotations

from bench.features.imported import Import
from third_party.foreign_features import Colmap

COLMAP = Import(
    "colmap",
    "keypoints and descriptors of a COLMAP database",
    "the database, of SIFT, ALIKED or LoMa; it has no global descriptors",
    lambda source: Colmap(source.place),
)
