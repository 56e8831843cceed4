"""Images of several lengths, stacked with those of their own length."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from methods._parallel import together


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 5))
def test_every_image_gets_its_own_number_whatever_the_stacks(lengths: list[int], most: int) -> None:
    images = [torch.full((n, 2), float(i)) for i, n in enumerate(lengths)]
    seen: list[tuple[int, ...]] = []

    def work(stack: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(stack.shape))
        return stack[:, 0, 0]

    assert together(work, images, most).tolist() == list(range(len(lengths)))
    assert all(b <= most for b, _, _ in seen)
