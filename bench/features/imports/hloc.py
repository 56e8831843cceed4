"""hloc's HDF5 features (cvg/Hierarchical-Localization; docs/protocols.md)."""

from __future__ import annotations

from bench.features.imported import Import
from third_party.foreign_features import Hloc

HLOC = Import(
    "hloc",
    "hloc's HDF5 features",
    "a features .h5 of hloc; --globals the .h5 of its global descriptors, where they are not in the first, or an .npz "
    "of the same names and a row each",
    lambda source: Hloc(source.place, source.globals_),
    takes=("globals",),
)
