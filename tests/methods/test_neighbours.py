"""Neighbourhoods that do not depend on the order of a list."""

import torch

from methods._neighbours import cosines, nearest


def test_the_nearest_are_as_many_as_asked_and_those_that_tie_with_the_last() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.5, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5]], dtype=torch.float64)
    assert nearest(similarity, 2).tolist() == [[False, True, True, True, False], [False, False, False, True, True]]
    assert nearest(similarity, 1).sum(dim=1).tolist() == [1, 1]
    assert nearest(similarity, 9).all() and not nearest(similarity, 0).any()


def test_the_last_bits_of_a_similarity_break_no_tie() -> None:
    similarity = torch.tensor([[1, 0.5, 0.5 - 1e-14, 0.4999]], dtype=torch.float64)
    assert nearest(similarity, 2).tolist() == [[True, True, True, False]]


def test_every_image_is_most_similar_to_itself_even_an_unreadable_one() -> None:
    found = cosines(torch.tensor([[0.6, 0.8], [0, 0], [0.59, 0.79]], dtype=torch.float64))
    assert torch.equal(found.diagonal(), torch.ones(3, dtype=torch.float64))
    assert found[1].tolist() == [0, 1, 0] and found[0, 2] == found[2, 0]
