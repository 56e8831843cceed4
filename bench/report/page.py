"""Comparisons as one page: read from stored runs, holding all that it shows, asking nothing of a network.

What was stored becomes plain values (`bench.report.sections`), images become thumbnails, and a template writes both
down. Every name is escaped there, in what is seen and in the JSON that the page's script reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench.blend import Blend
from bench.files import write_whole, writing
from bench.names import parts, shown
from bench.report.sections import KINDS, TIMES, Section
from bench.report.tables import Table
from bench.report.thumbnails import thumbnails
from bench.results import Run

FILES = "page_files"  # template, style and script, beside this module
PICTURES = 20_000_000  # characters of all thumbnails of a page

Group = tuple[Sequence[Run], Table]  # a table and the runs that it is of


def write_page(path: Path, groups: Sequence[Group], blend: Blend = Blend()) -> Path:
    """The file of some tables' page, written whole or not at all. UserError where it cannot be written."""
    text = page(groups, blend)
    with writing(path, "make room there, or name another file with --html"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return path


def page(groups: Sequence[Group], blend: Blend = Blend(), pictures: int = PICTURES) -> str:
    """The HTML of some tables, made with this blend.

    Thumbnails are no more than `pictures` characters. Sections take turns, and the queries that changed most come
    first. An image that cannot be read or has no room shows its name.
    """
    sections = [Section(tuple(runs), table, blend) for runs, table in groups]
    details = [list(section.details()) for section in sections]
    wanted = [section.files(of) for section, of in zip(sections, details, strict=True)]
    in_turn = [file for file in chain.from_iterable(zip_longest(*wanted)) if file is not None]
    small = thumbnails(in_turn, pictures)
    kept = {file: one for file, one in small.items() if one is not None}
    numbers = {file: number for number, file in enumerate(kept)}
    data = {
        "thumbnails": [one.jpeg for one in kept.values()],
        "kinds": KINDS,
        "sections": [section.data(of, small, numbers) for section, of in zip(sections, details, strict=True)],
    }
    return shown(
        _environment()
        .get_template("page.html")
        .render(
            sections=[section.values() for section in sections],
            kinds=KINDS,
            times=TIMES,
            unreadable=len(small) - len(kept),
            left_out=len(set(in_turn)) - len(small),
            data=embedded(data),
        )
    )


def embedded(value: Any) -> Markup:
    r"""A value as JSON that may stand inside a <script> element: no character of it ends the element or a line.

    ValueError for a NaN or an infinite number.

    >>> print(embedded({"</script>": "a & b"}))
    {"\u003c/script\u003e":"a \u0026 b"}
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and U+2029 are escaped, too
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _parted(name: str) -> Markup:
    """The name, escaped, which a narrow place may part after punctuation.

    >>> _parted("rrt,a<b")
    Markup('rrt,<wbr>a&lt;b')
    """
    return Markup("<wbr>").join(parts(name))


def _environment() -> jinja2.Environment:
    """Templates beside this module, every value escaped; a value that is not there is an error."""
    folder = resources.files("bench.report") / FILES

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    found = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = lambda share: f"{100 * share:.3f}%"
    found.filters["parted"] = _parted
    found.globals["style"], found.globals["script"] = Markup(read("style.css")), Markup(read("script.js"))
    return found
