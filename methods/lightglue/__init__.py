"""LightGlue (Lindenberger et al., ICCV 2023): out of the box on XFeat (LighterGlue), ALIKED, DISK and HardNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bench.errors import UserError
from bench.reranker import (
    Card,
    Explanation,
    FeatureBatch,
    FeatureCard,
    Features,
    Reranker,
    Scored,
    given_file,
    register,
)
from methods._verification import Verification, prepare, verify
from methods.lightglue.model import LightGlueConfig, LightGlueNetwork

# feature sets whose weights are had without giving a file
SHIPPED = ("xfeat", "aliked", "disk", "dog-affnet-hardnet")
PAPER = "Lindenberger et al., LightGlue, ICCV 2023"
TRAINED_ON = "synthetic homographies, then MegaDepth"  # LightGlue, section 4


@register(
    "lightglue",
    needs={"local", "keypoints"},
    card=Card(
        paper=f"{PAPER}; LighterGlue weights of Potje et al., XFeat, CVPR 2024",
        licence="Apache-2.0",
        trained_on="MegaDepth and synthetic warps (LighterGlue)",
    ),
)
class LightGlue(Reranker):
    """Score: number of matches, or of those that an affine model explains. Ties keep first-stage order.

    By default all layers see all keypoints, so that the count is exact; on a CPU by `methods.lightglue.model`. Other
    devices, and what leaves keypoints out, have kornia's network.
    """

    _kind = "xfeat"  # of the descriptors that it reads; `bind` says which

    @dataclass(frozen=True)
    class Options:
        descriptors: int = 500  # best-scored local descriptors used per image
        match_threshold: float = 0.1  # least assignment probability of a match
        weights: Path | None = None  # a released LightGlue .pth; none: the one of the feature set
        adaptive: bool = False  # leave out layers and keypoints where it is sure, as published: faster, other counts
        verify: Literal["none", "ransac"] = "none"  # ransac: count the inliers of the matches, as `ransac` does

        def __post_init__(self) -> None:
            if self.descriptors < 1 or not 0 <= self.match_threshold < 1:
                raise ValueError("descriptors must be at least 1 and match_threshold in [0, 1)")

    def skip(self, features: FeatureCard) -> str | None:
        from third_party.lightglue_weights import KINDS, RELEASES, UNREAD, columns, read

        kind = KINDS.get(features.local)
        if kind is None:
            reason = UNREAD.get(features.local, f"no LightGlue is trained for {features.name}")
            return f"{reason}: use --features {' or '.join(KINDS)}"
        if features.local_dim not in (None, columns(kind)):
            return (
                f"LightGlue for {kind} reads {columns(kind)}-d descriptors, {features.name} has {features.local_dim}-d"
            )
        try:
            path = self._weights(kind)
        except UserError as error:
            if self.options.weights is not None:  # a file that the user named is the user's to mend
                raise
            return error.line
        if path is None:
            return (
                f"no weights for {kind} come with a package: give {RELEASES}/{kind}_lightglue.pth with "
                f"-o lightglue.weights=FILE, or use --features {' or '.join(SHIPPED)}"
            )
        kinds = read(path)[0]
        return None if kind in kinds else f"{path} is for {' or '.join(kinds)} descriptors, not for {features.local}"

    def bind(self, features: FeatureCard) -> None:
        from third_party.lightglue_weights import KINDS

        self._kind = KINDS.get(features.local, "xfeat")

    def made_for(self) -> str | None:
        return "xfeat" if self.options.weights is None else None

    def load(self) -> None:
        from third_party.lightglue_weights import load, read, settings

        path, options = self.weights(), self.options
        if options.adaptive or self.device.type != "cpu":
            model = load(path, self._kind, self.device, options.match_threshold, options.adaptive)
            self._pairs: Callable[[Features, Sequence[Features]], list[Tensor]] = partial(_by_kornia, model)
        else:
            network = LightGlueNetwork(read(path)[1], LightGlueConfig(**settings(self._kind)))
            self._pairs = partial(network.match, threshold=options.match_threshold)
        if self.options.verify == "ransac":
            prepare(Verification())

    def weights(self) -> Path:
        path = self._weights(self._kind)
        assert path is not None  # else `skip` has said so
        return path

    def _weights(self, kind: str) -> Path | None:
        """The file for a kind of descriptors; None where none is given and no package has one. UserError."""
        from third_party.lightglue_weights import FILES
        from third_party.xfeat_weights import weights_file

        if self.options.weights is not None:
            return given_file("lightglue.weights", self.options.weights, "a released .pth")
        if kind == "xfeat":
            return weights_file("xfeat-lighterglue.pt")
        return FILES[kind].file("-o lightglue.weights=FILE") if kind in FILES else None

    def card(self) -> Card:
        if self.options.weights is not None:
            return replace(
                self.spec.card, trained_on=f"what {self.options.weights.name} was trained on (given by the user)"
            )
        if self._kind == "xfeat":
            return self.spec.card
        return replace(self.spec.card, paper=PAPER, trained_on=TRAINED_ON)

    def score(self, query: Features, candidates: FeatureBatch) -> Scored:
        found = self._matches(query, list(candidates))
        matches = torch.tensor([len(pairs) for pairs, _ in found], dtype=torch.float32)
        if self.options.verify == "none":
            return Scored(matches, {})
        inliers = torch.tensor([int(of.sum()) for _, of in found if of is not None], dtype=torch.float32)
        return Scored(inliers, {"matches": matches, "inliers": inliers})

    def explain(self, query: Features, candidate: Features) -> Explanation:
        return Explanation.counted(*self._matches(query, [candidate])[0])

    def _matches(self, query: Features, candidates: Sequence[Features]) -> list[tuple[Tensor, Tensor | None]]:
        """(m, 2) rows of query and candidate, and (m,) bool which are inliers, None where that is not asked."""
        query, *candidates = (image.top(self.options.descriptors) for image in (query, *candidates))
        pairs = self._pairs(query, candidates)
        if self.options.verify == "none":
            return [(rows, None) for rows in pairs]
        return [(rows, _inliers(query, image, rows)) for rows, image in zip(pairs, candidates, strict=True)]


def _inliers(query: Features, candidate: Features, pairs: Tensor) -> Tensor:
    points = query.keypoints.cpu()[pairs[:, 0]], candidate.keypoints.cpu()[pairs[:, 1]]
    return torch.from_numpy(verify(points[0].numpy(), points[1].numpy(), Verification()).inliers)


@torch.inference_mode()
def _by_kornia(
    model: Callable[[Mapping[str, Any]], Any], query: Features, candidates: Sequence[Features]
) -> list[Tensor]:
    """(m, 2) rows of the query and of each candidate. One pair at a time: leaving out differs from pair to pair."""
    return [model({"image0": _image(query), "image1": _image(other)})["matches"][0].cpu() for other in candidates]


def _image(features: Features) -> dict[str, Tensor]:
    return {
        "keypoints": features.keypoints[None],
        "descriptors": features.descriptors[None],
        "image_size": features.image_size[None],
        "scales": features.scales[None],
        "oris": features.orientations[None],
    }
