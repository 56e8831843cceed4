"""What the training-only loss asks of each local token: does it have a match in the other image?"""

from __future__ import annotations

import torch
from torch import Tensor

SAME_COSINE = 0.8  # least cosine of a match
SAME_PLACE = 0.02  # and, where places are known, how near they must be (fraction of the photograph's longer side)


def has_match(first: Tensor, second: Tensor, places: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """(b, n + m, 2) in {0, 1}: has the token a mutual nearest neighbour of cosine above SAME_COSINE in the other image;
    and is that match right: of a positive pair and, where places are known, in the same place.

    first (b, n, d) and second (b, m, d) unit vectors; places (b, n, 2) and (b, m, 2).
    """
    with torch.autocast(first.device.type, enabled=False):  # bf16 cosines would tie
        similar = first @ second.transpose(1, 2)
    best, there = similar.max(dim=2)
    back = similar.argmax(dim=1)
    n, m = similar.shape[1:]
    mutual = (back.gather(1, there) == torch.arange(n, device=first.device)) & (best > SAME_COSINE)
    other_place = places[1].gather(1, there[..., None].expand(-1, -1, 2))
    unknown = places[0].isnan().all(dim=(1, 2)) | places[1].isnan().all(dim=(1, 2))
    near = ((places[0] - other_place).norm(dim=-1) < SAME_PLACE) | unknown[:, None]
    right = mutual & near & (labels[:, None] > 0.5)
    source = torch.stack([mutual, right], dim=-1)
    # a token of the second image is matched if a mutual one of the first points at it
    target = torch.zeros(len(first), m, 2, dtype=torch.bool, device=first.device)
    batch, index = mutual.nonzero(as_tuple=True)
    target[batch, there[batch, index]] = source[batch, index]
    return torch.cat([source, target], dim=1).float()
