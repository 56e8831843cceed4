"""Ranked lists as text: TREC runs and qrels, as trec_eval reads them, and hloc's pairs.

A run's line is `qid Q0 docid rank score tag`, one of qrels `qid 0 docid relevance`, one of pairs `query candidate` with
or without a score. Files are UTF-8, plain or gzip'd. In TREC files every blank, control character and % of a name is
written as %XX, since columns are parted by blanks.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO
from urllib.parse import unquote

from bench.errors import UserError

Ranked = Mapping[str, Sequence[tuple[str, float]]]  # query -> (image, score), best first
LARGEST = 4 * 2**30  # bytes, unpacked
LONGEST = 2**16  # characters of a line
GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
BLANKS = " \t\r\n\f\v"  # what parts columns; others, such as a no-break space, belong to names
RUN = ("qid", "Q0", "docid", "rank", "score", "tag")
QRELS = ("qid", "0", "docid", "relevance")
PAIRS = ("query", "candidate")
SCORED_PAIRS = ("query", "candidate", "score")
_PARTED = re.compile(f"[{BLANKS}]+")
_ODD = re.compile(r"[^\x00-\x1b\x20-\x7f]")  # `str.split`, which is faster, would part a line there too


class Row(NamedTuple):
    """One candidate of a query: its name, the rank and score its line has, and which line that is, from 1."""

    image: str
    rank: int
    score: float | None
    line: int


def encoded(name: str) -> str:
    """
    >>> encoded("a b%"), decoded(encoded("a b%"))
    ('a%20b%25', 'a b%')
    """
    return "".join(
        "".join(f"%{byte:02X}" for byte in c.encode(errors="surrogateescape"))
        if c == "%" or c.isspace() or not c.isprintable()
        else c
        for c in name
    )


def decoded(name: str) -> str:
    """The name that was encoded; one that has a % which is none of ours stays as it is."""
    if "%" not in name:  # most names, and matching is slow
        return name
    return unquote(name, errors="surrogateescape") if re.fullmatch(r"(?:[^%]|%[0-9A-F]{2})*", name) else name


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


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The text of a file, unpacked if it is gzip'd, without its byte order mark."""
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(0)
        with gzip.open(file) if head == GZIP else file as content:
            if content.read(2) in UTF16:
                raise UserError(
                    f"{path}: cannot be read: it is UTF-16 text, UTF-8 is read",
                    hint="iconv -f UTF-16 -t UTF-8 FILE > NEW",
                )
            content.seek(0)
            yield io.TextIOWrapper(content, encoding="utf-8-sig")  # type: ignore[arg-type]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number, from 1, and columns of every line that is not blank. UserError for what is no UTF-8 text."""
    size = 0
    try:
        with _opened(path) as text:
            for number, line in enumerate(iter(lambda: text.readline(LONGEST + 1), ""), 1):
                size += len(line)
                if size > LARGEST or len(line) > LONGEST:
                    raise UserError(f"{path}, line {number}: too long; {LONGEST} characters a line, {LARGEST} a file")
                if "\0" in line:
                    raise UserError(f"{path}, line {number}: cannot be read: NUL characters, expected UTF-8 text")
                # files that were joined have a byte order mark each
                if line := line.removeprefix("\ufeff").strip(BLANKS):
                    yield number, _PARTED.split(line) if _ODD.search(line) else line.split()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _columns(path: Path, *forms: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Number and columns of every line; all lines are of one of the forms. UserError naming the line for another."""
    count = 0
    for number, columns in _lines(path):
        if len(columns) != count and (count or all(len(columns) != len(form) for form in forms)):
            expected = " or ".join(" ".join(form) for form in forms if count in (0, len(form)))
            found = " ".join(columns)
            hint = None if count else _advice(columns)
            raise UserError(f"{path}, line {number}: found {found[:80]!r}, expected {expected}", hint=hint)
        count = len(columns)
        yield number, columns


def _advice(columns: Sequence[str]) -> str | None:
    if len(columns) == len(QRELS):
        return "four columns are those of qrels, which say what is relevant and rank nothing"
    if columns[0][:1] in ("{", "["):
        return "the file looks like JSON, which is not read"
    return "columns are parted by blanks or tabs, not by commas" if "," in " ".join(columns) else None


def read_rows(path: Path) -> dict[str, list[Row]]:
    """query -> candidates of a run or of pairs, in the order of the file; a pair's rank is its place among the query's.

    Names of pairs are as they stand, those of runs are decoded. UserError naming the line for anything else, a
    repeated image, or a score that is not finite.
    """
    found: dict[str, list[Row]] = {}
    seen: dict[str, set[str]] = {}
    score: float | None
    for line, columns in _columns(path, RUN, PAIRS, SCORED_PAIRS):
        where = f"{path}, line {line}"
        if len(columns) == len(RUN):
            query, image = decoded(columns[0]), decoded(columns[2])
            rank, score = _rank_and_score(where, columns[3], columns[4])
        else:
            query, image = columns[:2]
            rank = len(found.get(query, ())) + 1
            score = _rank_and_score(where, "0", columns[2])[1] if len(columns) == len(SCORED_PAIRS) else None
        if image in seen.setdefault(query, set()):
            raise UserError(f"{where}: query {query!r:.80} names {image!r:.80} twice")
        seen[query].add(image)
        found.setdefault(query, []).append(Row(image, rank, score, line))
    if not found:
        raise UserError(f"{path}: an empty run")
    return found


def _rank_and_score(where: str, rank: str, score: str) -> tuple[int, float]:
    try:
        place, value = int(rank), float(score)
    except ValueError as error:
        raise UserError(f"{where}: rank {rank!r:.40} and score {score!r:.40} are no numbers") from error
    if not math.isfinite(value):
        raise UserError(f"{where}: score {score!r:.40} is not finite")
    return place, value


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """query -> (image, score), by descending score and, where scores are equal, by rank, as trec_eval orders a run.

    UserError naming the line for anything that is not a run, a repeated image, or a score that is not finite.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    for query, rows in read_rows(path).items():
        if rows[0].score is None:
            raise UserError(f"{path}, line {rows[0].line}: found pairs without scores, expected {' '.join(RUN)}")
        scored = [(row.image, row.score, row.rank) for row in rows if row.score is not None]
        found[query] = [(image, value) for image, value, _ in sorted(scored, key=lambda each: (-each[1], each[2]))]
    return found


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """query -> image -> relevance. UserError naming the line for anything else."""
    found: dict[str, dict[str, int]] = {}
    for line, (query, _, image, relevance) in _columns(path, QRELS):
        where = f"{path}, line {line}"
        try:
            value = int(relevance)
        except ValueError as error:
            raise UserError(f"{where}: relevance {relevance!r:.40} is no whole number") from error
        images = found.setdefault(decoded(query), {})
        if decoded(image) in images:
            raise UserError(f"{where}: query {query!r:.80} names {image!r:.80} twice")
        images[decoded(image)] = value
    return found
