"""Putative matches: which local descriptors of two images go together, judged by appearance alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Matcher = Literal["mutual", "ratio", "one-way"]


@dataclass(frozen=True, eq=False)
class Matches:
    """m matches, sorted by the query's row; a query descriptor has at most one."""

    query: Tensor  # (m,) long, rows of the query's descriptors
    candidate: Tensor  # (m,) long, rows of the candidate's
    similarity: Tensor  # (m,) float32 cosine

    def __len__(self) -> int:
        return len(self.query)


def match(
    query: Tensor, candidate: Tensor, matcher: Matcher = "mutual", ratio: float = 0.9, distance: float | None = None
) -> Matches:
    """Matches of (n, d) and (m, d) unit descriptors on one device; of equally similar ones the first is nearest.

    - `one-way`: every query descriptor and its nearest candidate descriptor, which several may share (DELG).
    - `ratio`: of those, the ones nearer than `ratio` times the second nearest (Lowe, IJCV 2004, section 7.1, in
      Euclidean distances). Where the candidate has one descriptor, the missing second counts as infinitely far.
    - `mutual`: of those, the ones whose candidate descriptor has no more similar query descriptor; one to one.

    `distance` is the largest Euclidean distance of a match, in [0, 2]. ValueError: descriptors of different sizes, an
    unknown matcher, a ratio outside (0, 1], a distance outside [0, 2].
    """
    check(matcher, ratio, distance)
    if query.ndim != 2 or candidate.ndim != 2 or query.shape[1] != candidate.shape[1]:
        raise ValueError(
            f"descriptors of shapes {tuple(query.shape)} and {tuple(candidate.shape)} cannot be matched: "
            "expected (n, d) and (m, d)"
        )
    if len(query) == 0 or len(candidate) == 0:
        none = torch.zeros(0, dtype=torch.long, device=query.device)
        return Matches(none, none, query.new_zeros(0, dtype=torch.float32))
    similarity = query.float() @ candidate.float().T
    nearest = _first_of_largest(similarity)
    best = similarity.gather(1, nearest[:, None])[:, 0]
    kept = _KEPT[matcher](similarity, nearest, best, ratio)
    if distance is not None:
        kept &= best >= 1 - distance**2 / 2  # |a - b|^2 = 2 - 2 a.b
    rows = kept.nonzero()[:, 0]
    return Matches(rows, nearest[rows], best[rows])


def check(matcher: str, ratio: float, distance: float | None) -> None:
    """ValueError if `match` would refuse these settings."""
    if matcher not in _KEPT:
        raise ValueError(f"unknown matcher {matcher!r}, known are {', '.join(get_args(Matcher))}")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    if distance is not None and not 0 <= distance <= 2:
        raise ValueError(f"distance is of unit vectors and must be in [0, 2], not {distance}")


def _first_of_largest(similarity: Tensor) -> Tensor:
    """(n, m) -> (n,) column of each row's largest value, the first of equals."""
    if similarity.device.type == "cpu":  # several times as fast as torch's, which does not vectorise it
        return torch.from_numpy(similarity.numpy(force=True).argmax(axis=1))
    return similarity.argmax(dim=1)


def _all(similarity: Tensor, nearest: Tensor, best: Tensor, ratio: float) -> Tensor:
    return torch.ones_like(nearest, dtype=torch.bool)


def _mutual(similarity: Tensor, nearest: Tensor, best: Tensor, ratio: float) -> Tensor:
    """A maximum without its place is cheap, so only the columns' values are compared."""
    kept = best == similarity.amax(dim=0)[nearest]
    rows = kept.nonzero()[:, 0]
    first = rows.new_full((similarity.shape[1],), len(nearest)).scatter_reduce(0, nearest[rows], rows, "amin")
    kept[rows] = first[nearest[rows]] == rows
    return kept


def _ratio(similarity: Tensor, nearest: Tensor, best: Tensor, ratio: float) -> Tensor:
    if similarity.shape[1] == 1:
        return _all(similarity, nearest, best, ratio)
    second = similarity.scatter_(1, nearest[:, None], -torch.inf).amax(dim=1)
    return (1 - best).clamp(min=0) < ratio**2 * (1 - second).clamp(min=0)  # halves of squared distances


# (similarity (n, m), which may be written to, nearest (n,), best (n,), ratio) -> (n,) whether a row's match is kept
_KEPT: Mapping[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "mutual": _mutual,
    "ratio": _ratio,
    "one-way": _all,
}
