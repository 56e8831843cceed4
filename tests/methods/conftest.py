"""Real features of small pictures, and a trunk small enough to train in a test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.datasets.views.render import GRID
from bench.features import Features
from bench.features.fill import fill
from bench.features.items import Item
from bench.features.sets import ExtractOptions, FeatureExtractor
from bench.features.shards import Entry
from methods._views.bank import KEPT, Bank
from methods.rrt_sop import model as product


def _picture(seed: int) -> np.ndarray:
    """(240, 320, 3) rectangles of random places, sizes and colours: corners to be found again."""
    draw = np.random.default_rng(seed)
    image = np.full((240, 320, 3), 128, dtype=np.uint8)
    for _ in range(120):
        x, y, w, h = draw.integers((0, 0, 8, 8), (310, 230, 60, 60))
        image[y : y + h, x : x + w] = draw.integers(0, 255, 3)
    return image


@pytest.fixture(scope="session")
def images() -> list[Features]:
    """A picture, a part of it, and another picture, as XFeat sees them."""
    extractor = FeatureExtractor("xfeat", ExtractOptions(descriptors=150))
    arrays = [extractor(image) for image in (_picture(0), np.ascontiguousarray(_picture(0)[8:, 24:]), _picture(1))]
    return [
        Features(**{name: torch.from_numpy(np.asarray(v, dtype=np.float32)) for name, v in a.items()}) for a in arrays
    ]


class TinyTrunk(nn.Module):
    """Stride 32 in two blocks, with batch norms as real trunks have."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 16, 4, 4), nn.BatchNorm2d(16), nn.ReLU())

    def blocks(self) -> list[nn.Module]:
        return [self.one, self.two]

    def forward(self, images: Tensor) -> Tensor:
        return self.two(self.one(images))


@pytest.fixture(scope="session")
def tiny() -> Iterator[str]:
    """Name of a trunk of the product variant: of 16 channels, mean 0.5 and deviation 0.25."""
    kind = product.TrunkKind(TinyTrunk, 16, (0.5,) * 3, (0.25,) * 3)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(product.TRUNKS, "tiny", kind)  # type: ignore[arg-type]
        yield "tiny"


def _views_bank(scenes: int = 12, views: int = 3) -> Bank:
    """Scenes of 20 descriptors each, seen with noise and in another order; the last quarter is held out."""
    rng = np.random.default_rng(0)
    n = scenes * views
    groups = np.repeat(np.arange(scenes), views)
    parts, wholes = rng.normal(size=(scenes, KEPT, 64)), rng.normal(size=(scenes, 8))
    local = np.stack([rng.permutation(parts[g] + 0.1 * rng.normal(size=(KEPT, 64))) for g in groups])
    local /= np.linalg.norm(local, axis=-1, keepdims=True)
    return Bank(
        global_=wholes[groups].astype(np.float16),
        local=local.astype(np.float16),
        xy=np.full((n, KEPT, 2), np.nan, np.float32),
        counts=np.full(n, 20, np.int32),
        coverage=np.ones((n, GRID * GRID), bool),
        groups=groups,
        shows=np.repeat(groups[:, None], 3, axis=1),
        held_out=groups >= scenes * 3 // 4,
    )


@pytest.fixture
def views_bank() -> Callable[..., Bank]:
    """Makes a bank of so many scenes, each of so many views."""
    return _views_bank


LOCAL, GLOBAL, SCALE = 32, 16, (0.5, 0.70710677, 1, 1.4142135, 2, 2.828427, 4)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _write_landmarks(folder: Path, labels: int, images: int, parts: int = 8, noise: float = 0.2, seed: int = 0) -> Path:
    """A store and `list.txt`: of each image 6 to 8 parts of its label among clutter; globals that tell little."""
    rng = np.random.default_rng(seed)
    wholes, pieces = rng.normal(size=(labels, GLOBAL)), _unit(rng.normal(size=(labels, parts, LOCAL)))
    made: dict[str, Entry] = {}
    for label in range(labels):
        for image in range(images):
            shown = rng.permutation(parts)[: int(rng.integers(parts - 2, parts + 1))]
            own = pieces[label, shown] + noise * _unit(rng.normal(size=(len(shown), LOCAL)))
            local = _unit(np.concatenate([own, rng.normal(size=(4, LOCAL))]))
            n = len(local)
            arrays = {
                "global_descriptor": _unit(wholes[label] + 2 * rng.normal(size=GLOBAL)),
                "descriptors": local[rng.permutation(n)],
                "keypoints": np.zeros((n, 2)),
                "scales": rng.choice(SCALE, n),
                "orientations": np.zeros(n),
                "scores": np.linspace(1, 0, n),
                "image_size": np.array([64, 48]),
            }
            made[f"i{label:03d}_{image}"] = Entry(f"{label} {image}", arrays)
    items = [Item(key, ()) for key in made]
    fill(items, folder / "store", lambda: lambda item: made[item.key], {"features": "made"}, exact=True)
    lines = [f"jpg/{key}.jpg,{key[:4]},64,48" for key in made]
    (folder / "list.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def write_landmarks() -> Callable[..., Path]:
    """Writes features of so many labels and images of each, and the list of them, into a folder."""
    return _write_landmarks
