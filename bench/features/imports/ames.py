"""AMES' HDF5 descriptors (Suma et al., ECCV 2024; docs/protocols.md)."""

from __future__ import annotations

from bench.features.imported import Import
from third_party.foreign_features import Ames

AMES = Import(
    "ames",
    "AMES' HDF5 descriptors",
    "the folder that AMES' extraction wrote; or the .h5 of gallery and then queries, or the gallery's with "
    "--queries the queries'; --globals and --query-globals their global descriptors, .npy or .pt",
    lambda source: Ames(source.place, source.globals_, source.queries, source.query_globals),
    takes=("globals", "queries", "query-globals"),
    expects="either",
    always=(
        "AMES' files name no images: the order of rows is taken as the data set's order",
        "AMES' positions have the row before the column: geometric verification reads x before y",
    ),
)
