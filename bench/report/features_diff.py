"""A difference of two feature sets, on a terminal, in Markdown or as JSON: the verdict, then what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from bench.features.diff import Difference
from bench.features.diff_numbers import Geometry, Numbers, Side, Spread

Row = tuple[str, str, str, str]  # what, of A, of B, of both


def rows(numbers: Numbers) -> list[Row]:
    """What was measured, as text; what could not be is left out."""
    return [row for row in _rows(numbers) if any(row[1:])]


def _rows(n: Numbers) -> Iterator[Row]:
    def both(what: str, of: Callable[[Side], str]) -> Row:
        return what, of(n.a), of(n.b), ""

    with_features = (str(n.images - len(side.absent)) for side in (n.a, n.b))
    yield "images with features", next(with_features), next(with_features), f"{n.shared} of {n.images} in both"
    if n.a.beyond or n.b.beyond:
        yield both("images that the data set has not", lambda side: str(side.beyond))
    if n.sizes is not None:
        yield "image size, B over A", "", "", f"{_spread(n.sizes.factor)}; equal for {_share(n.sizes.equal)}"
    if n.crop_sizes is not None:
        sizes = f"{_spread(n.crop_sizes.factor)}; equal for {_share(n.crop_sizes.equal)}"
        yield "size of queries' crops, B over A", "", "", sizes
    if n.boxed and n.a.local_dim and n.b.local_dim:
        yield both("queries of the box's size", lambda side: f"{side.cropped} of {n.boxed}")
        yield both("queries that reach beyond the box", lambda side: f"{side.uncropped} of {n.boxed}")
    yield both("local descriptors, values", lambda side: str(side.local_dim or ""))
    yield both("local descriptors an image", lambda side: _counts(side))
    yield both("local descriptors, norms", lambda side: _spread(side.norms))
    if n.local is not None:
        yield from _places("keypoints at one place", n.local.whole)
        yield from _places("keypoints of queries' crops at one place", n.local.crops)
        yield "cosines of their descriptors", "", "", _spread(n.local.cosine)
        yield "rank correlation of their scores", "", "", "" if n.local.order is None else f"{n.local.order:.3f}"
    yield both("global descriptors, values", lambda side: str(side.global_dim or ""))
    yield both("global descriptors, norms", lambda side: _spread(side.global_norms))
    if n.globals_ is not None:
        yield "cosines of global descriptors", "", "", _spread(n.globals_.whole)
        yield "cosines of queries' crops", "", "", _spread(n.globals_.crops)
    if n.lists is not None:
        k, of = n.lists.k, f"{n.lists.queries} queries"
        yield f"images in both top-{k} lists", "", "", f"{_share(n.lists.jaccard)} of those in any, mean of {of}"
        yield "places between their ranks", "", "", f"{n.lists.moved:.2f}, mean of {of}"


def _places(what: str, geometry: Geometry | None) -> Iterator[Row]:
    if geometry is None:
        return
    yield what, "", "", _spread(geometry.plain)
    if geometry.overlap != geometry.plain:
        yield f"{what}, after what is named above", "", "", _spread(geometry.overlap)
    if geometry.offset is not None:
        x, y = geometry.offset
        yield "their shift, B from A, pixels", "", "", f"{x:+.2f}, {y:+.2f}"


def _counts(side: Side) -> str:
    return "" if side.counts is None else f"{side.counts.median:.0f} (at most {side.most})"


def _spread(spread: Spread | None) -> str:
    """
    >>> _spread(Spread(0, 0.5, 1, 1, 2, 9)), _spread(Spread(1, 1, 1, 1, 1, 9))
    ('1.000 (0.500 to 1.000)', '1.000')
    """
    if spread is None:
        return ""
    low, median, high = (f"{value + 0.0:.3f}" for value in (spread.low, spread.median, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


def _share(share: float) -> str:
    return f"{100 * share:.0f} %"


def worst(found: Difference) -> list[tuple[str, ...]]:
    """The images that differ most, as text."""
    return [
        (one.image, *("" if value is None else f"{value:.3f}" for value in (one.cosine, one.overlap, one.descriptors)))
        for one in found.worst
    ]


HEADS = ("", "A", "B", "both")
WORST = ("image", "cosine of globals", "keypoints at one place", "cosine of their descriptors")
RANGES = "medians of images, and in brackets what 5 % are below and above"


def title(found: Difference) -> str:
    n = found.numbers
    return f"A: {n.a.name}, B: {n.b.name}, of {n.dataset}"


def print_difference(found: Difference) -> None:
    """On the terminal."""
    from bench.report.terminal import console, print_listing

    out = console()

    def say(text: str, style: str | None = None) -> None:
        out.print(text, style=style, highlight=False, markup=False)

    say(title(found))
    say(f"Verdict: {found.verdict}.", "bold")
    for cause in found.causes:
        say(f"  {cause.name}: {cause.why}")
    print_listing(HEADS, rows(found.numbers))
    say(f"  Numbers are {RANGES}.")
    if found.worst:
        print_listing(WORST, worst(found))
    for note in found.notes:
        say(f"  {note}")


def to_markdown(found: Difference) -> str:
    lines = [_plain(title(found)), "", f"**Verdict: {_plain(found.verdict)}.**", ""]
    lines += [f"- {_plain(cause.name)}: {_plain(cause.why)}" for cause in found.causes]
    lines += [""] * bool(found.causes) + _table(HEADS, rows(found.numbers)) + ["", f"Numbers are {RANGES}."]
    if found.worst:
        lines += ["", *_table(WORST, worst(found))]
    lines += [""] * bool(found.notes) + [f"- {_plain(note)}" for note in found.notes]
    return "\n".join(lines)


def _table(heads: tuple[str, ...], cells: list) -> list[str]:
    return [
        f"| {' | '.join(map(_plain, heads))} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(map(_plain, row))} |" for row in cells),
    ]


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def to_json(found: Difference) -> str:
    """Everything that was measured, and the verdict."""
    return json.dumps({"verdict": found.verdict, "same": found.same, **asdict(found)}, indent=1, default=str)


FORMATS: Mapping[str, Callable[[Difference], str]] = {"md": to_markdown, "json": to_json}
