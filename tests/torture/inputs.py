"""What the commands work on: a few small pictures, features of another program in two versions, files to download."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

INSTANCES, VIEWS = 4, 3  # pictures, one folder each instance
PHOTOS = 21  # to train on; every 20th validates, and two scenes must
FILES, PIECE = 40, 4_096  # in the archive, and bytes of each


@dataclass(frozen=True)
class Inputs:
    """Where they are; nothing below `folder` is changed once they are made."""

    folder: Path

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def bank(self) -> Path:
        """Views of the photos, which the first training extracts."""
        return self.folder / "bank"

    def foreign(self, version: int) -> Path:
        return self.folder / f"foreign-{version}.h5"

    @property
    def served(self) -> Path:
        return self.folder / "served"


def make(folder: Path) -> Inputs:
    """All of them, equal whenever they are made."""
    import h5py
    from PIL import Image

    inputs = Inputs(folder)
    for instance in range(INSTANCES):
        (inputs.pictures / f"object{instance}").mkdir(parents=True)
        for view in range(VIEWS):
            Image.fromarray(_view(instance, view)).save(inputs.pictures / f"object{instance}" / f"view{view}.png")
    inputs.photos.mkdir()
    for number in range(PHOTOS):
        Image.fromarray(_view(100 + number, 0)).save(inputs.photos / f"{number:02d}.png")
    names = [path.relative_to(inputs.pictures).as_posix() for path in sorted(inputs.pictures.rglob("*.png"))]
    for version in (0, 1):
        draw = np.random.default_rng(version)
        with h5py.File(inputs.foreign(version), "w") as content:
            for name in names:
                content[f"{name}/keypoints"] = draw.uniform(0, 120, (20, 2)).astype(np.float32)
                content[f"{name}/descriptors"] = _unit(draw.normal(size=(16, 20))).astype(np.float32)
                content[f"{name}/scores"] = np.linspace(1, 0.1, 20, dtype=np.float32)
                content[f"{name}/global_descriptor"] = _unit(draw.normal(size=32)).astype(np.float32)
    inputs.served.mkdir()
    draw = np.random.default_rng(7)
    (inputs.served / "list.txt").write_bytes(draw.integers(97, 123, 120_000, np.uint8).tobytes())
    with tarfile.open(inputs.served / "archive.tar", "w") as archive:
        for number in range(FILES):
            entry = tarfile.TarInfo(f"images/{number:03d}.jpg")
            entry.size = PIECE
            archive.addfile(entry, io.BytesIO(draw.integers(0, 256, PIECE, np.uint8).tobytes()))
    return inputs


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=0, keepdims=True)


def _view(instance: int, number: int) -> np.ndarray:
    """(120, 160, 3) uint8; views of one instance overlap."""
    draw = np.random.default_rng(instance)
    scene = draw.integers(90, 160, (180, 240, 3)).astype(np.float64)
    for _ in range(60):
        x, y = draw.integers(0, 232), draw.integers(0, 172)
        w, h = draw.integers(6, 50, 2)
        scene[y : y + h, x : x + w] = draw.integers(0, 255, 3) * 0.9 + draw.normal(0, 8, 3)
    draw = np.random.default_rng((instance, number))
    x, y = draw.integers(0, 80), draw.integers(0, 60)
    part = scene[y : y + 120, x : x + 160]
    return (part * draw.uniform(0.8, 1.15) + draw.normal(0, 4, part.shape)).clip(0, 255).astype(np.uint8)
