"""Text for LaTeX: what means something to it is written so that it prints."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.names import shown

# brackets and stars would be taken for an option of the end of the row before them
ESCAPES: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "–": r"\textendash{}",
    "·": r"$\cdot$",
}


def escaped(text: str) -> str:
    r"""The text as LaTeX prints it in a paragraph or a table; line ends and control characters become blanks.

    Letters that are not ASCII stay as they are, and need an engine and a font that have them.

    >>> print(escaped(r"50% of {a_b} in C:\x"))
    50\% of \{a\_b\} in C:\textbackslash{}x
    """
    letters = "".join(ESCAPES.get(c, c if c.isprintable() else " ") for c in shown(text))
    return re.sub("-(?=-)", "-{}", letters)  # two hyphens in a row would become a dash


def comment(text: str) -> str:
    r"""The text behind a % in one line, where it may hold anything.

    >>> comment("a\nb")
    '% a b'
    """
    return "% " + " ".join(text.splitlines())
