"""Names of images and rows: how they are compared, and how they are shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence


class Names:
    r"""Names that can be looked up as they are or in another Unicode form of the same text.

    A Mac writes `café` with a combining accent, other systems with one letter; both are the same name to their user.

    >>> Names(["cafe\u0301", "a"]).find("caf\u00e9") == "cafe\u0301"
    True
    >>> Names(["cafe\u0301", "caf\u00e9", "a"]).find("caf\u00e9") == "caf\u00e9"
    True
    """

    def __init__(self, names: Iterable[str]):
        self._names = frozenset(names)
        self._by_form: dict[str, str | None] = {}  # None where several names have one form
        for name in self._names:
            if not name.isascii():
                form = unicodedata.normalize("NFC", name)
                self._by_form[form] = None if form in self._by_form else name

    def find(self, name: str) -> str | None:
        """The known name that is meant, or None; another form counts only if a single known name has it."""
        if name in self._names:
            return name
        return None if name.isascii() else self._by_form.get(unicodedata.normalize("NFC", name))


def shown(name: object) -> str:
    r"""The name for a message: bytes that are not UTF-8, which Python keeps as lone surrogates, are escaped.

    >>> shown("caf\udce9.jpg")
    'caf\\xe9.jpg'
    """
    text = str(name)
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def encodable(name: str) -> bool:
    """Whether the name is text: a file name that is not UTF-8 is none, and no file of ours could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def parts(name: str) -> list[str]:
    """What a name may be parted into where room is narrow: after punctuation of options, paths and addresses.

    >>> parts("stages=rrt,lightglue:20"), parts("")
    (['stages=', 'rrt,', 'lightglue:', '20'], [])
    """
    return re.findall(r"[^,:;=+/]*[,:;=+/]+|[^,:;=+/]+", name)


def without_folders(names: Sequence[str]) -> dict[str, str]:
    """Row -> the row with its files by their names alone; whole where two would be the same.

    >>> without_folders(["rrt weights=/a/b/s*.safetensors 3 seeds", "mnn", "rrt weights=x/w.pt", "rrt weights=y/w.pt"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'rrt weights=/a/b/s*.safetensors 3 seeds': 'rrt weights=s*.safetensors 3 seeds', 'mnn': 'mnn',
     'rrt weights=x/w.pt': 'rrt weights=x/w.pt', 'rrt weights=y/w.pt': 'rrt weights=y/w.pt'}
    """
    short = [re.sub(r"=\S*/(?=[^/\s]+\.\w+(\s|$))", "=", name) for name in names]
    return {name: text if short.count(text) == 1 else name for name, text in zip(names, short, strict=True)}
