"""Versions of what methods and extractors use."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from bench.closure import closure
from bench.packages import PACKAGES, versions

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("methods", "third_party", "bench/features", "bench/datasets", "bench/search.py", "bench/images.py")
OWN = {"bench", "methods", "third_party"}
LOADING = {"httpx", "huggingface_hub"}  # read bytes whose sha256 is known or taken
THREADS = {"threadpoolctl"}  # of a training


def test_every_package_that_methods_and_extractors_import_is_in_the_table() -> None:
    files = [file for room in ROOMS for file in (REPOSITORY / room, *(REPOSITORY / room).rglob("*.py"))]
    imported = {
        module for file in files if file.is_file() for module in closure(file.stem, file, {}).outside
    } - sys.stdlib_module_names
    assert {"cv2", "h5py", "transformers", "faiss", "kornia"} <= imported
    assert imported - OWN - LOADING - THREADS <= PACKAGES.keys()


def test_what_is_installed_has_its_version_and_what_is_not_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "nowhere", ("nowhere-cpu", "nowhere-gpu"))  # type: ignore[arg-type]
    found = versions()
    for package in ("torch", "h5py", "scipy", "pillow", "scikit-learn"):
        assert found[package] == version(package)
    assert found["nowhere-cpu"] is None and "nowhere-gpu" not in found
    assert len([package for package in found if package.startswith("faiss-")]) == 1


def test_modules_outside_the_table_are_found_by_what_provides_them() -> None:
    found = versions(["click", "json", "torch", "rerankbench_absent"])
    assert found["click"] == version("click") and found["rerankbench_absent"] is None
    assert "json" not in found and len(found) == len(versions()) + 2
