"""ELViS (Suma et al., ICLR 2026): descriptors vote for a pair of images by how strongly they are assigned.

A descriptor's strength is the largest entry of its row in an optimal-transport assignment with learned dustbins. A
small network turns each strength into a vote in (0, 1), and the score is the sum of the votes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._local_weights import load_checkpoint
from methods._parallel import each, together
from methods._sinkhorn import transport

FORMAT = "rerankbench-elvis-1"
DIM = 128  # of a token, and of the dustbin's network in it
ITERATIONS = 10  # of Sinkhorn's algorithm
TEMPERATURE = 0.1  # of the cosines
KINDS = ("weight", "bias")  # of what a layer holds
HINT = "expected a .safetensors of ours, or a .pt of the authors of ELViS"


@dataclass(frozen=True)
class ElvisConfig:
    """Sizes of the network: values of a local descriptor, and widths of the networks of votes and of the loss."""

    local_dim: int = 768
    vote: int = 16
    loss: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} {value!r}: expected an integer of at least 1")


class Elvis(nn.Module):
    """Scores pairs of sets of local descriptors. 33,684 parameters for descriptors of 128 values."""

    def __init__(self, config: ElvisConfig = ElvisConfig()):
        super().__init__()
        self.config = config
        self.remap = nn.Sequential(nn.Linear(config.local_dim, DIM), nn.LayerNorm(DIM))
        self.dustbin = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, 1), nn.Tanh())
        self.corner = nn.Parameter(torch.tensor(1.0))
        self.vote = nn.Sequential(
            nn.Linear(1, config.vote), nn.LayerNorm(config.vote, eps=1e-6), nn.GELU(), nn.Linear(config.vote, 1)
        )
        # of the sum of votes, while training alone: what ranks is the sum itself
        self.logit = nn.Sequential(nn.Linear(1, config.loss), nn.GELU(), nn.Linear(config.loss, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def embed(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        """(…, n, local_dim) descriptors -> (…, n, 128) unit tokens and (…, n) scores of the dustbin in (-1, 1)."""
        tokens = F.normalize(self.remap(descriptors), dim=-1)
        return tokens, self.dustbin(tokens)[..., 0]

    def assign(self, query: tuple[Tensor, Tensor], candidate: tuple[Tensor, Tensor]) -> Tensor:
        """(…, n, m) share of each query token that goes to each candidate token, without the dustbins' part."""
        (one, bin_one), (other, bin_other) = query, candidate
        n, m = one.shape[-2], other.shape[-2]
        inner = torch.cat([one @ other.transpose(-1, -2), bin_one[..., None]], dim=-1)
        corner = self.corner.expand(*bin_other.shape[:-1], 1)
        last = torch.cat([bin_other, corner], dim=-1)[..., None, :]
        return transport(torch.cat([inner, last], dim=-2) / TEMPERATURE, ITERATIONS)[..., :n, :m].exp()

    def votes(self, query: tuple[Tensor, Tensor], candidate: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(…, n) and (…, m) votes in (0, 1) of the tokens of both images, which have at least one each."""
        votes = self._votes(self._strengths(query, candidate))
        n = query[0].shape[-2]
        return votes[..., :n], votes[..., n:]

    def _strengths(self, query: tuple[Tensor, Tensor], candidate: tuple[Tensor, Tensor]) -> Tensor:
        """(…, n + m) largest share of each token of both images."""
        assignment = self.assign(query, candidate)
        return torch.cat([assignment.amax(dim=-1), assignment.amax(dim=-2)], dim=-1)

    def _votes(self, strengths: Tensor) -> Tensor:
        return torch.sigmoid(self.vote(strengths[..., None])[..., 0])

    def encode(self, query: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """(b, n + m, 1) strengths of all tokens, and (b,) logits to train by, of b pairs of n and m descriptors."""
        strengths = self._strengths(self.embed(query), self.embed(candidate))
        return strengths[..., None], self.logit(self._votes(strengths).sum(dim=-1, keepdim=True))[..., 0]

    def forward(self, query: Tensor, candidate: Tensor) -> Tensor:
        """(…,) sums of the votes of (…, n, local_dim) and (…, m, local_dim) descriptors, n and m at least 1."""
        return torch.cat(self.votes(self.embed(query), self.embed(candidate)), dim=-1).sum(dim=-1)

    @torch.inference_mode()
    def score(self, query: Tensor, candidates: Sequence[Tensor]) -> Tensor:
        """(k,) sums of votes; 0 without descriptors. Pairs are unpadded: padding would count as tokens.

        On a CPU one pair at a time, elsewhere equally long candidates together.
        """
        none = query.new_zeros(())
        if not len(query) or not candidates:
            return none.repeat(len(candidates))
        source = self.embed(query)
        if query.device.type != "cpu":
            return together(partial(self._stack, query), candidates)

        @torch.inference_mode()  # thread-local
        def one(candidate: Tensor) -> Tensor:
            return torch.cat(self.votes(source, self.embed(candidate))).sum() if len(candidate) else none

        return torch.stack(each(one, candidates))

    def _stack(self, query: Tensor, stack: Tensor) -> Tensor:
        """(b,) sums of votes of the query (n, local_dim) with each of a stack (b, m, local_dim)."""
        return self(query.expand(len(stack), -1, -1), stack) if stack.shape[1] else query.new_zeros(len(stack))


def load(path: Path) -> tuple[Elvis, Mapping[str, Any]]:
    """The network of a file of weights, and its card. UserError."""
    return load_checkpoint(path, FORMAT, lambda sizes: Elvis(ElvisConfig(**sizes)), official, HINT)


def official(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Config and weights, under our names, of the authors' file, whose layers are told by their shapes. ValueError.

    The network of the loss may be missing: nothing that ranks reads it.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    layers = {name.removesuffix(".weight") for name in shapes if name.endswith(".weight")}
    linear = {name: shapes[f"{name}.weight"] for name in layers if len(shapes[f"{name}.weight"]) == 2}
    norms = {shapes[f"{name}.weight"][0]: name for name in layers if len(shapes[f"{name}.weight"]) == 1}
    inputs = {name: shape for name, shape in linear.items() if shape[0] == DIM}
    # a linear layer 128 -> 128 is the dustbin's; where descriptors have 128 values there are two, told by their names
    square = [name for name, shape in inputs.items() if shape[1] == DIM]
    first = [name for name in inputs if name not in square] or [name for name in square if "bin" not in name]
    bins = [name for name in square if name not in first]
    corners = [name for name, shape in shapes.items() if shape in ((), (1,)) and not name.endswith(".bias")]
    widen = {linear[name][0]: name for name in linear if linear[name][1] == 1}  # width -> layer from one number
    narrow = {linear[name][1]: name for name in linear if linear[name][0] == 1}  # width -> layer to one number
    if len(first) != 1 or len(bins) != 1 or len(corners) != 1 or DIM not in norms or DIM not in narrow:
        raise ValueError(f"no layers of ELViS among {', '.join(sorted(shapes)[:3]) or 'nothing'}, …")
    vote = next((width for width in widen if width in norms and width in narrow), None)
    if vote is None:
        raise ValueError("no network of votes")
    names = {
        "remap.0": first[0],
        "remap.1": norms[DIM],
        "dustbin.0": bins[0],
        "dustbin.2": narrow[DIM],
        "vote.0": widen[vote],
        "vote.1": norms[vote],
        "vote.3": narrow[vote],
    }
    config = {"local_dim": linear[first[0]][1], "vote": vote}
    loss = next((width for width in widen if width != vote and width in narrow), None)
    if loss is not None:
        config["loss"] = loss
        names |= {"logit.0": widen[loss], "logit.2": narrow[loss]}
    theirs_by_ours = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in names.items() for part in KINDS}
    found = {ours: state[theirs] for ours, theirs in theirs_by_ours.items() if theirs in state}
    unread = {name: tensor for name, tensor in Elvis(ElvisConfig(**config)).state_dict().items() if "logit" in name}
    return config, {**unread, **found, "corner": state[corners[0]].reshape(())}
