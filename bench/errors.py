"""The one kind of error that is the user's to mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake in the input: says what was found and expected; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"

    @property
    def line(self) -> str:
        """Message and hint in one line, as the reason why a part of the work is left out."""
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class NoRoom(UserError):
    """A full disk: it ends the command, for leaving out a part of the work would only fail at the next write."""


class Unknown(UserError):
    """A name that nothing here has."""


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def unknown(kind: str, name: str, known: Iterable[str]) -> Unknown:
    """The error for a name that is not known, with the nearest known name as its hint."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(names) or 'none'}"
    return Unknown(f"unknown {kind} {name!r}", hint=hint)
