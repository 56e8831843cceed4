"""How a regression check is told, whatever names its rows and queries have."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report.findings import SHOWN, Checked, Finding, Moved, Outcome, to_junit, to_markdown

OK = Finding("ok", "accuracy", "mnn Easy", "mAP changed by +0.00 points")
UNSURE = Finding("cannot tell", "latency", "mnn", "ms per pair is 2 x ransac's", "measured on another machine")
FAILED = Finding(
    "FAIL", "accuracy", "mnn Hard", "mAP changed by -1.00 points", "too much", (Moved("mnn", "Hard", "q1", 0.9, 0.5),)
)
HOSTILE = 'a|b`c`*d*_e_<img src=x onerror="f()">&amp;@me#1[x](y)\n| z |\x00\x1b]]>\udce9'


def checked(*findings: Finding, notes: tuple[str, ...] = ()) -> Checked:
    return Checked(findings, "runs/head", "runs/base", "AP", notes)


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ((OK, OK), "No regression: all 2 checks passed."),
        ((OK, UNSURE), "No regression was seen, and 1 of 2 checks cannot tell."),
        ((UNSURE,), "Nothing could be told: none of 1 checks has what it needs."),
        ((OK, UNSURE, FAILED), "Regression: 1 of 3 checks failed, of accuracy."),
    ],
)
def test_the_first_sentence_is_the_verdict(findings: tuple[Finding, ...], verdict: str) -> None:
    assert to_markdown(checked(*findings)).splitlines()[0] == verdict


@pytest.mark.parametrize(
    ("findings", "passes", "strictly"), [((OK,), True, True), ((OK, UNSURE), True, False), ((OK, FAILED), False, False)]
)
def test_what_cannot_be_told_passes_unless_that_is_not_enough(
    findings: tuple[Finding, ...], passes: bool, strictly: bool
) -> None:
    assert (checked(*findings).passes(), checked(*findings).passes(strict=True)) == (passes, strictly)


def test_the_worst_comes_first() -> None:
    assert checked(OK, UNSURE, FAILED).findings == (FAILED, UNSURE, OK)


def test_what_cannot_be_told_has_a_reason_and_a_check_has_findings() -> None:
    with pytest.raises(ValueError, match="has a reason"):
        Finding("cannot tell", "latency", "mnn", "ms per pair")
    with pytest.raises(ValueError, match="without a finding"):
        checked()


def test_the_queries_that_moved_most_are_shown_and_the_rest_counted() -> None:
    moved = tuple(Moved("mnn", "Hard", f"q{n}", 0.9, round(0.9 - 0.01 * n, 6)) for n in range(1, SHOWN + 4))
    text = to_markdown(checked(Finding("FAIL", "accuracy", "mnn Hard", "lost", "too much", moved)))
    rows = re.findall(r"<code>(q\d+)</code> \| Hard \| <code>mnn</code> \| 90\.0 \| ([\d.]+) \| (\S+) \|", text)
    assert [query for query, _, _ in rows] == [f"q{n}" for n in range(SHOWN + 3, 3, -1)]
    assert rows[0] == ("q13", "77.0", "-13.0") and "and 3 more." in text


def test_no_query_is_shown_where_none_moved() -> None:
    assert "moved" not in to_markdown(checked(OK))


def test_a_summary_is_one_table_whatever_the_names() -> None:
    hostile = Finding("FAIL", "accuracy", HOSTILE, HOSTILE, HOSTILE, (Moved(HOSTILE, HOSTILE, HOSTILE, 0, 1),))
    lines = to_markdown(checked(hostile, OK, notes=(HOSTILE,))).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == 2 + 2 + 2 + 1
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {6, 7}  # of five and of six columns
    for line in lines:
        bare = re.sub(r"\\.|</?code>", "", line)  # what is escaped, and our own marks
        assert not re.search(r"[<>&@`\[\]\x00\x1b]", bare), line
    "\n".join(lines).encode()


def test_junit_has_a_case_a_finding_with_its_outcome() -> None:
    root = ElementTree.fromstring(to_junit(checked(OK, UNSURE, FAILED)).encode())
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    counts = {"tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    assert suite.attrib == {"name": "rerankbench check", **counts} and root.attrib == counts
    cases = {(case.get("classname"), case.get("name")): case for case in suite}
    assert len(cases) == 3 and {case.tag for case in suite} == {"testcase"}
    failure = cases["accuracy", "mnn Hard"].find("failure")
    assert failure is not None and failure.get("message") == FAILED.text
    assert "query q1: 90.0 -> 50.0" in str(failure.text)
    skipped = cases["latency", "mnn"].find("skipped")
    assert skipped is not None and skipped.get("message") == UNSURE.text
    assert [child.tag for child in cases["accuracy", "mnn Easy"]] == ["system-out"]


OUTCOMES: tuple[Outcome, ...] = ("ok", "FAIL", "cannot tell")
texts = st.text(st.characters(codec=None), min_size=1)  # lone surrogates too
findings = st.builds(
    Finding,
    st.sampled_from(OUTCOMES),
    st.sampled_from(("accuracy", "latency")),
    texts,
    texts,
    texts,
    st.lists(st.builds(Moved, texts, texts, texts, st.floats(0, 1), st.floats(0, 1)), max_size=3).map(tuple),
)


@given(st.lists(findings, min_size=1, max_size=4))
def test_any_names_give_junit_that_can_be_read(some: list[Finding]) -> None:
    root = ElementTree.fromstring(to_junit(checked(*some)).encode())
    cases = root.findall("testsuite/testcase")
    assert len(cases) == len(some)
    kinds = ["failure" if one.outcome == "FAIL" else "skipped" if one.outcome != "ok" else "system-out" for one in some]
    assert sorted(case[0].tag for case in cases) == sorted(kinds)
    to_markdown(checked(*some)).encode()


def test_two_findings_of_one_name_are_two_cases() -> None:
    root = ElementTree.fromstring(to_junit(checked(OK, OK)).encode())
    assert [case.get("name") for case in root.iter("testcase")] == ["mnn Easy", "mnn Easy (2)"]
