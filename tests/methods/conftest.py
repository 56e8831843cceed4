"""Real features of small pictures."""

import numpy as np
import pytest
import torch

from bench.features import Features
from bench.features.extractors import ExtractOptions, FeatureExtractor


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
