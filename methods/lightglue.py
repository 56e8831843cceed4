"""LightGlue (Lindenberger et al., ICCV 2023): out of the box on XFeat (LighterGlue), ALIKED, DISK and HardNet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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

    By default all layers see all keypoints, so that the count is exact.
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
        from third_party.lightglue_weights import load

        self._model = load(self.weights(), self._kind, self.device, self.options.match_threshold, self.options.adaptive)
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

    @torch.inference_mode()
    def score(self, query: Features, candidates: FeatureBatch) -> Scored:
        query = query.top(self.options.descriptors)
        # one pair at a time: on a CPU a padded batch is slower, and images differ in their number of descriptors
        found = [self._matches(query, other.top(self.options.descriptors)) for other in candidates]
        matches = torch.tensor([len(pairs) for pairs, _ in found], dtype=torch.float32)
        if self.options.verify == "none":
            return Scored(matches, {})
        inliers = torch.tensor([int(of.sum()) for _, of in found if of is not None], dtype=torch.float32)
        return Scored(inliers, {"matches": matches, "inliers": inliers})

    @torch.inference_mode()
    def explain(self, query: Features, candidate: Features) -> Explanation:
        most = self.options.descriptors
        return Explanation.counted(*self._matches(query.top(most), candidate.top(most)))

    def _matches(self, query: Features, candidate: Features) -> tuple[Tensor, Tensor | None]:
        """(m, 2) rows of query and candidate, and (m,) bool which are inliers, None where that is not asked."""
        pairs = self._model({"image0": _image(query), "image1": _image(candidate)})["matches"][0].cpu()
        if self.options.verify == "none":
            return pairs, None
        query_points, candidate_points = query.keypoints.cpu()[pairs[:, 0]], candidate.keypoints.cpu()[pairs[:, 1]]
        verdict = verify(query_points.numpy(), candidate_points.numpy(), Verification())
        return pairs, torch.from_numpy(verdict.inliers)


def _image(features: Features) -> dict[str, Tensor]:
    return {
        "keypoints": features.keypoints[None],
        "descriptors": features.descriptors[None],
        "image_size": features.image_size[None],
        "scales": features.scales[None],
        "oris": features.orientations[None],
    }
