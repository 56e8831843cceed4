"""Whether the boxes of queries are what they should be: pixels of the upright image."""

from __future__ import annotations

from collections.abc import Iterable

from bench.datasets import Query
from bench.errors import UserError
from bench.images import UnreadableImage, cut, size_of

NAMED = 5  # queries at most in a note


def check_boxes(queries: Iterable[Query], truth: str) -> tuple[str, ...]:
    """Notes on boxes that reach beyond their images; `truth` names the file that they are from.

    UserError for boxes in fractions of the image, and for a box that is too narrow or outside the image. An image that
    cannot be read is left to those who read it.
    """
    boxed = [(query, query.box) for query in queries if query.box is not None]
    if boxed and all(0 <= value <= 1 for _, box in boxed for value in box):
        raise UserError(
            f"{truth}: every box of a query lies within 0..1, as fractions of an image do",
            hint="boxes are x1, y1, x2, y2 in pixels of the upright image",
        )
    beyond = []
    for query, box in boxed:
        try:
            size = size_of(query.image)
        except UnreadableImage:
            continue
        inside = cut(box, size, query.image)
        if inside != tuple(round(value) for value in box):
            beyond.append(f"{query.id} {[round(v, 1) for v in box]} in {size[0]}x{size[1]} pixels")
    if not beyond:
        return ()
    more = ", …" if len(beyond) > NAMED else ""
    return (f"Query boxes that reach beyond their image were cut to it: {'; '.join(beyond[:NAMED])}{more}.",)
