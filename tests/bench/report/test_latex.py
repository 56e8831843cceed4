"""Text in LaTeX: no letter of a name is a command."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from bench.report.latex import comment, escaped

SPECIAL = st.text(st.sampled_from("\\{}$&#%_^~<>|`[]*-\n a1ü–·\udce9"))
COMMANDS = re.compile(r"\\(?:text[a-z]+|cdot|[{}$&#%_])")


@given(st.one_of(st.text(), SPECIAL))
@example("-{-")
@example("\\textbf{$x^2$} & 50% of #1_~")
def test_no_special_character_survives_and_braces_balance(text: str) -> None:
    written = escaped(text)
    rest = COMMANDS.sub("", written.replace(r"$\cdot$", ""))
    assert not set(rest) & set("\\$&#%_^~\n\r")
    depth = 0
    for c in rest:
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0 and "--" not in written and written.isprintable()


def test_every_special_character_is_printed_as_itself() -> None:
    assert escaped(r"\{}$&#%_^~") == (r"\textbackslash{}\{\}\$\&\#\%\_\textasciicircum{}\textasciitilde{}")
    assert escaped("gem-lite0, --add [x]*") == "gem-lite0, -{}-add {[}x{]}{*}"


@given(st.text())
def test_a_comment_is_one_line(text: str) -> None:
    assert len(comment(text).splitlines()) == 1 and comment(text).startswith("% ")
