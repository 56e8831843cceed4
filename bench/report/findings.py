"""What a regression check found, told in lines, in Markdown for a pull request, and in JUnit XML for a CI."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from xml.etree import ElementTree

from bench.names import shown

Outcome = Literal["FAIL", "cannot tell", "ok"]  # the worst first
Kind = Literal["candidates", "ties", "row", "settings", "accuracy", "latency"]  # what is checked
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
SHOWN = 10  # queries of a summary
MARKS = re.compile(r"([\\`*_\[\]<>#|&~@$])")  # what means something to a reader of Markdown
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Moved:
    """A query whose value is another one than before; values in [0, 1], of several runs their mean."""

    row: str
    difficulty: str
    query: str
    before: float
    now: float

    @property
    def by(self) -> float:
        return self.now - self.before


@dataclass(frozen=True)
class Finding:
    """One check. `why` says of a failure what is wrong, and of "cannot tell" what keeps from telling."""

    outcome: Outcome
    kind: Kind
    subject: str  # of what: a row, or a row and a difficulty
    change: str  # what was seen, with its unit
    why: str = ""
    moved: tuple[Moved, ...] = ()

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome {self.outcome!r}, expected one of {', '.join(OUTCOMES)}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind {self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if self.outcome == "cannot tell" and not self.why:
            raise ValueError(f"{self.subject}: what cannot be told has a reason")

    @property
    def text(self) -> str:
        return f"{self.subject}: {self.change}" + (f"; {self.why}" if self.why else "")

    @property
    def line(self) -> str:
        """As the terminal has it."""
        return f"{self.outcome:<4}  {self.text}"


@dataclass(frozen=True)
class Checked:
    """All findings of a check, the worst first."""

    findings: tuple[Finding, ...]
    now: str  # what was checked
    before: str  # what it was compared with
    of_query: str  # the name of a query's value
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.findings:
            raise ValueError("a check without a finding")
        ordered = sorted(self.findings, key=lambda finding: OUTCOMES.index(finding.outcome))
        object.__setattr__(self, "findings", tuple(ordered))

    def count(self, outcome: Outcome) -> int:
        return sum(finding.outcome == outcome for finding in self.findings)

    def passes(self, strict: bool = False) -> bool:
        """Whether nothing failed; `strict`: and everything could be told."""
        return not self.count("FAIL") and not (strict and self.count("cannot tell"))

    @property
    def counted(self) -> str:
        return f"{self.count('ok')} ok, {self.count('FAIL')} failed, {self.count('cannot tell')} cannot be told"

    @property
    def verdict(self) -> str:
        """What to conclude, in one sentence."""
        total, unsure = len(self.findings), self.count("cannot tell")
        if failed := [finding for finding in self.findings if finding.outcome == "FAIL"]:
            kinds = " and ".join(dict.fromkeys(finding.kind for finding in failed))
            return f"Regression: {len(failed)} of {total} checks failed, of {kinds}."
        if unsure == total:
            return f"Nothing could be told: none of {total} checks has what it needs."
        if unsure:
            return f"No regression was seen, and {unsure} of {total} checks cannot tell."
        return f"No regression: all {total} checks passed."


def to_markdown(checked: Checked) -> str:
    """The verdict, a table with a line a finding, and the queries that moved most."""
    lines = [
        checked.verdict,
        "",
        f"{_code(checked.now)} against {_code(checked.before)}: {checked.counted}.",
        "",
        "| outcome | check | of | seen | why |",
        "|---|---|---|---|---|",
        *(
            f"| {_bold(finding)} | {finding.kind} | {_code(finding.subject)} | {_plain(finding.change)} "
            f"| {_plain(finding.why)} |"
            for finding in checked.findings
        ),
        "",
        *_moved(checked),
        *(f"- {_plain(note)}" for note in checked.notes),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _bold(finding: Finding) -> str:
    return finding.outcome if finding.outcome == "ok" else f"**{finding.outcome}**"


def _moved(checked: Checked) -> list[str]:
    moved = sorted(
        (one for finding in checked.findings for one in finding.moved),
        key=lambda one: (-abs(one.by), one.row, one.difficulty, one.query),
    )
    if not moved:
        return []
    of_query = _plain(checked.of_query)
    lines = [
        f"Queries that moved most, {of_query} in percent:",
        "",
        f"| query | difficulty | method | {of_query} before | {of_query} now | change |",
        "|---|---|---|---:|---:|---:|",
        *(
            f"| {_code(one.query)} | {_plain(one.difficulty)} | {_code(one.row)} "
            f"| {100 * one.before:.1f} | {100 * one.now:.1f} | {100 * one.by:+.1f} |"
            for one in moved[:SHOWN]
        ),
    ]
    if (more := len(moved) - SHOWN) > 0:
        lines += ["", f"and {more} more."]
    return [*lines, ""]


def _plain(text: str) -> str:
    r"""Text that a reader of Markdown shows as it is, on one line.

    >>> print(_plain("a|b_c"))
    a\|b\_c
    """
    printed = "".join(c if c.isprintable() else " " for c in shown(text))
    return MARKS.sub(r"\\\1", printed)


def _code(text: str) -> str:
    """As a name: in code, where a site that knows people's names takes what follows @ for none of them."""
    return f"<code>{_plain(text)}</code>"


def to_junit(checked: Checked) -> str:
    """JUnit XML: one test case a finding; what cannot be told is skipped, with its reason."""
    counts = {
        "tests": len(checked.findings),
        "failures": checked.count("FAIL"),
        "errors": 0,
        "skipped": checked.count("cannot tell"),
    }
    numbers = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "rerankbench check", **numbers})
    for finding, name in zip(checked.findings, _names(checked.findings), strict=True):
        case = ElementTree.SubElement(suite, "testcase", {"classname": finding.kind, "name": name})
        if finding.outcome == "FAIL":
            failure = ElementTree.SubElement(case, "failure", {"message": _xml(finding.text), "type": finding.kind})
            failure.text = "\n".join([_xml(finding.text), *(_xml(_movement(one)) for one in finding.moved[:SHOWN])])
        elif finding.outcome == "cannot tell":
            ElementTree.SubElement(case, "skipped", {"message": _xml(finding.text)})
        else:
            ElementTree.SubElement(case, "system-out").text = _xml(finding.text)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True).decode() + "\n"


def _names(findings: Sequence[Finding]) -> list[str]:
    """A name for each, of which no two of one kind are equal."""
    seen: Counter[tuple[str, str]] = Counter()
    names = []
    for finding in findings:
        name = _xml(finding.subject)
        seen[finding.kind, name] += 1
        times = seen[finding.kind, name]
        names.append(name if times == 1 else f"{name} ({times})")
    return names


def _movement(moved: Moved) -> str:
    return f"query {moved.query}: {100 * moved.before:.1f} -> {100 * moved.now:.1f}"


def _xml(text: str) -> str:
    r"""Without the characters that no XML may hold; what is left is escaped where it is written.

    >>> _xml("a\x00b")
    'a\ufffdb'
    """
    return NOT_XML.sub("\ufffd", shown(text))
