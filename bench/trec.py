"""TREC runs and qrels, as trec_eval reads them: `qid Q0 docid rank score tag` and `qid 0 docid relevance`.

Names are written with every blank, control character and % as %XX, since TREC's columns are parted by blanks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from bench.errors import UserError

Ranked = Mapping[str, Sequence[tuple[str, float]]]  # query -> (image, score), best first
LARGEST = 4 * 2**30  # bytes


def encoded(name: str) -> str:
    """
    >>> encoded("a b%"), decoded(encoded("a b%"))
    ('a%20b%25', 'a b%')
    """
    return "".join(
        "".join(f"%{byte:02X}" for byte in c.encode()) if c == "%" or c.isspace() or not c.isprintable() else c
        for c in name
    )


def decoded(name: str) -> str:
    """The name that was encoded; one that has a % which is none of ours stays as it is."""
    return unquote(name) if re.fullmatch(r"(?:[^%]|%[0-9A-F]{2})*", name) else name


def run_lines(ranked: Ranked, tag: str) -> Iterator[str]:
    """Lines of a run. Scores are those of the places, from the list's length down to 1: trec_eval orders by score, then
    by name backwards, and never looks at the rank; so every scorer keeps our order, ties included."""
    for query, images in ranked.items():
        for rank, (image, _) in enumerate(images, 1):
            yield f"{encoded(query)} Q0 {encoded(image)} {rank} {len(images) - rank + 1} {encoded(tag)}\n"


def qrels_lines(relevant: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Lines of qrels: relevance 1 for each relevant image of a query."""
    for query, images in relevant.items():
        for image in images:
            yield f"{encoded(query)} 0 {encoded(image)} 1\n"


def _columns(path: Path, form: str) -> Iterator[tuple[str, list[str]]]:
    """Where each line is, for messages, and its columns."""
    count = len(form.split())
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: {path.stat().st_size} bytes, at most {LARGEST} are read")
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                columns = line.split()
                if len(columns) != count:
                    raise UserError(f"{path}, line {number}: found {line[:80].rstrip()!r}, expected {form}")
                yield f"{path}, line {number}", columns
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """query -> (image, score), by descending score and, where scores are equal, by rank.

    UserError naming the line for anything that is not a run, a repeated image, or a score that is not finite.
    """
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for where, (query, _, image, rank, score, _tag) in _columns(path, "qid Q0 docid rank score tag"):
        try:
            value, place = float(score), int(rank)
        except ValueError as error:
            raise UserError(f"{where}: rank {rank!r:.40} and score {score!r:.40} are no numbers") from error
        if not math.isfinite(value):
            raise UserError(f"{where}: score {score!r:.40} is not finite")
        images = found.setdefault(decoded(query), {})
        if decoded(image) in images:
            raise UserError(f"{where}: query {query!r:.80} names {image!r:.80} twice")
        images[decoded(image)] = (value, place)
    if not found:
        raise UserError(f"{path}: an empty run")
    return {
        query: [(i, v) for i, (v, _) in sorted(images.items(), key=lambda item: (-item[1][0], item[1][1]))]
        for query, images in found.items()
    }


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """query -> image -> relevance. UserError naming the line for anything else."""
    found: dict[str, dict[str, int]] = {}
    for where, (query, _, image, relevance) in _columns(path, "qid 0 docid relevance"):
        try:
            value = int(relevance)
        except ValueError as error:
            raise UserError(f"{where}: relevance {relevance!r:.40} is no whole number") from error
        images = found.setdefault(decoded(query), {})
        if decoded(image) in images:
            raise UserError(f"{where}: query {query!r:.80} names {image!r:.80} twice")
        images[decoded(image)] = value
    return found
