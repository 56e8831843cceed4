"""What follows from the numbers of a difference: each rule names one mistake, and what it saw of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bench.errors import listed
from bench.features.diff_globals import LINEAR, ROTATED
from bench.features.diff_numbers import Geometry, Globals, Numbers, Side, Spread

UNIT = 2e-2  # a norm as near to 1 is one of few bits
MOST = 0.5  # share of images of which a mistake must be true
FULL = 0.9  # overlap of keypoints that are the same
ALIKE = 0.95  # cosine of descriptors that are the same but for decoding or resizing
KIN = 0.3  # of the way from chance to equality: descriptors of one extractor
SMALL = 0.99  # overlap and cosines from which nothing is said
ORDERED = 0.9  # rank correlation of rows in the same order
RESIZED = 1.01  # factor that rounding does not make
UNSTEADY = 1.05  # factor between factors of images from which both are named
STRETCHED = 1.03
SHIFTED, HALF = 0.1, 0.1  # pixels that are a shift, and that half a pixel may be off
FEWER = 0.98  # ratio of the numbers of descriptors that are another number
AT_MOST = 0.1  # share of images with as many descriptors as any, from which they were cut


@dataclass(frozen=True)
class Cause:
    """One reason why two feature sets differ."""

    name: str  # a few words, for the verdict
    why: str  # a sentence: what was measured

    def __post_init__(self) -> None:
        if not self.name or not self.why.endswith("."):
            raise ValueError(f"{self.name!r}: {self.why!r}, expected a name and a sentence")


Rule = Callable[[Numbers], Cause | None]


def causes(numbers: Numbers) -> tuple[Cause, ...]:
    """Of every rule that holds; none where the sets are the same."""
    return tuple(cause for rule in RULES if (cause := rule(numbers)) is not None)


def _letter(n: Numbers, side: Side) -> str:
    return "A" if side is n.a else "B"


def other_images(n: Numbers) -> Cause | None:
    lacking = [
        (side, [image for image in side.absent if image not in set(other.absent)])
        for side, other in ((n.a, n.b), (n.b, n.a))
    ]
    lacking = [(side, images) for side, images in lacking if images]
    if not lacking:
        return None
    missing = " and ".join(f"{len(images)} missing in {_letter(n, side)}" for side, images in lacking)
    named = ". ".join(f"{_letter(n, side)} has no features of {listed(images)}" for side, images in lacking)
    return Cause(f"other images ({missing})", f"{named}.")


def local_length(n: Numbers) -> Cause | None:
    if not (n.a.local_dim and n.b.local_dim) or n.a.local_dim == n.b.local_dim:
        return None
    return Cause(
        f"another extractor ({n.a.local_dim} against {n.b.local_dim} values)",
        "Local descriptors have other lengths, so only their keypoints are compared.",
    )


def global_length(n: Numbers) -> Cause | None:
    if not (n.a.global_dim and n.b.global_dim) or n.a.global_dim == n.b.global_dim:
        return None
    return Cause(
        f"globals of another length ({n.a.global_dim} against {n.b.global_dim} values)",
        "Cosines of global descriptors cannot be compared.",
    )


def _unit(norms: Spread) -> bool:
    return abs(norms.median - 1) <= UNIT and norms.high - norms.median <= UNIT


def _not_normalised(a: Spread | None, b: Spread | None, n: Numbers, what: str) -> Cause | None:
    if a is None or b is None or (_unit(a) and _unit(b)):
        return None
    if not _unit(a) and not _unit(b) and abs(a.median - b.median) <= UNIT * max(a.median, b.median):
        return None
    which = [_letter(n, side) for side, norms in ((n.a, a), (n.b, b)) if not _unit(norms)]
    return Cause(
        f"{what} are not normalised in {' and '.join(which)}",
        f"Their norms are {_range(a)} in A and {_range(b)} in B.",
    )


def _range(spread: Spread) -> str:
    return f"{spread.low:.3g} to {spread.high:.3g}"


def global_norms(n: Numbers) -> Cause | None:
    return _not_normalised(n.a.global_norms, n.b.global_norms, n, "globals") if n.globals_ is not None else None


def local_norms(n: Numbers) -> Cause | None:
    return _not_normalised(n.a.norms, n.b.norms, n, "local descriptors") if n.local is not None else None


def zero_globals(n: Numbers) -> Cause | None:
    if n.globals_ is None or n.a.zero_globals == n.b.zero_globals:
        return None
    having = f"{n.a.zero_globals} images of A and {n.b.zero_globals} of B"
    return Cause("globals of zeros", f"{having} have a global descriptor of zeros.")


def _order(elsewhere: float, shift: int | None, what: str) -> Cause | None:
    if elsewhere <= MOST:
        return None
    by = "no constant row shift" if shift is None else f"row shift {shift:+d}"
    return Cause(
        f"{what} in another order of images ({by})",
        f"In {100 * elsewhere:.0f} % of the sampled gallery images they are nearly equal to those of another image.",
    )


def global_order(n: Numbers) -> Cause | None:
    return None if n.globals_ is None else _order(n.globals_.elsewhere, n.globals_.shift, "globals")


def local_order(n: Numbers) -> Cause | None:
    return None if n.local is None else _order(n.local.elsewhere, n.local.shift, "local descriptors")


def global_change(n: Numbers) -> Cause | None:
    found = n.globals_
    if found is None or not found.change or found.aligned is None:
        return None
    before = "" if found.whole is None else f"Cosines are {found.whole.median:.3f} in the median"
    if found.elsewhere > MOST:
        return Cause(found.change, "Only after that is undone are they nearly equal to those of another image.")
    after = "images are as alike to one another" if found.change == ROTATED else f"{found.aligned.median:.3f} after it"
    kept = "" if found.change == LINEAR else " It does not change the order of any list."
    return Cause(found.change, f"{f'{before}, and {after}' if before else f'Cosines are {after}'}.{kept}")


def swapped(n: Numbers) -> Cause | None:
    geometry = next((g for g in _geometries(n) if g.swapped), None)
    if geometry is None:
        return None
    share = f"{_percent(geometry.overlap)} of the keypoints lie at one place after swapping"
    return Cause("x and y swapped", f"{share}, {_percent(geometry.plain)} before.")


def sizes_swapped(n: Numbers) -> Cause | None:
    if n.sizes is None or n.sizes.swapped <= MOST:
        return None
    return Cause(
        "widths and heights of images swapped", f"So they are in {100 * n.sizes.swapped:.0f} % of the oblong images."
    )


def parts(n: Numbers) -> Cause | None:
    if n.local is None or n.a.parts == n.b.parts:
        return None
    side = n.a if n.a.parts else n.b
    return Cause(
        f"keypoints of {_letter(n, side)} are parts of the sides, not pixels", "All of them lie within 0 and 1."
    )


def resized(n: Numbers) -> Cause | None:
    if parts(n) is not None:
        return None
    geometry = next((g for g in _geometries(n) if g.factor is not None), None)
    if geometry is not None and geometry.factor is not None and (_factor(geometry.factor) or _stretched(geometry)):
        also = "" if n.sizes is None or n.sizes.equal > MOST else " Image sizes differ, too."
        sides = "" if not _stretched(geometry) else f", and by another factor in x than in y ({geometry.stretch:.2f})"
        return Cause(
            f"images resized differently ({_factor(geometry.factor) or 'sides stretched'})",
            f"Keypoints of B lie at {geometry.factor.median:.3g} times those of A{sides}.{also}",
        )
    if n.sizes is None or n.sizes.swapped > MOST or not (factor := _factor(n.sizes.factor)):
        return None
    if local_order(n) is not None and 1 / UNSTEADY < n.sizes.factor.median < UNSTEADY:
        return None  # sizes are those of other images
    but = " Their keypoints lie at the same places." if _local_is_same(n) else ""
    return Cause(
        f"images resized differently ({factor})",
        f"Images of B have {n.sizes.factor.median:.3g} times the size of those of A.{but}",
    )


def _factor(spread: Spread) -> str:
    """The factor in words, at least 1; empty where there is none.

    >>> _factor(Spread(0.5, 0.5, 0.5, 0.5, 0.5, 1))
    'factor 2'
    """
    above = spread if spread.median >= 1 else spread.inverse
    if max(above.high, 1 / above.low) < RESIZED:
        return ""
    if above.high / above.low < UNSTEADY:
        return f"factor {above.median:.3g}" if above.median >= RESIZED else ""
    return f"factors {above.low:.3g} to {above.high:.3g}"


def _stretched(geometry: Geometry) -> bool:
    return not 1 / STRETCHED < geometry.stretch < STRETCHED


def shifted(n: Numbers) -> Cause | None:
    geometry = next(iter(_geometries(n)), None)
    if geometry is None:
        return None
    if geometry.moved and geometry.offset is None:
        share = f"{_percent(geometry.overlap)} of the keypoints lie at one place"
        return Cause(
            "keypoints shifted by another offset in each image",
            f"{share} after each image's shift, {_percent(geometry.plain)} before.",
        )
    if geometry.offset is None or max(map(abs, geometry.offset)) < SHIFTED:
        return None
    x, y = geometry.offset
    half = all(abs(abs(value) - 0.5) < HALF for value in (x, y))
    by = "half a pixel" if half else f"{x:.2g}, {y:.2g} pixels"
    return Cause(
        f"keypoints shifted by {by}",
        f"Those of B lie {x:+.2f} pixels in x and {y:+.2f} in y from those of A.",
    )


def crops(n: Numbers) -> Cause | None:
    if not n.boxed:
        return None
    seen = []
    if n.recut:
        seen.append(f"{n.recut} queries have another size in B than in A, unlike other images")
    local = n.local
    placed = local is not None and local.crops is not None and local.crops.overlap.median >= FULL
    if n.a.uncropped != n.b.uncropped and not placed:
        seen.append(
            f"features of {n.a.uncropped} queries in A and of {n.b.uncropped} in B reach beyond the "
            f"query's box, of {n.boxed} sampled"
        )
    if local is not None and local.crops is not None and local.crops.corner:
        whole = "B" if local.crops.corner > 0 else "A"
        seen.append(f"keypoints of queries count from the corner of the whole image in {whole} alone")
    if local is not None and local.crops is not None and local.crops.moved and not (local.whole and local.whole.moved):
        seen.append("keypoints of queries are shifted, unlike those of other images")
    if not seen:
        seen += _unlike_others(n)
    return Cause("other query crops", _sentence("; ".join(seen))) if seen else None


def _unlike_others(n: Numbers) -> Iterator[str]:
    """What differs of queries with a box alone."""
    if n.local is not None and n.local.crops is not None and n.local.whole is not None:
        crop, whole = n.local.crops.overlap, n.local.whole.overlap
        if whole.median >= FULL and crop.median < MOST:
            yield f"keypoints of queries overlap by {_percent(crop)}, those of other images by {_percent(whole)}"
    if n.globals_ is not None and n.globals_.crops is not None and n.globals_.whole is not None:
        of_crops, of_whole = n.globals_.crops.median, n.globals_.whole.median
        if of_whole >= SMALL and of_crops < ALIKE:
            yield f"cosines of queries' globals are {of_crops:.3f} in the median, those of other images {of_whole:.3f}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def cut(n: Numbers) -> Cause | None:
    if n.local is None or n.a.counts is None or n.b.counts is None or not _overlaps(n):
        return None
    fewer, more = sorted((n.a, n.b), key=lambda side: (side.most, side.counts.median if side.counts else 0))
    assert fewer.counts is not None and more.counts is not None
    of_most, of_median = (
        fewer.most < FEWER * more.most,
        not FEWER <= (fewer.counts.median or 1) / (more.counts.median or 1) <= 1 / FEWER,
    )
    if not (of_most or of_median):
        return None
    if of_most and fewer.at_most >= max(AT_MOST, 2 / fewer.counts.count):
        return Cause(
            f"descriptors cut at another number ({n.a.most} against {n.b.most})",
            f"{100 * fewer.at_most:.0f} % of the images of {_letter(n, fewer)} have exactly {fewer.most}.",
        )
    return Cause(
        f"other numbers of descriptors ({n.a.counts.median:.0f} against {n.b.counts.median:.0f})",
        "These are medians. The keypoints of the fewer are among those of the more.",
    )


def rows(n: Numbers) -> Cause | None:
    if n.local is None or n.local.order is None or n.local.order >= ORDERED:
        return None
    seen = f"The rank correlation of the same keypoints is {n.local.order:.2f}"
    return Cause(
        "local descriptors in another order of quality", f"{seen}: a method that reads the best of them reads others."
    )


NAMES = {"roots": "square roots of descriptors", "bits": "descriptors in one bit a value"}


def descriptor_change(n: Numbers) -> Cause | None:
    if n.local is None or n.local.cosine is None or not n.local.change:
        return None
    side = n.a if n.local.changed == "a" else n.b
    more = ", as of RootSIFT" if n.local.change == "roots" else ""
    return Cause(
        f"{NAMES[n.local.change]} in {_letter(n, side)}",
        f"The same change of the other makes cosines {n.local.cosine.median:.3f} in the median{more}.",
    )


def bits(n: Numbers) -> Cause | None:
    if n.local is None or n.a.bits == n.b.bits or n.local.change == "bits":
        return None
    side = n.a if n.a.bits else n.b
    return Cause(f"{NAMES['bits']} in {_letter(n, side)}", "All values of its local descriptors have one size.")


def options(n: Numbers) -> Cause | None:
    other = _options(n)
    if not other or not _others(n):
        return None
    return Cause(f"extracted with other options ({'; '.join(other)})", "Both stores record how they were made.")


def _options(n: Numbers) -> list[str]:
    """What is recorded of both and differs, but for the number of descriptors, which is counted."""
    names = sorted(n.a.made.keys() & n.b.made.keys() - {"local descriptors"})
    other = [name for name in names if n.a.made[name] != n.b.made[name]]
    said = (f"{name.partition(' ')[2]} {n.a.made[name]} against {n.b.made[name]}" for name in other)
    return list(dict.fromkeys(said))


def another(n: Numbers) -> Cause | None:
    found = {kind: seen for kind, seen in _others(n).items() if not seen.kin}
    if not found or _options(n):
        return None
    return Cause(
        f"another extractor or other weights{_whose(found, n)}", _sentence("; ".join(map(str, found.values())))
    )


def other_pixels(n: Numbers) -> Cause | None:
    found = {kind: seen for kind, seen in _others(n).items() if seen.kin}
    if not found or _options(n) or resized(n) is not None:
        return None
    return Cause(
        f"images of another size or decoding{_whose(found, n)}",
        f"{_sentence('; '.join(map(str, found.values())))[:-1]}, so one extractor made both from other pixels.",
    )


def _whose(found: Mapping[str, Seen], n: Numbers) -> str:
    both = n.local is not None and n.globals_ is not None
    return "" if len(found) == 2 or not both else f" of {next(iter(found))} descriptors"


@dataclass(frozen=True)
class Seen:
    """What was measured of descriptors that are not the same."""

    text: str
    kin: bool  # far more alike than by chance

    def __str__(self) -> str:
        return self.text


def _kin(cosine: float, chance: float) -> bool:
    return cosine - chance > KIN * (1 - chance)


def _others(n: Numbers) -> dict[str, Seen]:
    """Kinds of descriptors that no other rule makes alike -> what was measured."""
    found = {}
    geometry, local, whole = next(iter(_geometries(n)), None), n.local, n.globals_
    if local is not None and geometry is not None and local.elsewhere <= MOST and n.a.local_dim == n.b.local_dim:
        places = f"{_percent(geometry.overlap)} of the keypoints lie at one place"
        cosine = None if local.cosine is None or bits(n) else local.cosine.median
        if geometry.overlap.median < FULL or (cosine is not None and cosine < ALIKE):
            said = (
                "" if cosine is None else f", and cosines there are {cosine:.2f} against {local.chance:.2f} elsewhere"
            )
            found["local"] = Seen(f"{places}{said}", cosine is not None and _kin(cosine, local.chance))
    if whole is not None and whole.elsewhere <= MOST and not whole.change:
        cosines = whole.whole or whole.crops
        if cosines is not None and cosines.median < ALIKE:
            said = f"cosines of global descriptors are {cosines.median:.2f} in the median"
            own = f"for {100 * whole.recognised:.0f} % of the images the nearest of the other set is their own"
            found["global"] = Seen(f"{said}, and {own}", whole.recognised > MOST)
    return found


def little(n: Numbers) -> Cause | None:
    """Differences that are small, or of some images alone."""
    if _others(n):
        return None
    seen = {"whole": n.globals_.aligned} if n.globals_ is not None and _tells(n.globals_) else {}
    geometry = next(iter(_geometries(n)), None)
    one = n.a.local_dim == n.b.local_dim
    if one and n.local is not None and geometry is not None and n.local.elsewhere <= MOST:
        seen |= {"keypoints": geometry.overlap}
        seen |= {"descriptors": n.local.cosine} if n.local.cosine is not None and not bits(n) else {}
    said = {
        "whole": "cosines of global descriptors are",
        "keypoints": "shares of keypoints at one place are",
        "descriptors": "cosines of local descriptors are",
    }
    off = [f"{said[name]} {_percents(spread)}" for name, spread in seen.items() if spread and spread.least < SMALL]
    if not off:
        return None
    known = [spread for spread in seen.values() if spread]
    some = all(spread.median >= SMALL for spread in known) and min(spread.least for spread in known) < ALIKE
    name = "some images differ" if some else "small differences, as of another decoder or other resizing"
    return Cause(name, _sentence("; ".join(off)))


def _tells(found: Globals) -> bool:
    """Whether cosines after the change that was found are those of the images' own descriptors."""
    return found.elsewhere <= MOST and found.change not in (ROTATED, LINEAR)


def _percents(spread: Spread) -> str:
    return f"{spread.median:.3f} in the median and {spread.least:.3f} at least"


def _percent(spread: Spread) -> str:
    return f"{100 * spread.median:.0f} %"


def _geometries(n: Numbers) -> list[Geometry]:
    """Of whole images first, then of crops."""
    return [] if n.local is None else [g for g in (n.local.whole, n.local.crops) if g is not None]


def _overlaps(n: Numbers) -> bool:
    return any(geometry.overlap.median >= FULL for geometry in _geometries(n)[:1])


def _local_is_same(n: Numbers) -> bool:
    return any(geometry.plain.median >= FULL for geometry in _geometries(n)[:1])


# each by itself, in the order in which the verdict names them
RULES: tuple[Rule, ...] = (
    other_images,
    local_length,
    global_length,
    global_norms,
    local_norms,
    zero_globals,
    global_order,
    local_order,
    global_change,
    swapped,
    sizes_swapped,
    parts,
    resized,
    shifted,
    crops,
    cut,
    rows,
    descriptor_change,
    bits,
    options,
    another,
    other_pixels,
    little,
)
