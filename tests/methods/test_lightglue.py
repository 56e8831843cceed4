"""LighterGlue, with its real weights, matches an image with itself and not with another."""

import numpy as np
import pytest
import torch

from bench.conformance import batch_of
from bench.features import Features
from bench.features.extractors import CARDS, ExtractOptions, FeatureExtractor
from methods.lightglue import LightGlue


def picture(seed: int) -> np.ndarray:
    """(240, 320, 3) rectangles of random places, sizes and colours: corners to be found again."""
    draw = np.random.default_rng(seed)
    image = np.full((240, 320, 3), 128, dtype=np.uint8)
    for _ in range(120):
        x, y, w, h = draw.integers((0, 0, 8, 8), (310, 230, 60, 60))
        image[y : y + h, x : x + w] = draw.integers(0, 255, 3)
    return image


@pytest.fixture(scope="module")
def images() -> list[Features]:
    extractor = FeatureExtractor("xfeat", ExtractOptions(descriptors=150))
    arrays = [extractor(image) for image in (picture(0), np.ascontiguousarray(picture(0)[8:, 24:]), picture(1))]
    return [
        Features(**{name: torch.from_numpy(np.asarray(v, dtype=np.float32)) for name, v in a.items()}) for a in arrays
    ]


@pytest.fixture(scope="module")
def method() -> LightGlue:
    method = LightGlue()
    method.load()
    return method


def test_the_same_scene_has_more_matches_than_another(images: list[Features], method: LightGlue) -> None:
    same, shifted, other = method.score(images[0], batch_of(images)).tolist()
    assert same > 0.8 * len(images[0])
    assert same >= shifted > 3 * other


def test_the_order_and_number_of_candidates_change_nothing(images: list[Features], method: LightGlue) -> None:
    together = method.score(images[0], batch_of(images))
    assert torch.equal(together.flip(0), method.score(images[0], batch_of(images[::-1])))
    assert torch.equal(together[2:], method.score(images[0], batch_of(images[2:])))


def test_other_features_are_a_reported_skip() -> None:
    assert "XFeat" in str(LightGlue().skip(CARDS["sift"]))
