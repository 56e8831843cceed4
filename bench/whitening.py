"""PCA whitening of global descriptors, learned on another data set than the one tested (Jegou and Chum, ECCV 2012)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.errors import UserError


@dataclass(frozen=True, eq=False)
class Whitening:
    """`name` says what it was learned on; applied to the first stage only, never to what a reranker reads."""

    name: str
    mean: np.ndarray  # (D,)
    projection: np.ndarray  # (D, d)

    def __call__(self, descriptors: np.ndarray) -> np.ndarray:
        """(n, d) whitened unit vectors of (n, D); a row of zeros (an unreadable image) stays zero."""
        present = np.linalg.norm(descriptors, axis=1, keepdims=True) > 0
        white = (descriptors - self.mean) @ self.projection * present
        return white / np.linalg.norm(white, axis=1, keepdims=True).clip(1e-12)


def learn(descriptors: np.ndarray, learned_on: str, dim: int = 256) -> Whitening:
    """Whitening from (n, D) descriptors; keeps at most `dim` components, and fewer than images."""
    from sklearn.decomposition import PCA

    present = descriptors[np.linalg.norm(descriptors, axis=1) > 0]
    if len(present) < 3:
        raise UserError(f"whitening from {learned_on!r}: {len(present)} images with features, at least 3 are needed")
    kept = min(dim, len(present) - 1, descriptors.shape[1])
    pca = PCA(n_components=kept, whiten=True, random_state=0).fit(present)
    projection = pca.components_.T / np.sqrt(pca.explained_variance_.clip(1e-12))
    return Whitening(f"pca{kept}[{learned_on}]", pca.mean_, projection)
