"""Which local tokens have a match."""

import torch

from methods._views.matches import has_match


def test_match_targets():
    eye = torch.eye(4)
    first, second = eye[None, :3], eye[None, [1, 3, 0]]
    unknown = (torch.full((1, 3, 2), float("nan")),) * 2
    got = has_match(first, second, unknown, torch.ones(1))[0]
    assert got[:, 0].tolist() == [1, 1, 0, 1, 0, 1]
    assert torch.equal(got[:, 0], got[:, 1])
    assert has_match(first, second, unknown, torch.zeros(1))[0, :, 1].sum() == 0
    places = torch.tensor([[[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]]), torch.tensor([[[0.5, 0.51], [0, 0], [0.7, 0.1]]])
    assert has_match(first, second, places, torch.ones(1))[0, :, 1].tolist() == [0, 1, 0, 1, 0, 0]
