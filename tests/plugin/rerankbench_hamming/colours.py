"""An extractor in a package of its own: how often each colour occurs, as a global descriptor."""

from dataclasses import dataclass

import numpy as np
import torch

from bench.extractor import Card, extractor


@extractor("colours", gives="global", version=1, card=Card(paper="Swain and Ballard, IJCV 1991", licence="MIT"))
class Colours:
    """Square roots of a histogram of colours."""

    @dataclass(frozen=True)
    class Options:
        bins: int = 4  # of each of red, green and blue

    def __init__(self, options: Options, device: torch.device):
        self._bins = options.bins

    def __call__(self, image: np.ndarray) -> np.ndarray:  # (h, w, 3) uint8 RGB -> (D,) float32, unit norm
        cells = image.reshape(-1, 3).astype(np.int64) * self._bins // 256
        counts = np.bincount(cells @ [self._bins**2, self._bins, 1], minlength=self._bins**3)
        return np.sqrt(counts / counts.sum()).astype(np.float32)
