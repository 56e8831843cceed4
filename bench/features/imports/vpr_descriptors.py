"""Matrices of global descriptors as place-recognition tools save them (docs/protocols.md, File formats)."""

from __future__ import annotations

from bench.features.imported import Import
from third_party.foreign_features import Matrices

VPR_DESCRIPTORS = Import(
    "vpr-descriptors",
    "global descriptors in .npy matrices",
    "the folder with database_descriptors.npy and queries_descriptors.npy of VPR-methods-evaluation "
    "(--save_descriptors); or the database's .npy, with --queries the queries'",
    lambda source: Matrices(source.place, source.queries),
    takes=("queries",),
    expects="either",
    always=("vpr-descriptors files name no images: rows are taken as the sorted files of database and queries",),
    gives="global",
    dims=(0, None),
)
