"""Optimal transport with dustbins (Sarlin et al., SuperGlue, CVPR 2020, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

SAFE_RANGE = 60.0  # of couplings in nats, within which their exponentials neither overflow nor vanish in float32


def transport(couplings: Tensor, iterations: int) -> Tensor:
    """(…, n + 1, m + 1) log assignment of couplings whose last row and column are the dustbins, times n + m.

    Every token has a mass of 1, the dustbin of the rows m and that of the columns n. After the last iteration the
    columns have exactly those masses, and the rows nearly. Several pairs at once, and what a gradient is asked of, go
    through logarithms throughout; one pair without goes through exponentials where these are safe, which is quicker.
    """
    n, m = couplings.shape[-2] - 1, couplings.shape[-1] - 1
    rows, columns = couplings.new_ones(n + 1), couplings.new_ones(m + 1)
    rows[n], columns[m] = m, n  # of n + m in all
    if couplings.ndim == 2 and not couplings.requires_grad:
        spread = couplings.max() - couplings.min()
        if bool(spread <= SAFE_RANGE):  # also false where it is not a number
            return _exponential(couplings, rows, columns, iterations)
    return _logarithmic(couplings, rows, columns, iterations)


def _exponential(couplings: Tensor, rows: Tensor, columns: Tensor, iterations: int) -> Tensor:
    kernel = (couplings - couplings.max()).exp_()
    flipped = kernel.T.contiguous()
    v = torch.ones_like(columns)
    u = torch.ones_like(rows)
    for _ in range(iterations):
        u = rows / (kernel @ v)
        v = columns / (flipped @ u)
    return couplings - couplings.max() + u.log()[:, None] + v.log()


def _logarithmic(couplings: Tensor, rows: Tensor, columns: Tensor, iterations: int) -> Tensor:
    rows, columns = rows.log(), columns.log()
    u, v = torch.zeros_like(rows), torch.zeros_like(columns)
    for _ in range(iterations):
        u = rows - torch.logsumexp(couplings + v[..., None, :], dim=-1)
        v = columns - torch.logsumexp(couplings + u[..., :, None], dim=-2)
    return couplings + u[..., :, None] + v[..., None, :]
